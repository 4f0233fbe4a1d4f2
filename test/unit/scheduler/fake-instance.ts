import type { Instance } from '../../../src/instance/instance.js';
import type { LeftBehind } from '../../../src/instance/left-behind.js';
import {
  type FailureCause,
  statusWord,
  type InstanceState,
  type Outcome,
  type StopReason,
} from '../../../src/instance/state.js';
import type { Upstream } from '../../../src/instance/upstream.js';

let lastPid = 1000;

/**
 * An instance without a process: the test plays the child, and the scheduler finds everything it uses of
 * `Instance`. As there, the first reason to stop is kept and the last state is `exited`.
 */
export class FakeInstance {
  readonly modelId: string;
  readonly pid = ++lastPid;
  readonly port = this.pid + 40_000;
  readonly spawned: Promise<void>;
  readonly exited: Promise<Outcome>;
  state: InstanceState = { name: 'loading', progress: undefined };
  /** Tells whose lease it is: each instance has its own. */
  upstream: Upstream | undefined;
  /** Time of its becoming ready; undefined before. */
  readyAt: number | undefined;
  stopReason: StopReason | undefined;
  stoppedFrom: InstanceState['name'] | undefined;
  killed = false;
  /** Set before it exits when its process could not be killed. */
  leftBehind: readonly LeftBehind[] = [];
  /** Why it ends, if it fails. */
  failsBy: FailureCause = 'other';
  readonly #onChange: (instance: Instance) => void;
  readonly #onStop: (instance: FakeInstance, reason: StopReason) => void;
  #markSpawned: () => void = () => undefined;
  #markExited: (outcome: Outcome) => void = () => undefined;

  /** @param onStop called when it is asked to stop for the first time, before anything of it changes */
  constructor(
    modelId: string,
    onChange: (instance: Instance) => void,
    onStop: (instance: FakeInstance, reason: StopReason) => void,
  ) {
    this.modelId = modelId;
    this.#onChange = onChange;
    this.#onStop = onStop;
    this.spawned = new Promise((resolve) => (this.#markSpawned = resolve));
    this.exited = new Promise((resolve) => (this.#markExited = resolve));
  }

  /** The one place where it is taken for a real one. */
  asInstance(): Instance {
    return this as unknown as Instance;
  }

  readonly hasDied = false;

  get isAlive(): boolean {
    return this.state.name !== 'exited';
  }

  /** Loaded, sleeping or waking: it can take a request. */
  get isUp(): boolean {
    const { name } = this.state;
    return name === 'ready' || name === 'sleeping' || name === 'waking';
  }

  stop(reason: StopReason): void {
    if (this.stopReason !== undefined || !this.isAlive) return;
    this.#onStop(this, reason);
    const word = statusWord(this.state);
    this.stopReason = reason;
    this.stoppedFrom = this.state.name;
    this.#transition({
      name: 'stopping',
      reason,
      was: word === 'unloaded' ? 'loading' : word,
      info: undefined,
    });
  }

  kill(): void {
    this.killed = true;
    this.stop('shutdown');
  }

  spawns(): void {
    this.#markSpawned();
  }

  becomesReady(): void {
    this.#markSpawned();
    this.upstream ??= { of: this } as unknown as Upstream;
    this.readyAt ??= performance.now();
    this.#transition({ name: 'ready', info: undefined });
  }

  fallsAsleep(): void {
    this.#transition({ name: 'sleeping', info: undefined });
  }

  wakes(): void {
    this.#transition({ name: 'waking', info: undefined, progress: undefined });
  }

  /** It was not ready in time: it stops by itself, and its exit is a failed load. */
  missesLoadDeadline(): void {
    this.stop('load deadline');
  }

  /** The process is gone: by itself, which is a failure, or because it was asked to. */
  exits(): void {
    if (!this.isAlive) return;
    const outcome = this.#outcome();
    this.#markSpawned();
    this.#transition({ name: 'exited', outcome });
    this.#markExited(outcome);
  }

  #outcome(): Outcome {
    const { stopReason } = this;
    if (stopReason !== undefined && stopReason !== 'load deadline') {
      return { kind: 'stopped', reason: stopReason, exitCode: 0 };
    }
    return {
      kind: 'failed',
      phase: this.upstream === undefined ? 'loading' : 'running',
      message: 'exited with code 1',
      exitCode: 1,
      cause: this.failsBy,
      lastLines: ['loading model', 'unknown model architecture'],
      at: new Date(0),
    };
  }

  #transition(next: InstanceState): void {
    this.state = next;
    this.#onChange(this.asInstance());
  }
}
