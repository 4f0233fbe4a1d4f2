import { RouterError } from '../errors.js';
import type { BodyBudget } from './body-budget.js';

/** The answers of children that are held for one client until all have come: bounded in sum, and within a budget of all clients. */
export class AnswerBudget {
  readonly #maxBytes: number;
  readonly #shared: BodyBudget | undefined;
  #heldBytes = 0;

  /** @param shared the budget of all clients, where there is one */
  constructor(maxBytes: number, shared?: BodyBudget) {
    this.#maxBytes = maxBytes;
    this.#shared = shared;
  }

  /** @throws RouterError body_too_large, body_memory_full */
  take(bytes: number): void {
    if (this.#heldBytes + bytes > this.#maxBytes) {
      const message = `the answers to one request may have ${this.#maxBytes} bytes together; ask for less at once`;
      throw new RouterError('body_too_large', message);
    }
    this.#shared?.take(bytes);
    this.#heldBytes += bytes;
  }

  give(bytes: number): void {
    this.#shared?.give(bytes);
    this.#heldBytes -= bytes;
  }

  giveAll(): void {
    this.give(this.#heldBytes);
  }
}
