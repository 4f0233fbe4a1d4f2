/**
 * The waiting requests, grouped by the model they wait for, in order of arrival of each group. Bounded; a
 * waiter leaves by being served, refused, timed out, or because its client has gone.
 */
import { RouterError } from '../errors.js';

/**
 * `lease`: a request that needs a ready instance. `look`: one that must not cause a load; it waits for an instance
 * that is there. `load`: an explicit load, served once its child is spawned.
 */
export type WaitKind = 'lease' | 'look' | 'load';

interface Waiter<T> {
  readonly kind: WaitKind;
  readonly serve: (value: T) => void;
  readonly refuse: (error: RouterError) => void;
  /** Stops listening to its client. */
  readonly forget: () => void;
  timer: NodeJS.Timeout | undefined;
}

interface Entry<T> {
  readonly model: string;
  /** Arrival of its first waiter. Milliseconds, monotonic. */
  readonly since: number;
  readonly waiters: Set<Waiter<T>>;
}

export interface QueueOptions {
  readonly maxWaiters: number;
  /** Longest wait for a load to begin. */
  readonly timeoutMs: number;
}

/** Seconds after which a refused client is told to try again. */
const retryAfterS = 5;

export class WaitQueue<T> {
  readonly #entries = new Map<string, Entry<T>>();
  readonly #options: QueueOptions;
  readonly #onLeave: () => void;
  #size = 0;

  /** @param onLeave called when a waiter has left on its own: timed out, or its client gone */
  constructor(options: QueueOptions, onLeave: () => void) {
    this.#options = options;
    this.#onLeave = onLeave;
  }

  /** Number of waiters. */
  get size(): number {
    return this.#size;
  }

  /** Number of waiters for one model. */
  waitersFor(model: string): number {
    return this.#entries.get(model)?.waiters.size ?? 0;
  }

  /** The groups in order of arrival. */
  entries(): { readonly model: string; readonly since: number }[] {
    return Array.from(this.#entries.values(), ({ model, since }) => ({ model, since }));
  }

  /**
   * Waits in line.
   *
   * @param timed whether the queue's time-out bounds the wait; one for a load in progress is bounded by that load
   * @throws RouterError queue_full, queue_timeout, client_gone, or what `refuse` was called with
   */
  join(model: string, kind: WaitKind, signal: AbortSignal, { timed }: { timed: boolean }): Promise<T> {
    if (signal.aborted) return Promise.reject(clientGone(model));
    if (this.#size >= this.#options.maxWaiters) {
      const message = `${this.#size} requests are waiting for a model already (--queue-max); try again later`;
      return Promise.reject(new RouterError('queue_full', message, { model, retryAfterS }));
    }
    return new Promise<T>((resolve, reject) => {
      const entry = this.#entryFor(model);
      const clientLeft = (): void => leave(clientGone(model));
      const forget = (): void => signal.removeEventListener('abort', clientLeft);
      const waiter: Waiter<T> = { kind, serve: resolve, refuse: reject, forget, timer: undefined };
      const leave = (error: RouterError): void => {
        this.#remove(entry, waiter);
        reject(error);
        this.#onLeave();
      };
      signal.addEventListener('abort', clientLeft, { once: true });
      if (timed) waiter.timer = setTimeout(() => leave(this.#timedOut(model)), this.#options.timeoutMs);
      entry.waiters.add(waiter);
      this.#size += 1;
    });
  }

  /** The model's load has begun and bounds the waits from now on; explicit loads are served by that. */
  loadBegins(model: string, served: () => T): void {
    const entry = this.#entries.get(model);
    for (const waiter of [...(entry?.waiters ?? [])]) {
      clearTimeout(waiter.timer);
      if (entry && waiter.kind === 'load') {
        this.#remove(entry, waiter);
        waiter.serve(served());
      }
    }
  }

  /** Serves every waiter of the model, in order of arrival, each with a value of its own. */
  serve(model: string, value: () => T): void {
    for (const waiter of this.#take(model)) waiter.serve(value());
  }

  /** Refuses every waiter of the model. */
  refuse(model: string, error: RouterError): void {
    for (const waiter of this.#take(model)) waiter.refuse(error);
  }

  /** Refuses the model's waiters of kind `look`: what they waited for is going. */
  refuseLooks(model: string, error: RouterError): void {
    for (const waiter of this.#take(model, 'look')) waiter.refuse(error);
  }

  #take(model: string, kind?: WaitKind): Waiter<T>[] {
    const entry = this.#entries.get(model);
    if (!entry) return [];
    const waiters = [...entry.waiters].filter((waiter) => kind === undefined || waiter.kind === kind);
    for (const waiter of waiters) this.#remove(entry, waiter);
    return waiters;
  }

  #entryFor(model: string): Entry<T> {
    let entry = this.#entries.get(model);
    if (!entry) {
      entry = { model, since: performance.now(), waiters: new Set() };
      this.#entries.set(model, entry);
    }
    return entry;
  }

  #remove(entry: Entry<T>, waiter: Waiter<T>): void {
    entry.waiters.delete(waiter);
    clearTimeout(waiter.timer);
    waiter.forget();
    this.#size -= 1;
    if (entry.waiters.size === 0) this.#entries.delete(entry.model);
  }

  #timedOut(model: string): RouterError {
    const message =
      `model name=${model} could not be loaded within ${this.#options.timeoutMs / 1000} s (--queue-timeout): ` +
      'no slot became free; try again later';
    return new RouterError('queue_timeout', message, { model, retryAfterS });
  }
}

function clientGone(model: string): RouterError {
  return new RouterError('client_gone', `request cancelled while waiting for model name=${model}`, { model });
}
