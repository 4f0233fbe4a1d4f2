import type { Clock } from '../../../../src/instance/hang/clock.js';
import type { Evidence, Finding } from '../../../../src/instance/hang/evidence.js';
import { HangWatch, type WatchedRequest } from '../../../../src/instance/hang/hang-watch.js';
import type { ProbeAnswer } from '../../../../src/instance/hang/one-token-probe.js';

/** A clock that stands until it is moved. */
export class StandingClock implements Clock {
  #nowMs = 0;
  readonly #timers = new Set<{ readonly at: number; readonly callback: () => void }>();

  readonly now = (): number => this.#nowMs;

  readonly after = (ms: number, callback: () => void): (() => void) => {
    const timer = { at: this.#nowMs + ms, callback };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  };

  /** Timers that wait. */
  get timers(): number {
    return this.#timers.size;
  }

  /** Moves on, and stops at every timer on the way until what it began has settled. */
  async passes(ms: number): Promise<void> {
    const end = this.#nowMs + ms;
    await settled();
    for (;;) {
      const [next] = [...this.#timers].sort((a, b) => a.at - b.at);
      if (!next || next.at > end) break;
      this.#timers.delete(next);
      this.#nowMs = Math.max(this.#nowMs, next.at);
      next.callback();
      await settled();
    }
    this.#nowMs = end;
  }

  /** Everything that runs on this clock stands still meanwhile, as in a container that is frozen. */
  async isFrozenFor(ms: number): Promise<void> {
    this.#nowMs += ms;
    await this.passes(0);
  }
}

/** Promises that are settled have been heard of. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Something that advances, or cannot be seen. */
export class Sign implements Evidence {
  value: number | 'unknown' | 'stuck' | 'broken' = 0;
  looks = 0;
  readonly #said: string;
  #before: number | undefined;
  readonly #stuck: ((finding: Finding) => void)[] = [];

  constructor(said: string) {
    this.#said = said;
  }

  async look(): Promise<Finding> {
    this.looks += 1;
    const { value } = this;
    if (value === 'stuck') return await new Promise((resolve) => this.#stuck.push(resolve));
    if (value === 'broken') throw new Error('broken');
    if (value === 'unknown') return { kind: 'unknown' };
    const before = this.#before;
    this.#before = value;
    if (before === undefined) return { kind: 'first' };
    return before === value ? { kind: 'none', said: this.#said } : { kind: 'progress' };
  }

  /** What looks that are stuck have found after all. */
  comesBack(finding: Finding): void {
    for (const resolve of this.#stuck.splice(0)) resolve(finding);
  }

  advance(): void {
    if (typeof this.value === 'number') this.value += 1;
  }
}

/** A watch with a time-out of 80 s, hence a look every 10 s, at three signs that stand still until they are advanced. */
export class HangRig {
  readonly clock = new StandingClock();
  readonly cpu = new Sign('no processor time');
  readonly slots = new Sign('/slots did not change');
  readonly gpu = new Sign('no use of a GPU');
  readonly reasons: string[] = [];
  readonly watch: HangWatch;
  awake = true;
  probes = 0;
  /** What a probe is answered, after how long. */
  answer: { readonly is: ProbeAnswer; readonly afterMs: number } = { is: 'alive', afterMs: 0 };

  constructor({ hangTimeoutMs = 80_000 }: { hangTimeoutMs?: number } = {}) {
    this.watch = new HangWatch({
      hangTimeoutMs,
      evidence: [this.cpu, this.slots, this.gpu],
      isAwake: () => this.awake,
      onHang: (reason) => this.reasons.push(reason),
      clock: this.clock,
      probe: async () => {
        this.probes += 1;
        const { is, afterMs } = this.answer;
        if (afterMs > 0) await new Promise<void>((resolve) => this.clock.after(afterMs, resolve));
        return is;
      },
    });
  }

  /** A request of a client that reads. */
  request(): WatchedRequest {
    return this.watch.begin(() => false);
  }

  /** A request that is answered with this at once. */
  async isAnswered(statusCode: number): Promise<void> {
    const request = this.request();
    request.answered(statusCode);
    request.progressed();
    request.ended();
    await this.clock.passes(0);
  }

  /** Seconds pass; `each` is called once in every one of them. */
  async seconds(count: number, each?: () => void): Promise<void> {
    for (let n = 0; n < count; n += 1) {
      each?.();
      await this.clock.passes(1_000);
    }
  }

  /** After how many more seconds the child is said to hang; undefined when it is not within `limit`. */
  async secondsUntilHang(limit: number, each?: () => void): Promise<number | undefined> {
    for (let n = 1; n <= limit; n += 1) {
      await this.seconds(1, each);
      if (this.reasons.length > 0) return n;
    }
    return undefined;
  }
}
