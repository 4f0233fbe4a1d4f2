/** What the scheduler tells those it cannot serve. */
import { RouterError } from '../errors.js';
import type { Outcome } from '../instance/state.js';
import { withLastWords } from '../instance/telling-line.js';

export interface LoadFailure {
  /** For how long it is not started again; undefined when it may be at once. */
  readonly pauseMs?: number | undefined;
  /** Models without which it was tried, too. */
  readonly without?: readonly string[];
}

export function loadFailed(
  model: string,
  outcome: Outcome & { kind: 'failed' },
  { pauseMs, without = [] }: LoadFailure = {},
): RouterError {
  const { message, lastLines, cause } = outcome;
  const text = `model name=${model} failed to load: it ${withLastWords(message, lastLines)}`;
  const tried = without.length === 0 ? 'nothing idle could make room' : `also without ${without.join(', ')}`;
  const details = { model, lastLines, ...(pauseMs === undefined ? {} : { retryAfterS: pauseMs / 1000 }) };
  if (cause === 'out of memory') return new RouterError('out_of_memory', `${text} (${tried})`, details);
  return new RouterError('load_failed', text, details);
}

export function cannotLaunch(model: string, cause: unknown): RouterError {
  const message = `model name=${model} failed to load: ${cause instanceof Error ? cause.message : String(cause)}`;
  return new RouterError('load_failed', message, { model, cause });
}

export function notLoaded(model: string): RouterError {
  return new RouterError('model_not_loaded', 'model is not loaded', { model });
}

export function notRunning(model: string): RouterError {
  return new RouterError('model_unloaded_meanwhile', `model name=${model} is not running`, { model });
}

/**
 * Nothing of its kind became free for it while it waited in line.
 *
 * @param busy what held it up, as a sentence goes on
 */
export function queueTimeout(model: string, ms: number, busy: string): RouterError {
  const message = `model name=${model} could not take the request within ${ms / 1000} s (--queue-timeout): ${busy}; try again later`;
  return new RouterError('queue_timeout', message, { model });
}

/** The model was changed while it was busy, and its old form is still busy. */
export function stillChanging(model: string, ms: number): RouterError {
  const message =
    `model name=${model} was changed and will be started anew, but earlier requests are still being answered ` +
    `after ${ms / 1000} s (--fair-after); try again later`;
  return new RouterError('model_changing', message, { model });
}

export function shuttingDown(): RouterError {
  return new RouterError('shutting_down', 'the supervisor is shutting down');
}
