import { setMaxListeners } from 'node:events';
import type { Upstream } from '../scheduler/scheduler.js';

/** Longest conversation id that is taken, in characters. */
export const MAX_CONVERSATION_ID = 1024;

/** Conversations that are remembered when their requests have ended; the oldest are forgotten first. */
const maxEnded = 10_000;

/** One request of a conversation, from its arrival until its answer has ended. */
export interface ConversationTurn {
  readonly model: string;
  /** Aborted when the conversation is stopped, or its next request has come. */
  readonly stopped: AbortSignal;
  /** Whether it waits for its model still. */
  readonly isWaiting: boolean;
  /** The child that answers it: a later one of the same model knows nothing of it. Undefined before there is one. */
  readonly upstream: Upstream | undefined;
  /** It waits for its model: again, when nothing of it had reached the one it was sent to. */
  waits(): void;
  /** It is being sent to a child. */
  forwarded(upstream: Upstream): void;
  /** Its answer has ended, or it was refused. */
  ended(): void;
  /** Why its answer broke off and cannot be read on; undefined when it did not. */
  failure: string | undefined;
}

/**
 * Which model answers which conversation (`X-Conversation-Id`), so that an answer can be read on or stopped by a client
 * that has lost it. A conversation is its last request.
 */
export class Conversations {
  readonly #turns = new Map<string, Turn>();
  readonly #closing = new AbortController();
  #ended = 0;

  constructor() {
    // As many answers as there are requests listen to it.
    setMaxListeners(0, this.#closing.signal);
  }

  /** Aborted when no answer can be read on any more. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** From now on an answer that its client has left is of no use to anybody: it ends. */
  close(): void {
    this.#closing.abort();
  }

  /**
   * A request of the conversation has come. One before it that still waits is stopped, and so is one that the same model
   * is answering, as its child does by itself; another model's answer goes on for the client that reads it.
   */
  begin(id: string, model: string): ConversationTurn {
    const before = this.#turns.get(id);
    if (before?.isWaiting === false && before.model !== model) this.#forget(id, before);
    else this.stop(id);
    const turn = new Turn(model, () => {
      if (this.#turns.get(id) !== turn) return;
      this.#ended += 1;
      this.#forgetOldest();
    });
    this.#turns.set(id, turn);
    return turn;
  }

  /** Its last request; undefined when nothing is known of it. */
  find(id: string): ConversationTurn | undefined {
    return this.#turns.get(id);
  }

  /** Ends and forgets it. */
  stop(id: string): void {
    const turn = this.#turns.get(id);
    if (turn === undefined) return;
    this.#forget(id, turn);
    turn.stop();
  }

  #forget(id: string, turn: Turn): void {
    if (turn.hasEnded) this.#ended -= 1;
    this.#turns.delete(id);
  }

  get size(): number {
    return this.#turns.size;
  }

  #forgetOldest(): void {
    if (this.#ended <= maxEnded) return;
    // In order of arrival: what has not ended yet is passed over, and there are no more of those than requests.
    for (const [id, turn] of this.#turns) {
      if (!turn.hasEnded) continue;
      this.stop(id);
      return;
    }
  }
}

class Turn implements ConversationTurn {
  readonly model: string;
  readonly #onEnd: () => void;
  readonly #controller = new AbortController();
  // It may be remembered for longer than the child lives.
  #upstream: WeakRef<Upstream> | undefined;
  isWaiting = true;
  hasEnded = false;
  failure: string | undefined;

  constructor(model: string, onEnd: () => void) {
    this.model = model;
    this.#onEnd = onEnd;
  }

  get stopped(): AbortSignal {
    return this.#controller.signal;
  }

  get upstream(): Upstream | undefined {
    return this.#upstream?.deref();
  }

  waits(): void {
    this.isWaiting = true;
  }

  forwarded(upstream: Upstream): void {
    this.isWaiting = false;
    this.#upstream = new WeakRef(upstream);
  }

  ended(): void {
    if (this.hasEnded) return;
    this.hasEnded = true;
    this.isWaiting = false;
    this.#onEnd();
  }

  stop(): void {
    this.#controller.abort();
  }
}
