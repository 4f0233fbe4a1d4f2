import type { Dispatcher } from 'undici';
import type { Upstream, UpstreamRequest } from '../scheduler/scheduler.js';

export interface UpstreamAnswer {
  readonly status: number;
  readonly body: Buffer;
}

export interface AnswerLimits {
  readonly timeoutMs: number;
  readonly maxBytes: number;
}

/** Asks a child something short and reads its whole answer; undefined when it does not give one within the limits. */
export function answerOf(
  upstream: Upstream,
  request: UpstreamRequest,
  { timeoutMs, maxBytes }: AnswerLimits,
): Promise<UpstreamAnswer | undefined> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    let status = 0;
    let controller: Dispatcher.DispatchController | undefined;
    let settled = false;
    const settle = (answer: UpstreamAnswer | undefined): void => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      resolve(answer);
      // Not in this turn: `dispatch` may not have returned yet.
      queueMicrotask(() => finish(false));
    };
    const giveUp = (): void => {
      controller?.abort(new Error('no answer within the limits'));
      settle(undefined);
    };
    const timer = setTimeout(giveUp, timeoutMs);
    const finish = upstream.dispatch(request, {
      onRequestStart(given) {
        controller = given;
        if (settled) given.abort(new Error('given up'));
      },
      onResponseStart(_controller, statusCode) {
        status = statusCode;
      },
      onResponseData(_controller, chunk) {
        bytes += chunk.length;
        if (bytes > maxBytes) giveUp();
        else chunks.push(chunk);
      },
      onResponseEnd: () => settle({ status, body: Buffer.concat(chunks) }),
      onResponseError: () => settle(undefined),
    });
  });
}
