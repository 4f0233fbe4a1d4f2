import { setTimeout as delay } from 'node:timers/promises';
import { failureCode } from '../disk/directory.js';
import { findFiles, findTrees, type WatchScope, type WatchTargets } from './watch-scope.js';
import { TrapSetter } from './watch-fallback.js';
import { changedPaths } from './watch-state.js';
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
  /**
   * Called when a burst of changes is over, and now and then while one goes on. It is not called again before what
   * it returns has settled (ten minutes at most). Ten times as long as that and the watching took then passes before
   * anything is read again, but thirty seconds at most: so following takes a tenth of the time, or more if it takes
   * longer than three seconds. A rejection is the caller's to report.
   */
  readonly onChange: (changes: WatchChanges) => void | Promise<void>;
  /** Gets a sentence for the log: what cannot be watched, or not in the usual way, and what helps. */
  readonly onNotice: (text: string) => void;
  /**
   * Look every few seconds instead of being told: network file systems tell nothing of what other hosts do. This
   * costs one stat() every five seconds for each directory and each file that matters, for ever, in the four threads
   * that all file operations of the process share: 10,000 models are 2,000 stat() a second, over a network each a
   * round trip. A change is told up to five seconds later, and once a minute all is read again, changed or not.
   */
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
/** Watching a large tree anew, and reading it, takes a while: so many times as long passes before it is done again. */
const REST_FACTOR = 10;
const LONGEST_REST_MS = 30_000;
/** A reader that has not answered by then is told of the next change all the same. */
const LONGEST_READING_MS = 600_000;
/** How long `close` waits for a disk that does not answer. */
const CLOSE_MS = 1_000;

/**
 * Watches models and files for changes. Says that something changed, not what: the reader looks for itself, and is
 * told again if something changes while it does.
 *
 * Symbolic links are followed where the reader of models follows them, to directories and to files; beyond some
 * thousands of them, all is told as changed once a minute.
 */
export function startWatching(
  targets: WatchTargets,
  { onChange, onNotice, usePolling = false }: WatchOptions,
): Watching {
  const closing = new AbortController();
  const { signal } = closing;
  const traps = new TrapSetter({ usePolling, onNotice, signal });
  const closed = new Promise<void>((resolve) =>
    signal.addEventListener('abort', () => resolve(), { once: true }),
  );
  let reading: Promise<unknown> = Promise.resolve();
  /** Resolves to how long the reader took, in milliseconds, once it has read. */
  const tell = (changes: WatchChanges): Promise<number> => {
    const told = reading.then(async () => {
      if (signal.aborted) return 0;
      const began = performance.now();
      const read = (async () => await onChange(changes))().catch(() => undefined);
      await comesWithin(Promise.race([read, closed]), LONGEST_READING_MS);
      return performance.now() - began;
    });
    reading = told;
    return told;
  };
  // Apart, because one that has just changed is not watched for a while, and the other is not to be missed then.
  const trees = follow(traps, signal, {
    find: () => findTrees(targets),
    tell: () => tell({ catalog: true, files: new Set() }),
  });
  const files = follow(traps, signal, {
    find: () => findFiles(targets.files),
    tell: async (changed) => (changed.size > 0 ? await tell({ catalog: false, files: changed }) : 0),
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
  /**
   * Gets the targets whose states changed; those of trees do not change with all that is in them. Resolves to how
   * long the reader took, in milliseconds.
   */
  readonly tell: (changed: Set<string>) => Promise<number>;
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
      let workMs = performance.now() - began;
      const setMs = workMs;
      let workedUntil = performance.now();
      const leftToRestMs = (): number =>
        Math.max(PAUSE_MS, workedUntil + Math.min(LONGEST_REST_MS, REST_FACTOR * workMs) - performance.now());

      if (burstBegan !== undefined) {
        const goesOn = await comesWithin(trap.sprung, QUIET_MS);
        const nextChance = performance.now() + leftToRestMs() + setMs;
        if (!goesOn || nextChance > burstBegan + BURST_MS) {
          burstBegan = undefined;
          const changed = changedPaths(known, scope.states);
          known = scope.states;
          workMs += await tell(changed);
          workedUntil = performance.now();
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
