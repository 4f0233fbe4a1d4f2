import type { ServerResponse } from 'node:http';
import type { RouterError } from '../errors.js';

/** A client that does not read the error that ends its stream is not waited for longer. */
const lastEventMs = 5_000;

/**
 * Ends an answer that has begun and that its child cannot finish so that the client sees it: an error event where it is a
 * stream of events, then a cut connection, never a clean end.
 */
export function breakOff(
  outgoing: ServerResponse,
  error: RouterError,
  { isEventStream }: { readonly isEventStream: boolean },
): void {
  if (!isEventStream) {
    cutOff(outgoing);
    return;
  }
  endWithError(outgoing, error.toJSON());
}

/**
 * The last event of a stream, and the cut after it.
 *
 * @param envelope llama-server's: an object whose `error` says what is wrong
 */
export function endWithError(outgoing: ServerResponse, envelope: object): void {
  const timer = setTimeout(() => outgoing.destroy(), lastEventMs);
  // The blank line first closes an event the child had begun.
  outgoing.write(`\n\n${errorEvent(envelope)}`, () => {
    clearTimeout(timer);
    outgoing.destroy();
  });
}

/** An error as an event. Anthropic's clients skip events without a name, and read `type`; OpenAI's read `error` in any event. */
function errorEvent(envelope: object): string {
  return `event: error\ndata: ${JSON.stringify({ type: 'error', ...envelope })}\n\n`;
}

/**
 * Closes the connection in the middle of an answer. Where the end of the connection is the end of the answer, as for clients
 * of HTTP/1.0, it is reset: closed in order it would pass for a whole one.
 */
export function cutOff(outgoing: ServerResponse): void {
  const { socket } = outgoing;
  // TLS tells by itself that it was cut, and Unix sockets have no reset.
  const isTcp = socket !== null && socket.remoteFamily !== undefined && !('encrypted' in socket);
  // Node's own `resetAndDestroy` first closes in order, and then resets. This is its second half.
  if (isTcp && !outgoing.chunkedEncoding) Object.assign(socket, { resetAndClosing: true });
  outgoing.destroy();
}
