import { describe, expect, it } from 'vitest';
import { ProcessMemory } from '../../../src/instance/process-memory.js';

const status = (kibibytes: number): string =>
  `Name:\tllama-server\nVmPeak:\t  999999 kB\nVmRSS:\t ${kibibytes} kB\nRssAnon:\t    148 kB\n`;

/** Processes with these resident kibibytes, and a clock that stands until it is moved. */
function rig(processes: Record<number, number | 'hangs' | 'zombie'>) {
  let clockMs = 0;
  const asked: number[] = [];
  const memory = new ProcessMemory({
    maxAgeMs: 1_000,
    patienceMs: 20,
    now: () => clockMs,
    readStatus: (pid) => {
      asked.push(pid);
      const resident = processes[pid];
      if (resident === 'hangs') return new Promise(() => undefined);
      if (resident === 'zombie') return Promise.resolve('Name:\tllama-server\nState:\tZ (zombie)\n');
      return resident === undefined ? Promise.reject(new Error('ENOENT')) : Promise.resolve(status(resident));
    },
  });
  return { memory, asked, processes, passMs: (ms: number) => (clockMs += ms) };
}

describe('ProcessMemory', () => {
  it.runIf(process.platform === 'linux')(
    'tells what this very process holds, as Node counts it',
    async () => {
      const resident = (await new ProcessMemory().of([process.pid])).get(process.pid);
      const counted = process.memoryUsage.rss();
      // The kernel batches its counts, and this process goes on between the two looks.
      expect(resident).toBeGreaterThan(counted * 0.8);
      expect(resident).toBeLessThan(counted * 1.2);
    },
  );

  it('tells bytes for each process there is, and leaves out those that are gone or have ended', async () => {
    const { memory } = rig({ 1: 5, 2: 0, 4: 'zombie' });
    expect([...(await memory.of([1, 2, 3, 4]))]).toEqual([
      [1, 5 * 1024],
      [2, 0],
    ]);
  });

  it('reads a process once a second, however many ask meanwhile', async () => {
    const { memory, asked, passMs, processes } = rig({ 1: 5 });
    await Promise.all([memory.of([1]), memory.of([1])]);
    passMs(999);
    processes[1] = 7;
    expect((await memory.of([1])).get(1)).toBe(5 * 1024);
    expect(asked).toEqual([1]);
    passMs(1);
    expect((await memory.of([1])).get(1)).toBe(7 * 1024);
    expect(asked).toEqual([1, 1]);
  });

  it('a look at one process does not take the readings of the others with it', async () => {
    const { memory, asked } = rig({ 1: 5, 2: 6 });
    await memory.of([1, 2]);
    await memory.of([2]);
    await memory.of([1]);
    expect(asked).toEqual([1, 2]);
  });

  it('one that does not answer is left out, is waited for no longer than a moment, and is not asked again', async () => {
    const { memory, asked, passMs } = rig({ 1: 'hangs', 2: 6 });
    expect([...(await memory.of([1, 2]))]).toEqual([[2, 6 * 1024]]);
    passMs(5_000);
    expect([...(await memory.of([1, 2]))]).toEqual([[2, 6 * 1024]]);
    expect(asked).toEqual([1, 2, 2]);
  });

  it('asked of nothing, reads nothing', async () => {
    const { memory, asked } = rig({});
    expect((await memory.of([])).size).toBe(0);
    expect(asked).toEqual([]);
  });
});
