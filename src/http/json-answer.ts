import type { Context } from 'hono';
import type { ContentfulStatusCode } from 'hono/utils/http-status';

/** llama-server says the encoding, too. */
export const JSON_TYPE = 'application/json; charset=utf-8';

/** A JSON answer under the Content-Type that llama-server gives its own. */
export function jsonAnswer(c: Context, value: unknown, status: ContentfulStatusCode = 200): Response {
  return c.body(JSON.stringify(value), status, { 'Content-Type': JSON_TYPE });
}
