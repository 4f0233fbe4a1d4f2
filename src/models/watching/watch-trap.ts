import type { Stats } from 'node:fs';
import { lstat, stat } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { FSWatcher } from 'chokidar';
import { boundedMap } from '../bounded-map.js';
import { failureCode } from '../disk/directory.js';
import type { WatchScope } from './watch-scope.js';
import { changedPaths, MAX_OPEN_STATS, stateOf, statesOf } from './watch-state.js';

export interface TrapOptions {
  /** Look at the files every few seconds instead of being told by the system. */
  readonly usePolling: boolean;
  /** Springs the trap. */
  readonly signal: AbortSignal;
}

/** A scope that is watched until the first change in it. */
export interface Trap {
  /** Resolves at the first change, which is all that it tells. */
  readonly sprung: Promise<void>;
  /** Paths that could not be watched, each with the system's code or the reason. */
  readonly problems: ReadonlyMap<string, string>;
  /** Whether the scope could not be gone through in time, so that a part of it may not be watched yet. */
  readonly late: boolean;
  close(): Promise<void>;
}

/** How often files are looked at where the system does not tell of changes. */
export const POLL_MS = 5_000;
/** How long the directories of a scope may take to be gone through before what is watched by then has to do. */
export const SET_MS = 10_000;
/** How often the targets and the links that lead elsewhere are looked at: one stat() each. */
const LOOK_MS = 2_000;
/** When a trap springs by itself if a change may have been missed; with all that follows, within a minute. */
export const NET_MS = 50_000;

/** Never reads a directory again once it has read all: it would at every event, with one lstat() per entry. */
class SetWatcher extends FSWatcher {
  isSet = false;

  override _readdirp(...args: Parameters<FSWatcher['_readdirp']>): ReturnType<FSWatcher['_readdirp']> {
    return this.isSet ? undefined : super._readdirp(...args);
  }
}

/**
 * Has chokidar watch `scope` until the first change that matters; the caller then closes the trap and sets another.
 *
 * Starting anew after each change is what makes chokidar enough. Left alone it reads a directory again at every
 * write to a file in it, which takes a whole core while a model is being copied; and it holds on to the inode of a
 * directory that another of the same name has replaced. Of the rest, that a target appears, that a link or a
 * directory above it is replaced, or what happens to a file that only a link leads to, the states of the scope tell,
 * looked at now and then.
 *
 * Where the system tells of changes, only directories are watched: that tells of writes to their files, too, and
 * with their names, so that those of files which cannot matter spring nothing.
 */
export async function setTrap(scope: WatchScope, { usePolling, signal }: TrapOptions): Promise<Trap> {
  let spring!: () => void;
  const sprung = new Promise<void>((resolve) => (spring = resolve));
  const problems = new Map<string, string>();

  const watcher = new SetWatcher({
    usePolling,
    interval: POLL_MS,
    binaryInterval: POLL_MS,
    // The scope has found the links already, and what they lead to is among its roots.
    followSymlinks: false,
    // Would leave out every path that looks like an editor's temporary file.
    atomic: false,
    ignored: (path, stats) => stats !== undefined && !isWatched(path, stats),
  });
  // The environment can overrule the option (CHOKIDAR_USEPOLLING).
  const polling = watcher.options.usePolling;
  const isWatched = (path: string, stats: Stats): boolean => {
    if (stats.isDirectory()) return scope.directories.has(path);
    // A device makes events whenever anybody writes to it.
    if (!stats.isFile()) return false;
    return scope.roots.has(path) || (polling && isWeighty(path));
  };
  const isWeighty = (path: string): boolean =>
    scope.directories.has(dirname(path)) && scope.weigh(dirname(path), basename(path)) === 'matters';
  let asking = 0;
  const springIfDirectory = async (path: string): Promise<void> => {
    // So many names at once are no longer worth telling apart.
    if (asking >= MAX_OPEN_STATS) {
      spring();
      return;
    }
    asking += 1;
    const isDirectory = await stat(path).then(
      (stats) => stats.isDirectory(),
      () => false,
    );
    asking -= 1;
    if (isDirectory) spring();
  };
  watcher.on('raw', (event, name: string | null, details) => {
    const { watchedPath } = details as { readonly watchedPath?: string };
    // When polling, only what matters is looked at, and no directory is named.
    const weight = watchedPath === undefined ? 'matters' : scope.weigh(watchedPath, name ?? undefined);
    if (weight === 'matters') spring();
    // Writing makes no directory of a file: that comes with another event.
    else if (weight === 'matters if a directory' && event === 'rename') {
      void springIfDirectory(join(watchedPath ?? '', name ?? ''));
    }
  });
  watcher.on('error', (error) => {
    const { path = '' } = error as NodeJS.ErrnoException;
    problems.set(path, failureCode(error));
  });
  signal.addEventListener('abort', spring, { once: true });
  if (signal.aborted) spring();

  let closed = false;
  let nextLook: NodeJS.Timeout | undefined;
  const lookAtStates = async (): Promise<void> => {
    const states = await statesOf([...scope.states.keys()]);
    if (changedPaths(scope.states, states).size > 0) spring();
    else if (!closed) nextLook = setTimeout(() => void lookAtStates(), LOOK_MS);
  };
  /** What came while a directory had been read and was not watched yet made no event. */
  const lookAtDirectories = async (): Promise<void> => {
    const unchanged = await boundedMap([...scope.directories], MAX_OPEN_STATS, async ([path, { state }]) => {
      return state === (await lstat(path).then(stateOf, failureCode));
    });
    if (unchanged.includes(false)) spring();
  };
  const setUp = async (): Promise<void> => {
    await addRoots(watcher, scope.roots, problems);
    watcher.isSet = true;
    await lookAtDirectories();
    await lookAtStates();
  };

  // A disk may hang, and chokidar is never ready when reading a directory fails in an unforeseen way.
  const isSet = await comesWithin(setUp(), SET_MS);
  const mayMiss = polling || scope.isPartial || problems.size > 0 || !isSet;
  const net = mayMiss ? setTimeout(spring, NET_MS) : undefined;
  return {
    sprung,
    problems,
    late: !isSet,
    close: async () => {
      closed = true;
      clearTimeout(nextLook);
      clearTimeout(net);
      signal.removeEventListener('abort', spring);
      await watcher.close();
    },
  };
}

/** Resolves when chokidar has gone through all of `roots`. */
async function addRoots(
  watcher: FSWatcher,
  roots: ReadonlySet<string>,
  problems: Map<string, string>,
): Promise<void> {
  const paths = [...roots].filter((root) => {
    // Of a backslash in a path chokidar makes a slash.
    const isReachable = sep === '\\' || !root.includes('\\');
    if (!isReachable) problems.set(root, 'there is a backslash in its path');
    return isReachable;
  });
  if (paths.length === 0) return;
  const ready = new Promise<void>((resolve) => watcher.once('ready', resolve));
  watcher.add(paths);
  await ready;
}

/** Whether `event` comes within `ms` milliseconds. */
export async function comesWithin(event: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const overdue = new Promise<boolean>((resolve) => (timer = setTimeout(resolve, ms, false)));
  try {
    return await Promise.race([event.then(() => true), overdue]);
  } finally {
    clearTimeout(timer);
  }
}
