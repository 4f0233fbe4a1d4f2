import { basename, join } from 'node:path';
import { FLAT_CACHE, HUB_CACHE, MODELS_DIR } from './directory-role.js';
import { statesOf } from './watch-state.js';
import { realPathOf, walk, type Place } from './watch-walk.js';

/** What is to be watched; relative paths are relative to the working directory. None of it has to exist. */
export interface WatchTargets {
  readonly hubCaches: readonly string[];
  readonly flatCaches: readonly string[];
  readonly modelsDirs: readonly string[];
  /** Presets files and the file of API keys. */
  readonly files: readonly string[];
}

/** Whether a change of one entry matters; of a name alone it may be that only a directory would. */
export type Weight = 'matters' | 'matters if a directory' | 'does not matter';

/** What was found of some targets at one moment. */
export interface WatchScope {
  readonly kind: 'directories' | 'files';
  /**
   * What each target is, and each link that leads out of what is watched, links followed: two different texts mean
   * that it was changed, replaced, made or removed.
   */
  readonly states: ReadonlyMap<string, string>;
  /** The real paths at which to begin: of the targets that exist, and of what links lead to; each once. */
  readonly roots: ReadonlySet<string>;
  /** The directories that matter, by real path, each with its state before it was read. */
  readonly directories: ReadonlyMap<string, { readonly state: string }>;
  /** Whether there are links beyond the bounds, whose ends are not watched. */
  readonly isPartial: boolean;
  /** What a change of the entry `name` of `directory`, a real path, means; undefined where the system gave no name. */
  weigh(directory: string, name: string | undefined): Weight;
}

/** How many links are looked at every two seconds; a thousand take some ten milliseconds. */
const MAX_LOOKED_LINKS = 1_000;
/** What stands for bytes that are not UTF-8: such an entry cannot be asked for by its name. */
const REPLACEMENT = '\ufffd';

/** The caches and models directories as they are now. Never rejects. */
export async function findTrees(targets: WatchTargets): Promise<WatchScope> {
  const trees = [
    ...targets.hubCaches.map((path) => ({ path, role: HUB_CACHE })),
    ...targets.flatCaches.map((path) => ({ path, role: FLAT_CACHE })),
    ...targets.modelsDirs.map((path) => ({ path, role: MODELS_DIR })),
  ];
  const targetStates = await statesOf(trees.map(({ path }) => path));
  const places: Place[] = [];
  for (const { path, role } of trees) {
    const root = await realPathOf(path);
    if (root !== undefined) places.push({ path: root, role });
  }
  const { directories, linked, links, untold, isPartial } = await walk(places);
  return {
    kind: 'directories',
    states: new Map([...targetStates, ...(await statesOf(untold.slice(0, MAX_LOOKED_LINKS)))]),
    roots: new Set([...places.map(({ path }) => path), ...linked]),
    directories,
    isPartial: isPartial || untold.length > MAX_LOOKED_LINKS,
    weigh: (directory, name) => {
      const roles = [...(directories.get(directory)?.roles ?? [])];
      // What happens to a directory itself is told with its own name.
      if (name === undefined || name.includes(REPLACEMENT) || name === basename(directory)) return 'matters';
      if (roles.some((role) => role.heeds(name))) return 'matters';
      if (roles.every((role) => role.below(name) === undefined)) return 'does not matter';
      const path = join(directory, name);
      return directories.has(path) || links.has(path) ? 'matters' : 'matters if a directory';
    },
  };
}

/** The files as they are now, to be watched one by one. Never rejects. */
export async function findFiles(files: readonly string[]): Promise<WatchScope> {
  const states = await statesOf(files);
  const roots = await Promise.all(files.map((file) => realPathOf(file)));
  return {
    kind: 'files',
    states,
    roots: new Set(roots.filter((root) => root !== undefined)),
    directories: new Map(),
    isPartial: false,
    weigh: () => 'matters',
  };
}
