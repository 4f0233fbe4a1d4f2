import { randomUUID } from 'node:crypto';
import { mkdir, open, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { FileIdentity } from './file-identity.js';
import type { FileReading, HeaderFacts } from './gguf-facts.js';

interface Entry extends FileIdentity {
  readonly reading: FileReading;
}

/** The number changes when what is kept of a file does: what an earlier version has kept is read again then. */
const FIRST_LINE = '{"format":"llama-supervisor gguf facts 1","files":[';
const LAST_LINE = ']}';
/** About half a kilobyte each. */
const MAX_ENTRIES = 50_000;
/** More than that many entries take. A larger file is not ours. */
const MAX_FILE_BYTES = 128 * 1024 * 1024;
const WRITE_AFTER_MS = 2_000;
/** How long the file is waited for: facts can be had without it. */
const PATIENCE_MS = 5_000;
/** A file that was begun so long ago nobody finishes any more. */
const ABANDONED_AFTER_MS = 60 * 60 * 1000;
const UUID = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/;
/** Entries turned into text at a time; other work of the process goes between. */
const BATCH = 500;

/**
 * What is known of files' headers, in memory and in one JSON file with a line for each, so that the next start knows
 * it too. Loses what was not used longest when there is too much. Never fails: a file that can not be read, or is
 * broken or foreign, is as none; one that can not be written is left.
 */
export class FactsCache {
  readonly #file: string | undefined;
  /** By real path, that used last at the end. */
  readonly #entries = new Map<string, Entry>();
  #loading: Promise<void> | undefined;
  #writing: Promise<void> = Promise.resolve();
  #writeTimer: NodeJS.Timeout | undefined;
  #isSwept = false;

  /** @param file undefined: nothing is kept on disk */
  constructor(file: string | undefined) {
    this.#file = file;
  }

  /** Reads the file, the first time; to be awaited before anything else is asked. */
  async load(): Promise<void> {
    this.#loading ??= patiently(this.#load());
    await this.#loading;
  }

  get({ path, sizeBytes, mtimeMs }: FileIdentity): FileReading | undefined {
    const entry = this.#entries.get(path);
    if (entry?.sizeBytes !== sizeBytes || entry.mtimeMs !== mtimeMs) return undefined;
    this.#put(entry);
    return entry.reading;
  }

  set(identity: FileIdentity, reading: FileReading): void {
    const { path, sizeBytes, mtimeMs } = identity;
    this.#put({ path, sizeBytes, mtimeMs, reading });
    this.#writeTimer ??= setTimeout(() => this.#startWriting(), WRITE_AFTER_MS).unref();
  }

  /** Writes what is not written yet. */
  async close(): Promise<void> {
    if (this.#writeTimer !== undefined) this.#startWriting();
    await patiently(this.#writing);
  }

  #put(entry: Entry): void {
    this.#entries.delete(entry.path);
    this.#entries.set(entry.path, entry);
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= MAX_ENTRIES) break;
      this.#entries.delete(oldest);
    }
  }

  async #load(): Promise<void> {
    if (this.#file === undefined) return;
    try {
      const file = await open(this.#file);
      try {
        if ((await file.stat()).size <= MAX_FILE_BYTES) await this.#readLines(file.readLines());
      } finally {
        await file.close();
      }
    } catch {
      // There is none, or none that can be read.
    }
  }

  async #readLines(lines: AsyncIterable<string>): Promise<void> {
    let isOurs = false;
    for await (const line of lines) {
      if (isOurs) {
        const entry = parseEntry(line);
        // What has been read meanwhile, should this file have kept us waiting for too long, is newer.
        if (entry !== undefined && !this.#entries.has(entry.path)) this.#put(entry);
      } else if (line !== FIRST_LINE) return;
      isOurs = true;
    }
  }

  #startWriting(): void {
    clearTimeout(this.#writeTimer);
    this.#writeTimer = undefined;
    this.#writing = this.#writing.then(() => this.#write());
  }

  async #write(): Promise<void> {
    if (this.#file === undefined) return;
    const unfinished = `${this.#file}.${randomUUID()}`;
    try {
      await mkdir(dirname(this.#file), { recursive: true });
      await writeFile(unfinished, asText([...this.#entries.values()]));
      await rename(unfinished, this.#file);
      if (!this.#isSwept) await sweep(this.#file);
      this.#isSwept = true;
    } catch {
      // A read-only or full cache: the next start reads the files again.
      await rm(unfinished, { force: true }).catch(() => undefined);
    }
  }
}

/** Removes what writers of `file` left behind that were killed at it. */
async function sweep(file: string): Promise<void> {
  const start = `${basename(file)}.`;
  for (const name of await readdir(dirname(file))) {
    if (!name.startsWith(start) || !UUID.test(name.slice(start.length))) continue;
    const left = join(dirname(file), name);
    if (Date.now() - (await stat(left)).mtimeMs > ABANDONED_AFTER_MS) await rm(left);
  }
}

async function patiently(work: Promise<void>): Promise<void> {
  await Promise.race([work, delay(PATIENCE_MS, undefined, { ref: false })]);
}

/** Piece by piece, each of which is written before the next is made. */
function* asText(entries: readonly Entry[]): Generator<string> {
  yield `${FIRST_LINE}\n`;
  for (let start = 0; start < entries.length; start += BATCH) {
    const lines = entries.slice(start, start + BATCH).map((entry) => JSON.stringify(entry));
    yield `${lines.join(',\n')}${start + BATCH < entries.length ? ',' : ''}\n`;
  }
  yield `${LAST_LINE}\n`;
}

/** Undefined for a line that is not an entry. */
function parseEntry(line: string): Entry | undefined {
  try {
    const value: unknown = JSON.parse(line.endsWith(',') ? line.slice(0, -1) : line);
    return isEntry(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isEntry(value: unknown): value is Entry {
  if (!isRecord(value)) return false;
  const { path, sizeBytes, mtimeMs, reading } = value;
  if (typeof path !== 'string' || typeof sizeBytes !== 'number' || typeof mtimeMs !== 'number') return false;
  if (!isRecord(reading)) return false;
  return reading['kind'] === 'fault' ? typeof reading['fault'] === 'string' : isHeader(reading['header']);
}

const HEADER_FIELDS: Readonly<Record<keyof HeaderFacts, 'string' | 'number' | 'boolean'>> = {
  type: 'string',
  architecture: 'string',
  name: 'string',
  fileType: 'number',
  contextLength: 'number',
  embeddingLength: 'number',
  vocabSize: 'number',
  chatTemplate: 'boolean',
  visionEncoder: 'boolean',
  audioEncoder: 'boolean',
  splitNumber: 'number',
  splitCount: 'number',
  tensorCount: 'number',
  parameters: 'number',
  tensorType: 'string',
  wholeBytes: 'number',
};

function isHeader(value: unknown): value is HeaderFacts {
  if (!isRecord(value) || value['tensorCount'] === undefined || value['parameters'] === undefined)
    return false;
  return Object.entries(HEADER_FIELDS).every(([name, type]) => {
    return value[name] === undefined || typeof value[name] === type;
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}
