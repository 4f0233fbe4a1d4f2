import type { IncomingMessage, ServerResponse } from 'node:http';
import type { RouterError } from '../errors.js';
import { JSON_TYPE } from './json-answer.js';

/** How long a client that is still sending is listened to after its refusal, so that it can read it. */
const lingerMs = 2_000;

/**
 * Answers with an error of the catalogue, on Node's own response. A client that has not finished sending gets
 * the whole answer first and is then listened to for a moment: closing with unread bytes would reset the
 * connection and take the answer with it.
 */
export function sendError(incoming: IncomingMessage, outgoing: ServerResponse, error: RouterError): void {
  if (outgoing.headersSent || outgoing.destroyed) {
    outgoing.destroy();
    return;
  }
  const body = Buffer.from(JSON.stringify(error));
  const unfinished = !incoming.complete;
  outgoing.writeHead(error.status, {
    'Content-Type': JSON_TYPE,
    'Content-Length': body.length,
    ...error.headers,
    ...(unfinished ? { Connection: 'close' } : {}),
  });
  if (!unfinished) {
    outgoing.end(body);
    return;
  }
  outgoing.write(body);
  const end = (): void => {
    clearTimeout(timer);
    outgoing.end();
  };
  const timer = setTimeout(end, lingerMs);
  incoming.once('end', end).once('close', end).resume();
}
