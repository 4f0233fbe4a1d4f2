import { realpath } from 'node:fs/promises';
import { boundedMap } from '../bounded-map.js';
import type { Model } from '../model.js';

const MAX_LOOKS = 16;

/** Which models load which files, known by where their paths lead: one file may have many. */
export class FileUsers {
  readonly #ids: ReadonlyMap<string, readonly string[]>;

  private constructor(ids: ReadonlyMap<string, readonly string[]>) {
    this.#ids = ids;
  }

  /** Looks up the files of `models`; never rejects. */
  static async of(models: readonly Model[]): Promise<FileUsers> {
    const named = models.flatMap(({ id, file, mmproj, draft }) =>
      [file, mmproj, draft].flatMap((path) => (path === undefined ? [] : { id, path })),
    );
    const ids = new Map<string, string[]>();
    await boundedMap(named, MAX_LOOKS, async ({ id, path }) => {
      const end = await endOf(path);
      if (end !== undefined) ids.set(end, [...(ids.get(end) ?? []), id]);
    });
    return new FileUsers(ids);
  }

  /** The ids of those that load the file at `path`. */
  async idsOf(path: Buffer): Promise<readonly string[]> {
    const end = await endOf(path);
    return end === undefined ? [] : (this.#ids.get(end) ?? []);
  }
}

/** Where `path` leads; undefined where that is nothing a child could open. */
async function endOf(path: string | Buffer): Promise<string | undefined> {
  return await realpath(path).catch(() => undefined);
}
