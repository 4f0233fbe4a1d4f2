import { readFileSync } from 'node:fs';
import { vi } from 'vitest';
import type { Catalog } from '../../../src/models/catalog.js';
import type { CatalogDiff } from '../../../src/models/catalog-diff.js';
import { Discovery, type DiscoveryOptions, type Scan } from '../../../src/models/discover.js';
import { FactsStore, type FactsReport, type ModelFiles } from '../../../src/models/gguf/facts-store.js';
import { LiveCatalog } from '../../../src/models/live-catalog.js';
import type { Model } from '../../../src/models/model.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { ggufHeader } from './gguf-header.js';
import { table } from './help-table.js';
import { writeFile } from './tree.js';

/** What reading a file finds: all well, a fault for good, one that may pass, or nothing. */
export type Kind = 'good' | 'bad' | 'unfinished' | 'unread';

let written = 0;

/**
 * Writes a file that looks right to a scan and of which reading finds `kind`. Each is of another size, so that each
 * has a version of its own within a tick of the file system's clock, too.
 */
export function writeModel(path: string, kind: Kind = 'good'): string {
  written += 1;
  return writeFile(path, Buffer.concat([ggufHeader(), Buffer.from(kind), Buffer.alloc(written)]));
}

interface Reading {
  readonly file: string;
  readonly urgent: boolean;
  readonly begin: () => void;
}

/** A store that finds what `writeModel` wrote, one reading after the other, and can be made to wait. */
export class FakeFacts extends FactsStore {
  /** The files that were read, in order. */
  readonly seen: string[] = [];
  readonly #waiting: Reading[] = [];
  readonly #reports = new Map<string, FactsReport>();
  #held = false;

  constructor() {
    super({ cacheFile: undefined });
  }

  /** Files that wait to be read. */
  get waiting(): readonly string[] {
    return this.#waiting.map(({ file }) => file);
  }

  /** From now on no reading begins before it is told to. */
  hold(): void {
    this.#held = true;
  }

  /** Begins the reading that is next: urgent ones go first. */
  releaseOne(): void {
    const next = this.#waiting.findIndex(({ urgent }) => urgent);
    const [reading] = this.#waiting.splice(Math.max(next, 0), 1);
    reading?.begin();
  }

  /** Begins all that wait, and from now on each at once. */
  release(): void {
    this.#held = false;
    while (this.#waiting.length > 0) this.releaseOne();
  }

  override known({ file }: ModelFiles): FactsReport | undefined {
    return this.#reports.get(file);
  }

  override async read({ file }: ModelFiles, { urgent }: { readonly urgent: boolean }): Promise<FactsReport> {
    if (this.#held) {
      await new Promise<void>((begin) => this.#waiting.push({ file, urgent, begin }));
    } else {
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.seen.push(file);
    const report = reportOf(file);
    this.#reports.set(file, report);
    return report;
  }
}

function reportOf(file: string): FactsReport {
  let text;
  try {
    text = readFileSync(file, 'latin1').slice(24);
  } catch {
    return { kind: 'problem', problem: 'is gone', transient: false };
  }
  if (text.startsWith('unread')) return { kind: 'unread', reason: 'the disk is slow' };
  if (text.startsWith('bad')) return { kind: 'problem', problem: 'is bad', transient: false };
  if (text.startsWith('unfinished')) return { kind: 'problem', problem: 'is unfinished', transient: true };
  return {
    kind: 'facts',
    facts: {
      architecture: 'llama',
      contextLength: 512,
      parameters: 1,
      sizeBytes: text.length,
      quantization: undefined,
      embeddingLength: undefined,
      vocabSize: undefined,
      chatTemplate: false,
      name: undefined,
      inputModalities: ['text'],
    },
  };
}

export interface Rig {
  readonly live: LiveCatalog;
  readonly facts: FakeFacts;
  /** Each published diff, and the catalog it led to. */
  readonly published: { readonly diff: CatalogDiff; readonly catalog: Catalog }[];
  readonly errors: unknown[];
}

/** A live catalog without caches, on facts that are made up, closed at the end of the test. */
export async function openRig(
  options: Partial<DiscoveryOptions> & { readonly onPublish?: () => void },
): Promise<Rig> {
  const { onPublish = () => undefined, ...sources } = options;
  const facts = new FakeFacts();
  const published: Rig['published'] = [];
  const errors: unknown[] = [];
  const live = await LiveCatalog.open({
    env: { LLAMA_CACHE: '/nonexistent' },
    modelsDirs: [],
    presetFiles: [],
    base: new Map(),
    table,
    ...sources,
    facts,
    onChange: (diff) => {
      published.push({ diff, catalog: live.current });
      onPublish();
    },
    onError: (error) => errors.push(error),
  });
  atEndOfTest(async () => {
    live.close();
    facts.release();
    await facts.close();
  });
  return { live, facts, published, errors };
}

/** The model of that name; throws if there is none. */
export function get({ live }: Rig, name: string): Model {
  const model = live.current.resolve(name);
  if (model === undefined) throw new Error(`the catalog has no '${name}'`);
  return model;
}

/** What is wrong with each model now, by its id. */
export function problems({ live }: Rig): Record<string, string | undefined> {
  return Object.fromEntries(live.current.models.map(({ id, problem }) => [id, problem]));
}

const scanReally: (this: Discovery) => Promise<Scan> = Reflect.get(Discovery.prototype, 'scan');

/** Puts `scan` in the place of every scan until the end of the test; it gets the real one. */
export function replaceScans(scan: (scanNow: () => Promise<Catalog>) => Promise<Catalog>): void {
  const spy = vi.spyOn(Discovery.prototype, 'scan').mockImplementation(async function (this: Discovery) {
    const scanNow = async (): Promise<Catalog> => (await scanReally.call(this)).catalog;
    return { catalog: await scan(scanNow), againMs: undefined };
  });
  atEndOfTest(() => spy.mockRestore());
}

/** Scans that wait, when they have seen the disk, until they are let go. */
export class HeldScans {
  /** Scans that have begun. */
  begun = 0;
  readonly #waiting: (() => void)[] = [];
  #held = true;

  constructor() {
    replaceScans(async (scanNow) => {
      this.begun += 1;
      const catalog = await scanNow();
      if (this.#held) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      return catalog;
    });
  }

  /** Scans that have seen the disk and wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Lets the one that waits go. */
  letGo(): void {
    this.#waiting.shift()?.();
  }

  /** Lets all go, now and from now on. */
  release(): void {
    this.#held = false;
    while (this.waiting > 0) this.letGo();
  }
}

/** Waits until nothing is read any more. */
export async function untilRead({ facts }: Rig): Promise<void> {
  let seen = -1;
  await eventually('all files are read', async () => {
    const before = seen;
    await turns();
    seen = facts.seen.length;
    return before === seen;
  });
}

/** A few turns of the event loop: longer than a reading takes that is not held. */
export async function turns(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Looks at the outcome of a promise without waiting for it. */
export function watch(promise: Promise<unknown>): { readonly settled: boolean } {
  const state = { settled: false };
  const settle = (): void => {
    state.settled = true;
  };
  promise.then(settle, settle);
  return state;
}

/** The outcome of `promise`; its deadline does not depend on the catalog's time, which may stand still. */
export async function soon<T>(label: string, promise: Promise<T>): Promise<T> {
  const state = watch(promise);
  await eventually(label, () => state.settled, { intervalMs: 2 });
  return await promise;
}
