import { RouterError } from '../errors.js';
import { withLastWords } from '../instance/telling-line.js';
import type { RestartPause } from './restart-budget.js';

/** What requests for a model are told that keeps failing and is left alone for a while. */
export function restartPaused(model: string, { leftMs, failures, last }: RestartPause): RouterError {
  const { phase, message, lastLines } = last;
  const retryAfterS = Math.ceil(leftMs / 1000);
  const text =
    `model name=${model} has failed ${failures} times in a row, the last time while ${phase}: it ${withLastWords(message, lastLines)}; ` +
    `it is not started again for another ${retryAfterS} s (POST /models/load tries it at once)`;
  return new RouterError('model_failing', text, { model, lastLines, retryAfterS });
}
