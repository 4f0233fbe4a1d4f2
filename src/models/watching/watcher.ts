import { setTimeout as delay } from 'node:timers/promises';
import { failureCode } from '../disk/directory.js';
import { changedTargets, findFiles, findTrees, type WatchScope, type WatchTargets } from './watch-scope.js';
import { TrapSetter } from './watch-fallback.js';
import { comesWithin } from './watch-trap.js';

export type { WatchTargets };

/** What may be different from what was last read. */
export interface WatchChanges {
  /** Something in a cache or a models directory. */
  readonly catalog: boolean;
  /** Of the files given as targets, those that were written, replaced, made or removed, as they were given. */
  readonly files: ReadonlySet<string>;
}

export interface WatchOptions {
  /** Called when a burst of changes is over, and every two seconds while one goes on. */
  readonly onChange: (changes: WatchChanges) => void;
  /** Gets a sentence for the log: what cannot be watched, or not in the usual way, and what helps. */
  readonly onNotice: (text: string) => void;
  /** Look every few seconds instead of being told: network file systems tell nothing of what other hosts do. */
  readonly usePolling?: boolean;
}

export interface Watching {
  /** Everything is watched. What changed before is not told: who read it earlier reads it again. Never rejects. */
  readonly ready: Promise<void>;
  /** Ends it; `onChange` is not called any more. Can be called again. */
  close(): Promise<void>;
}

/** How long nothing may happen before a burst of changes is over. */
const QUIET_MS = 300;
/** How long after its first change a burst is told of although it goes on, as the copying of a large model does. */
const BURST_MS = 2_000;
/** How long nothing is watched after a change, at least. */
const PAUSE_MS = 100;
/** Beginning to watch a large tree takes a while; it has so many times as long to itself before it is begun anew. */
const REST_FACTOR = 4;
const LONGEST_REST_MS = 10_000;
/** How long `close` waits for a disk that does not answer. */
const CLOSE_MS = 1_000;

/**
 * Watches models and files for changes. Says that something changed, not what: the reader looks for itself, and is
 * told again if something changes while it does.
 *
 * Symbolic links to the targets are followed, those below them are not: what such a link points to is watched only
 * if it is in the same tree, as the blobs of a hub cache are.
 */
export function startWatching(
  targets: WatchTargets,
  { onChange, onNotice, usePolling = false }: WatchOptions,
): Watching {
  const closing = new AbortController();
  const { signal } = closing;
  const traps = new TrapSetter({ usePolling, onNotice, signal });
  const tell = (changes: WatchChanges): void => {
    if (!signal.aborted) onChange(changes);
  };
  // Apart, because one that has just changed is not watched for a while, and the other is not to be missed then.
  const trees = follow(traps, signal, {
    find: () => findTrees(targets),
    tell: () => tell({ catalog: true, files: new Set() }),
  });
  const files = follow(traps, signal, {
    find: () => findFiles(targets.files),
    tell: (changed) => {
      if (changed.size > 0) tell({ catalog: false, files: changed });
    },
  });
  const ended = Promise.all([trees.ended, files.ended]).catch((error: unknown) => {
    onNotice(`changes on disk are not followed any more: ${failureCode(error)}`);
  });
  return {
    ready: Promise.all([trees.ready, files.ready]).then(() => undefined),
    close: async () => {
      closing.abort();
      await Promise.race([ended, delay(CLOSE_MS, undefined, { ref: false })]);
    },
  };
}

interface Followed {
  /** The scope as it is now. */
  readonly find: () => Promise<WatchScope>;
  /** Gets the targets whose states changed. Those of trees do not change with all that is in them. */
  readonly tell: (changed: Set<string>) => void;
}

/** Sets one trap after the other until `signal` is aborted. */
function follow(
  traps: TrapSetter,
  signal: AbortSignal,
  { find, tell }: Followed,
): { ready: Promise<void>; ended: Promise<void> } {
  let becomeReady!: () => void;
  const ready = new Promise<void>((resolve) => (becomeReady = resolve));
  const run = async (): Promise<void> => {
    let known: WatchScope['states'] | undefined;
    let burstBegan: number | undefined;
    while (!signal.aborted) {
      const began = performance.now();
      const scope = await find();
      const trap = await traps.set(scope);
      known ??= scope.states;
      becomeReady();
      const setMs = performance.now() - began;
      const restedAt = performance.now() + Math.min(LONGEST_REST_MS, REST_FACTOR * setMs);
      const leftToRestMs = (): number => Math.max(PAUSE_MS, restedAt - performance.now());

      if (burstBegan !== undefined) {
        const goesOn = await comesWithin(trap.sprung, QUIET_MS);
        const nextChance = performance.now() + leftToRestMs() + setMs;
        if (!goesOn || nextChance > burstBegan + BURST_MS) {
          tell(changedTargets(known, scope.states));
          known = scope.states;
          burstBegan = undefined;
        }
      }
      await trap.sprung;
      burstBegan ??= performance.now();
      await trap.close();
      await delay(leftToRestMs(), undefined, { signal }).catch(() => undefined);
    }
  };
  return { ready, ended: run().finally(becomeReady) };
}
