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
  readonly model: string;
  readonly kind: WaitKind;
  /** Its arrival. Milliseconds, monotonic. */
  readonly since: number;
  readonly serve: (value: T) => void;
  readonly refuse: (error: RouterError) => void;
  /** Leaves on its own. */
  readonly leave: (error: RouterError) => void;
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

/** When a wait is over, and what the waiter is told then. */
export interface WaitLimit {
  /** Milliseconds, monotonic. */
  readonly at: number;
  readonly refusal: () => RouterError;
}

export interface QueueOptions {
  readonly maxWaiters: number;
  /**
   * What bounds the wait of one who came at `since`, as things are now; undefined where a load in progress does. Asked
   * again when that time has come.
   */
  readonly limitOf: (model: string, since: number) => WaitLimit | undefined;
  /** Called when a waiter has left on its own: timed out, or its client gone. */
  readonly onLeave: () => void;
}

/** Seconds after which a refused client is told to try again. */
const retryAfterS = 5;

export class WaitQueue<T> {
  readonly #entries = new Map<string, Entry<T>>();
  readonly #options: QueueOptions;
  #size = 0;

  constructor(options: QueueOptions) {
    this.#options = options;
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
   * @throws RouterError queue_full, client_gone, the refusal of its limit, or what `refuse` was called with
   */
  join(model: string, kind: WaitKind, signal: AbortSignal): Promise<T> {
    if (signal.aborted) return Promise.reject(clientGone(model));
    if (this.#size >= this.#options.maxWaiters) {
      const message = `${this.#size} requests are waiting for a model already (--queue-max); try again later`;
      return Promise.reject(new RouterError('queue_full', message, { model, retryAfterS }));
    }
    return new Promise<T>((resolve, reject) => {
      const entry = this.#entryFor(model);
      const clientLeft = (): void => leave(clientGone(model));
      const forget = (): void => signal.removeEventListener('abort', clientLeft);
      const leave = (error: RouterError): void => {
        this.#remove(entry, waiter);
        reject(error);
        this.#options.onLeave();
      };
      const waiter: Waiter<T> = {
        model,
        kind,
        since: performance.now(),
        serve: resolve,
        refuse: reject,
        leave,
        forget,
        timer: undefined,
      };
      signal.addEventListener('abort', clientLeft, { once: true });
      this.#limit(waiter);
      entry.waiters.add(waiter);
      this.#size += 1;
    });
  }

  /** Serves the model's waiters of kind `load`: it is on its way, or there. */
  serveLoads(model: string, value: () => T): void {
    for (const waiter of this.#take(model, 'load')) waiter.serve(value());
  }

  /** The waits for the model may have to end earlier now. */
  relimit(model: string): void {
    for (const waiter of this.#entries.get(model)?.waiters ?? []) this.#limit(waiter);
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

  #limit(waiter: Waiter<T>): void {
    clearTimeout(waiter.timer);
    const limit = this.#options.limitOf(waiter.model, waiter.since);
    waiter.timer = limit && setTimeout(() => this.#limitReached(waiter), limit.at - performance.now());
  }

  /** What bounds the wait now may be something that comes later. */
  #limitReached(waiter: Waiter<T>): void {
    const limit = this.#options.limitOf(waiter.model, waiter.since);
    if (limit && limit.at <= performance.now()) waiter.leave(limit.refusal());
    else this.#limit(waiter);
  }
}

function clientGone(model: string): RouterError {
  return new RouterError('client_gone', `request cancelled while waiting for model name=${model}`, { model });
}
