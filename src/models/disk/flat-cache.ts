import { boundedMap } from '../bounded-map.js';
import { compareBytewise } from '../bytewise.js';
import { joinPath, type DirectoryEntry } from './directory.js';
import { isManifest, readManifest } from './flat-manifest.js';
import { flatModels, type FlatCandidate, type FlatModel } from './flat-models.js';
import { isGgufFile } from './gguf-role.js';
import { LastReadings } from './last-readings.js';
import { readNamedDirectory, sweepLinks, type OddNames } from './odd-names.js';

/**
 * The cache of llama.cpp before it took the layout of the Hugging Face hub: all files in one directory, those of a
 * repository as `user_repo_path.gguf`, others by their own name. The native router no longer lists it.
 */
export interface FlatCache {
  /** Sorted bytewise by id. */
  readonly models: readonly FlatModel[];
  readonly warnings: readonly string[];
}

const MAX_OPEN_FILES = 16;

/**
 * Where the flat cache is: in `LLAMA_CACHE`, else in the platform's place for caches (common/common.cpp,
 * `fs_get_cache_directory`). `passwdHome` is the home directory of the user database, tried last; empty if nothing
 * tells.
 */
export function flatCacheDirectories(
  env: NodeJS.ProcessEnv,
  passwdHome?: string,
  platform: NodeJS.Platform = process.platform,
): string[] {
  const given = env['LLAMA_CACHE'];
  if (given !== undefined && given !== '') return [given];
  const candidates: readonly [base: string | undefined, below: string][] =
    platform === 'win32'
      ? [[env['LOCALAPPDATA'], 'llama.cpp']]
      : platform === 'darwin'
        ? [
            [env['HOME'], 'Library/Caches/llama.cpp'],
            [passwdHome, 'Library/Caches/llama.cpp'],
          ]
        : [
            [env['XDG_CACHE_HOME'], 'llama.cpp'],
            [env['HOME'], '.cache/llama.cpp'],
            [passwdHome, '.cache/llama.cpp'],
          ];
  for (const [base, below] of candidates) {
    if (base !== undefined && base !== '') return [joinPath(base, below)];
  }
  return [];
}

/**
 * Reads the flat cache at `directory`; directories in it, those of the hub's layout too, are passed over. One that
 * does not exist is empty; what cannot be read is a warning, with what `readings`, the same at
 * each scan of it, kept of the last. Never rejects.
 */
export async function scanFlatCache(
  directory: string,
  { linksDirectory, readings = new LastReadings() }: Partial<OddNames> & { readings?: LastReadings } = {},
): Promise<FlatCache> {
  const oddNames: OddNames = { linksDirectory };
  const warnings: string[] = [];
  readings.startScan();
  const found = await readings.readOrWarn<DirectoryEntry>(
    directory,
    (path, last) => readNamedDirectory(path, oddNames, isGgufFile, warnings, last),
    warnings,
  );
  const entries = found.toSorted((a, b) => compareBytewise(a.name, b.name));
  const manifests = await boundedMap(entries.filter(isManifest), MAX_OPEN_FILES, (entry) =>
    readManifest(entry, readings, warnings),
  );
  await sweepLinks(oddNames);
  warnings.push(...readings.warnings(directory));
  // Manifests are read side by side; the warnings are to be the same at every start.
  warnings.sort(compareBytewise);
  const candidates = flatModels(
    entries.filter(isGgufFile),
    manifests.filter((manifest) => manifest !== undefined),
    new Set(entries.map(({ name }) => name)),
  );
  return { models: settleIds(candidates, warnings), warnings };
}

/**
 * Gives each model the first of its ids that no other has, those with the fewest to choose from going first; where
 * all are taken it is left out and told.
 */
function settleIds(candidates: readonly FlatCandidate[], warnings: string[]): FlatModel[] {
  const models = new Map<string, FlatModel>();
  for (const { ids, ...model } of candidates.toSorted((a, b) => a.ids.length - b.ids.length)) {
    const id = ids.find((free) => !models.has(free));
    if (id === '') warnings.push(`'${model.file}' is not listed: its name leaves no model id`);
    else if (id !== undefined) models.set(id, { id, ...model });
    else {
      const last = ids.at(-1) ?? '';
      const owner = models.get(last)?.file ?? '';
      warnings.push(
        `'${model.file}' is not listed: '${owner}' has the id '${last}' already; rename one of them`,
      );
    }
  }
  return [...models.values()].sort((a, b) => compareBytewise(a.id, b.id));
}
