import { RouterError } from '../errors.js';
import type { Outcome } from '../scheduler/scheduler.js';

/**
 * What a client is told whose answer its child did not finish.
 *
 * @param cause how the connection failed
 * @param outcome how the child ended, or why it is being stopped, if it is
 */
export function childFailure(model: string, cause: Error, outcome: Outcome | undefined): RouterError {
  if (outcome?.kind === 'failed') {
    const { message, lastLines } = outcome;
    const text = `model name=${model} failed while it was answering: its process ${message}`;
    return new RouterError('child_gone', text, { model, lastLines, cause });
  }
  if (outcome?.kind === 'stopped' && outcome.reason === 'shutdown') {
    const text = `the supervisor is shutting down; model name=${model} had not finished its answer`;
    return new RouterError('shutting_down', text, { model, cause });
  }
  if (outcome?.kind === 'stopped') {
    const text = `model name=${model} was stopped (${outcome.reason}) while it was answering`;
    return new RouterError('child_gone', text, { model, cause });
  }
  const code = 'code' in cause ? cause.code : undefined;
  if (code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT') {
    const text = `model name=${model} was silent for longer than --timeout allows`;
    return new RouterError('child_timeout', text, { model, cause });
  }
  const text = `model name=${model} broke off its answer: ${cause.message}`;
  return new RouterError('child_gone', text, { model, cause });
}
