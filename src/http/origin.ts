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
  /** Also for requests that say nothing of a page: browsers send a page's own GETs without its origin. */
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
    if (isForeign(headers, named, strict) && !(!keys.isEmpty && holdsKey(keys, headers))) {
      const who =
        headers.origin === undefined ? `a page of '${headers.host}'` : `the origin '${headers.origin}'`;
      throw new RouterError(
        'origin_foreign',
        `${who} may not do this: send an API key, or name the origin in --cors-origins`,
      );
    }
    await next();
  });
}

function isForeign(headers: IncomingHttpHeaders, named: ReadonlySet<string>, strict: boolean): boolean {
  const { origin, host } = headers;
  const site = headers['sec-fetch-site'];
  // Browsers set it themselves, and know their own origin behind any proxy.
  if (site === 'same-origin' || site === 'none') return false;
  if (origin === undefined) {
    return site === 'cross-site' || site === 'same-site' || (strict && isPublicName(headers, named));
  }
  if (named.has(origin) || isLoopbackOrigin(origin)) return false;
  const own = urlOf(origin);
  if (host === undefined || own === undefined) return true;
  return own.host !== urlOf(`${own.protocol}//${host}`)?.host || isPublicName(headers, named);
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
