import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { createMiddleware } from 'hono/factory';
import { RouterError } from '../errors.js';
import type { AllowedHosts } from './allowed-hosts.js';
import type { HttpEnv } from './app.js';
import { holdsKey, type KeyRing } from './auth.js';

const loopbackHosts = new Set(['localhost', '127.0.0.1', '[::1]']);

/** Whether a page of this origin is served by the machine its browser runs on. */
export function isLoopbackOrigin(origin: string): boolean {
  return loopbackHosts.has(urlOf(origin)?.hostname ?? '');
}

export interface OriginGuardOptions {
  readonly keys: KeyRing;
  /** By which names a browser may ask. */
  readonly hosts: AllowedHosts;
  /** As `--cors-origins` gives it: origins that are named there are nobody's foreign ones. */
  readonly origins: string;
  /**
   * Also for what a page only gets, as with an image: to a server that is reached over plain HTTP browsers name neither
   * the origin nor the site of that, and a script can have its own look like any other program's.
   */
  readonly strict?: boolean;
}

/**
 * Refuses requests that a page of another origin makes in its visitor's browser. Routes that change something have
 * this guard: CORS alone hides their answers and lets them act. On whatever address they arrive,
 *
 * 1. one with an API key is let through;
 * 2. so is one from a page that `--cors-origins` names, as its `Origin`;
 * 3. so is one that no browser sends: without `Origin`, `Sec-Fetch-Site`, `Referer` and a `User-Agent` of `Mozilla/…`.
 *    Browsers send an `Origin` with all but GET and HEAD; where the guard is strict, those two always count as theirs;
 * 4. the `Host` must be an allowed one (`AllowedHosts`);
 * 5. the page must be of the same origin, or of loopback as in llama-server's own `--cors-origins localhost`:
 *    `Sec-Fetch-Site`, `Origin` and `Referer` tell, in this order. Where none does, the request passes, unless the guard
 *    is strict and it is a browser's that carries nothing which a foreign page could not send unasked.
 */
export function refuseForeignOrigins({ keys, hosts, origins, strict = false }: OriginGuardOptions) {
  const named = new Set(origins.split(',').map((origin) => origin.trim()));
  return createMiddleware<HttpEnv>(async function refuseForeignOriginsMiddleware(c, next) {
    const { incoming } = c.env;
    const objection = objectionTo(incoming, { hosts, named, strict });
    if (objection !== undefined && (keys.isEmpty || !holdsKey(keys, incoming.headers))) {
      throw new RouterError('origin_foreign', `${objection}, or use API keys (--api-key)`);
    }
    await next();
  });
}

interface Rules {
  readonly hosts: AllowedHosts;
  /** Origins. */
  readonly named: ReadonlySet<string>;
  readonly strict: boolean;
}

/** What speaks against a request without a key, and what to do about it; undefined when nothing does. */
function objectionTo(
  { headers, method, socket }: IncomingMessage,
  { hosts, named, strict }: Rules,
): string | undefined {
  const { origin, host, referer } = headers;
  const site = headers['sec-fetch-site'];
  if (origin !== undefined && named.has(origin)) return undefined;
  const isLook = method === 'GET' || method === 'HEAD';
  if (!isOfBrowser(headers) && !(strict && isLook)) return undefined;

  // Old programs of HTTP/1.0 send none; browsers always do.
  if (host && !hosts.includes(host, socket.localAddress)) {
    const name = host.replace(/:\d+$/, '');
    return (
      `the header 'Host: ${shown(host)}' has a name that a web page may have had point here: ` +
      `if it is this server's, start it with --allowed-hosts ${shown(name)}`
    );
  }

  // Browsers set it themselves, and know their own origin behind any proxy.
  if (site === 'same-origin' || site === 'none') return undefined;
  if (origin !== undefined) return isForeign(origin, host, named) ? foreign('Origin', origin) : undefined;
  if (site !== undefined) return foreign('Sec-Fetch-Site', site);
  if (referer) {
    const page = urlOf(referer)?.origin ?? 'null';
    return isForeign(page, host, named) ? foreign('Referer', page) : undefined;
  }
  if (!strict || !saysMozilla(headers) || isDeliberate(headers)) return undefined;
  return "this may be a foreign page's, since the browser names none: name the page's origin in --cors-origins";
}

function isForeign(origin: string, host: string | undefined, named: ReadonlySet<string>): boolean {
  if (named.has(origin) || isLoopbackOrigin(origin)) return false;
  const own = urlOf(origin);
  if (host === undefined || own === undefined) return true;
  return own.host !== urlOf(`${own.protocol}//${host}`)?.host;
}

function foreign(header: string, value: string): string {
  return `the header '${header}: ${shown(value)}' tells of a page that is not of this server: name its origin in --cors-origins`;
}

function isOfBrowser(headers: IncomingHttpHeaders): boolean {
  const { origin, referer, 'sec-fetch-site': site } = headers;
  return [origin, referer, site].some((header) => header !== undefined) || saysMozilla(headers);
}

/** All browsers begin like this, and their pages cannot have them say otherwise without being asked for their origin. */
function saysMozilla(headers: IncomingHttpHeaders): boolean {
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

const maxShownLength = 200;

/** A client's text as a message can have it. */
function shown(text: string): string {
  const printable = text.replace(/[^\x20-\x7e]/g, '?');
  return printable.length > maxShownLength ? `${printable.slice(0, maxShownLength)}…` : printable;
}

function urlOf(text: string): URL | undefined {
  return URL.canParse(text) ? new URL(text) : undefined;
}
