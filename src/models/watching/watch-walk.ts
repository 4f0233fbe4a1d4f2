import { lstat, readdir, readlink, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { boundedMap } from '../bounded-map.js';
import { failureCode } from '../disk/directory.js';
import type { DirectoryRole } from './directory-role.js';
import { MAX_OPEN_STATS, stateOf } from './watch-state.js';

/** A directory, by its real path, in one of its roles. */
export interface Place {
  readonly path: string;
  readonly role: DirectoryRole;
}

export interface WatchedDirectory {
  /** As it was before its entries were read. */
  readonly state: string;
  readonly roles: Set<DirectoryRole>;
}

/** All that was found below some places. */
export interface WatchWalk {
  /** By real path: the directories that matter, those that only links lead to among them. */
  readonly directories: ReadonlyMap<string, WatchedDirectory>;
  /** Real paths of the directories that links lead to. */
  readonly linked: ReadonlySet<string>;
  /** Links to directories, and those that may become that. */
  readonly links: ReadonlySet<string>;
  /** Links of whose ends no event tells. */
  readonly untold: readonly string[];
  /** Whether there were more links to directories than are entered. */
  readonly isPartial: boolean;
}

interface Link {
  readonly path: string;
  readonly directory: string;
  /** The role of what it leads to, should that be a directory. */
  readonly below: DirectoryRole | undefined;
  readonly isHeeded: boolean;
}

/** How many links to directories are entered: each stands for a repository or a model, with watches of its own. */
const MAX_LINKED_DIRECTORIES = 10_000;

/**
 * Goes through `places` and what is below them, links to directories included where the reader of models enters
 * them. No directory is read twice in the same role, so links in a circle come to an end. Never rejects.
 */
export async function walk(places: readonly Place[]): Promise<WatchWalk> {
  const directories = new Map<string, WatchedDirectory>();
  const linked = new Set<string>();
  const links: Link[] = [];
  let isPartial = false;

  const enter = async ({ path, role }: Place): Promise<Place[]> => {
    const known = directories.get(path);
    if (known?.roles.has(role) === true) return [];
    // Set before anything is awaited, so that of two ways to one directory only the first is taken.
    const roles = known?.roles ?? new Set();
    roles.add(role);
    if (known === undefined) directories.set(path, { state: '', roles });
    const state = await lstat(path).then(stateOf, failureCode);
    if (known === undefined) directories.set(path, { state, roles });
    // One that cannot be read is watched all the same, for the error that it gives.
    const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
    const found: Place[] = [];
    for (const entry of entries) {
      const { name } = entry;
      const below = role.below(name);
      if (entry.isDirectory() && below !== undefined) found.push({ path: join(path, name), role: below });
      if (!entry.isSymbolicLink()) continue;
      const isHeeded = role.heeds(name);
      const entered = role.entersLinks ? below : undefined;
      if (!isHeeded && entered === undefined) continue;
      links.push({ path: join(path, name), directory: path, below: entered, isHeeded });
    }
    return found;
  };
  const follow = async ({ path, below }: Link): Promise<Place | undefined> => {
    if (below === undefined || !(await isDirectory(path))) return undefined;
    const real = await realPathOf(path);
    if (real === undefined) return undefined;
    if (!linked.has(real) && linked.size >= MAX_LINKED_DIRECTORIES) {
      isPartial = true;
      return undefined;
    }
    linked.add(real);
    return { path: real, role: below };
  };

  let next = [...places];
  let followed = 0;
  while (next.length > 0) {
    const found = await boundedMap(next, MAX_OPEN_STATS, enter);
    const ends = await boundedMap(links.slice(followed), MAX_OPEN_STATS, follow);
    followed = links.length;
    next = [...found.flat(), ...ends.filter((end) => end !== undefined)];
  }

  /** Whether an event in a watched directory tells of the file that the link leads to, as with the blobs of a snapshot. */
  const isTold = async ({ path, directory, isHeeded }: Link): Promise<boolean> => {
    if (!isHeeded) return !(await mayBeDirectory(path));
    const end = resolve(directory, await readlink(path).catch(() => ''));
    const roles = directories.get(dirname(end))?.roles ?? [];
    return !directories.has(end) && [...roles].some((role) => role.heeds(basename(end)));
  };
  const told = await boundedMap(links, MAX_OPEN_STATS, isTold);
  return {
    directories,
    linked,
    links: new Set(links.filter(({ below }) => below !== undefined).map(({ path }) => path)),
    untold: [...new Set(links.filter((_link, index) => told[index] === false).map(({ path }) => path))],
    isPartial,
  };
}

export async function realPathOf(path: string): Promise<string | undefined> {
  try {
    return await realpath(resolve(path));
  } catch {
    return undefined;
  }
}

async function isDirectory(path: string): Promise<boolean> {
  return await stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
}

/** Whether `path` leads to a directory, or to nothing yet. */
async function mayBeDirectory(path: string): Promise<boolean> {
  return await stat(path).then(
    (stats) => stats.isDirectory(),
    () => true,
  );
}
