import { systemClock, type Clock } from './clock.js';
import type { WatchedRequest } from './hang-watch.js';

export interface HealthWatchOptions {
  /** Asks for `/health`, on a connection of its own, within a bound: whether there was an answer. Must not reject. */
  readonly isHealthy: () => Promise<boolean>;
  /** Called once, when there was none twice in a row. Nothing is asked after. */
  readonly onHang: () => void;
  readonly clock?: Clock;
}

/** So long nothing has come, and it is asked. Milliseconds. */
const silenceMs = 10_000;

/** After a question without an answer, until the next. Milliseconds. */
const secondQuestionMs = 1_000;

/**
 * Sees whether a process without a model hangs. What it works on may take as long as it likes, and does not keep it from
 * answering `/health`: so that alone decides. It is asked only when requests have been waiting and not a byte has come. While
 * nothing is in flight nothing is asked; the silence is remembered, so that clients which give up one after the other find out
 * as well.
 */
export class HealthWatch {
  readonly #options: HealthWatchOptions;
  readonly #clock: Clock;
  readonly #inFlight = new Set<object>();
  /** Signs of life. */
  #bytes = 0;
  #bytesAtLook = 0;
  /** Whether the last silence ended with nobody there to ask for. */
  #isOverdue = false;
  #isAsking = false;
  #cancelTimer: (() => void) | undefined;
  #closed = false;

  constructor(options: HealthWatchOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** A request is on its way to the process. */
  begin(): WatchedRequest {
    const request = {};
    this.#inFlight.add(request);
    if (this.#isOverdue) void this.#ask();
    else if (!this.#cancelTimer) this.#wait();
    const ended = (): void => void this.#inFlight.delete(request);
    const progressed = (): void => void (this.#bytes += 1);
    return { progressed, answered: progressed, broken: ended, ended };
  }

  /** Ends it: nothing is asked and nothing is said any more. */
  close(): void {
    this.#closed = true;
    this.#isOverdue = false;
    this.#cancelTimer?.();
  }

  #wait(): void {
    if (this.#closed || this.#isAsking) return;
    this.#isOverdue = false;
    this.#bytesAtLook = this.#bytes;
    this.#cancelTimer = this.#clock.after(silenceMs, () => this.#look());
  }

  #look(): void {
    this.#cancelTimer = undefined;
    if (this.#bytes !== this.#bytesAtLook) {
      if (this.#inFlight.size > 0) this.#wait();
    } else if (this.#inFlight.size > 0) {
      void this.#ask();
    } else {
      this.#isOverdue = true;
    }
  }

  async #ask(): Promise<void> {
    if (this.#isAsking) return;
    this.#isAsking = true;
    const isAlive = (await this.#lives()) || (await this.#livesAfter(secondQuestionMs));
    this.#isAsking = false;
    if (this.#closed) return;
    if (!isAlive) {
      this.close();
      this.#options.onHang();
      return;
    }
    this.#isOverdue = false;
    if (this.#inFlight.size > 0) this.#wait();
  }

  async #livesAfter(ms: number): Promise<boolean> {
    await new Promise<void>((resolve) => this.#clock.after(ms, resolve));
    return this.#closed || (await this.#lives());
  }

  /** Whether it has answered, or anything else has come from it meanwhile. */
  async #lives(): Promise<boolean> {
    const bytesBefore = this.#bytes;
    return (await this.#options.isHealthy()) || this.#bytes !== bytesBefore;
  }
}
