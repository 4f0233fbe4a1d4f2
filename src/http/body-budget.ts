import { RouterError } from '../errors.js';

/** The sum of all request bodies held at one time, bounded. Bytes. */
export class BodyBudget {
  readonly #maxBytes: number;
  #heldBytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** @throws RouterError body_memory_full */
  take(bytes: number): void {
    if (this.#heldBytes + bytes > this.#maxBytes) {
      const message = `request bodies already fill ${this.#maxBytes} bytes (--body-memory-max); try again later`;
      throw new RouterError('body_memory_full', message, { retryAfterS: 2 });
    }
    this.#heldBytes += bytes;
  }

  give(bytes: number): void {
    this.#heldBytes -= bytes;
  }
}
