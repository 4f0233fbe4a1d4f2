import type { EventBus, SupervisorEvent } from '../events/events.js';

/**
 * Which models are loaded, kept in a file for the next start.
 *
 * On the list is what was loaded and has not been told to go: a model whose process crashed stays on it, one that was
 * unloaded or had to make room does not. What a shutdown ends stays, too: that is what the list is for. So does, for a
 * week and apart from the others, what could not be loaded at a start: its disk may be mounted later, its section be
 * mended, or a slot be free for it.
 */
export interface LoadedList {
  /** Ids, the most recently used first. */
  readonly models: readonly string[];
  /** Those that could not be loaded when the supervisor started. */
  readonly absent: readonly AbsentModel[];
}

export interface AbsentModel {
  readonly model: string;
  /** When it was first left out; ISO 8601. */
  readonly since: string;
}

export const nothingLoaded: LoadedList = { models: [], absent: [] };

export interface LoadedModelsEffects {
  /** Keeps the list: whole or not at all. */
  readonly write: (list: LoadedList) => Promise<void>;
  /**
   * Loads a model that was left out, if it can be by now, has room, and `isWanted` still when that is known; says whether
   * it does. Never rejects.
   */
  readonly comeBack: (model: string, isWanted: () => boolean) => Promise<boolean>;
  /** When the last request for the model ended; undefined while there has been none. */
  readonly usedAt: (model: string) => Date | undefined;
  /** Called for a model that was left out and is not waited for any longer. */
  readonly onForgotten: (absent: AbsentModel) => void;
  /** Called when it could not be kept; not again before it could. */
  readonly onError: (error: unknown) => void;
}

export interface RestoredList extends LoadedList {
  /** The list of the last run, when it cannot be read yet. Never rejects. */
  readonly late?: Promise<LoadedList>;
}

/** Loads and unloads come in bursts. */
const debounceMs = 500;

/** That a model was used is told by no event: the order is looked at this often. */
const orderMs = 60_000;

/** What was away for longer is not expected back. */
const absentForMs = 7 * 24 * 3_600_000;

/** A disk that does not answer must keep neither a start nor a shutdown. Milliseconds. */
export const diskPatienceMs = 2_000;

export class LoadedModels {
  readonly #effects: LoadedModelsEffects;
  /** In the order of their last loads, the latest first. */
  #models: readonly string[];
  #absent: readonly AbsentModel[];
  #written: string | undefined;
  #writing: Promise<void> = Promise.resolve();
  #finding: Promise<void> = Promise.resolve();
  #writeTimer: NodeJS.Timeout | undefined;
  readonly #orderTimer: NodeJS.Timeout;
  #stopListening: () => void = () => undefined;
  #failing = false;
  #closed = false;
  /** The list of the last run, while it cannot be read: what is not known must not be written over. */
  #late: Promise<LoadedList> | undefined;
  /** Models that were told to go meanwhile. */
  readonly #goneBeforeList = new Set<string>();

  /** @param restored what is being restored: it is on the list from the start, whether it is ready or not */
  constructor(effects: LoadedModelsEffects, { models, absent, late }: RestoredList = nothingLoaded) {
    this.#effects = effects;
    this.#models = [...new Set(models)];
    this.#absent = absent;
    this.#late = late;
    this.#orderTimer = setInterval(() => this.#startWriting(), orderMs).unref();
    this.#changed();
  }

  /** The list as it is now, the most recently used model first; one that was not used yet keeps its place. */
  get models(): readonly string[] {
    const used = this.#models.map((model) => ({ model, at: this.#effects.usedAt(model)?.getTime() ?? 0 }));
    return used.sort((a, b) => b.at - a.at).map(({ model }) => model);
  }

  /** @param loadedBefore ids of models that have been loaded by now: nobody was told */
  listenTo(events: EventBus, loadedBefore: readonly string[] = []): void {
    this.#stopListening = events.subscribe((event) => this.#hear(event));
    for (const model of loadedBefore) this.#add(model);
    void this.#late?.then((list) => this.#arrived(list));
  }

  /** Somebody wants a model that was left out to stay away. Returns whether it was waited for. */
  callOff(model: string): boolean {
    if (this.#late) this.#goneBeforeList.add(model);
    const left = this.#absent.filter((absent) => absent.model !== model);
    if (left.length === this.#absent.length) return false;
    this.#absent = left;
    this.#changed();
    return true;
  }

  /** What happens from now on is the shutdown's doing. Settles when the list is kept, or the disk takes too long. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#stopListening();
    clearInterval(this.#orderTimer);
    this.#startWriting();
    let timer: NodeJS.Timeout | undefined;
    const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, diskPatienceMs)));
    await Promise.race([this.#writing, patience]);
    clearTimeout(timer);
  }

  #hear(event: SupervisorEvent): void {
    if (event.type === 'model.loaded') {
      this.#add(event.model);
    } else if (event.type === 'model.unloaded') {
      if (!event.failed && wasToldToGo(event.reason)) this.#forget(event.model);
    } else if (event.type === 'model.removed') {
      this.#forget(event.model);
    } else if (event.type === 'catalog.changed') {
      this.#drop(event.removed);
      this.#lookAgain();
    }
  }

  #add(model: string): void {
    this.callOff(model);
    this.#goneBeforeList.delete(model);
    if (!this.#models.includes(model)) this.#set([model, ...this.#models]);
  }

  /** Nothing of it was loaded at the start: all of it was left out. */
  #arrived({ models, absent }: LoadedList): void {
    if (this.#closed) return;
    this.#late = undefined;
    const since = new Date().toISOString();
    const others = absent.filter(({ model }) => !models.includes(model));
    const all = [...models.map((model) => ({ model, since })), ...others];
    this.#absent = all.filter(
      ({ model }) => !this.#models.includes(model) && !this.#goneBeforeList.has(model),
    );
    this.#goneBeforeList.clear();
    this.#changed();
    this.#lookAgain();
  }

  #lookAgain(): void {
    this.#finding = this.#finding.then(() => this.#findAgain());
  }

  /** The catalog may have by now what it did not have. One after the other: each may take the last slot. */
  async #findAgain(): Promise<void> {
    this.#forgetOld();
    for (const absent of this.#absent) {
      const isWaitedFor = (): boolean => !this.#closed && this.#absent.includes(absent);
      if (!isWaitedFor() || !(await this.#effects.comeBack(absent.model, isWaitedFor)) || !isWaitedFor())
        continue;
      this.#absent = this.#absent.filter((each) => each !== absent);
      this.#set([...new Set([...this.#models, absent.model])]);
    }
  }

  #forgetOld(): void {
    const old = this.#absent.filter((absent) => !isExpected(absent));
    this.#absent = this.#absent.filter(isExpected);
    for (const absent of old) this.#effects.onForgotten(absent);
  }

  #forget(model: string): void {
    this.callOff(model);
    this.#drop([model]);
  }

  #drop(models: readonly string[]): void {
    const gone = new Set(models);
    const left = this.#models.filter((model) => !gone.has(model));
    if (left.length < this.#models.length) this.#set(left);
  }

  #set(models: readonly string[]): void {
    this.#models = models;
    this.#changed();
  }

  #changed(): void {
    this.#writeTimer ??= setTimeout(() => this.#startWriting(), debounceMs).unref();
  }

  /** One after the other: each keeps the list as it is when its turn comes. */
  #startWriting(): void {
    clearTimeout(this.#writeTimer);
    this.#writeTimer = undefined;
    this.#writing = this.#writing.then(() => this.#write());
  }

  async #write(): Promise<void> {
    if (this.#late) return;
    this.#forgetOld();
    const list = { models: this.models, absent: this.#absent };
    const text = JSON.stringify(list);
    if (text === this.#written) return;
    try {
      await this.#effects.write(list);
      this.#written = text;
      this.#failing = false;
    } catch (error) {
      if (!this.#failing) this.#effects.onError(error);
      this.#failing = true;
    }
  }
}

/** One that changed is started in its new form when it is asked for; a shutdown ends what is to come back. */
function wasToldToGo(reason: string): boolean {
  return reason !== 'shutdown' && reason !== 'changed';
}

/** Whether it is still waited for. */
export function isExpected({ since }: AbsentModel): boolean {
  return Date.now() - Date.parse(since) < absentForMs;
}
