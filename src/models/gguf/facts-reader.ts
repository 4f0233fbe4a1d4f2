import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { FileLook } from './gguf-look.js';

export interface FactsReaderOptions {
  /** What the thread runs: takes paths, answers each with a `FileLook`. Default: facts-worker.js. */
  readonly workerUrl?: URL | undefined;
  /** How long one file may take. */
  readonly timeoutMs: number;
  /** How long the thread, which takes some megabytes, is kept for the next file. Default 5 s. */
  readonly idleMs?: number | undefined;
}

const IDLE_MS = 5_000;
/** Reading takes one chunk of the file and what is kept of its header; a thread that wants more has gone mad. */
const HEAP_LIMIT_MB = 64;
/** A thread that hangs in the kernel can not be ended and keeps its memory; with so many, no further file is tried. */
const MAX_HANGING = 16;

/** A file that its thread has died of, or that gave no answer, is not tried again so soon. */
const RETRY_AFTER_MS = 30_000;
/** Beyond, the first are forgotten, and tried again sooner. */
const MAX_FAILURES = 1_000;

/** How one look at a file ended. */
type Outcome =
  | { readonly kind: 'answer'; readonly look: FileLook }
  | { readonly kind: 'died' | 'timeout'; readonly cause: string };

/**
 * Reads the headers of files in a thread of its own, one at a time, started when it is needed and ended when it is
 * not. A thread that dies or does not answer is replaced; it never keeps the process alive.
 */
export class FactsReader {
  readonly #workerUrl: URL | undefined;
  readonly #timeoutMs: number;
  readonly #idleMs: number;
  /** Files whose threads have not come back yet; they are not tried again until then. */
  readonly #hanging = new Set<string>();
  readonly #failures = new Map<string, { readonly code: string; readonly atMs: number }>();
  #worker: Worker | undefined;
  #idleTimer: NodeJS.Timeout | undefined;
  /** Ends the look that is under way; the first call counts. */
  #settle: ((outcome: Outcome) => void) | undefined;
  #isClosed = false;

  constructor({ workerUrl, timeoutMs, idleMs = IDLE_MS }: FactsReaderOptions) {
    this.#workerUrl = workerUrl;
    this.#timeoutMs = timeoutMs;
    this.#idleMs = idleMs;
  }

  /** Looks at the file `path`; not to be called again before it has settled. Never rejects. */
  async look(path: string): Promise<FileLook> {
    if (this.#isClosed) return { kind: 'failed', code: 'its reader is closed' };
    const failure = this.#failures.get(path);
    if (failure !== undefined && performance.now() - failure.atMs < RETRY_AFTER_MS) {
      return { kind: 'failed', code: failure.code };
    }
    if (this.#hanging.has(path)) return { kind: 'failed', code: 'an earlier attempt has still no answer' };
    if (this.#hanging.size >= MAX_HANGING) return { kind: 'failed', code: 'too many files give no answer' };
    clearTimeout(this.#idleTimer);

    const outcome = await this.#race(path);
    this.#failures.delete(path);
    if (outcome.kind === 'answer') {
      this.#idleTimer = setTimeout(() => this.#endWorker(), this.#idleMs).unref();
      return outcome.look;
    }
    if (outcome.kind === 'timeout') {
      this.#hanging.add(path);
      this.#worker?.once('exit', () => this.#hanging.delete(path));
    }
    this.#noteFailure(path, outcome.cause);
    this.#endWorker();
    return { kind: 'failed', code: outcome.cause };
  }

  /** Ends the thread, without waiting for it. A look that is under way fails, and so does every later one. */
  close(): void {
    this.#isClosed = true;
    this.#settle?.({ kind: 'died', cause: 'its reader is closed' });
    this.#endWorker();
  }

  #noteFailure(path: string, code: string): void {
    this.#failures.set(path, { code, atMs: performance.now() });
    for (const oldest of this.#failures.keys()) {
      if (this.#failures.size <= MAX_FAILURES) break;
      this.#failures.delete(oldest);
    }
  }

  #endWorker(): void {
    clearTimeout(this.#idleTimer);
    void this.#worker?.terminate();
    this.#worker = undefined;
  }

  /** The ways in which a look can end: answer, error or exit of the thread, deadline, `close`. */
  async #race(path: string): Promise<Outcome> {
    let deadline: NodeJS.Timeout | undefined;
    const outcome = new Promise<Outcome>((resolve) => {
      this.#settle = resolve;
      const cause = `no answer within ${this.#timeoutMs / 1000} s`;
      deadline = setTimeout(() => resolve({ kind: 'timeout', cause }), this.#timeoutMs).unref();
    });
    try {
      this.#worker ??= this.#startWorker();
      this.#worker.postMessage(path);
    } catch (error) {
      this.#settle?.({ kind: 'died', cause: readerFailed(error) });
    }
    return await outcome.finally(() => {
      clearTimeout(deadline);
      this.#settle = undefined;
    });
  }

  #startWorker(): Worker {
    const worker = new Worker(this.#workerUrl ?? compiledWorker(), {
      name: 'gguf-facts',
      // Flags of the process, such as one that says what `--eval` holds, are not meant for this file.
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: HEAP_LIMIT_MB },
    });
    // A thread that was replaced has no say in the look that another does now.
    const settle = (outcome: Outcome): void => {
      if (worker === this.#worker) this.#settle?.(outcome);
    };
    worker.on('message', (look: FileLook) => settle({ kind: 'answer', look }));
    worker.on('error', (error) => settle({ kind: 'died', cause: readerFailed(error) }));
    worker.on('exit', () => {
      settle({ kind: 'died', cause: 'its reader ended' });
      if (worker === this.#worker) this.#worker = undefined;
    });
    worker.unref();
    return worker;
  }
}

function readerFailed(error: unknown): string {
  return `its reader failed: ${error instanceof Error ? error.message : String(error)}`;
}

/**
 * A thread runs no TypeScript on the oldest Node we support, and the tests run the sources: there the worker is the
 * compiled one of the last build.
 */
function compiledWorker(): URL {
  const beside = new URL('facts-worker.js', import.meta.url);
  return existsSync(beside) ? beside : new URL('../../../dist/models/gguf/facts-worker.js', import.meta.url);
}
