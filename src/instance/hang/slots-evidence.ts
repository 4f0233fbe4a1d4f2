import { askChild, type ChildAddress } from './ask-child.js';
import type { Evidence, Finding } from './evidence.js';

export interface SlotsEvidenceOptions {
  readonly address: ChildAddress;
  /** How long an answer may take. */
  readonly timeoutMs: number;
  /** Whether the model is loaded: asking one that sleeps would wake it. */
  readonly isAwake: () => boolean;
  /** Aborted when the child is not watched any more. */
  readonly signal: AbortSignal;
}

/**
 * What llama-server says of its slots: it counts the tokens read and written in each, and says nothing of the time, so
 * that an answer unlike the one before is one of a child that got further. It counts by batches, and one can take long:
 * that nothing changed is no evidence against a child by itself, and neither is that nothing came. While a batch is
 * computed llama.cpp v0.5.0 answers from a thread of its own (tools/server/server-queue.cpp, `yield_to_queue`), also
 * when that computing is stuck; for the rest of the loop, and in older versions for all of it, the answer waits. Either
 * way the child's processes have to say more.
 */
export class SlotsEvidence implements Evidence {
  readonly #options: SlotsEvidenceOptions;
  #digest: string | undefined;
  /** A child without the route, or started with `--no-slots`, never has it. */
  #isThere = true;

  constructor(options: SlotsEvidenceOptions) {
    this.#options = options;
  }

  async look(): Promise<Finding> {
    const { address, timeoutMs, signal, isAwake } = this.#options;
    if (!this.#isThere || !isAwake()) return { kind: 'unknown' };
    const answer = await askChild(address, { method: 'GET', path: '/slots', timeoutMs, signal });
    if (answer === 'broken') return { kind: 'none', said: '/slots was not answered: the connection broke' };
    if (answer === 'not asked') return { kind: 'unknown' };
    if (answer === 'late') {
      return { kind: 'none', said: `/slots was not answered within ${timeoutMs / 1000} s` };
    }
    if (answer.status !== 200) {
      if (answer.status === 501 || answer.status === 404) this.#isThere = false;
      return { kind: 'unknown' };
    }
    const before = this.#digest;
    this.#digest = answer.digest;
    if (before === undefined) return { kind: 'first' };
    return before === answer.digest ? { kind: 'none', said: '/slots did not change' } : { kind: 'progress' };
  }
}
