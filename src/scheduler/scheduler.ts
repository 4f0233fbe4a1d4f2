import { RouterError } from '../errors.js';
import type { EventBus } from '../events/events.js';
import type { Instance } from '../instance/instance.js';
import type { LeftBehind } from '../instance/left-behind.js';
import { statusWord, type LoadProgress, type ModelInfo, type Outcome } from '../instance/state.js';
import type { Upstream } from '../instance/upstream.js';
import { decide } from './decide.js';
import { WaitQueue, type WaitKind, type WaitLimit } from './queue.js';
import {
  cannotLaunch,
  loadFailed,
  notLoaded,
  notRunning,
  queueTimeout,
  shuttingDown,
  stillChanging,
} from './refusals.js';
import { RestartBudget } from './restart-budget.js';
import { restartPaused } from './restart-refusal.js';
import {
  isLoading,
  isStopped,
  isStopping,
  stopIfDrained,
  stopTimer,
  view,
  wallTimeOf,
  type Running,
} from './running.js';
import { SecondTries } from './second-tries.js';

export type { Outcome } from '../instance/state.js';
export { shuttingDown } from './refusals.js';
export { isWork } from '../instance/hang/watched-handler.js';
export { withLastWords } from '../instance/telling-line.js';
export type { Upstream, UpstreamRequest } from '../instance/upstream.js';

export interface SchedulerOptions {
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
  readonly queueMax: number;
  readonly queueTimeoutMs: number;
  readonly fairAfterMs: number;
  readonly loadTimeoutMs: number;
  /** Requests that one instance answers at once; more wait in line. 0 = no bound. */
  readonly inFlightMax: number;
  /** How long an explicit unload waits for requests in flight. */
  readonly drainTimeoutMs: number;
}

export interface SchedulerEffects {
  /**
   * Starts an instance of the model; `onChange` is to be called after each change of its state.
   *
   * @throws RouterError when the model cannot be started at all
   */
  readonly launch: (model: string, onChange: (instance: Instance) => void) => Instance;
  /** Whether a run is what its model would be started as now; `removed` when the model is served no more. */
  readonly standing: (instance: Instance) => 'current' | 'changed' | 'removed';
  /** Why requests for the model are refused now, whatever runs; undefined when they are not. */
  readonly refusal: (model: string) => RouterError | undefined;
  readonly events: EventBus;
}

/** A request's hold on an instance, from its admission until its response body has ended. */
export interface Lease {
  readonly model: string;
  readonly upstream: Upstream;
  /** An answer of its instance has been whole: whatever failed before is a thing of the past. */
  readonly succeeded: () => void;
  /** Ends the hold; more than once is the same as once. A `look` does not make its model more recently used. */
  readonly release: (purpose: 'use' | 'look') => void;
  /** How the instance ended, or why it is being stopped, when that is so within `ms`; undefined when it goes on. */
  readonly outcomeWithin: (ms: number) => Promise<Outcome | undefined>;
}

/** What is known of a model's runs, for lists. */
export interface ModelStatus {
  readonly value: 'unloaded' | 'loading' | 'loaded' | 'sleeping';
  /** Port of the current or last child; 0 before the first. */
  readonly port: number;
  readonly pid: number | undefined;
  readonly progress: LoadProgress | undefined;
  readonly info: ModelInfo | undefined;
  readonly inFlight: number;
  readonly waiting: number;
  /** Whether it has changed since it was started, and is started anew when its requests have ended. */
  readonly changing: boolean;
  /** End of its last request, or its becoming ready; undefined for one that has not been ready. */
  readonly lastUsed: Date | undefined;
  /** Whether it is being stopped, or will be when its requests have ended. */
  readonly stopping: boolean;
  /** How its last run ended, when none is going on. */
  readonly outcome: Outcome | undefined;
  /** Failures in a row that are not forgotten yet. */
  readonly failures: number;
  /** When requests may start it again, because it has failed again and again; undefined when they may now. */
  readonly retryAt: Date | undefined;
  /** Processes of earlier runs that could not be killed and are still there, the oldest first. */
  readonly leftBehind: readonly Pick<LeftBehind, 'pid' | 'since'>[];
}

/** A run that has lasted so long is no failure of its start. Milliseconds. */
const provenAfterMs = 60_000;

/** Failures that are so far apart have nothing to do with each other. Milliseconds. */
const forgetAfterMs = 600_000;

/** Models that a refusal names. */
const namedHolders = 8;

interface Past {
  readonly port: number;
  readonly lastUsed: Date | undefined;
  /** Undefined when the model has changed since: it says nothing about what would be started now. */
  readonly outcome: Outcome | undefined;
  /** For how long it was loading, in all its runs. Milliseconds. */
  readonly loadingMs: number;
}

/**
 * Admits and evicts: the only one that decides which instances run and who may use them. It speaks model ids.
 * What to do is decided by `decide`; this class keeps the books, carries the decision out, and asks again after
 * every change.
 */
export class Scheduler {
  readonly #options: SchedulerOptions;
  readonly #effects: SchedulerEffects;
  readonly #running = new Map<string, Running>();
  readonly #past = new Map<string, Past>();
  readonly #queue: WaitQueue<Lease | undefined>;
  readonly #budget: RestartBudget;
  readonly #leftBehind = new Map<string, Set<LeftBehind>>();
  readonly #secondTries = new SecondTries();
  /** Models that take no request until they are gone or given back, and what requests are told. */
  readonly #withdrawn = new Map<string, RouterError>();
  /** Models whose instances take no new leases, so that they become idle for models that are starving. */
  #held: readonly string[] = [];
  #fairnessTimer: NodeJS.Timeout | undefined;
  #onIdle: (() => void) | undefined;
  #ticking = false;
  #tickWanted = false;
  #closed = false;

  constructor(options: SchedulerOptions, effects: SchedulerEffects) {
    this.#options = options;
    this.#effects = effects;
    // A model that never gets ready in time fails that far apart.
    this.#budget = new RestartBudget({ windowMs: forgetAfterMs + options.loadTimeoutMs });
    this.#queue = new WaitQueue({
      maxWaiters: options.queueMax,
      limitOf: (model, since) => this.#limitOf(model, since),
      onLeave: () => this.#tick(),
    });
  }

  /**
   * A lease on the model's instance when that can take requests now.
   *
   * @param wake whether one that sleeps will do, which the request then wakes
   * @param look whether it asks for no work, and need not wait until there is less of that
   */
  tryAcquire(model: string, { wake, look = false }: { wake: boolean; look?: boolean }): Lease | undefined {
    if (this.#closed) return undefined;
    const running = this.#running.get(model);
    if (!running || !this.#canServe(running) || (!look && this.#roomIn(running) <= 0)) return undefined;
    if (!wake && running.instance.state.name === 'sleeping') return undefined;
    return this.#lease(running, { look });
  }

  /**
   * A lease on the model's instance for something that belongs to one of its requests: reading an answer on, or ending
   * it. One that takes no new requests serves that still; one that is stopping or loading does not.
   */
  tryAttach(model: string): Lease | undefined {
    const running = this.#running.get(model);
    if (!running || isStopped(running) || running.instance.upstream === undefined) return undefined;
    return this.#lease(running, { look: true });
  }

  /**
   * A lease on the model's instance, waited for in order of arrival; the model is loaded if need be.
   *
   * @param signal aborted when the client leaves; it then waits no more, and what nobody waits for is not loaded
   * @param autoload whether a model that is not running is loaded; a running or loading one is waited for anyway
   * @param wake whether one that sleeps is woken; without it and without `autoload` it counts as not loaded
   * @param look whether it asks for no work, and need not wait until there is less of that
   * @throws RouterError model_not_loaded, queue_full, queue_timeout, model_changing, load_failed, client_gone,
   * shutting_down, and the refusal of a model that is not served any more
   */
  async acquire(
    model: string,
    signal: AbortSignal,
    { autoload, wake, look = false }: { autoload: boolean; wake: boolean; look?: boolean },
  ): Promise<Lease> {
    if (this.#closed) throw shuttingDown();
    const atOnce = this.tryAcquire(model, { wake: wake || autoload, look });
    if (atOnce) return atOnce;
    const running = this.#running.get(model);
    const isThere = running && !isStopping(running) && (wake || running.instance.state.name !== 'sleeping');
    if (!autoload && !isThere) {
      throw notLoaded(model);
    }
    const lease = await this.#waitInLine(model, autoload ? 'lease' : 'look', signal, look);
    return lease ?? never(`a waiter for a lease on ${model} was served without one`);
  }

  /**
   * Loads the model without a request for it; in the same queue as requests. Settles when its child is spawned.
   *
   * @param anew whether it is tried at once although it has failed again and again: somebody asks for that
   * @throws RouterError model_already_running, and what `acquire` throws
   */
  async load(model: string, signal: AbortSignal, { anew } = { anew: true }): Promise<void> {
    if (this.#closed) throw shuttingDown();
    const running = this.#running.get(model);
    if (running && !isStopping(running)) {
      throw new RouterError('model_already_running', 'model is already running', { model });
    }
    if (anew) this.#forgive(model);
    await this.#waitInLine(model, 'load', signal);
    await this.#running.get(model)?.instance.spawned;
  }

  /**
   * Unloads the model: its requests in flight get `drainTimeoutMs` to end, new ones wait for the next instance.
   * Returns at once. One that is on its way out is listed as before, so unloading it again is no mistake.
   *
   * @param force cuts the requests in flight, also those of an unload that waits for them
   * @throws RouterError model_not_running
   */
  unload(model: string, { force }: { force: boolean } = { force: false }): void {
    const running = this.#running.get(model);
    if (!running && this.#secondTries.callOff(model)) {
      // It was about to be loaded once more.
      this.#queue.refuse(model, notRunning(model));
      this.#tick();
      return;
    }
    if (!running) throw new RouterError('model_not_running', 'model is not running', { model });
    if (isStopped(running) || (running.draining?.reason === 'unloaded' && !force)) return;
    // Those who wait for this very load are told; a request that comes later loads it again.
    if (running.instance.state.name === 'loading') this.#queue.refuse(model, notRunning(model));
    if (running.leases === 0 || force) {
      stopTimer(running);
      running.instance.stop('unloaded');
      return;
    }
    const timer = setTimeout(() => running.instance.stop('unloaded'), this.#options.drainTimeoutMs);
    running.draining = { reason: 'unloaded', timer };
    this.#tick();
  }

  /**
   * Takes the model out of service: no request is taken or waits for it any more, and those in flight get
   * `drainTimeoutMs` to end. Settles when its process is gone.
   *
   * @param refusal what requests for it are told meanwhile
   * @returns puts it back into service
   */
  async withdraw(model: string, refusal: RouterError): Promise<() => void> {
    this.#withdrawn.set(model, refusal);
    this.#queue.refuse(model, refusal);
    const running = this.#running.get(model);
    if (running) {
      this.unload(model);
      await running.instance.exited;
    }
    return () => void this.#withdrawn.delete(model);
  }

  /**
   * The catalog is another one now. An instance of a model that changed or went takes no new requests and stops
   * when it has answered those it has; requests for the changed one then start it anew, and wait no longer than
   * `fairAfterMs` for that. One that is as it would be started (again) goes on.
   *
   * @param changed models that would be started differently now: how their last run ended says nothing any more
   */
  reconcile(changed: ReadonlySet<string>): void {
    for (const { model } of this.#queue.entries()) {
      const refusal = this.#effects.refusal(model);
      if (refusal) this.#queue.refuse(model, refusal);
    }
    for (const model of changed) this.#forgive(model);
    for (const [model, past] of this.#past) {
      if (changed.has(model)) this.#past.set(model, { ...past, outcome: undefined });
      else if (this.#effects.refusal(model)?.code === 'model_unknown') {
        this.#past.delete(model);
        this.#forgive(model);
      }
    }
    const all = [...this.#running.values()];
    // All are marked before the first one stops: a stop brings a decision, and that must know which are outdated.
    for (const running of all) this.#review(running);
    for (const running of all) stopIfDrained(running);
    this.#tick();
  }

  status(model: string): ModelStatus {
    const running = this.#running.get(model);
    const waiting = this.#queue.waitersFor(model);
    const pauseMs = this.pauseMs(model);
    const left = this.#leftBehind.get(model);
    const past = {
      failures: this.#budget.failuresOf(model),
      retryAt: pauseMs === 0 ? undefined : new Date(Date.now() + pauseMs),
      leftBehind: left === undefined ? [] : [...left],
    };
    if (!running) {
      const none = {
        progress: undefined,
        info: undefined,
        pid: undefined,
        inFlight: 0,
        changing: false,
        stopping: false,
      };
      const { port = 0, outcome, lastUsed } = this.#past.get(model) ?? {};
      return { value: 'unloaded', port, ...none, waiting, lastUsed, outcome, ...past };
    }
    const { state, port, pid } = running.instance;
    return {
      value: statusWord(state),
      port,
      pid,
      progress: 'progress' in state ? state.progress : undefined,
      info: 'info' in state ? state.info : undefined,
      inFlight: running.leases,
      waiting,
      changing: running.draining?.reason === 'changed',
      stopping: isStopping(running),
      lastUsed: wallTimeOf(running),
      outcome: undefined,
      ...past,
    };
  }

  /** End of its last request in this run; undefined before the first, and for a model that does not run. */
  usedAt(model: string): Date | undefined {
    const running = this.#running.get(model);
    return running && running.lastUsed !== running.readySince ? wallTimeOf(running) : undefined;
  }

  /** For how long the model has been loading, all its loads together: what passes while one waits for it is its load. */
  loadingMs(model: string): number {
    const pastMs = this.#past.get(model)?.loadingMs ?? 0;
    const running = this.#running.get(model);
    if (!running) return pastMs;
    return pastMs + (running.readySince ?? performance.now()) - running.startedAt;
  }

  /** The processes that run. */
  get pids(): readonly number[] {
    return Array.from(this.#running.values(), ({ instance }) => instance.pid ?? []).flat();
  }

  /** The models that have got ready and still run. */
  get loaded(): readonly string[] {
    const ready = [...this.#running].filter(([, { readySince }]) => readySince !== undefined);
    return ready.map(([model]) => model);
  }

  /** Slots that are taken, or will be by models that are waited for. */
  get slotsTaken(): number {
    const waitedFor = this.#queue.entries().filter(({ model }) => !this.#running.has(model));
    return this.#running.size + waitedFor.length;
  }

  /** Requests holding a lease. */
  get inFlight(): number {
    let sum = 0;
    for (const { leases } of this.#running.values()) sum += leases;
    return sum;
  }

  /** The models that are answering requests, and how many. */
  get busy(): readonly { readonly model: string; readonly inFlight: number }[] {
    const all = Array.from(this.#running, ([model, { leases }]) => ({ model, inFlight: leases }));
    return all.filter(({ inFlight }) => inFlight > 0);
  }

  /** Whether no request is taken any more. */
  get isClosed(): boolean {
    return this.#closed;
  }

  /** Requests waiting for one. */
  get waiting(): number {
    return this.#queue.size;
  }

  /** Takes no request any more; those waiting are refused, those in flight go on. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#fairnessTimer);
    for (const { model } of this.#queue.entries()) this.#queue.refuse(model, shuttingDown());
  }

  /** Settles when no request holds a lease, or after `ms`. */
  async idleWithin(ms: number): Promise<void> {
    if (this.inFlight === 0) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#onIdle = resolve;
      timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }

  /** Stops every instance and settles when all are gone. */
  async stopAll(): Promise<void> {
    this.close();
    const instances = Array.from(this.#running.values(), ({ instance }) => instance);
    for (const instance of instances) instance.stop('shutdown');
    await Promise.all(instances.map((instance) => instance.exited));
  }

  /** Kills every instance now. */
  killAll(): void {
    this.close();
    for (const { instance } of this.#running.values()) instance.kill();
  }

  #waitInLine(model: string, kind: WaitKind, signal: AbortSignal, look = false): Promise<Lease | undefined> {
    // The catalog may have changed since the request's model was looked up.
    const refusal = this.#withdrawn.get(model) ?? this.#effects.refusal(model);
    if (refusal) throw refusal;
    const pause = this.#running.has(model) ? undefined : this.#budget.pauseOf(model);
    if (pause) throw restartPaused(model, pause);
    const waitersBefore = this.#queue.waitersFor(model);
    const served = this.#queue.join(model, kind, signal, { isCounted: !look });
    if (waitersBefore === 0 && this.#queue.waitersFor(model) === 1) {
      this.#effects.events.emit({ type: 'model.queued', model, position: this.#queue.entries().length });
    }
    this.#tick();
    return served;
  }

  /**
   * A load in progress bounds the wait for it, and `fairAfterMs` that for the old form of a changed model to end its
   * requests; `queueTimeoutMs` bounds all waits but those for a load.
   */
  #limitOf(model: string, since: number): WaitLimit | undefined {
    const { fairAfterMs, queueTimeoutMs } = this.#options;
    const running = this.#running.get(model);
    if (running && isLoading(running)) return undefined;
    const inLine = {
      at: since + queueTimeoutMs,
      refusal: () => queueTimeout(model, queueTimeoutMs, this.#whatIsBusy(model)),
    };
    if (running?.draining?.reason !== 'changed' || isStopped(running)) return inLine;
    const at = Math.max(since, running.draining.since) + fairAfterMs;
    return at <= inLine.at ? { at, refusal: () => stillChanging(model, fairAfterMs) } : inLine;
  }

  /** What kept a model's requests waiting, for who is told that they waited too long. */
  #whatIsBusy(model: string): string {
    const own = this.#running.get(model);
    if (own?.readySince !== undefined && !isStopping(own)) {
      return this.#held.includes(model)
        ? `it takes no new requests, ${own.leases} in flight, until it has made room for one that waits longer (--fair-after)`
        : `it was busy all the time, with ${own.leases} in flight (--in-flight-max)`;
    }
    const holders = Array.from(this.#running, ([id, { leases, instance }]) => {
      return `${id} (${leases > 0 ? `${leases} in flight` : instance.state.name})`;
    });
    const named = holders.slice(0, namedHolders).join(', ');
    const more = holders.length > namedHolders ? ` and ${holders.length - namedHolders} more` : '';
    return `no slot became free, which are held by ${named}${more}`;
  }

  /** An instance that is not what would be started now takes no new requests; one that is so again does. */
  #review(running: Running): void {
    const { instance, draining } = running;
    if (isStopped(running) || draining?.reason === 'unloaded') return;
    const standing = this.#effects.standing(instance);
    if (standing === (draining?.reason ?? 'current')) return;
    if (standing === 'current') {
      running.draining = undefined;
      this.#queue.serveLoads(instance.modelId, () => undefined);
    } else {
      running.draining = { reason: standing, since: performance.now() };
      this.#queue.relimit(instance.modelId);
    }
  }

  /** Decides and carries out. What is carried out may ask for another decision: then it follows, not nests. */
  #tick(): void {
    this.#tickWanted = true;
    if (this.#ticking) return;
    this.#ticking = true;
    try {
      while (this.#tickWanted) {
        this.#tickWanted = false;
        this.#decideAndAct();
      }
    } finally {
      this.#ticking = false;
    }
  }

  #decideAndAct(): void {
    clearTimeout(this.#fairnessTimer);
    // Where nobody waits any more there is no second try.
    this.#secondTries.callOffUnless((model) => this.#running.has(model) || this.#queue.isWanted(model));
    if (this.#closed || this.#queue.size === 0) {
      this.#held = [];
      return;
    }
    const now = performance.now();
    const { admit, start, stop, hold } = decide({
      limit: this.#options.modelsMax,
      instances: Array.from(this.#running, ([model, running]) => view(model, running)),
      queue: this.#queue.entries(),
      held: this.#held,
      cramped: this.#secondTries.cramped,
      now,
      fairAfter: this.#options.fairAfterMs,
    });
    this.#held = hold;
    let served = 0;
    for (const model of admit) {
      const running = this.#running.get(model);
      const leaseFor = ({ isCounted }: { isCounted: boolean }): Lease | undefined =>
        running && this.#lease(running, { look: !isCounted });
      if (running) served += this.#queue.serve(model, leaseFor, this.#roomIn(running));
    }
    // What was admitted is busy now: whether it is to be held for one that is starving already is a new question.
    if (served > 0) this.#tick();
    for (const model of stop) this.#running.get(model)?.instance.stop('evicted');
    for (const model of start) this.#start(model);
    this.#armFairness(now);
  }

  /** Looks again when the next entry has waited long enough to starve. */
  #armFairness(now: number): void {
    const { fairAfterMs } = this.#options;
    const waits = this.#queue.entries().map(({ since }) => fairAfterMs - (now - since));
    const next = waits.find((wait) => wait > 0);
    if (next === undefined || this.#closed) return;
    this.#fairnessTimer = setTimeout(() => this.#tick(), next);
  }

  #start(model: string): void {
    let instance: Instance;
    try {
      instance = this.#effects.launch(model, (changed) => this.#onChange(changed));
    } catch (error) {
      this.#queue.refuse(model, error instanceof RouterError ? error : cannotLaunch(model, error));
      // The slot is free again, for the next in line.
      this.#tick();
      return;
    }
    const startedAt = performance.now();
    this.#running.set(model, {
      instance,
      startedAt,
      leases: 0,
      looks: 0,
      lastUsed: startedAt,
      readySince: undefined,
      draining: undefined,
      isAskedFor: this.#queue.serveLoads(model, () => undefined) > 0,
    });
  }

  #onChange(instance: Instance): void {
    const model = instance.modelId;
    const running = this.#running.get(model);
    if (running?.instance !== instance) return;
    const { state } = instance;
    switch (state.name) {
      case 'loading':
      case 'sleeping':
      case 'waking':
        return;
      case 'ready':
        // With --in-flight-max not all who have waited for the load are served now.
        if (running.readySince === undefined) this.#queue.boundAnew(model);
        running.readySince ??= running.lastUsed = performance.now();
        this.#secondTries.succeeded(model);
        break;
      case 'stopping':
        // Whoever waits for a load that took too long hears of that when the child's last words are known.
        if (state.reason !== 'load deadline') this.#queue.refuseLooks(model, notLoaded(model));
        // A load that is given up does not bound the waits for it any more.
        if (running.readySince === undefined) this.#queue.relimit(model);
        break;
      case 'exited':
        stopTimer(running);
        this.#past.set(model, {
          loadingMs: this.loadingMs(model),
          port: instance.port,
          lastUsed: wallTimeOf(running),
          outcome: this.#effects.standing(instance) === 'current' ? state.outcome : undefined,
        });
        this.#running.delete(model);
        for (const left of instance.leftBehind) this.#noteLeftBehind(model, left);
        if (state.outcome.kind === 'failed') this.#onFailure(running, state.outcome);
        this.#queue.refuseLooks(model, notLoaded(model));
        break;
    }
    this.#tick();
  }

  #noteLeftBehind(model: string, left: LeftBehind): void {
    const all = this.#leftBehind.get(model) ?? new Set();
    this.#leftBehind.set(model, all.add(left));
    void left.gone.then(() => {
      all.delete(left);
      if (all.size === 0) this.#leftBehind.delete(model);
    });
  }

  /** Who waits for a load that fails is refused, and who waits for one that keeps crashing: it pauses now. */
  #onFailure(running: Running, outcome: Outcome & { kind: 'failed' }): void {
    const { instance, readySince } = running;
    const model = instance.modelId;
    const hasLasted = readySince !== undefined && performance.now() - readySince >= provenAfterMs;
    if (hasLasted) this.#budget.succeeded(model);
    const isMisfit = outcome.phase === 'loading' && outcome.cause === 'out of memory';
    if (isMisfit && this.#makeRoomFor(running, outcome)) {
      this.#queue.boundAnew(model);
      return;
    }
    const evicted = this.#secondTries.evictedFor(model);
    this.#secondTries.callOff(model);
    const isOutdated = this.#past.get(model)?.outcome === undefined;
    if (isMisfit && evicted.length > 0 && !isOutdated) this.#secondTries.noteMisfit(model, evicted);
    const pause = isOutdated ? undefined : this.#budget.failed(model, outcome);
    if (outcome.phase === 'running') {
      if (pause) this.#queue.refuse(model, restartPaused(model, pause));
      return;
    }
    // What was killed, or crashed, may have met with something of the moment; a second time in a row brings a pause.
    if (outcome.cause === 'signal' && !pause && this.#isStillWanted(running)) {
      this.#secondTries.begin(model, { evicted, clearing: [] });
      this.#queue.boundAnew(model);
      this.#effects.events.emit({ type: 'model.retrying', model, reason: outcome.message, evicted: [] });
      return;
    }
    const without = [...(this.#secondTries.misfitWithout(model) ?? evicted)];
    this.#queue.refuse(model, loadFailed(model, outcome, { pauseMs: pause?.leftMs, without }));
  }

  /**
   * Whether anybody wants the load that has failed. One that was asked for itself has been answered when its child was
   * started: nobody waits for it, and it is wanted still.
   */
  #isStillWanted({ instance: { modelId }, isAskedFor }: Running): boolean {
    if (this.#closed) return false;
    if (isAskedFor && !this.#queue.isWanted(modelId)) {
      this.#queue.join(modelId, 'load', new AbortController().signal).catch(() => undefined);
    }
    return this.#queue.isWanted(modelId);
  }

  /**
   * Stops what is idle, so that a load that has run out of memory can be tried once more.
   *
   * @returns whether it will be: not when that was done before, not when nobody wants it any more, and not when nothing is idle but
   * what it did not fit without before
   */
  #makeRoomFor(running: Running, { message }: Outcome & { kind: 'failed' }): boolean {
    const model = running.instance.modelId;
    if (this.#secondTries.evictedFor(model).length > 0) return false;
    const all = [...this.#running.values()];
    const idle = all.filter(
      (other) => other.leases === 0 && other.readySince !== undefined && !isStopping(other),
    );
    const evicted = idle.map(({ instance }) => instance.modelId);
    const known = this.#secondTries.misfitWithout(model);
    if (evicted.every((id) => known?.has(id))) return false;
    if (!this.#isStillWanted(running)) return false;
    const clearing = all.filter((other) => idle.includes(other) || isStopped(other));
    this.#secondTries.begin(model, { evicted, clearing: clearing.map(({ instance }) => instance) });
    this.#effects.events.emit({ type: 'model.retrying', model, reason: message, evicted });
    for (const { instance } of idle) instance.stop('evicted');
    return true;
  }

  /** Whatever failed before: it is another model now, or gone, or somebody wants it to be tried at once. */
  #forgive(model: string): void {
    this.#budget.reset(model);
    this.#secondTries.forgive(model);
  }

  /** For how long the model is not started again by requests, because it has failed again and again. Milliseconds. */
  pauseMs(model: string): number {
    return this.#budget.pauseOf(model)?.leftMs ?? 0;
  }

  /** How many more requests it may answer. */
  #roomIn({ leases, looks }: Running): number {
    const { inFlightMax } = this.#options;
    return inFlightMax === 0 ? Number.POSITIVE_INFINITY : Math.max(0, inFlightMax - (leases - looks));
  }

  #canServe(running: Running): boolean {
    const { modelId, state } = running.instance;
    if (running.draining !== undefined || this.#held.includes(modelId)) return false;
    const { name } = state;
    return name === 'ready' || name === 'sleeping' || name === 'waking';
  }

  #lease(running: Running, { look } = { look: false }): Lease {
    const { instance } = running;
    const upstream = instance.upstream ?? never(`${instance.modelId} is ready without connections`);
    running.leases += 1;
    if (look) running.looks += 1;
    let released = false;
    return {
      model: instance.modelId,
      upstream,
      succeeded: () => this.#budget.succeeded(instance.modelId),
      release: (purpose) => {
        if (released) return;
        released = true;
        if (look) running.looks -= 1;
        this.#release(running, purpose);
      },
      outcomeWithin: async (ms) => {
        const { state, failureInProgress } = instance;
        if (failureInProgress) return failureInProgress;
        if (state.name === 'stopping') return { kind: 'stopped', reason: state.reason, exitCode: 0 };
        let timer: NodeJS.Timeout | undefined;
        const patience = new Promise<undefined>(
          (resolve) => (timer = setTimeout(() => resolve(undefined), ms)),
        );
        const outcome = await Promise.race([instance.exited, patience]);
        clearTimeout(timer);
        // Its end is certain then, and near.
        return outcome ?? (instance.hasDied ? await instance.exited : undefined);
      },
    };
  }

  #release(running: Running, purpose: 'use' | 'look'): void {
    running.leases -= 1;
    if (purpose === 'use') running.lastUsed = performance.now();
    if (running.leases > 0) {
      const { modelId } = running.instance;
      if (this.#roomIn(running) === 1 && this.#queue.waitersFor(modelId) > 0) this.#tick();
      return;
    }
    stopIfDrained(running);
    if (this.#queue.size > 0) this.#tick();
    if (this.#onIdle && this.inFlight === 0) this.#onIdle();
  }
}

function never(message: string): never {
  throw new Error(message);
}
