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
    outgoing.destroy();
    return;
  }
  const timer = setTimeout(() => outgoing.destroy(), lastEventMs);
  // The blank line first closes an event the child had begun. Anthropic's clients skip events without a name, and read
  // `type`; OpenAI's read `error` in any event.
  const data = JSON.stringify({ type: 'error', ...error.toJSON() });
  outgoing.write(`\n\nevent: error\ndata: ${data}\n\n`, () => {
    clearTimeout(timer);
    outgoing.destroy();
  });
}
