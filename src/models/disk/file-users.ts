import { realpath } from 'node:fs/promises';
import { boundedMap } from '../bounded-map.js';
import type { Model } from '../model.js';

const MAX_LOOKS = 16;

/** The weight that options like `--lora-scaled` give a file. */
const WEIGHT = /:[^:/]*$/;

/** Which models load which files, known by where their paths lead: one file may have many. */
export class FileUsers {
  readonly #ids: ReadonlyMap<string, readonly string[]>;

  private constructor(ids: ReadonlyMap<string, readonly string[]>) {
    this.#ids = ids;
  }

  /** Looks up the files of `models`; never rejects. */
  static async of(models: readonly Model[]): Promise<FileUsers> {
    const named = models.flatMap((model) => pathsOf(model).map((path) => ({ id: model.id, path })));
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

/**
 * The files a model is known to load, and all that its options could name besides, like adapters and control vectors:
 * which options take paths, and in which form, only the binary knows. Text that is no path leads nowhere.
 */
function pathsOf({ file, mmproj, draft, options }: Model): string[] {
  const texts = [...options.values()].flatMap((text) => [text, ...text.split(',')]);
  const named = texts.flatMap((text) => [text, text.replace(WEIGHT, '')]).filter(looksLikePath);
  const known = [file, mmproj, draft].filter((path) => path !== undefined);
  return [...new Set([...known, ...named])];
}

function looksLikePath(text: string): boolean {
  return text.includes('/') || text.endsWith('.gguf');
}

/** Where `path` leads; undefined where that is nothing a child could open. */
async function endOf(path: string | Buffer): Promise<string | undefined> {
  return await realpath(path).catch(() => undefined);
}
