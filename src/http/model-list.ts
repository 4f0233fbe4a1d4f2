import { setImmediate as turnOfTheLoop } from 'node:timers/promises';
import { compareBytewise } from '../models/bytewise.js';
import type { Catalog } from '../models/catalog.js';
import type { ModelFacts } from '../models/gguf/gguf-facts.js';
import type { Model } from '../models/model.js';
import type { ModelStatus, Scheduler } from '../scheduler/scheduler.js';
import type { BodyBudget } from './body-budget.js';
import type { Downloads } from './download-routes.js';
import { downloadEntry, listEntry, type LaunchDescription } from './model-entry.js';
import { singleModelEntry } from './single-model-list.js';

export interface ModelListOptions {
  readonly catalog: () => Catalog;
  readonly scheduler: Pick<Scheduler, 'status' | 'pids'>;
  /** What is known of the files of a model by now. */
  readonly facts: (model: Model) => ModelFacts | undefined;
  readonly downloads: Pick<Downloads, 'list'>;
  /** How much memory each of these processes holds, in bytes, where that is known. Never rejects. */
  readonly memoryOf: (pids: readonly number[]) => Promise<ReadonlyMap<number, number>>;
  /** How a model is or would be started, for its list entry. */
  readonly describeLaunch: (model: Model, status: ModelStatus) => LaunchDescription;
}

/** A shorter list is in the kernel's hands at once. */
const shortBytes = 64 * 1024;

/** The JSON text of a list, of which all who read it at the same time share the bytes. */
export class ListText {
  readonly bytes: Buffer;
  #readers = 0;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  /**
   * Holds it for one more reader.
   *
   * @returns ends that; to be called once
   * @throws RouterError body_memory_full
   */
  holdWithin(budget: BodyBudget): () => void {
    const { length } = this.bytes;
    if (length <= shortBytes) return () => undefined;
    if (this.#readers === 0) budget.take(length);
    this.#readers += 1;
    return () => {
      this.#readers -= 1;
      if (this.#readers === 0) budget.give(length);
    };
  }
}

/**
 * The list of models, as `GET /models` has it. A long one takes a while to make, in which nothing else is done: it is made
 * once for all who ask in the meantime, and never before they have asked.
 */
export class ModelList {
  readonly #options: ModelListOptions;
  #next: Promise<ListText> | undefined;

  constructor(options: ModelListOptions) {
    this.#options = options;
  }

  /** The list as it is at some time after this call. */
  text(): Promise<ListText> {
    this.#next ??= this.#make();
    return this.#next;
  }

  async #make(): Promise<ListText> {
    const { scheduler, memoryOf } = this.#options;
    const [memory] = await Promise.all([memoryOf(scheduler.pids), turnOfTheLoop()]);
    // Who asks from now on may know of something that this one does not say.
    this.#next = undefined;
    return new ListText(Buffer.from(JSON.stringify(this.#render(memory))));
  }

  #render(memory: ReadonlyMap<number, number>): object {
    const { catalog, scheduler, downloads, describeLaunch, facts } = this.#options;
    const now = Math.floor(Date.now() / 1000);
    const coming = downloads.list();
    // A model that is being downloaded once more, because its files are not whole, is listed as what it will be.
    const replaced = new Set(coming.map(({ id }) => id));
    const listed = catalog().listed.filter(({ id }) => !replaced.has(id));
    const entries = listed.map((model) => {
      const status = scheduler.status(model.id);
      const known = facts(model);
      const entry = listEntry({
        model,
        status,
        launch: describeLaunch(model, status),
        facts: known,
        memoryBytes: status.pid === undefined ? undefined : memory.get(status.pid),
        now,
      });
      return { id: model.id, entry, single: singleModelEntry(model, known) };
    });
    if (coming.length > 0) {
      for (const download of coming) {
        const { id } = download;
        const single = singleModelEntry({ id, tags: [], mmproj: undefined }, undefined);
        entries.push({ id, entry: downloadEntry(download, now), single });
      }
      entries.sort((a, b) => compareBytewise(a.id, b.id));
    }
    const data = entries.map(({ entry }) => entry);
    const models = entries.map(({ single }) => single);
    return { data, object: 'list', models };
  }
}
