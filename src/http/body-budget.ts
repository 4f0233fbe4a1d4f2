import { RouterError } from '../errors.js';

/** The sum of all bodies kept in one place at one time, bounded: those of requests, and of answers that are made here. Bytes. */
export class BodyBudget {
  readonly #maxBytes: number;
  readonly #bound: string;
  #heldBytes = 0;

  /** @param bound what sets the bound, as a refused client is told */
  constructor(maxBytes: number, bound = '--body-memory-max') {
    this.#maxBytes = maxBytes;
    this.#bound = bound;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** @throws RouterError body_memory_full */
  take(bytes: number): void {
    if (this.#heldBytes + bytes > this.#maxBytes) {
      const message = `bodies of requests and answers already fill ${this.#maxBytes} bytes (${this.#bound}); try again later`;
      throw new RouterError('body_memory_full', message);
    }
    this.#heldBytes += bytes;
  }

  give(bytes: number): void {
    this.#heldBytes -= bytes;
  }
}
