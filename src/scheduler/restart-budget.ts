import type { Outcome } from '../instance/state.js';

/** How one run of a model failed. */
export type Failure = Pick<Outcome & { kind: 'failed' }, 'phase' | 'message' | 'lastLines'>;

/** The time for which a model that keeps failing is not started again. */
export interface RestartPause {
  /** What is left of it. Milliseconds, more than 0. */
  readonly leftMs: number;
  /** Failures in a row; at least two. */
  readonly failures: number;
  /** The last of them. */
  readonly last: Failure;
}

export interface RestartBudgetOptions {
  /**
   * Failures this long ago are forgotten, and the next one is a first one. To be longer than a load can take: a model
   * that never gets ready in time fails that far apart. Default: 10 minutes. Milliseconds.
   */
  readonly windowMs?: number;
  /** Milliseconds, monotonic. */
  readonly now?: () => number;
  /** From 0 to 1. */
  readonly random?: () => number;
}

/** After the second failure in a row; twice as long after each that follows. Milliseconds. */
const firstPauseMs = 1_000;
const longestPauseMs = 300_000;

/** Up to so much of a pause is added or taken away, so that models which fell together do not start together. */
const jitter = 0.2;

interface Row {
  failures: number;
  last: Failure;
  /** Milliseconds, monotonic. */
  lastAt: number;
  pausedUntil: number;
}

/**
 * How often models fail, and how long they are left alone after it. The first failure costs nothing: most are the only
 * one, and the next request starts the model again. From the second in a row on there is a pause before each start.
 *
 * It decides nothing and has no timer: who starts models asks for the pause first. It remembers models that have failed
 * within the window, and no others.
 */
export class RestartBudget {
  readonly #windowMs: number;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #rows = new Map<string, Row>();

  constructor({
    windowMs = 600_000,
    now = () => performance.now(),
    random = Math.random,
  }: RestartBudgetOptions = {}) {
    this.#windowMs = windowMs;
    this.#now = now;
    this.#random = random;
  }

  /** Number of models that are remembered. */
  get size(): number {
    return this.#rows.size;
  }

  /**
   * A run of the model has failed, before it was ready or after.
   *
   * @returns the pause that this brings; undefined when it may be started again at once
   */
  failed(model: string, failure: Failure): RestartPause | undefined {
    const now = this.#now();
    this.#forgetOld(now);
    const failures = (this.#rows.get(model)?.failures ?? 0) + 1;
    const pausedUntil = now + this.#pauseAfter(failures);
    this.#rows.set(model, { failures, last: failure, lastAt: now, pausedUntil });
    return this.pauseOf(model);
  }

  /** A run of the model has done what it is for: its failures are a thing of the past. */
  succeeded(model: string): void {
    this.#rows.delete(model);
  }

  /** The model is another one now, or gone, or somebody wants it to be tried at once. */
  reset(model: string): void {
    this.#rows.delete(model);
  }

  /** The pause that is open for the model; undefined when it may be started. */
  pauseOf(model: string): RestartPause | undefined {
    const row = this.#rows.get(model);
    const leftMs = row === undefined ? 0 : row.pausedUntil - this.#now();
    return row === undefined || leftMs <= 0 ? undefined : { leftMs, failures: row.failures, last: row.last };
  }

  /** How often in a row the model has failed, as far as that is remembered. */
  failuresOf(model: string): number {
    const row = this.#rows.get(model);
    return row === undefined || this.#isOld(row, this.#now()) ? 0 : row.failures;
  }

  #forgetOld(now: number): void {
    for (const [model, row] of this.#rows) {
      if (this.#isOld(row, now)) this.#rows.delete(model);
    }
  }

  /** A window that is shorter than a pause does not end the pause. */
  #isOld({ lastAt, pausedUntil }: Row, now: number): boolean {
    return Math.max(lastAt + this.#windowMs, pausedUntil) <= now;
  }

  #pauseAfter(failures: number): number {
    if (failures < 2) return 0;
    const pauseMs = Math.min(longestPauseMs, firstPauseMs * 2 ** (failures - 2));
    return pauseMs * (1 + jitter * (2 * this.#random() - 1));
  }
}
