/** What the scheduler tells those it cannot serve. */
import { RouterError } from '../errors.js';
import type { Outcome } from '../instance/state.js';
import { tellingLine } from '../instance/telling-line.js';

/** Seconds after which a client whose model failed is told to try again. */
const failedRetryAfterS = 10;

export function loadFailed(model: string, outcome: Outcome & { kind: 'failed' }): RouterError {
  const { message, lastLines } = outcome;
  const lastWords = tellingLine(lastLines);
  const text = `model name=${model} failed to load: it ${message}${lastWords === undefined ? '' : `; it said: ${lastWords}`}`;
  return new RouterError('load_failed', text, { model, lastLines, retryAfterS: failedRetryAfterS });
}

export function cannotLaunch(model: string, cause: unknown): RouterError {
  const message = `model name=${model} failed to load: ${cause instanceof Error ? cause.message : String(cause)}`;
  return new RouterError('load_failed', message, { model, cause, retryAfterS: failedRetryAfterS });
}

export function notLoaded(model: string): RouterError {
  return new RouterError('model_not_loaded', 'model is not loaded', { model });
}

export function notRunning(model: string): RouterError {
  return new RouterError('model_unloaded_meanwhile', `model name=${model} is not running`, { model });
}

/** Nothing of its kind became free for it while it waited in line. */
export function queueTimeout(model: string, ms: number): RouterError {
  const message =
    `model name=${model} could not be loaded within ${ms / 1000} s (--queue-timeout): ` +
    'no slot became free; try again later';
  return new RouterError('queue_timeout', message, { model, retryAfterS: 5 });
}

/** The model was changed while it was busy, and its old form is still busy. */
export function stillChanging(model: string, ms: number): RouterError {
  const message =
    `model name=${model} was changed and will be started anew, but earlier requests are still being answered ` +
    `after ${ms / 1000} s (--fair-after); try again later`;
  return new RouterError('model_changing', message, { model, retryAfterS: 5 });
}

export function shuttingDown(): RouterError {
  return new RouterError('shutting_down', 'the supervisor is shutting down', { retryAfterS: 5 });
}
