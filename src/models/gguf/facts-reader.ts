import type { FileLook } from './gguf-look.js';
import { ReaderThread, type ReaderThreadOptions } from './reader-thread.js';

/** A thread that hangs in the kernel can not be ended and keeps its memory; with so many, no further file is tried. */
const MAX_HANGING = 16;
/** A file that its thread has died of, or that gave no answer, is not tried again so soon. */
const RETRY_AFTER_MS = 30_000;
/** Beyond, the first are forgotten, and tried again sooner. */
const MAX_FAILURES = 1_000;

/** Reads the headers of files, each in a thread of its own, and remembers those that threads have come to grief on. */
export class FactsReader {
  readonly #options: ReaderThreadOptions;
  /** As many as there were looks at a time; the one used last is the next, so that the others can end. */
  readonly #threads: ReaderThread[] = [];
  readonly #free: ReaderThread[] = [];
  /** Files whose threads have not come back yet; they are not tried again until then. */
  readonly #hanging = new Set<string>();
  readonly #failures = new Map<string, { readonly code: string; readonly atMs: number }>();
  #isClosed = false;

  constructor(options: ReaderThreadOptions) {
    this.#options = options;
  }

  /** Looks at the file `path`; one look at a time for each file. Never rejects. */
  async look(path: string): Promise<FileLook> {
    if (this.#isClosed) return { kind: 'failed', code: 'its reader is closed' };
    const failure = this.#failures.get(path);
    if (failure !== undefined && performance.now() - failure.atMs < RETRY_AFTER_MS) {
      return { kind: 'failed', code: failure.code };
    }
    if (this.#hanging.has(path)) return { kind: 'failed', code: 'an earlier attempt has still no answer' };
    if (this.#hanging.size >= MAX_HANGING) return { kind: 'failed', code: 'too many files give no answer' };

    const thread = this.#free.pop() ?? this.#addThread();
    const outcome = await thread.look(path);
    this.#free.push(thread);
    this.#failures.delete(path);
    if (outcome.kind === 'answer') return outcome.look;
    if (outcome.kind === 'timeout') {
      this.#hanging.add(path);
      void outcome.ended.then(() => this.#hanging.delete(path));
    }
    this.#noteFailure(path, outcome.cause);
    return { kind: 'failed', code: outcome.cause };
  }

  /** Ends the threads, without waiting for them. Looks that are under way fail, and so does every later one. */
  close(): void {
    this.#isClosed = true;
    for (const thread of this.#threads) thread.close();
  }

  #addThread(): ReaderThread {
    const thread = new ReaderThread(this.#options);
    this.#threads.push(thread);
    return thread;
  }

  #noteFailure(path: string, code: string): void {
    this.#failures.set(path, { code, atMs: performance.now() });
    for (const oldest of this.#failures.keys()) {
      if (this.#failures.size <= MAX_FAILURES) break;
      this.#failures.delete(oldest);
    }
  }
}
