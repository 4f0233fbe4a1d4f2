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
  readonly isCounted: boolean;
  /** Its arrival. Milliseconds, monotonic. */
  readonly since: number;
  /** From when on its wait is bounded: its arrival, or the end of the load it has waited for. Milliseconds, monotonic. */
  boundedSince: number;
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
  /** Its place in line: the arrival of its first waiter, anew when some were served. Milliseconds, monotonic. */
  since: number;
  /** In order of arrival; never empty. */
  readonly waiters: Set<Waiter<T>>;
  /** How many of them do not count. */
  uncounted: number;
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
   * What bounds a wait that counts from `since`, as things are now; undefined where a load in progress does. Asked
   * again when that time has come.
   */
  readonly limitOf: (model: string, since: number) => WaitLimit | undefined;
  /** Called when a waiter has left on its own: timed out, or its client gone. */
  readonly onLeave: () => void;
}

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
    const entries = Array.from(this.#entries.values(), ({ model, since }) => ({ model, since }));
    return entries.sort((a, b) => a.since - b.since);
  }

  /**
   * Waits in line.
   *
   * @param isCounted whether it counts in what `serve` is told to serve at most
   * @throws RouterError queue_full, client_gone, the refusal of its limit, or what `refuse` was called with
   */
  join(model: string, kind: WaitKind, signal: AbortSignal, { isCounted } = { isCounted: true }): Promise<T> {
    if (signal.aborted) return Promise.reject(clientGone(model));
    if (this.#size >= this.#options.maxWaiters) {
      const message = `${this.#size} requests are waiting for a model already (--queue-max); try again later`;
      return Promise.reject(new RouterError('queue_full', message, { model }));
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
      const since = performance.now();
      const waiter: Waiter<T> = {
        model,
        kind,
        isCounted,
        since,
        boundedSince: since,
        serve: resolve,
        refuse: reject,
        leave,
        forget,
        timer: undefined,
      };
      signal.addEventListener('abort', clientLeft, { once: true });
      this.#limit(waiter);
      entry.waiters.add(waiter);
      if (!isCounted) entry.uncounted += 1;
      this.#size += 1;
    });
  }

  /** Whether somebody waits for the model who would have it loaded. */
  isWanted(model: string): boolean {
    for (const { kind } of this.#entries.get(model)?.waiters ?? []) if (kind !== 'look') return true;
    return false;
  }

  /**
   * Serves the model's waiters of kind `load`: it is on its way, or there.
   *
   * @returns how many
   */
  serveLoads(model: string, value: () => T): number {
    const waiters = this.#take(model, ({ kind }) => kind === 'load');
    for (const waiter of waiters) waiter.serve(value());
    return waiters.length;
  }

  /** The waits for the model may have to end earlier now. */
  relimit(model: string): void {
    for (const waiter of this.#entries.get(model)?.waiters ?? []) this.#limit(waiter);
  }

  /** The load that the model's waiters have waited for is over: for those who must wait on, what is bounded begins now. */
  boundAnew(model: string): void {
    const now = performance.now();
    for (const waiter of this.#entries.get(model)?.waiters ?? []) {
      waiter.boundedSince = now;
      this.#limit(waiter);
    }
  }

  /**
   * Serves waiters of the model in order of arrival, each with a value of its own. If some are left, they are in line
   * from when they came: a model that is served bit by bit must not keep its place before all others.
   *
   * @param count how many at most, besides those that do not count
   * @returns how many
   */
  serve(model: string, value: (waiter: { readonly isCounted: boolean }) => T, count: number): number {
    const entry = this.#entries.get(model);
    const uncounted = entry && entry.uncounted > 0 ? this.#take(model, ({ isCounted }) => !isCounted) : [];
    const waiters = [...uncounted, ...this.#take(model, anyone, count)];
    if (waiters.length === 0) return 0;
    for (const waiter of waiters) waiter.serve(value(waiter));
    const left = this.#entries.get(model);
    const [first] = left?.waiters ?? [];
    if (left && first) left.since = Math.max(left.since, first.since);
    return waiters.length;
  }

  /** Refuses every waiter of the model. */
  refuse(model: string, error: RouterError): void {
    for (const waiter of this.#take(model, anyone)) waiter.refuse(error);
  }

  /** Refuses the model's waiters of kind `look`: what they waited for is going. */
  refuseLooks(model: string, error: RouterError): void {
    for (const waiter of this.#take(model, ({ kind }) => kind === 'look')) waiter.refuse(error);
  }

  #take(model: string, isMeant: (waiter: Waiter<T>) => boolean, count = Infinity): Waiter<T>[] {
    const entry = this.#entries.get(model);
    if (!entry) return [];
    const waiters: Waiter<T>[] = [];
    for (const waiter of entry.waiters) {
      if (waiters.length >= count) break;
      if (isMeant(waiter)) waiters.push(waiter);
    }
    for (const waiter of waiters) this.#remove(entry, waiter);
    return waiters;
  }

  #entryFor(model: string): Entry<T> {
    let entry = this.#entries.get(model);
    if (!entry) {
      entry = { model, since: performance.now(), waiters: new Set(), uncounted: 0 };
      this.#entries.set(model, entry);
    }
    return entry;
  }

  #remove(entry: Entry<T>, waiter: Waiter<T>): void {
    entry.waiters.delete(waiter);
    if (!waiter.isCounted) entry.uncounted -= 1;
    clearTimeout(waiter.timer);
    waiter.forget();
    this.#size -= 1;
    if (entry.waiters.size === 0) this.#entries.delete(entry.model);
  }

  #limit(waiter: Waiter<T>): void {
    clearTimeout(waiter.timer);
    const limit = this.#options.limitOf(waiter.model, waiter.boundedSince);
    waiter.timer = limit && setTimeout(() => this.#limitReached(waiter), limit.at - performance.now());
  }

  /** What bounds the wait now may be something that comes later. */
  #limitReached(waiter: Waiter<T>): void {
    const limit = this.#options.limitOf(waiter.model, waiter.boundedSince);
    if (limit && limit.at <= performance.now()) waiter.leave(limit.refusal());
    else this.#limit(waiter);
  }
}

const anyone = (): boolean => true;

function clientGone(model: string): RouterError {
  return new RouterError('client_gone', `request cancelled while waiting for model name=${model}`, { model });
}
