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
import {
  failureProblem,
  isPassingFailure,
  notFirstProblem,
  shardProblem,
  shardsOf,
  type Shard,
} from './gguf-file.js';
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
/**
 * Readings at a time. One that is slow, or that hangs until its deadline, holds up one of its line and none of the
 * other.
 */
const URGENT_AT_A_TIME = 3;
const BACKGROUND_AT_A_TIME = 1;
const CLOSED: FactsReport = { kind: 'unread', reason: 'the supervisor is ending' };

/** A reading of a model's files that waits for its turn. */
interface Job {
  readonly files: ModelFiles;
  readonly promise: Promise<FactsReport>;
  readonly resolve: (report: FactsReport) => void;
}

/** Readings of the same urgency. */
interface Line {
  readonly atATime: number;
  /** By `keyOf`, so that there is at most one for each model. */
  readonly waiting: Map<string, Job>;
  running: number;
}

/** A file as it was when it was read, or why it could not be. */
type Look =
  | { readonly kind: 'read'; readonly identity: FileIdentity; readonly reading: FileReading }
  | { readonly kind: 'failed'; readonly code: string };

/**
 * The facts of models, read from the headers of their files: off the main thread, those that are urgent a few at a
 * time and all others one after the other, and only those that have changed since they were read last.
 */
export class FactsStore {
  readonly #identities: FileIdentities;
  readonly #cache: FactsCache;
  readonly #reader: FactsReader;
  readonly #unfinished = new UnfinishedFiles();
  /** By `keyOf`. */
  readonly #reports = new Map<string, FactsReport>();
  /** The last look at each path that is not over yet. */
  readonly #looks = new Map<string, Promise<Look>>();
  readonly #urgent: Line = { atATime: URGENT_AT_A_TIME, waiting: new Map(), running: 0 };
  readonly #background: Line = { atATime: BACKGROUND_AT_A_TIME, waiting: new Map(), running: 0 };
  #isClosed = false;

  constructor(options: FactsStoreOptions) {
    const { cacheFile, fileTimeoutMs = FILE_TIMEOUT_MS, workerUrl, workerIdleMs } = options;
    this.#identities = new FileIdentities({ timeoutMs: fileTimeoutMs });
    this.#cache = new FactsCache(cacheFile);
    this.#reader = new FactsReader({ workerUrl, timeoutMs: fileTimeoutMs, idleMs: workerIdleMs });
  }

  /** What the last `read` of these files has found. */
  known(files: ModelFiles): FactsReport | undefined {
    return this.#reports.get(keyOf(files));
  }

  /**
   * Asks for sizes and times of the files and reads those that have changed. Urgent readings do not wait for others.
   * Calls for the same files share one that has not begun yet. Never rejects.
   */
  read(files: ModelFiles, { urgent }: { readonly urgent: boolean }): Promise<FactsReport> {
    if (this.#isClosed) return Promise.resolve(CLOSED);
    const key = keyOf(files);
    const [wanted, other] = urgent ? [this.#urgent, this.#background] : [this.#background, this.#urgent];
    const job = this.#urgent.waiting.get(key) ?? this.#background.waiting.get(key) ?? newJob(files);
    if (urgent) other.waiting.delete(key);
    if (urgent || !other.waiting.has(key)) wanted.waiting.set(key, job);
    this.#proceed(wanted);
    return job.promise;
  }

  /** Ends the reading threads, answers what waits with `unread`, and writes the cache. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#reader.close();
    for (const { waiting } of [this.#urgent, this.#background]) {
      for (const { resolve } of waiting.values()) resolve(CLOSED);
      waiting.clear();
    }
    await this.#cache.close();
  }

  #proceed(line: Line): void {
    for (const [key, job] of line.waiting) {
      if (line.running >= line.atATime) return;
      line.waiting.delete(key);
      line.running += 1;
      void this.#answer(job).finally(() => {
        line.running -= 1;
        this.#proceed(line);
      });
    }
  }

  async #answer({ files, resolve }: Job): Promise<void> {
    let report: FactsReport;
    try {
      report = await this.#report(files);
    } catch (error) {
      // Whatever it is, it must neither leave anybody waiting nor keep the next from being read.
      report = { kind: 'unread', reason: `'${files.file}' cannot be read: ${String(error)}` };
    }
    if (this.#isClosed) report = CLOSED;
    else this.#learn(files, report);
    resolve(report);
  }

  #learn(files: ModelFiles, report: FactsReport): void {
    const key = keyOf(files);
    this.#reports.delete(key);
    this.#reports.set(key, report);
    for (const oldest of this.#reports.keys()) {
      if (this.#reports.size <= MAX_REPORTS) break;
      this.#reports.delete(oldest);
    }
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
        if (!/^E[A-Z0-9]+$/.test(look.code) || isPassingFailure(look.code))
          return { kind: 'unread', reason: problem };
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
    const report = describeModel(shards, projector === undefined ? undefined : headerOf(projector));
    // What is whole by its size may have been given that before its content.
    return report.kind === 'problem' ? { ...report, transient: wasWrittenLately(newest) } : report;
  }

  #isBeingWritten({ identity, reading }: Look & { readonly kind: 'read' }): boolean {
    if (!isWhole(reading, identity.sizeBytes)) return this.#unfinished.isBeingWritten(identity);
    this.#unfinished.forget(identity.path);
    return false;
  }

  /** Looks at a file after all who came before: models share projectors, and a file that hangs must hang only once. */
  async #look(path: string): Promise<Look> {
    const earlier = this.#looks.get(path);
    const look = Promise.allSettled([earlier]).then(() => this.#lookNow(path));
    this.#looks.set(path, look);
    try {
      return await look;
    } finally {
      if (this.#looks.get(path) === look) this.#looks.delete(path);
    }
  }

  async #lookNow(path: string): Promise<Look> {
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
