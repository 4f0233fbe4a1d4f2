import { randomUUID } from 'node:crypto';
import { open, unlink, writeFile, type FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { RouterError } from '../errors.js';
import { BodyBudget } from './body-budget.js';

/** So many bodies of the largest size that is taken may be on the disk at one time. */
const maxLargestBodies = 16;

/** What is read from the file in one go. */
const pieceBytes = 64 * 1024;

/** Where large bodies are kept, and how much of the disk they may fill together. */
export interface Spooling {
  readonly directory: string;
  readonly budget: BodyBudget;
}

/**
 * @param bodyMaxBytes the largest body that is taken (`--body-max`)
 * @param directory default: the system's for temporary files, which TMPDIR changes
 */
export function spoolingFor(bodyMaxBytes: number, directory = tmpdir()): Spooling {
  const bound = `${maxLargestBodies} times --body-max, on the disk of ${directory}`;
  return { directory, budget: new BodyBudget(maxLargestBodies * bodyMaxBytes, bound) };
}

/**
 * A request body in a temporary file: written once, read as often as it is sent. The file has lost its name before a
 * byte is in it, so that nobody else can open it and no crash leaves it behind.
 */
export class BodySpool {
  readonly #spooling: Spooling;
  #bytes = 0;
  #file: FileHandle | undefined;
  /** Set where an open file cannot lose its name. */
  #path: string | undefined;
  /** Reads and writes in progress: the file is closed after them. */
  #users = 0;
  #released = false;

  constructor(spooling: Spooling) {
    this.#spooling = spooling;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Adds to the end; not to be called again before it has settled.
   *
   * @throws RouterError body_memory_full, disk_full, internal
   */
  async append(chunks: readonly Buffer[]): Promise<void> {
    const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    this.#spooling.budget.take(bytes);
    this.#bytes += bytes;
    this.#users += 1;
    try {
      this.#file ??= await this.#create();
      await writeFile(this.#file, chunks);
    } catch (error) {
      throw cannotKeep(this.#spooling.directory, error as NodeJS.ErrnoException);
    } finally {
      this.#leave();
    }
  }

  /** The body from its start; can be asked for again until `release`. The file is read as the reader takes it. */
  forSending(): Readable {
    return Readable.from(this.#pieces(), { objectMode: false, highWaterMark: pieceBytes });
  }

  /** Lets go of the file and of its share of the budget, once what is being read or written has ended. */
  release(): void {
    this.#released = true;
    this.#closeUnused();
  }

  async #create(): Promise<FileHandle> {
    const path = join(this.#spooling.directory, `llama-supervisor-${randomUUID()}.body`);
    const file = await open(path, 'wx+', 0o600);
    await unlink(path).catch(() => (this.#path = path));
    return file;
  }

  async *#pieces(): AsyncGenerator<Buffer> {
    const file = this.#file;
    if (file === undefined) throw new Error('the request body is gone');
    this.#users += 1;
    try {
      for (let at = 0; at < this.#bytes;) {
        const length = Math.min(pieceBytes, this.#bytes - at);
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(length), 0, length, at);
        if (bytesRead === 0) throw new Error(`the request body on the disk ends after ${at} bytes`);
        at += bytesRead;
        yield buffer.subarray(0, bytesRead);
      }
    } finally {
      this.#leave();
    }
  }

  #leave(): void {
    this.#users -= 1;
    this.#closeUnused();
  }

  #closeUnused(): void {
    if (!this.#released || this.#users > 0) return;
    this.#spooling.budget.give(this.#bytes);
    this.#bytes = 0;
    if (this.#file) void discard(this.#file, this.#path);
    this.#file = undefined;
  }
}

async function discard(file: FileHandle, path: string | undefined): Promise<void> {
  try {
    await file.close();
    if (path !== undefined) await unlink(path);
  } catch {
    // Its request is over: there is nobody left to tell.
  }
}

function cannotKeep(directory: string, cause: NodeJS.ErrnoException): RouterError {
  if (cause.code === 'ENOSPC' || cause.code === 'EDQUOT') {
    const message =
      `no space is left in ${directory}, where large request bodies are kept until their model is ready; ` +
      'free some, or set TMPDIR to another directory';
    return new RouterError('disk_full', message, { cause });
  }
  const message =
    `cannot keep the request body in ${directory}: ${cause.message}; ` +
    'set TMPDIR to a directory that can be written to';
  return new RouterError('internal', message, { cause });
}
