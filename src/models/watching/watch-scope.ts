import type { Stats } from 'node:fs';
import { realpath, stat } from 'node:fs/promises';
import { relative, resolve, sep } from 'node:path';
import { boundedMap } from '../bounded-map.js';
import { failureCode } from '../disk/directory.js';

/** What is to be watched; relative paths are relative to the working directory. None of it has to exist. */
export interface WatchTargets {
  readonly hubCaches: readonly string[];
  readonly flatCaches: readonly string[];
  readonly modelsDirs: readonly string[];
  /** Presets files and the file of API keys. */
  readonly files: readonly string[];
}

/** What was found of some targets at one moment. */
export interface WatchScope {
  /** What each target is, links followed: two different texts mean that it was changed, replaced, made or removed. */
  readonly states: ReadonlyMap<string, string>;
  /** The real paths of the targets that exist, each once. */
  readonly roots: ReadonlySet<string>;
  /** Whether what happens in the directory at this real path matters. */
  includesDirectory(path: string): boolean;
}

/** Whether a directory matters, by the names that lead to it from the root of its tree. */
type Extent = (names: readonly string[]) => boolean;

const flatExtent: Extent = (names) => names.length === 0;

const modelsExtent: Extent = (names) => names.length <= 1;

/** Of a repository `models--…`: `refs` and `blobs`, which are flat, and all below `snapshots`. */
const hubExtent: Extent = ([repo, part, ...below]) => {
  if (repo === undefined) return true;
  if (!repo.startsWith('models--')) return false;
  if (part === undefined || part === 'snapshots') return true;
  return (part === 'refs' || part === 'blobs') && below.length === 0;
};

const MAX_OPEN_STATS = 16;

/** The caches and models directories as they are now. Never rejects. */
export async function findTrees(targets: WatchTargets): Promise<WatchScope> {
  const trees = [
    ...targets.hubCaches.map((path) => ({ path, extent: hubExtent })),
    ...targets.flatCaches.map((path) => ({ path, extent: flatExtent })),
    ...targets.modelsDirs.map((path) => ({ path, extent: modelsExtent })),
  ];
  const states = await statesOf(trees.map(({ path }) => path));
  const found: { root: string; extent: Extent }[] = [];
  for (const { path, extent } of trees) {
    const root = await realPathOf(path);
    if (root !== undefined) found.push({ root, extent });
  }
  return {
    states,
    roots: new Set(found.map(({ root }) => root)),
    includesDirectory: (path) => found.some(({ root, extent }) => isWithin(path, root, extent)),
  };
}

/** The files as they are now, to be watched one by one. Never rejects. */
export async function findFiles(files: readonly string[]): Promise<WatchScope> {
  const states = await statesOf(files);
  const roots = await Promise.all(files.map((file) => realPathOf(file)));
  return {
    states,
    roots: new Set(roots.filter((root) => root !== undefined)),
    includesDirectory: () => false,
  };
}

/** What is at each of `paths` now, links followed. */
export async function statesOf(paths: readonly string[]): Promise<Map<string, string>> {
  const states = await boundedMap(paths, MAX_OPEN_STATS, (path) => stat(path).then(stateOf, failureCode));
  return new Map(paths.map((path, index) => [path, states[index] ?? '']));
}

/**
 * One text for all that changes when a file is written or replaced, or when an entry of a directory comes or goes.
 * The times of pipes and devices change with their use: of those only the identity counts.
 */
export function stateOf(stats: Stats): string {
  const identity = `${stats.dev}:${stats.ino}`;
  if (!stats.isFile() && !stats.isDirectory()) return identity;
  return `${identity} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs}`;
}

/** The targets whose state is not the same in both. */
export function changedTargets(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
): Set<string> {
  return new Set([...after].filter(([path, state]) => before.get(path) !== state).map(([path]) => path));
}

async function realPathOf(path: string): Promise<string | undefined> {
  try {
    return await realpath(resolve(path));
  } catch {
    return undefined;
  }
}

function isWithin(path: string, root: string, extent: Extent): boolean {
  const below = relative(root, path);
  if (below === '') return extent([]);
  const names = below.split(sep);
  return names[0] !== '..' && extent(names);
}
