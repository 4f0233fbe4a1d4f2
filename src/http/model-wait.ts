/** Milliseconds. */
export interface WaitTimes {
  /** In line, for a slot or for a place at the model. */
  readonly queueMs: number;
  /** While the model was loading. */
  readonly loadMs: number;
}

/** What one request waits for its model, all its waits together: a request that is sent again may wait again. */
export class ModelWait {
  readonly #loadingMs: () => number;
  #queueMs = 0;
  #loadMs = 0;
  /** The wait that goes on: when it began, and for how long the model had been loading by then. */
  #current: { readonly since: number; readonly loadingMs: number } | undefined;

  /** @param loadingMs for how long the model has been loading so far, all its loads together */
  constructor(loadingMs: () => number) {
    this.#loadingMs = loadingMs;
  }

  get goesOn(): boolean {
    return this.#current !== undefined;
  }

  /** So far. */
  get times(): WaitTimes {
    if (this.#current === undefined) return { queueMs: this.#queueMs, loadMs: this.#loadMs };
    const { since, loadingMs } = this.#current;
    const waitedMs = performance.now() - since;
    // What is known of a model that went is forgotten.
    const loadMs = Math.min(Math.max(0, this.#loadingMs() - loadingMs), waitedMs);
    return { queueMs: this.#queueMs + waitedMs - loadMs, loadMs: this.#loadMs + loadMs };
  }

  begins(): void {
    this.#current = { since: performance.now(), loadingMs: this.#loadingMs() };
  }

  ends(): void {
    const { queueMs, loadMs } = this.times;
    this.#queueMs = queueMs;
    this.#loadMs = loadMs;
    this.#current = undefined;
  }
}

/**
 * The times as the value of a `Server-Timing` header, which browsers show beside the request, in whole milliseconds;
 * undefined when nothing is left of them.
 *
 * @see https://www.w3.org/TR/server-timing/#the-server-timing-header-field
 */
export function serverTiming({ queueMs, loadMs }: WaitTimes): string | undefined {
  const [queue, load] = [Math.round(queueMs), Math.round(loadMs)];
  return queue === 0 && load === 0 ? undefined : `queue;dur=${queue}, load;dur=${load}`;
}
