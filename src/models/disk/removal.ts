import { access, constants, lstat, realpath, rmdir, unlink } from 'node:fs/promises';
import { isWithin, parentOf } from './byte-path.js';
import { failureCode, unlessNowhere } from './directory.js';
import { escapeOddBytes } from './odd-names.js';

/** What has been removed. */
export interface Removed {
  /** The files and links, in the order in which they went; bytes that are not UTF-8 as `%FF`. */
  readonly removed: readonly string[];
  /** The sizes of the files of which no other name is left. */
  readonly freedBytes: number;
}

/**
 * Removes files and empty directories below one directory and nowhere else: links go and are not followed, and where a
 * path leads is looked up right before, because a directory may have been replaced by a link meanwhile. What is gone
 * already is no failure.
 */
export class Removal {
  readonly #root: Buffer;
  readonly #removed: string[] = [];
  #freedBytes = 0;

  /** @param root without links in it */
  constructor(root: Buffer) {
    this.#root = root;
  }

  /** What has been removed so far. */
  get outcome(): Removed {
    return { removed: this.#removed, freedBytes: this.#freedBytes };
  }

  /** Removes each of `paths` that it can; then rejects, naming them, if there are others. */
  async files(paths: Iterable<Buffer>): Promise<void> {
    const failures: { readonly message: string; readonly cause: unknown }[] = [];
    for (const path of paths) {
      try {
        await unlessNowhere(() => this.#file(path));
      } catch (cause) {
        failures.push({ message: `'${escapeOddBytes(path)}': ${failureCode(cause)}`, cause });
      }
    }
    const [first] = failures;
    if (first === undefined) return;
    throw new Error(failures.map(({ message }) => message).join(', '), { cause: first.cause });
  }

  /** Removes those of `paths` that are empty directories. Never rejects: an empty directory takes nobody's room. */
  async emptyDirectories(paths: Iterable<Buffer>): Promise<void> {
    for (const path of paths) {
      await this.#assertInside(path)
        .then(() => rmdir(path))
        .catch(() => undefined);
    }
  }

  async #file(path: Buffer): Promise<void> {
    await this.#assertInside(path);
    const stats = await lstat(path);
    await unlink(path);
    this.#removed.push(escapeOddBytes(path));
    if (stats.isFile() && stats.nlink === 1) this.#freedBytes += stats.size;
  }

  async #assertInside(path: Buffer): Promise<void> {
    if (path.equals(this.#root)) return;
    const directory = await realpath(parentOf(path), { encoding: 'buffer' });
    if (!isWithin(directory, this.#root)) throw new Error('it lies outside the cache');
  }
}

/** Rejects if the names in one of `directories` may not be changed; one that does not exist holds up nothing. */
export async function assertChangeable(directories: readonly Buffer[]): Promise<void> {
  for (const directory of directories) {
    try {
      await unlessNowhere(() => access(directory, constants.W_OK | constants.X_OK));
    } catch (error) {
      const message = `nothing may be removed from '${escapeOddBytes(directory)}': ${failureCode(error)}`;
      throw new Error(message, { cause: error });
    }
  }
}
