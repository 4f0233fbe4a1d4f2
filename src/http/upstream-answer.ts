import type { Upstream, UpstreamRequest } from '../scheduler/scheduler.js';
import { AnswerBudget } from './answer-budget.js';
import { collectAnswer } from './collect-answer.js';

export interface UpstreamAnswer {
  readonly status: number;
  readonly body: Buffer;
}

export interface AnswerLimits {
  readonly timeoutMs: number;
  readonly maxBytes: number;
}

/** Asks a child something short and reads its whole answer; undefined when it does not give one within the limits. */
export async function answerOf(
  upstream: Upstream,
  request: UpstreamRequest,
  { timeoutMs, maxBytes }: AnswerLimits,
): Promise<UpstreamAnswer | undefined> {
  const signal = AbortSignal.timeout(timeoutMs);
  const answer = await collectAnswer(upstream, request, { signal, budget: new AnswerBudget(maxBytes) });
  return answer.kind === 'whole' ? answer : undefined;
}
