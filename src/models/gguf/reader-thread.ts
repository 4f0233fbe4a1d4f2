import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { FileLook } from './gguf-look.js';

export interface ReaderThreadOptions {
  /** What the thread runs: takes paths, answers each with a `FileLook`. Default: facts-worker.js. */
  readonly workerUrl?: URL | undefined;
  /** How long one file may take. */
  readonly timeoutMs: number;
  /** How long the thread, which takes some megabytes, is kept for the next file. Default 5 s. */
  readonly idleMs?: number | undefined;
}

/** How one look at a file ended. */
export type Outcome =
  | { readonly kind: 'answer'; readonly look: FileLook }
  | { readonly kind: 'died'; readonly cause: string }
  /** `ended` settles when the thread has come back from the file, which may be never. */
  | { readonly kind: 'timeout'; readonly cause: string; readonly ended: Promise<void> };

const IDLE_MS = 5_000;
/** Reading takes one chunk of the file and what is kept of its header; a thread that wants more has gone mad. */
const HEAP_LIMIT_MB = 64;
const CLOSED: Outcome = { kind: 'died', cause: 'its reader is closed' };

/**
 * A thread that reads headers of files, one at a time, started when it is needed and ended when it is not. One that
 * dies or does not answer is replaced; it never keeps the process alive.
 */
export class ReaderThread {
  readonly #workerUrl: URL | undefined;
  readonly #timeoutMs: number;
  readonly #idleMs: number;
  #worker: Worker | undefined;
  #idleTimer: NodeJS.Timeout | undefined;
  /** Ends the look that is under way; the first call counts. */
  #settle: ((outcome: Outcome) => void) | undefined;

  constructor({ workerUrl, timeoutMs, idleMs = IDLE_MS }: ReaderThreadOptions) {
    this.#workerUrl = workerUrl;
    this.#timeoutMs = timeoutMs;
    this.#idleMs = idleMs;
  }

  /** Looks at the file `path`; not to be called again before it has settled. Never rejects. */
  async look(path: string): Promise<Outcome> {
    clearTimeout(this.#idleTimer);
    const outcome = await this.#race(path);
    if (outcome.kind === 'answer') this.#idleTimer = setTimeout(() => this.#end(), this.#idleMs).unref();
    else this.#end();
    return outcome;
  }

  /** Ends the thread, without waiting for it. A look that is under way fails. */
  close(): void {
    this.#settle?.(CLOSED);
    this.#end();
  }

  #end(): void {
    clearTimeout(this.#idleTimer);
    void this.#worker?.terminate();
    this.#worker = undefined;
  }

  /** The ways in which a look can end: answer, error or exit of the thread, deadline, `close`. */
  async #race(path: string): Promise<Outcome> {
    let deadline: NodeJS.Timeout | undefined;
    const outcome = new Promise<Outcome>((resolve) => {
      this.#settle = resolve;
      deadline = setTimeout(() => resolve(this.#timedOut()), this.#timeoutMs).unref();
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

  #timedOut(): Outcome {
    const worker = this.#worker;
    const ended = new Promise<void>((resolve) => worker?.once('exit', () => resolve()));
    return { kind: 'timeout', cause: `no answer within ${this.#timeoutMs / 1000} s`, ended };
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
