import { setImmediate as turnOfTheLoop } from 'node:timers/promises';
import { vi } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import { EventBus, type SupervisorEvent } from '../../../src/events/events.js';
import type { Instance } from '../../../src/instance/instance.js';
import type { FailureCause, StopReason } from '../../../src/instance/state.js';
import { Scheduler, type Lease, type SchedulerOptions } from '../../../src/scheduler/scheduler.js';
import { FakeInstance } from './fake-instance.js';

/** `look`: a request that loads nothing (`autoload=false`) and is no use of the model either. */
export type AskKind = 'lease' | 'look' | 'load';

/** One request to the scheduler, and what has become of it. */
export class Ask {
  readonly model: string;
  readonly kind: AskKind;
  readonly askedAt = performance.now();
  /** The client is gone. */
  hasLeft = false;
  lease: Lease | undefined;
  released = false;
  error: RouterError | undefined;
  /** A load that was asked for is on its way. */
  loaded = false;
  readonly #client = new AbortController();

  constructor(model: string, kind: AskKind) {
    this.model = model;
    this.kind = kind;
  }

  arriveAt(scheduler: Scheduler): void {
    const { signal } = this.#client;
    const answer =
      this.kind === 'load'
        ? scheduler.load(this.model, signal)
        : scheduler.acquire(this.model, signal, { autoload: this.kind === 'lease', wake: true });
    answer.then(
      (lease) => {
        this.loaded = this.kind === 'load';
        this.lease = lease ?? undefined;
      },
      (error: unknown) => {
        if (!(error instanceof RouterError)) throw error;
        this.error = error;
      },
    );
  }

  get isWaiting(): boolean {
    return this.lease === undefined && this.error === undefined && !this.loaded;
  }

  get holdsLease(): boolean {
    return this.lease !== undefined && !this.released;
  }

  leave(): void {
    this.hasLeft = true;
    this.#client.abort();
  }

  finish(): void {
    this.released = true;
    this.lease?.release(this.kind === 'look' ? 'look' : 'use');
  }
}

/** What a model is started as, by a name, or why it cannot be. */
export type Form = string | RouterError;

export const firstForm = 'first form';
export const gone = new RouterError('model_unknown', 'model not found');
export const broken = new RouterError('model_invalid', 'model cannot be served');

const defaults: SchedulerOptions = {
  modelsMax: 1,
  queueMax: 100,
  inFlightMax: 0,
  queueTimeoutMs: 600_000,
  fairAfterMs: 30_000,
  loadTimeoutMs: 600_000,
  drainTimeoutMs: 60_000,
};

/** The real scheduler over fake instances. Its timers are the test's: see `passes`. */
export class Rig {
  readonly scheduler: Scheduler;
  /** Every instance ever launched, in order. */
  readonly launched: FakeInstance[] = [];
  readonly events: SupervisorEvent[] = [];
  /** Models whose launch throws. */
  readonly unlaunchable = new Set<string>();
  /** The catalog: what each model is started as now; one that is not named has its first form. */
  readonly #forms = new Map<string, Form>();
  readonly #launchedAs = new WeakMap<object, Form>();
  /** Called before each launch and each first stop. */
  onLaunch: (model: string) => void = () => undefined;
  onStop: (instance: FakeInstance, reason: StopReason) => void = () => undefined;

  constructor(options: Partial<SchedulerOptions> = {}) {
    const events = new EventBus((error) => {
      throw error;
    });
    events.subscribe((event) => this.events.push(event));
    this.scheduler = new Scheduler(
      { ...defaults, ...options },
      {
        events,
        launch: (model, onChange) => {
          this.onLaunch(model);
          if (this.unlaunchable.has(model)) throw new Error('no such file');
          const form = this.formOf(model);
          if (form instanceof RouterError) throw form;
          const instance = new FakeInstance(model, onChange, (stopped, reason) =>
            this.onStop(stopped, reason),
          );
          this.launched.push(instance);
          this.#launchedAs.set(instance, form);
          return instance.asInstance();
        },
        standing: (instance) => this.standing(instance),
        refusal: (model) => {
          const form = this.formOf(model);
          return form instanceof RouterError ? form : undefined;
        },
      },
    );
  }

  /** What the model is started as now. */
  formOf(model: string): Form {
    return this.#forms.get(model) ?? firstForm;
  }

  /** Whether the instance is what its model is started as now. */
  standing(instance: FakeInstance | Instance): 'current' | 'changed' | 'removed' {
    const form = this.formOf(instance.modelId);
    if (form instanceof RouterError) return 'removed';
    return form === this.#launchedAs.get(instance) ? 'current' : 'changed';
  }

  /** There is a new catalog, in which these models have these forms; the others are as they were. */
  publish(forms: Readonly<Record<string, Form>>): void {
    // As in a real one: what came or went is not "changed", what can be served again is.
    const changed = Object.entries(forms)
      .filter(([model, form]) => {
        const before = this.formOf(model);
        return form !== before && form !== broken && before !== gone && form !== gone;
      })
      .map(([model]) => model);
    for (const [model, form] of Object.entries(forms)) this.#forms.set(model, form);
    this.scheduler.reconcile(new Set(changed));
  }

  /** The models launched so far, in order. */
  get launches(): string[] {
    return this.launched.map(({ modelId }) => modelId);
  }

  get alive(): FakeInstance[] {
    return this.launched.filter((instance) => instance.isAlive);
  }

  /** The last instance of the model. */
  instance(model: string): FakeInstance {
    const last = this.launched.findLast(({ modelId }) => modelId === model);
    if (!last) throw new Error(`${model} was never launched`);
    return last;
  }

  /** Asks, and lets everything that follows at once happen. */
  async ask(model: string, kind: AskKind = 'lease'): Promise<Ask> {
    const ask = new Ask(model, kind);
    ask.arriveAt(this.scheduler);
    await settled();
    return ask;
  }

  /** Asks, and plays the child that loads at once, for a model whose slot is free. */
  async askAndLoad(model: string): Promise<Ask> {
    const ask = await this.ask(model);
    this.instance(model).becomesReady();
    await settled();
    if (!ask.lease) throw new Error(`${model} was not admitted when it was ready`);
    return ask;
  }

  /** The model's run fails, and everything that follows at once happens. */
  async fails(model: string, cause: FailureCause): Promise<void> {
    const instance = this.instance(model);
    instance.failsBy = cause;
    instance.exits();
    await settled();
  }

  /** Brings the model up without any request for it left. */
  async loadIdle(model: string): Promise<FakeInstance> {
    (await this.askAndLoad(model)).finish();
    await settled();
    return this.instance(model);
  }
}

/** Lets all promises that are due settle. */
export async function settled(): Promise<void> {
  await turnOfTheLoop();
}

/** Stops the clock: `passes` moves it. To be undone by `vi.useRealTimers`. */
export function stopTheClock(): void {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
}

/** Lets time pass for timers and `performance.now`. */
export async function passes(ms: number): Promise<void> {
  vi.advanceTimersByTime(ms);
  await settled();
}
