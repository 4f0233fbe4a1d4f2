import { compareBytewise } from '../bytewise.js';
import { failureCode, isGone } from './directory.js';

/** Reads `path`; is given what it gave the last time, if it did. */
type Reader<T> = (path: string, last: T | undefined) => Promise<T>;

/**
 * What the last scan of one source read, directory by directory. A process that is out of descriptors, or a network
 * file system with a hiccup, fails to read what is there still: then the last reading holds, because models are stopped
 * that no scan finds. Only what is said to be gone is gone.
 */
export class LastReadings {
  #last: ReadonlyMap<string, unknown> = new Map();
  #current = new Map<string, unknown>();
  /** By the system's code. */
  readonly #failed = new Map<string, { readonly first: string; readonly count: number }>();

  /** Begins a scan; what the one before did not read is forgotten. */
  startScan(): void {
    this.#last = this.#current;
    this.#current = new Map();
    this.#failed.clear();
  }

  /**
   * What `reader`, always the same for one path, gives of `path`, or gave last where the system fails to read it.
   * Rejects as `reader` does if nothing was read of `path` before, or it is gone.
   */
  async read<T>(path: string, reader: Reader<T>): Promise<T> {
    const last = this.#last.get(path) as T | undefined;
    const value = await reader(path, last).catch((error: unknown) => {
      const { code } = error as NodeJS.ErrnoException;
      if (last === undefined || code === undefined || isGone(code)) throw error;
      const { first = path, count = 0 } = this.#failed.get(code) ?? {};
      this.#failed.set(code, { first, count: count + 1 });
      return last;
    });
    this.#current.set(path, value);
    return value;
  }

  /** Like `read`, but nothing in place of a rejection; that is a warning unless `path` does not exist. */
  async readOrWarn<Entry>(
    path: string,
    reader: Reader<readonly Entry[]>,
    warnings: string[],
  ): Promise<readonly Entry[]> {
    try {
      return await this.read(path, reader);
    } catch (error) {
      const code = failureCode(error);
      if (code !== 'ENOENT') warnings.push(`'${path}' cannot be read: ${code}`);
      return [];
    }
  }

  /**
   * What could not be read below `directory` in this scan, one line for each kind of failure: a process that is out of
   * descriptors fails at thousands of places, at others each time.
   */
  warnings(directory: string): string[] {
    return Array.from(this.#failed, ([code, { first, count }]) =>
      count === 1
        ? `'${first}' cannot be read: ${code}; what it held last is used`
        : `parts of '${directory}' cannot be read: ${code}; what they held last is used`,
    ).sort(compareBytewise);
  }
}
