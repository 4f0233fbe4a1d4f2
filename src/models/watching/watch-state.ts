import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { boundedMap } from '../bounded-map.js';
import { failureCode } from '../disk/directory.js';

export const MAX_OPEN_STATS = 16;

/**
 * One text for all that changes when a file is written or replaced, or when an entry of a directory comes or goes.
 * The times of pipes and devices change with their use: of those only the identity counts.
 */
export function stateOf(stats: Stats): string {
  const identity = `${stats.dev}:${stats.ino}`;
  if (!stats.isFile() && !stats.isDirectory()) return identity;
  return `${identity} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs}`;
}

/**
 * What is at each of `paths` now, links followed. Of a directory it tells which one that is and who may read it;
 * of its entries the events tell, and better, since they come with names.
 */
export async function statesOf(paths: readonly string[]): Promise<Map<string, string>> {
  const states = await boundedMap(paths, MAX_OPEN_STATS, (path) => stat(path).then(endState, failureCode));
  return new Map(paths.map((path, index) => [path, states[index] ?? '']));
}

function endState(stats: Stats): string {
  if (!stats.isDirectory()) return stateOf(stats);
  const { dev, ino, birthtimeMs, mode, uid, gid } = stats;
  return `${dev}:${ino} ${birthtimeMs} ${mode} ${uid} ${gid}`;
}

/** The paths whose state is not the same in both. */
export function changedPaths(
  before: ReadonlyMap<string, string>,
  after: ReadonlyMap<string, string>,
): Set<string> {
  return new Set([...after].filter(([path, state]) => before.get(path) !== state).map(([path]) => path));
}
