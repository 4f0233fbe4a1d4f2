import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import type { Context } from 'hono';
import { createMiddleware } from 'hono/factory';
import { RouterError } from '../errors.js';
import type { HttpEnv } from './app.js';

/** Probes have no key, and get none from the native router either. */
const publicRoutes = new Set(['/health', '/v1/health', '/livez', '/readyz']);

/** The API keys that are valid now; without any everything is allowed. */
export class KeyRing {
  #digests: readonly Buffer[] = [];

  constructor(keys: readonly string[]) {
    this.replace(keys);
  }

  /** From the next request on these keys are valid, and no other. */
  replace(keys: readonly string[]): void {
    this.#digests = keys.map(digest);
  }

  get isEmpty(): boolean {
    return this.#digests.length === 0;
  }

  /** In a time that says nothing about the keys: digests are of one length and every one is compared. */
  holds(key: string | Buffer): boolean {
    const presented = digest(key);
    return this.#digests.filter((known) => timingSafeEqual(known, presented)).length > 0;
  }
}

/** Whether a request with these headers presents a key of the ring. */
export function holdsKey(keys: KeyRing, headers: IncomingHttpHeaders): boolean {
  return keys.holds(presentedKey(headers));
}

/**
 * Refuses requests without a valid API key, given as `Authorization: Bearer KEY` (or bare) or `X-Api-Key: KEY`.
 *
 * @param judgesItself whether what answers a request knows by itself who may have the answer
 */
export function requireApiKey(
  keys: KeyRing,
  prefix: string,
  judgesItself: (c: Context<HttpEnv>) => boolean = () => false,
) {
  return createMiddleware<HttpEnv>(async function requireApiKeyMiddleware(c, next) {
    const isPublic = (): boolean => publicRoutes.has(c.req.path.slice(prefix.length)) || judgesItself(c);
    if (!keys.isEmpty && !isPublic()) {
      if (!holdsKey(keys, c.env.incoming.headers)) throw new RouterError('key_invalid', 'Invalid API Key');
    }
    await next();
  });
}

/** As the bytes that the client sent; Node makes a character of each. */
function presentedKey(headers: IncomingHttpHeaders): Buffer {
  const { authorization, 'x-api-key': bare } = headers;
  const presented = authorization || (typeof bare === 'string' ? bare : '');
  return Buffer.from(presented.replace(/^Bearer /, ''), 'latin1');
}

function digest(key: string | Buffer): Buffer {
  return createHash('sha256').update(key).digest();
}
