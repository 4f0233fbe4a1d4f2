import type { IncomingHttpHeaders } from 'node:http';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { matchedRoutes } from 'hono/route';
import { RouterError } from '../errors.js';
import type { HttpEnv } from './app.js';
import { holdsKey, type KeyRing } from './auth.js';
import { requestHeaders } from './header-policy.js';
import { sendToHelper, type Helper } from './helper-request.js';
import { refuse } from './proxy.js';
import { pathOf } from './request-target.js';

export interface WebUiOptions {
  readonly helper: Helper;
  readonly keys: KeyRing;
  /** Path in front of every route of ours, without a slash at its end; the helper has none. */
  readonly apiPrefix: string;
  /** The directory that is served instead of the web UI that is built into the binary. */
  readonly staticPath: string | undefined;
  /** Longest time for which a client may not read; 0 = no bound. */
  readonly slowReaderMs: number;
}

/** What the helper, a small router by itself, answers to GET besides the web UI. None of it is for our clients. */
const routesOfHelper = new Set([
  ...['/health', '/v1/health', '/metrics', '/props', '/models', '/v1/models', '/models/sse'],
  ...['/lora-adapters', '/slots', '/v1/stream', '/cors-proxy', '/tools'],
]);

/** Whether only `serveWebUi`, as the last of all routes, has something to say: it judges by itself who may read what. */
export function isForWebUi(c: Context<HttpEnv>): boolean {
  const isLook = c.req.method === 'GET' || c.req.method === 'HEAD';
  return isLook && matchedRoutes(c).every(({ path }) => path.endsWith('/*'));
}

/**
 * GET and HEAD of what no other route has: the web UI. Which of its paths are public only the binary knows, so on behalf
 * of a client without a key the helper is asked without one, too, and refuses what is not.
 */
export function serveWebUi({ helper, keys, apiPrefix, staticPath, slowReaderMs }: WebUiOptions) {
  const isBuiltIn = staticPath === undefined;
  return async function serveWebUiHandler(c: Context<HttpEnv>): Promise<Response> {
    const { incoming, outgoing } = c.env;
    const { path, search } = below(apiPrefix, pathOf(incoming.url));
    // The page names its parts relative to itself.
    if (path === '') return c.redirect(`${apiPrefix}/${search}`);
    if (isBuiltIn) outgoing.appendHeader('Vary', 'Accept-Encoding');
    try {
      if (!namesFile(path)) throw new RouterError('not_found', 'File Not Found');
      const method = incoming.method === 'HEAD' ? 'HEAD' : 'GET';
      const decompress = isBuiltIn && !acceptsGzip(incoming.headers);
      const headers = requestHeaders(incoming.rawHeaders);
      const refusal = await sendToHelper(
        c,
        helper,
        {
          method,
          path: path + search,
          headers: isBuiltIn ? askingForGzip(headers, { whole: decompress }) : headers,
          body: undefined,
          withKey: keys.isEmpty || holdsKey(keys, incoming.headers),
        },
        { slowReaderMs, asset: { prefix: apiPrefix, decompress, hasBody: method === 'GET' } },
      );
      if (refusal === 401) throw new RouterError('key_invalid', 'Invalid API Key');
      if (refusal === 404) throw notFound(path, { isBuiltIn });
    } catch (error) {
      refuse(c, error);
    }
    return RESPONSE_ALREADY_SENT;
  };
}

function notFound(path: string, { isBuiltIn }: { readonly isBuiltIn: boolean }): RouterError {
  const isHome = path === '/' || path === '/index.html';
  return new RouterError(
    'not_found',
    isHome && isBuiltIn
      ? 'this llama-server was built without its web UI: build one with ./build-llama.sh --ui, or give --path or --no-ui'
      : 'File Not Found',
  );
}

/**
 * Whether the helper takes a path for that of a file. It reads more into one than the router here, which found no route
 * for it: `%u0063` is a letter to it, and `%2f` a slash like any other. Only what both read alike is sent.
 */
function namesFile(path: string): boolean {
  if (/%(?![\da-f]{2})|%(?:00|2f|5c)|\\/i.test(path)) return false;
  const read = path.replace(/%(..)/g, (_, octet: string) => String.fromCharCode(parseInt(octet, 16)));
  return !routesOfHelper.has(read);
}

/** What follows the prefix, which may be written percent-encoded: as many segments are left out as it has. */
function below(prefix: string, target: string): { readonly path: string; readonly search: string } {
  const [, whole = '', search = ''] = /^([^?#]*)(\?[^#]*)?/.exec(target) ?? [];
  const segments = whole.split('/').slice(prefix.split('/').length);
  return { path: segments.map((segment) => `/${segment}`).join(''), search };
}

/** @see https://www.rfc-editor.org/rfc/rfc9110#section-12.5.3 */
function acceptsGzip({ 'accept-encoding': accepted = '' }: IncomingHttpHeaders): boolean {
  return accepted
    .toLowerCase()
    .split(',')
    .some((coding) => /^\s*(?:x-)?(?:gzip|\*)\s*(?:;(?!\s*q\s*=\s*0(?:\.0*)?\s*$)|$)/.test(coding));
}

/** The binary keeps its web UI compressed and refuses clients that do not name gzip. */
function askingForGzip(headers: readonly string[], { whole }: { readonly whole: boolean }): string[] {
  const dropped = new Set(['accept-encoding', ...(whole ? ['range', 'if-range'] : [])]);
  const kept = headers.filter((_, at) => !dropped.has(headers[at - (at % 2)]?.toLowerCase() ?? ''));
  return [...kept, 'accept-encoding', 'gzip'];
}
