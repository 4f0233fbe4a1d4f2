import type { Dispatcher } from 'undici';
import type { Upstream, UpstreamRequest } from '../scheduler/scheduler.js';
import type { AnswerBudget } from './answer-budget.js';

export interface CollectOptions {
  /** Aborting it ends the child's work; the answer then fails with the signal's reason. */
  readonly signal: AbortSignal;
  /** Asked before a piece is kept. Its refusal ends the child's work, and is how the answer fails. */
  readonly budget: AnswerBudget;
}

export type CollectedAnswer =
  | {
      readonly kind: 'whole';
      readonly status: number;
      /** Its bytes are the budget's until the caller gives them back; those of a failed one are given back here. */
      readonly body: Buffer;
    }
  | {
      readonly kind: 'failed';
      readonly error: Error;
      /** Whether the request may have reached the child. */
      readonly requestStarted: boolean;
    };

/** Sends a request to a child and keeps its whole answer, whatever its status. The child's own silence is bounded by `upstream`. */
export async function collectAnswer(
  upstream: Upstream,
  request: UpstreamRequest,
  { signal, budget }: CollectOptions,
): Promise<CollectedAnswer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  let status = 0;
  let isFramed = false;
  let controller: Dispatcher.DispatchController | undefined;
  let settle!: (answer: CollectedAnswer) => void;
  const ended = new Promise<CollectedAnswer>((resolve) => (settle = resolve));
  const stop = (): void => {
    const error = asError(signal.reason);
    // Without a connection yet there is nothing to abort, and making one may take longer than anybody waits.
    if (controller === undefined) settle({ kind: 'failed', error, requestStarted: false });
    else controller.abort(error);
  };
  signal.addEventListener('abort', stop, { once: true });
  const finish = upstream.dispatch(request, {
    onRequestStart(given) {
      controller = given;
      if (signal.aborted) stop();
    },
    onResponseStart(_controller, statusCode, headers) {
      status = statusCode;
      isFramed = headers['content-length'] !== undefined;
    },
    onResponseData(given, chunk) {
      try {
        budget.take(chunk.length);
        bytes += chunk.length;
        chunks.push(chunk);
      } catch (error) {
        given.abort(asError(error));
      }
    },
    onResponseEnd: () => settle({ kind: 'whole', status, body: Buffer.concat(chunks) }),
    onResponseError: (_controller, error) =>
      settle({ kind: 'failed', error, requestStarted: controller !== undefined }),
  });
  if (signal.aborted) stop();
  const answer = await ended;
  signal.removeEventListener('abort', stop);
  if (answer.kind === 'failed') budget.give(bytes);
  finish(answer.kind === 'whole' && isFramed);
  return answer;
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}
