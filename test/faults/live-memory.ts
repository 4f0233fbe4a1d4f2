import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { eventually } from '../helpers/eventually.js';
import { tempDir } from '../helpers/temp-dir.js';

/** Tells what a process of Node's really uses: what its allocators keep, and what is garbage, is not part of it. */
export interface LiveMemory {
  /** What the process has to be started with. */
  env: { NODE_OPTIONS: string; HEAP_ON_SIGNAL: string };
  /** Bytes that are in use after all garbage was collected, in MiB. */
  usedMiB(pid: number): Promise<number>;
}

export function liveMemory(): LiveMemory {
  const preload = new URL('../fixtures/heap-on-signal.js', import.meta.url);
  const file = join(tempDir(), 'bytes');
  return {
    env: { NODE_OPTIONS: `--import ${preload.href}`, HEAP_ON_SIGNAL: file },
    usedMiB: async (pid) => {
      rmSync(file, { force: true });
      process.kill(pid, 'SIGUSR2');
      const bytes = await eventually('it has collected its garbage', () => readFileSync(file, 'utf8'), {
        deadlineMs: 60_000,
      });
      return Number(bytes) / 2 ** 20;
    },
  };
}
