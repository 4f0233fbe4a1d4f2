import { isDeepStrictEqual } from 'node:util';
import { FactsCache } from './facts-cache.js';
import { FactsReader } from './facts-reader.js';
import { FileIdentities, type FileIdentity } from './file-identity.js';
import {
  describeModel,
  isWhole,
  judgeFile,
  type FactsReport,
  type FileReading,
  type HeaderFacts,
} from './gguf-facts.js';
import { failureProblem, notFirstProblem, shardProblem, shardsOf, type Shard } from './gguf-file.js';
import { UnfinishedFiles, wasWrittenLately } from './unfinished-files.js';

export type { FactsReport } from './gguf-facts.js';

/** What a model is loaded from. */
export interface ModelFiles {
  /** Its file, or the first of its shards. */
  readonly file: string;
  /** Its multimodal projector. */
  readonly mmproj: string | undefined;
}

export interface FactsStoreOptions {
  /** Where the facts are kept for the next start; undefined: nowhere. */
  readonly cacheFile: string | undefined;
  /** Called when reading files has changed what is known of them. */
  readonly onLearnt?: (files: ModelFiles) => void;
  /** How long one file may take to answer. Default 10 s: milliseconds are usual, seconds over a slow network. */
  readonly fileTimeoutMs?: number;
  /** For tests: another thread than the one that reads headers, and how long it is kept. */
  readonly workerUrl?: URL;
  readonly workerIdleMs?: number;
}

const FILE_TIMEOUT_MS = 10_000;
/** Far more than there are models; beyond, what was learnt first is forgotten. */
const MAX_REPORTS = 50_000;
/** Failures that do not pass before somebody changes the file or its directories. */
const LASTING_FAILURES: ReadonlySet<string> = new Set([
  'ENOENT',
  'ENOTDIR',
  'EACCES',
  'EPERM',
  'ELOOP',
  'ENAMETOOLONG',
]);
const CLOSED: FactsReport = { kind: 'unread', reason: 'the supervisor is ending' };

/** A reading of a model's files that waits for its turn. */
interface Job {
  readonly files: ModelFiles;
  readonly promise: Promise<FactsReport>;
  readonly resolve: (report: FactsReport) => void;
}

/** A file as it was when it was read, or why it could not be. */
type Look =
  | { readonly kind: 'read'; readonly identity: FileIdentity; readonly reading: FileReading }
  | { readonly kind: 'failed'; readonly code: string };

/**
 * The facts of models, read from the headers of their files: one after the other, off the main thread, and only those
 * that have changed since they were read last.
 */
export class FactsStore {
  readonly #identities: FileIdentities;
  readonly #cache: FactsCache;
  readonly #reader: FactsReader;
  readonly #onLearnt: ((files: ModelFiles) => void) | undefined;
  readonly #unfinished = new UnfinishedFiles();
  /** By `keyOf`; likewise the waiting jobs, so that there is at most one for each model. */
  readonly #reports = new Map<string, FactsReport>();
  readonly #urgent = new Map<string, Job>();
  readonly #background = new Map<string, Job>();
  #isWorking = false;
  #isClosed = false;

  constructor(options: FactsStoreOptions) {
    const { cacheFile, onLearnt, fileTimeoutMs = FILE_TIMEOUT_MS, workerUrl, workerIdleMs } = options;
    this.#identities = new FileIdentities({ timeoutMs: fileTimeoutMs });
    this.#cache = new FactsCache(cacheFile);
    this.#reader = new FactsReader({ workerUrl, timeoutMs: fileTimeoutMs, idleMs: workerIdleMs });
    this.#onLearnt = onLearnt;
  }

  /** What the last `read` of these files has found. */
  known(files: ModelFiles): FactsReport | undefined {
    return this.#reports.get(keyOf(files));
  }

  /**
   * Asks for sizes and times of the files and reads those that have changed. Urgent readings go before others. Calls
   * for the same files share one that has not begun yet. Never rejects.
   */
  read(files: ModelFiles, { urgent }: { readonly urgent: boolean }): Promise<FactsReport> {
    if (this.#isClosed) return Promise.resolve(CLOSED);
    const key = keyOf(files);
    const job = this.#urgent.get(key) ?? this.#background.get(key) ?? newJob(files);
    if (urgent) {
      this.#background.delete(key);
      this.#urgent.set(key, job);
    } else if (!this.#urgent.has(key)) {
      this.#background.set(key, job);
    }
    if (!this.#isWorking) void this.#work();
    return job.promise;
  }

  /** Ends the reading thread, answers what waits with `unread`, and writes the cache. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#reader.close();
    for (const queue of [this.#urgent, this.#background]) {
      for (const { resolve } of queue.values()) resolve(CLOSED);
      queue.clear();
    }
    await this.#cache.close();
  }

  async #work(): Promise<void> {
    this.#isWorking = true;
    for (let job = this.#next(); job !== undefined; job = this.#next()) {
      const report = await this.#report(job.files);
      if (this.#isClosed) {
        job.resolve(CLOSED);
        break;
      }
      this.#learn(job.files, report);
      job.resolve(report);
    }
    this.#isWorking = false;
  }

  #next(): Job | undefined {
    for (const queue of [this.#urgent, this.#background]) {
      for (const [key, job] of queue) {
        queue.delete(key);
        return job;
      }
    }
    return undefined;
  }

  #learn(files: ModelFiles, report: FactsReport): void {
    const key = keyOf(files);
    const isNew = !isDeepStrictEqual(this.#reports.get(key), report);
    this.#reports.delete(key);
    this.#reports.set(key, report);
    for (const oldest of this.#reports.keys()) {
      if (this.#reports.size <= MAX_REPORTS) break;
      this.#reports.delete(oldest);
    }
    if (isNew) this.#onLearnt?.(files);
  }

  async #report({ file, mmproj }: ModelFiles): Promise<FactsReport> {
    const misnamed = notFirstProblem(file);
    if (misnamed !== undefined) return { kind: 'problem', problem: misnamed, transient: false };

    await this.#cache.load();
    const shards: { shard: Shard; sizeBytes: number; header: HeaderFacts }[] = [];
    let newest = -Infinity;
    for (const shard of shardsOf(file)) {
      const look = await this.#look(shard.path);
      if (look.kind === 'failed') {
        const problem = shardProblem(shard, await failureProblem(shard.path, look.code));
        // Only the system's word is one about the file.
        if (!/^E[A-Z0-9]+$/.test(look.code)) return { kind: 'unread', reason: problem };
        // Shards are copied one after the other: where one is new, the next may be still to come.
        const transient = !LASTING_FAILURES.has(look.code) || wasWrittenLately(newest);
        return { kind: 'problem', problem, transient };
      }
      const { sizeBytes, mtimeMs } = look.identity;
      const verdict = judgeFile(look.reading, { sizeBytes, writing: this.#isBeingWritten(look) });
      if (verdict.kind === 'problem') {
        const { message, transient } = verdict;
        return { kind: 'problem', problem: shardProblem(shard, message), transient };
      }
      shards.push({ shard, sizeBytes, header: verdict.header });
      newest = Math.max(newest, mtimeMs);
    }

    const projector = mmproj === undefined ? undefined : await this.#look(mmproj);
    return describeModel(shards, projector === undefined ? undefined : headerOf(projector));
  }

  #isBeingWritten({ identity, reading }: Look & { readonly kind: 'read' }): boolean {
    if (!isWhole(reading, identity.sizeBytes)) return this.#unfinished.isBeingWritten(identity);
    this.#unfinished.forget(identity.path);
    return false;
  }

  async #look(path: string): Promise<Look> {
    const found = await this.#identities.of(path);
    if (found.kind === 'failed') return found;
    const kept = this.#cache.get(found.identity);
    if (kept !== undefined) return { kind: 'read', identity: found.identity, reading: kept };

    const look = await this.#reader.look(found.identity.path);
    if (look.kind === 'failed') return look;
    const { sizeBytes, mtimeMs, reading } = look;
    const identity = { path: found.identity.path, sizeBytes, mtimeMs };
    // A fault can be mended within one tick of the file system's clock, so that neither size nor time tells.
    if (reading.kind === 'header' || !wasWrittenLately(mtimeMs)) this.#cache.set(identity, reading);
    return { kind: 'read', identity, reading };
  }
}

/** A projector that can not be read, or is none, adds nothing to a model. */
function headerOf(look: Look): HeaderFacts | undefined {
  return look.kind === 'read' && look.reading.kind === 'header' ? look.reading.header : undefined;
}

function newJob(files: ModelFiles): Job {
  let resolve: Job['resolve'] = () => undefined;
  const promise = new Promise<FactsReport>((settle) => (resolve = settle));
  return { files, promise, resolve };
}

function keyOf({ file, mmproj }: ModelFiles): string {
  // No path holds a NUL.
  return `${file}\0${mmproj ?? ''}`;
}
