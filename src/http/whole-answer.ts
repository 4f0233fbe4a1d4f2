import type { ServerResponse } from 'node:http';
import { JSON_TYPE } from './json-answer.js';

export interface WholeAnswerOptions {
  /** Longest time that reading it may take; 0 = no bound. Milliseconds. */
  readonly slowReaderMs: number;
}

/**
 * Answers 200 with JSON that may be long, on Node's own response: a client that does not read it is cut in the end.
 * Settles when the client has it, or is gone.
 *
 * @param body UTF-8; many answers may share it
 */
export function sendWhole(
  outgoing: ServerResponse,
  body: Buffer,
  { slowReaderMs }: WholeAnswerOptions,
): Promise<void> {
  if (outgoing.destroyed) return Promise.resolve();
  outgoing.writeHead(200, { 'Content-Type': JSON_TYPE, 'Content-Length': body.length });
  const timer = slowReaderMs > 0 ? setTimeout(() => outgoing.destroy(), slowReaderMs) : undefined;
  return new Promise((resolve) => {
    outgoing.once('close', () => {
      clearTimeout(timer);
      resolve();
    });
    outgoing.end(body);
  });
}
