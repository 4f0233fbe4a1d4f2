import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { createMiddleware } from 'hono/factory';
import { RouterError } from '../errors.js';
import type { HttpEnv } from './app.js';

/** Answered without a key, as the native router does. */
const publicRoutes = new Set(['/health', '/v1/health']);

/**
 * Refuses requests without a valid API key, given as `Authorization: Bearer KEY` (or bare) or `X-Api-Key: KEY`.
 * Without keys everything is allowed.
 */
export function requireApiKey(keys: readonly string[], prefix: string) {
  const digests = keys.map(digest);
  return createMiddleware<HttpEnv>(async function requireApiKeyMiddleware(c, next) {
    if (digests.length > 0 && !publicRoutes.has(c.req.path.slice(prefix.length))) {
      const presented = digest(presentedKey(c.env.incoming.headers));
      // Digests are of one length and every key is compared: the time taken says nothing about the keys.
      const matches = digests.filter((known) => timingSafeEqual(known, presented));
      if (matches.length === 0) throw new RouterError('key_invalid', 'Invalid API Key');
    }
    await next();
  });
}

function presentedKey(headers: IncomingHttpHeaders): string {
  const { authorization } = headers;
  if (authorization !== undefined) {
    return authorization.startsWith('Bearer ') ? authorization.slice('Bearer '.length) : authorization;
  }
  const key = headers['x-api-key'];
  return typeof key === 'string' ? key : '';
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
