/** What a `Source` gave; `late` when it has not answered yet and `value` is what it gave last, if anything. */
export interface Reading<T> {
  readonly value: T | undefined;
  readonly late: boolean;
}

/**
 * Something on disk that is read again and again, and that may fall silent (a network file system that is gone). Nobody
 * waits for it longer than `patienceMs`, and while it is silent it is not asked again.
 */
export class Source<T> {
  readonly #read: (previous: T | undefined) => Promise<T>;
  readonly #patienceMs: number;
  #last: T | undefined;
  #isSilent = false;

  /** @param read is given what it gave last */
  constructor(read: (previous: T | undefined) => Promise<T>, patienceMs: number) {
    this.#read = read;
    this.#patienceMs = patienceMs;
  }

  /** Reads it; rejects as `read` does, unless that is late. */
  async read(): Promise<Reading<T>> {
    if (this.#isSilent) return { value: this.#last, late: true };
    this.#isSilent = true;
    const reading = this.#read(this.#last)
      .then((value): Reading<T> => ({ value: (this.#last = value), late: false }))
      .finally(() => (this.#isSilent = false));
    // Of a rejection that comes late nobody wants to hear: it is asked again.
    reading.catch(() => undefined);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Reading<T>>((resolve) => {
      timer = setTimeout(() => resolve({ value: this.#last, late: true }), this.#patienceMs);
    });
    try {
      return await Promise.race([reading, late]);
    } finally {
      clearTimeout(timer);
    }
  }
}
