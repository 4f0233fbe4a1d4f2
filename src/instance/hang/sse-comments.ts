import type { Buffer } from 'node:buffer';

const lineFeed = 0x0a;
const carriageReturn = 0x0d;
const colon = 0x3a;

/**
 * Whether a piece of an event stream holds nothing but comments, which llama-server sends every thirty seconds (`:`)
 * whether or not it works. Costs the look at one byte for a piece that holds anything else. One that goes on with a
 * colon where the last was cut is taken for a comment; the next will not be.
 *
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
export function onlyComments(chunk: Buffer): boolean {
  for (let at = 0; at < chunk.length; at += 1) {
    const byte = chunk[at];
    if (byte === lineFeed || byte === carriageReturn) continue;
    if (byte !== colon) return false;
    const end = chunk.indexOf(lineFeed, at);
    if (end === -1) return true;
    at = end;
  }
  return true;
}
