import { constants } from 'node:fs';
import { mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { stateDirectory } from '../config/directories.js';
import type { EventBus, SupervisorEvent } from '../events/events.js';
import type { Logger } from '../observe/log.js';
import { runFileName } from '../observe/run-file.js';

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

/** Loads and unloads come in bursts. */
const debounceMs = 500;

/** That a model was used is told by no event: the order is looked at this often. */
const orderMs = 60_000;

/** A disk that does not answer must keep neither a start nor a shutdown. */
const patienceMs = 2_000;

/** What cannot be read now may be read later. */
const readAgainMs = 5_000;

/** What was away for longer is not expected back. */
const absentForMs = 7 * 24 * 3_600_000;

/** More is not ours. */
const maxBytes = 1024 * 1024;

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
    const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, patienceMs)));
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

function isExpected({ since }: AbsentModel): boolean {
  return Date.now() - Date.parse(since) < absentForMs;
}

/** Where the list of a supervisor lies: `loaded-models-PORT.json` in its state directory. */
export function loadedModelsFile(
  env: NodeJS.ProcessEnv,
  where: { readonly port: number } | { readonly socketPath: string },
): string {
  const port = 'port' in where ? where.port : 0;
  return join(stateDirectory(env, port), `loaded-models-${runFileName(where)}`);
}

/**
 * Writes the list into a file that nobody else can read, through the disk's cache: what is there after a power failure is
 * one list or the other.
 */
export async function writeLoadedModels(file: string, { models, absent }: LoadedList): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  // Of the same name each time: the next write is over what one leaves that is killed at it.
  const unfinished = `${file}.unfinished`;
  try {
    const handle = await open(unfinished, 'w', 0o600);
    try {
      const text = JSON.stringify(absent.length === 0 ? { models } : { models, absent });
      await handle.writeFile(`${text}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(unfinished, file);
  } catch (error) {
    await rm(unfinished, { force: true }).catch(() => undefined);
    throw error;
  }
}

export interface RestoreOptions {
  readonly file: string;
  /** Why a model cannot be loaded; undefined when it can. */
  readonly refusal: (model: string) => { readonly message: string } | undefined;
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
  readonly log: Logger;
}

export interface RestoredList extends LoadedList {
  /** The list of the last run, when it cannot be read yet. Never rejects. */
  readonly late?: Promise<LoadedList>;
}

/**
 * The list of the last run, with the models as absent that cannot be loaded now, and those that are so still because
 * there is no slot for them. What is wrong with the list, and each model that is left out, is logged. Never rejects: a
 * list that cannot be read is no reason not to start.
 */
export async function modelsToRestore(options: RestoreOptions): Promise<RestoredList> {
  const { file, refusal, modelsMax, log } = options;
  const reading = readOrSetAside(file, log);
  let listed: LoadedList;
  try {
    listed = await withPatience(reading);
  } catch (error) {
    log.warn(
      { err: error, file },
      '--restore: the list of loaded models cannot be read yet; until it can, it is not kept, either',
    );
    return { ...nothingLoaded, late: readAtLast(reading, file, log) };
  }
  const models: string[] = [];
  const absent: AbsentModel[] = [];
  const leaveOut = (left: AbsentModel, reason: string): void => {
    absent.push(left);
    log.warn({ ...left, reason }, '--restore: a model that was loaded is left out, until it can be loaded');
  };
  const since = new Date().toISOString();
  for (const model of listed.models) {
    const reason = refusal(model)?.message;
    if (reason === undefined) models.push(model);
    else leaveOut({ model, since }, reason);
  }
  for (const left of listed.absent) {
    if (listed.models.includes(left.model)) continue;
    const hasRoom = modelsMax === 0 || models.length < modelsMax;
    const reason = refusal(left.model)?.message ?? (hasRoom ? undefined : 'there is no slot for it');
    if (!isExpected(left)) logForgotten(left, log);
    else if (reason === undefined) models.push(left.model);
    else leaveOut(left, reason);
  }
  return { models, absent };
}

/** Says that a model which was left out is not waited for any longer. */
export function logForgotten(absent: AbsentModel, log: Logger): void {
  log.info({ ...absent }, '--restore: a model that was left out for a week is forgotten');
}

/**
 * The list; an empty one when there is none, or a file that is none, which takes another name: somebody may mend it.
 *
 * @throws when it cannot be read, or not get another name
 */
async function readOrSetAside(file: string, log: Logger): Promise<LoadedList> {
  try {
    const listed = await readLoadedModels(file);
    if (listed === undefined) log.info({ file }, '--restore: there is no list of loaded models yet');
    return listed ?? nothingLoaded;
  } catch (error) {
    if (isOfTheSystem(error)) throw error;
    const aside = `${file}.broken`;
    await rename(file, aside);
    log.warn(
      { err: error, file, aside },
      '--restore: the list of loaded models is broken; it is set aside, and none of it is loaded',
    );
    return nothingLoaded;
  }
}

/** What the first reading gives, or the first that succeeds. */
async function readAtLast(first: Promise<LoadedList>, file: string, log: Logger): Promise<LoadedList> {
  for (let reading = first; ; reading = readOrSetAside(file, log)) {
    try {
      return await reading;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, readAgainMs).unref());
    }
  }
}

async function withPatience<T>(reading: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${patienceMs / 1000} s`)), patienceMs);
  });
  try {
    return await Promise.race([reading, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** What the disk says may be different later; what the file says is not. */
function isOfTheSystem(error: unknown): boolean {
  return isRecord(error) && 'syscall' in error;
}

/**
 * @returns undefined when there is no such file
 * @throws when it is no list of models
 */
async function readLoadedModels(file: string): Promise<LoadedList | undefined> {
  const text = await readText(file);
  if (text === undefined) return undefined;
  const content: unknown = JSON.parse(text);
  const { models, absent = [] } = isRecord(content) ? content : {};
  if (!Array.isArray(models) || !Array.isArray(absent)) {
    throw new Error(`${basename(file)} has no list of models`);
  }
  if (!models.every(isModelId) || !absent.every(isAbsentModel)) {
    throw new Error(`${basename(file)} lists what is no model id`);
  }
  return { models: [...new Set(models)], absent };
}

function isModelId(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function isAbsentModel(value: unknown): value is AbsentModel {
  return isRecord(value) && isModelId(value['model']) && !Number.isNaN(Date.parse(String(value['since'])));
}

async function readText(file: string): Promise<string | undefined> {
  let handle: FileHandle;
  try {
    // Without waiting for somebody to write to it, should it be a pipe.
    handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    // Where a file has the place of its directory there is no list, either; that none can be kept is said when one is.
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new Error(`${basename(file)} is no regular file`);
    if (stats.size > maxBytes) throw new Error(`${basename(file)} is larger than ${maxBytes} bytes`);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
