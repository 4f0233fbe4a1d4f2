import type { IncomingHttpHeaders } from 'node:http';
import { createMiddleware } from 'hono/factory';
import { RouterError } from '../errors.js';
import type { HttpEnv } from './app.js';
import { holdsKey, type KeyRing } from './auth.js';

const loopbackHosts = new Set(['localhost', '127.0.0.1', '[::1]']);

/** Whether a page of this origin is served by the machine its browser runs on. */
export function isLoopbackOrigin(origin: string): boolean {
  return loopbackHosts.has(urlOf(origin)?.hostname ?? '');
}

export interface OriginGuardOptions {
  readonly keys: KeyRing;
  /**
   * Also for requests that name no origin: browsers send a page's own GETs without it, and to a server that is reached
   * over plain HTTP by an address those of foreign pages too, such as for an image. Of browsers that hide their page's
   * address such requests are refused, unless they carry a header that no foreign page can send unasked.
   */
  readonly strict?: boolean;
  /** As `--cors-origins` gives it: origins that are named there are nobody's foreign ones. */
  readonly origins: string;
}

/**
 * Refuses requests that a page of another origin makes in its visitor's browser. Routes that change something have
 * this guard: CORS alone hides their answers and lets them act. A page that knows a key is trusted, and so are pages
 * of loopback, as in llama-server's own `--cors-origins localhost`.
 */
export function refuseForeignOrigins({ keys, origins, strict = false }: OriginGuardOptions) {
  const named = new Set(origins.split(',').map((origin) => origin.trim()));
  return createMiddleware<HttpEnv>(async function refuseForeignOriginsMiddleware(c, next) {
    const { headers } = c.env.incoming;
    const stranger = strangerIn(headers, named, strict);
    if (stranger !== undefined && !(!keys.isEmpty && holdsKey(keys, headers))) {
      throw new RouterError(
        'origin_foreign',
        `${stranger} may not do this: send an API key, or name the origin in --cors-origins`,
      );
    }
    await next();
  });
}

/** Who asks, when that is a page of another origin, or may be one. */
function strangerIn(
  headers: IncomingHttpHeaders,
  named: ReadonlySet<string>,
  strict: boolean,
): string | undefined {
  const { origin, host, referer } = headers;
  const site = headers['sec-fetch-site'];
  // Browsers set it themselves, and know their own origin behind any proxy.
  if (site === 'same-origin' || site === 'none') return undefined;
  if (origin !== undefined) {
    return isForeign(origin, headers, named) ? `the origin '${origin}'` : undefined;
  }
  const isForeignSite = site === 'cross-site' || site === 'same-site';
  if (isForeignSite || (strict && isPublicName(headers, named))) return `a page of '${host}'`;
  if (!strict) return undefined;
  if (referer) {
    const page = urlOf(referer)?.origin ?? 'null';
    return isForeign(page, headers, named) ? `a page of '${page}'` : undefined;
  }
  return isBrowser(headers) && !isDeliberate(headers) ? 'a browser that does not name its page' : undefined;
}

function isForeign(origin: string, headers: IncomingHttpHeaders, named: ReadonlySet<string>): boolean {
  if (named.has(origin) || isLoopbackOrigin(origin)) return false;
  const { host } = headers;
  const own = urlOf(origin);
  if (host === undefined || own === undefined) return true;
  return own.host !== urlOf(`${own.protocol}//${host}`)?.host || isPublicName(headers, named);
}

/** All browsers begin like this, and their pages cannot have them say otherwise without being asked for their origin. */
function isBrowser(headers: IncomingHttpHeaders): boolean {
  return headers['user-agent']?.startsWith('Mozilla/') ?? false;
}

/**
 * Whether a request carries what neither an image, a link nor a form can, and a script not without its origin. The web
 * UI's requests do: those to the proxy for the headers of their target, all others for their JSON.
 *
 * @see https://fetch.spec.whatwg.org/#cors-safelisted-request-header
 */
function isDeliberate(headers: IncomingHttpHeaders): boolean {
  return (
    /^application\/json\b/i.test(headers['content-type'] ?? '') ||
    Object.keys(headers).some((name) => name.startsWith('x-llama-server-proxy-header-'))
  );
}

/**
 * Whether the request came by a name that anybody can register: a page may have had its own name point to this machine
 * (DNS rebinding), and is then its origin. Names of local networks, and addresses, nobody else can own. Behind TLS its
 * name would not fit the certificate, and browsers tell by `Sec-Fetch-Site`.
 */
function isPublicName({ host = '' }: IncomingHttpHeaders, named: ReadonlySet<string>): boolean {
  const name = urlOf(`http://${host}`)?.hostname ?? '';
  const isLocal =
    !name.includes('.') || /^\[|^[\d.]+$|\.(?:local|localhost|lan|internal|home\.arpa)$/.test(name);
  return !isLocal && !named.has(`http://${host}`) && !named.has(`https://${host}`);
}

function urlOf(text: string): URL | undefined {
  return URL.canParse(text) ? new URL(text) : undefined;
}
