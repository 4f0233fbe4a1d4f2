import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { expect } from 'vitest';
import {
  startWatching,
  type WatchChanges,
  type Watching,
  type WatchTargets,
} from '../../../../src/models/watching/watcher.js';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../../helpers/eventually.js';

/** How long "nothing is told" is waited for: three times as long as a change takes to be told. */
const NOTHING_MS = 1_500;
/** The longest burst, the pause after it, the quiet time, and a slow machine. */
const TOLD_MS = 40_000;

export interface WatcherRig {
  readonly watching: Watching;
  readonly changes: readonly WatchChanges[];
  readonly notices: readonly string[];
  /**
   * Does `act` and waits until a change is told: once, and of the catalog only. What an act does is there in whole
   * before the watcher's next turn, so whatever is told besides, now or before the next act, is a fault.
   */
  readonly tellsOfCatalog: (label: string, act: () => void) => Promise<void>;
  /** The same for one of the files. */
  readonly tellsOfFile: (label: string, file: string, act: () => void) => Promise<void>;
  readonly tellsNothing: (label: string, act: () => void) => Promise<void>;
}

/** Starts watching, and closes it at the end of the test; resolves when it is ready. */
export async function watchInTest(
  targets: Partial<WatchTargets>,
  { usePolling = false }: { usePolling?: boolean } = {},
): Promise<WatcherRig> {
  const changes: WatchChanges[] = [];
  const notices: string[] = [];
  const watching = startWatching(
    { hubCaches: [], flatCaches: [], modelsDirs: [], files: [], ...targets },
    { usePolling, onChange: (change) => void changes.push(change), onNotice: (text) => notices.push(text) },
  );
  atEndOfTest(() => watching.close());
  await withDeadline('the watcher is ready', watching.ready, TOLD_MS);

  let expected = 0;
  const told = async (label: string, act: () => void): Promise<string> => {
    if (changes.length !== expected) throw new Error(`before ${label}: told again of what was told already`);
    act();
    await eventually(`${label} is told`, () => changes.length > expected, { deadlineMs: TOLD_MS });
    expected += 1;
    const { catalog, files } = changes.at(-1) ?? { catalog: false, files: [] };
    return [...(catalog ? ['the catalog'] : []), ...files].join();
  };
  return {
    watching,
    changes,
    notices,
    tellsOfCatalog: async (label, act) => {
      expect(await told(label, act), label).toBe('the catalog');
    },
    tellsOfFile: async (label, file, act) => {
      expect(await told(label, act), label).toBe(file);
    },
    tellsNothing: async (label, act) => {
      act();
      await delay(NOTHING_MS);
      expect(changes.length, label).toBe(expected);
    },
  };
}

/** How many inotify watches this process has. */
export function inotifyWatches(): number {
  let watches = 0;
  for (const fd of readdirSync('/proc/self/fdinfo')) {
    try {
      const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
      watches += info.split('\n').filter((line) => line.startsWith('inotify ')).length;
    } catch {
      // The descriptor with which the directory was read is gone.
    }
  }
  return watches;
}
