import { vi } from 'vitest';
import { RouterError, type ErrorCode } from '../../../src/errors.js';
import type { StopReason } from '../../../src/instance/state.js';
import type { SchedulerOptions } from '../../../src/scheduler/scheduler.js';
import type { FakeInstance } from './fake-instance.js';
import { Ask, broken, passes, Rig, settled, type AskKind, type Form } from './scheduler-rig.js';

/** What was so when a request came, and what it is owed since. */
interface Entry {
  /** The queue had room for it. */
  readonly fits: boolean;
  /** Its model was loading or up, and not draining. */
  readonly wasRunning: boolean;
  /** The instance of its model that was there. */
  readonly found: FakeInstance | undefined;
  /** Number of launches before it. */
  readonly launchesBefore: number;
  /** The refusal that something which has happened since must bring it. */
  due: ErrorCode | undefined;
  /** From when on its wait is bounded: its arrival, or the end of the load it has waited for. */
  boundedSince: number;
  /** When the load it waited for was given up, because the model had changed. */
  backInLineAt: number;
  checked: boolean;
}

/** All that wait for one model. */
interface Group {
  readonly model: string;
  /** Arrival of the first who came; when some were served, of the first who is left. */
  readonly since: number;
  readonly instance: FakeInstance | undefined;
}

/**
 * The test's own account of a scheduler: who asked, who holds what, what is drained or outdated, who came first. It
 * is kept from what the test did and from what requests were told, never from what the scheduler says of itself.
 * `compare` holds the two against each other and states what must be true between any two events.
 */
export class SchedulerBooks {
  readonly #rig: Rig;
  readonly #options: SchedulerOptions;
  readonly #entries = new Map<Ask, Entry>();
  /** Place in line of each model that somebody waits for: see `Group`. */
  readonly #groupSince = new Map<string, number>();
  /** What was unloaded, and when. */
  readonly #unloadedAt = new Map<FakeInstance, number>();
  /** What is not as its model would be started now, and since when. */
  readonly #outdatedAt = new Map<FakeInstance, number>();
  /** Models whose last run has failed in the form they have now. */
  readonly #failed = new Set<string>();
  /** How often each model has failed. */
  readonly #failures = new Map<string, number>();
  readonly #lastReleaseAt = new Map<FakeInstance, number>();
  /** What went wrong inside the scheduler's calls to us, where throwing would only look like a failed launch. */
  readonly #wrongs: string[] = [];
  /**
   * Who starved when the books were last compared, what could have been withheld for them, and what was, with its leases
   * then.
   */
  #starvation: {
    starving: readonly Group[];
    candidates: readonly FakeInstance[];
    withheld: ReadonlyMap<FakeInstance, number>;
  } = { starving: [], candidates: [], withheld: new Map() };
  /** What has been given leases since the books were last compared. */
  readonly #admitting = new Set<FakeInstance>();
  #closed = false;

  constructor(options: SchedulerOptions) {
    this.#options = options;
    this.#rig = new Rig(options);
    this.#rig.onLaunch = (model) => this.#onLaunch(model);
    this.#rig.onStop = (instance, reason) => this.#onStop(instance, reason);
  }

  /** Requests that wait, in order of arrival. */
  get waiting(): Ask[] {
    return Array.from(this.#entries)
      .filter(([ask, { fits, due }]) => ask.isWaiting && !ask.hasLeft && fits && due === undefined)
      .map(([ask]) => ask);
  }

  /** Requests that hold a lease. */
  get inFlight(): Ask[] {
    return [...this.#entries.keys()].filter((ask) => ask.holdsLease);
  }

  get loading(): FakeInstance[] {
    return this.#rig.alive.filter(({ state }) => state.name === 'loading');
  }

  get up(): FakeInstance[] {
    return this.#rig.alive.filter((instance) => instance.isUp);
  }

  get stopping(): FakeInstance[] {
    return this.#rig.alive.filter(({ state }) => state.name === 'stopping');
  }

  // What can happen.

  ask(model: string, kind: AskKind): void {
    const ask = new Ask(model, kind);
    const instance = this.#aliveOf(model);
    const fits = this.waiting.length < this.#options.queueMax;
    this.#entries.set(ask, {
      fits,
      wasRunning: instance !== undefined && instance.state.name !== 'stopping' && !this.#drains(instance),
      found: instance,
      launchesBefore: this.#rig.launched.length,
      due: this.#dueOnArrival(ask),
      boundedSince: ask.askedAt,
      backInLineAt: 0,
      checked: false,
    });
    if (fits && !this.#groupSince.has(model)) this.#groupSince.set(model, performance.now());
    ask.arriveAt(this.#rig.scheduler);
  }

  finish(ask: Ask): void {
    const instance = this.#instanceOf(ask);
    if (!ask.released && ask.kind !== 'look') this.#lastReleaseAt.set(instance, performance.now());
    ask.finish();
  }

  unload(model: string): void {
    const instance = this.#aliveOf(model);
    if (!instance) {
      let said: unknown;
      try {
        this.#rig.scheduler.unload(model);
      } catch (error) {
        said = error;
      }
      must(
        said instanceof Error && said.message === 'model is not running',
        'nothing there to unload is said',
      );
      return;
    }
    if (instance.state.name === 'stopping' || this.#unloadedAt.has(instance)) {
      this.#rig.scheduler.unload(model);
      return;
    }
    this.#unloadedAt.set(instance, performance.now());
    if (instance.state.name === 'loading') this.#owe(model, 'model_unloaded_meanwhile');
    this.#rig.scheduler.unload(model);
  }

  exits(instance: FakeInstance): void {
    const stopWasMeant = instance.stopReason !== undefined && instance.stopReason !== 'load deadline';
    if (instance.readyAt === undefined && !stopWasMeant) this.#owe(instance.modelId, 'load_failed');
    else this.#oweLooks(instance.modelId);
    if (!stopWasMeant && this.#isCurrent(instance)) {
      const { modelId } = instance;
      this.#failed.add(modelId);
      this.#failures.set(modelId, (this.#failures.get(modelId) ?? 0) + 1);
    } else {
      this.#failed.delete(instance.modelId);
    }
    instance.exits();
  }

  /** There is a new catalog: these models have these forms, the others are as they were. */
  publish(forms: Readonly<Record<string, Form>>): void {
    for (const [model, form] of Object.entries(forms)) {
      if (form instanceof RouterError) this.#owe(model, form.code);
      if (form !== this.#rig.formOf(model) && form !== broken) this.#failed.delete(model);
    }
    this.#rig.publish(forms);
    for (const instance of this.#rig.alive) {
      if (this.#isCurrent(instance)) this.#outdatedAt.delete(instance);
      else if (!this.#outdatedAt.has(instance)) this.#outdatedAt.set(instance, performance.now());
    }
  }

  /** From now on the model cannot be launched, or can again. */
  toggleFile(model: string): void {
    if (!this.#rig.unlaunchable.delete(model)) this.#rig.unlaunchable.add(model);
  }

  async passes(ticks: number, tickMs: number): Promise<void> {
    for (let n = 0; n < ticks; n += 1) {
      await passes(tickMs);
      await this.compare();
    }
  }

  // How it can end.

  /**
   * Everything that goes on comes to its end, and no time passes that could hide a forgotten waiter behind a timer:
   * then nobody is left waiting.
   */
  async endEverything(): Promise<void> {
    // Each round every model that is waited for comes at least one step nearer: its victim stops, its load begins, it is ready.
    for (let rounds = 3 * this.waiting.length + 3; rounds > 0 && this.waiting.length > 0; rounds -= 1) {
      for (const instance of this.stopping) this.exits(instance);
      await this.compare();
      for (const instance of this.loading) instance.becomesReady();
      await this.compare();
      for (const ask of this.inFlight) this.finish(ask);
      await this.compare();
    }
    must(this.waiting.length === 0, 'everybody who waits is served in the end');
    for (const ask of this.inFlight) this.finish(ask);
    await this.compare();
    must(vi.getTimerCount() === 0, 'no timer runs when nobody waits and nothing is drained');
  }

  /** Those who wait and those who come are refused, nothing is launched any more, and all instances end. */
  async shutDown(): Promise<void> {
    const { scheduler } = this.#rig;
    for (const ask of this.waiting) this.#entry(ask).due = 'shutting_down';
    this.#closed = true;
    scheduler.close();
    await this.compare();
    for (const kind of ['lease', 'look', 'load'] as const) this.ask('a', kind);
    for (const instance of this.loading) instance.becomesReady();
    await this.compare();
    for (const ask of this.inFlight) this.finish(ask);
    await this.compare();
    let ended = false;
    const end = scheduler.stopAll().then(() => (ended = true));
    for (const instance of this.#rig.alive) {
      must(instance.state.name === 'stopping', 'everything is told to stop');
      await settled();
      must(!ended, 'the end waits for every child');
      instance.exits();
    }
    await settled();
    must(ended, 'the end comes when every child is gone');
    must(vi.getTimerCount() === 0, 'no timer runs after the end');
    await end;
    must(this.#wrongs.length === 0, this.#wrongs.join('; '));
  }

  // What must be so.

  /** @throws with the promise that was not kept */
  async compare(): Promise<void> {
    for (const instance of this.loading) instance.spawns();
    // What is due at this very moment happens.
    await passes(0);
    for (const [ask, entry] of this.#entries) {
      const readyAt = this.#aliveOf(ask.model)?.readyAt;
      if (ask.isWaiting && readyAt !== undefined) entry.boundedSince = Math.max(entry.boundedSince, readyAt);
      this.#checkAnswer(ask, entry);
      if (entry.checked && !ask.holdsLease) this.#entries.delete(ask);
    }
    for (const [model, since] of [...this.#groupSince]) {
      const [first] = this.#waitingFor(model);
      if (!first) this.#groupSince.delete(model);
      else if ([...this.#admitting].some(({ modelId }) => modelId === model)) {
        this.#groupSince.set(model, Math.max(since, first.askedAt));
      }
    }
    must(this.#wrongs.length === 0, this.#wrongs.join('; '));
    this.#checkInstances();
    this.#checkCounts();
    if (this.#closed) return;
    this.#checkWaits();
    this.#checkSlots();
    this.#checkFairness();
    this.#admitting.clear();
  }

  /** Nothing is launched for nobody, beside itself, above the limit, or before somebody who came earlier. */
  #onLaunch(model: string): void {
    const { modelsMax } = this.#options;
    const forSomebody = this.waiting.some((ask) => ask.model === model && ask.kind !== 'look');
    this.#note(forSomebody, `${model} is launched only when somebody waits for it`);
    this.#note(this.#aliveOf(model) === undefined, `${model} has one instance at a time`);
    this.#note(typeof this.#rig.formOf(model) === 'string', `${model} is launched only while it is served`);
    this.#note(modelsMax === 0 || this.#rig.alive.length < modelsMax, 'the limit is kept');
    // Who waited for one that is left alone from this moment on has been refused, and hears of it in a moment.
    const isLeftAlone = (one: string): boolean => this.#rig.scheduler.pauseMs(one) > 0;
    const first = this.#groups().find((group) => group.instance === undefined && !isLeftAlone(group.model));
    this.#note(first?.model === model, `${model} is not launched before ${first?.model ?? 'nobody'}`);
    if (this.#rig.unlaunchable.has(model)) this.#owe(model, 'load_failed');
  }

  /** Only an idle instance is evicted, for somebody who has no slot coming yet, and it is the right one. */
  #onStop(instance: FakeInstance, reason: StopReason): void {
    const model = instance.modelId;
    if (reason === 'unloaded') {
      const drained =
        !this.#isBusy(instance) || this.#age(this.#unloadedAt.get(instance)) >= this.#options.drainTimeoutMs;
      this.#note(this.#unloadedAt.has(instance), `${model} is unloaded only when that was asked for`);
      this.#note(drained, `${model} is unloaded only when it is drained`);
    }
    if (reason === 'evicted') {
      const going = this.#rig.alive.filter((one) => this.#isGoing(one)).length;
      const slotsNeeded = this.#groups().filter((group) => this.#needsSlot(group)).length;
      this.#note(instance.isUp && !this.#drains(instance), `${model} is up when it is evicted`);
      this.#note(!this.#isBusy(instance), `${model} is idle when it is evicted`);
      this.#note(going < slotsNeeded, `${model} is evicted only when its slot is needed`);
      const idle = this.up.filter(
        (one) => !this.#drains(one) && !this.#isBusy(one) && !this.#isWanted(one.modelId),
      );
      const oldest = idle
        .sort((a, b) => this.#lastUsed(a) - this.#lastUsed(b) || (a.modelId < b.modelId ? -1 : 1))
        .at(0);
      this.#note(
        oldest === undefined || oldest === instance,
        `the least recently used is evicted, not ${model}`,
      );
      if (this.#isWanted(model)) {
        const place = this.#groups().findIndex((group) => group.model === model);
        const earlier = this.#groups()
          .slice(0, place)
          .some((group) => this.#needsSlot(group));
        this.#note(earlier, `${model}, which is waited for, is evicted only for somebody who came earlier`);
      }
    }
    if (reason === 'changed' || reason === 'removed') {
      this.#note(this.#rig.standing(instance) === reason, `${model} is stopped as ${reason} when it is`);
      this.#note(!this.#isBusy(instance), `${model} is idle when it is stopped as ${reason}`);
    }
    if (instance.state.name === 'loading' && reason === 'changed') {
      for (const ask of this.#waitingFor(model)) this.#entry(ask).backInLineAt = performance.now();
    }
    if (reason !== 'load deadline') this.#oweLooks(model);
  }

  #checkInstances(): void {
    const { modelsMax } = this.#options;
    must(
      modelsMax === 0 || this.#rig.alive.length <= modelsMax,
      'there are never more instances than the limit',
    );
    for (const instance of this.#rig.launched) {
      const { modelId, stopReason, stoppedFrom } = instance;
      const isOver = this.#leases(instance) > this.#inFlightMax;
      must(!isOver, `${modelId} answers no more than ${this.#inFlightMax} requests at once`);
      const wasLoading = stoppedFrom === 'loading';
      must(stopReason !== 'evicted' || !wasLoading, `${modelId} is not evicted while it loads`);
      if (stopReason === 'evicted' || stopReason === 'changed' || stopReason === 'removed') {
        must(!this.#isBusy(instance), `${modelId} is not ${stopReason} under a request`);
      }
      const loadsForNothing = instance.state.name === 'loading' && !this.#isCurrent(instance);
      must(!loadsForNothing, `${modelId} does not go on to load in a form that is no more`);
      if (!this.#drains(instance)) continue;
      must(this.#isBusy(instance), `${modelId} is stopped as soon as it is drained`);
      must(!this.#takesLeases(instance), `${modelId} takes no new request while it drains`);
      const drainsFor = this.#age(this.#unloadedAt.get(instance));
      must(drainsFor < this.#options.drainTimeoutMs, `${modelId} drains no longer than the drain time-out`);
    }
  }

  #checkCounts(): void {
    const { scheduler } = this.#rig;
    const { waiting } = this;
    const alive = new Map(this.#rig.alive.map((instance) => [instance.modelId, instance]));
    must(scheduler.waiting === waiting.length, `${waiting.length} wait, not ${scheduler.waiting}`);
    let inFlight = 0;
    for (const model of new Set(this.#rig.launches)) {
      const status = scheduler.status(model);
      const instance = alive.get(model);
      const leases = instance ? this.#leases(instance) : 0;
      inFlight += leases;
      must(status.inFlight === leases, `${model} has ${leases} in flight, not ${status.inFlight}`);
      const waitingHere = this.#waitingFor(model).length;
      must(status.waiting === waitingHere, `${waitingHere} wait for ${model}, not ${status.waiting}`);
      must((status.value === 'unloaded') === (instance === undefined), `${model} is ${status.value}`);
      const isFailed = instance === undefined && this.#failed.has(model);
      must(
        (status.outcome?.kind === 'failed') === isFailed,
        `${model} is said to have failed when it has, as it is now`,
      );
    }
    must(scheduler.inFlight === inFlight, `${inFlight} are in flight, not ${scheduler.inFlight}`);
  }

  /** Every wait is one that must go on. */
  #checkWaits(): void {
    for (const ask of this.waiting) {
      const instance = this.#aliveOf(ask.model);
      const isBoundedByLoad = instance?.state.name === 'loading' || instance?.stopReason === 'load deadline';
      const isInTime = this.#age(this.#entry(ask).boundedSince) < this.#options.queueTimeoutMs;
      must(isInTime || isBoundedByLoad, `nobody waits for ${ask.model} beyond the queue time-out`);
      const isFair = (this.#awaitsOldFormFor(ask) ?? -1) < this.#options.fairAfterMs;
      must(isFair, `nobody waits for the old form of ${ask.model} to end beyond fair-after`);
      if (ask.kind !== 'look') continue;
      const isComing = instance !== undefined && (instance.state.name !== 'stopping' || isBoundedByLoad);
      must(isComing, `who wants ${ask.model} only if it runs waits only while it runs`);
    }
  }

  /** No slot and no idle instance is left unused while somebody waits for a slot. */
  #checkSlots(): void {
    const { modelsMax } = this.#options;
    const slotless = this.#groups().find(({ instance }) => instance === undefined);
    const isFull = modelsMax > 0 && this.#rig.alive.length >= modelsMax;
    must(slotless === undefined || isFull, `${slotless?.model ?? ''} does not wait while a slot is free`);
    const idle = this.up.find((instance) => !this.#drains(instance) && !this.#isBusy(instance));
    if (idle === undefined) return;
    must(!this.#isWanted(idle.modelId), `nobody waits for ${idle.modelId}, which is up and idle`);
    must(this.#withoutPromise().length === 0, `nobody waits for a slot while ${idle.modelId} is idle`);
  }

  /** New leases are withheld exactly when somebody starves, and never from those who came before the starving. */
  #checkFairness(): void {
    const starving = this.#withoutPromise().filter(
      ({ since }) => this.#age(since) >= this.#options.fairAfterMs,
    );
    const groups = this.#groups();
    const placeOf = (model: string): number => groups.findIndex((group) => group.model === model);
    const firstStarving = placeOf(starving[0]?.model ?? '');
    const busy = this.up.filter((instance) => !this.#drains(instance) && this.#isBusy(instance));
    // Of what is full only its next lease tells.
    const full = busy.filter((instance) => this.#leases(instance) === this.#inFlightMax);
    const held = busy.filter((instance) => !full.includes(instance) && !this.#takesLeases(instance));
    const starveOn = this.#starvation.starving.every(({ model, since }) =>
      starving.some((group) => group.model === model && group.since === since),
    );
    for (const [instance, leases] of this.#starvation.withheld) {
      const takesMore = this.#leases(instance) > leases;
      must(!starveOn || !takesMore, `${instance.modelId} is withheld until those are served who starve`);
    }
    const goOn = this.#starvation.candidates.filter((instance) => busy.includes(instance));
    const someoneYields = goOn.length === 0 || goOn.some((instance) => !this.#admitting.has(instance));
    must(!starveOn || someoneYields, 'what has starved somebody takes no new requests');
    const withheld = new Map(held.map((one) => [one, this.#leases(one)]));
    must(
      held.length <= starving.length,
      `${held.length} models are withheld for ${starving.length} that starve`,
    );
    for (const { modelId } of busy) {
      const place = placeOf(modelId);
      if (place === -1) continue;
      must(
        [...held, ...full].some((one) => one.modelId === modelId),
        `nobody waits for ${modelId}, which takes requests`,
      );
      const isHeld = held.some((one) => one.modelId === modelId);
      const isLater = place > firstStarving;
      must(!isHeld || isLater, `${modelId} is withheld only from those who came after the starving`);
    }
    const candidates = busy.filter(
      ({ modelId }) => placeOf(modelId) === -1 || placeOf(modelId) > firstStarving,
    );
    this.#starvation = { starving, candidates: starving.length === 0 ? [] : candidates, withheld };
    if (starving.length === 0) return;
    const someIsFull = candidates.some((instance) => full.includes(instance));
    must(
      held.length > 0 || someIsFull || candidates.length === 0,
      'what starves somebody takes no new requests',
    );
  }

  /** A refusal must have its reason and an admission its instance; what is owed must have come. */
  #checkAnswer(ask: Ask, entry: Entry): void {
    const { model, kind } = ask;
    if (entry.checked) return;
    if (ask.isWaiting) {
      const mustBeOver = ask.hasLeft || entry.due !== undefined || !entry.fits;
      must(
        !mustBeOver,
        `a request for ${model} that is over is told so (${entry.due ?? 'client left or no room'})`,
      );
      return;
    }
    entry.checked = true;
    if (ask.error) {
      const { code } = ask.error;
      must(this.#isDeserved(code, ask, entry), `${code} has its reason (${kind} ${model})`);
      return;
    }
    must(entry.due === undefined, `a ${kind} of ${model} is refused, as ${entry.due ?? ''}`);
    if (kind === 'load') {
      const launched = this.#rig.launches.slice(entry.launchesBefore);
      const goesOn =
        !entry.wasRunning && entry.found !== undefined && entry.found.isUp && !this.#drains(entry.found);
      must(launched.includes(model) || goesOn, `an explicit load of ${model} is served by a launch`);
      return;
    }
    const instance = this.#instanceOf(ask);
    must(instance === this.#aliveOf(model) && instance.isUp, `a lease on ${model} is on what is up`);
    this.#admitting.add(instance);
    const passedOver = [...this.#entries].find(([other]) => other.model === model && other.isWaiting);
    const isInOrder = !passedOver || this.#arrivalOf(ask) < this.#arrivalOf(passedOver[0]);
    must(isInOrder, `a request for ${model} is not served before one that came earlier`);
    must(!this.#drains(instance), `no lease is given on ${model} while it drains`);
  }

  #dueOnArrival({ model, kind }: Ask): ErrorCode | undefined {
    if (this.#closed) return 'shutting_down';
    const form = this.#rig.formOf(model);
    if (!(form instanceof RouterError)) return undefined;
    return kind === 'look' ? 'model_not_loaded' : form.code;
  }

  /** Its number among those that are not over; they are kept in order of arrival. */
  #arrivalOf(ask: Ask): number {
    return [...this.#entries.keys()].indexOf(ask);
  }

  #isDeserved(code: ErrorCode, ask: Ask, entry: Entry): boolean {
    const isOwed = entry.due === code;
    const isLoading = this.#aliveOf(ask.model)?.state.name === 'loading';
    const queueEnds = Math.max(entry.boundedSince + this.#options.queueTimeoutMs, entry.backInLineAt);
    const reasons: Partial<Record<ErrorCode, boolean>> = {
      client_gone: ask.hasLeft,
      queue_full: !entry.fits,
      queue_timeout: performance.now() === queueEnds && !isLoading,
      model_changing: this.#awaitsOldFormFor(ask) === this.#options.fairAfterMs,
      model_already_running: ask.kind === 'load' && entry.wasRunning,
      model_failing: (this.#failures.get(ask.model) ?? 0) >= 2,
      model_not_loaded: ask.kind === 'look' && (isOwed || !entry.wasRunning),
    };
    return reasons[code] ?? isOwed;
  }

  #owe(model: string, due: ErrorCode): void {
    for (const ask of this.#waitingFor(model)) this.#entry(ask).due = due;
  }

  #oweLooks(model: string): void {
    for (const ask of this.#waitingFor(model)) {
      if (ask.kind === 'look') this.#entry(ask).due = 'model_not_loaded';
    }
  }

  #note(isSo: boolean, promise: string): void {
    if (!isSo) this.#wrongs.push(promise);
  }

  #entry(ask: Ask): Entry {
    const entry = this.#entries.get(ask);
    if (!entry) throw new Error('a request that was never entered');
    return entry;
  }

  /** Those who wait, in order of arrival. */
  #groups(): Group[] {
    return Array.from(this.#groupSince, ([model, since]) => ({
      model,
      since,
      instance: this.#aliveOf(model),
    }))
      .filter(({ model }) => this.#isWanted(model))
      .sort((a, b) => a.since - b.since);
  }

  /** Those who need a slot and are not among the first, for whom one is becoming free. */
  #withoutPromise(): Group[] {
    return this.#groups()
      .filter((group) => this.#needsSlot(group))
      .slice(this.stopping.length);
  }

  #needsSlot({ instance }: Group): boolean {
    return instance === undefined || this.#isGoing(instance);
  }

  #waitingFor(model: string): Ask[] {
    return this.waiting.filter((ask) => ask.model === model);
  }

  #isWanted(model: string): boolean {
    return this.#waitingFor(model).length > 0;
  }

  #aliveOf(model: string): FakeInstance | undefined {
    return this.#rig.alive.find(({ modelId }) => modelId === model);
  }

  #instanceOf(ask: Ask): FakeInstance {
    const instance = this.#rig.launched.find(({ upstream }) => upstream && upstream === ask.lease?.upstream);
    if (!instance) throw new Error(`a lease on ${ask.model} is on no instance`);
    return instance;
  }

  /** Leases that an instance can have at most. */
  get #inFlightMax(): number {
    return this.#options.inFlightMax || Number.POSITIVE_INFINITY;
  }

  #leases(instance: FakeInstance): number {
    return this.inFlight.filter((ask) => ask.lease?.upstream === instance.upstream).length;
  }

  #isBusy(instance: FakeInstance): boolean {
    return this.#leases(instance) > 0;
  }

  /** It is what its model would be started as now. */
  #isCurrent(instance: FakeInstance): boolean {
    return this.#rig.standing(instance) === 'current';
  }

  #drains(instance: FakeInstance): boolean {
    return instance.isUp && (this.#unloadedAt.has(instance) || !this.#isCurrent(instance));
  }

  /** It stops, or must as soon as whatever is happening now has happened. */
  #isGoing(instance: FakeInstance): boolean {
    return instance.state.name === 'stopping' || (!this.#isCurrent(instance) && !this.#isBusy(instance));
  }

  /** How long the request has waited for those of an old form to end; undefined when it waits for something else. */
  #awaitsOldFormFor({ model, askedAt }: Ask): number | undefined {
    const instance = this.#aliveOf(model);
    if (!instance?.isUp || this.#unloadedAt.has(instance)) return undefined;
    if (this.#rig.standing(instance) !== 'changed') return undefined;
    return this.#age(Math.max(askedAt, this.#outdatedAt.get(instance) ?? 0));
  }

  /** Asking a busy instance for a lease and giving it back at once changes nothing of it. */
  #takesLeases(busy: FakeInstance): boolean {
    const lease = this.#rig.scheduler.tryAcquire(busy.modelId, { wake: true });
    lease?.release('look');
    return lease !== undefined;
  }

  #lastUsed(instance: FakeInstance): number {
    return Math.max(instance.readyAt ?? 0, this.#lastReleaseAt.get(instance) ?? 0);
  }

  #age(since: number | undefined): number {
    return since === undefined ? 0 : performance.now() - since;
  }
}

function must(isSo: boolean, promise: string): void {
  if (!isSo) throw new Error(`not kept: ${promise}`);
}
