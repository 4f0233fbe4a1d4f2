import { describe, expect, it, vi } from 'vitest';
import { Descendants } from '../../../src/instance/descendants.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../helpers/eventually.js';

const root = 100;

interface FakeProcess {
  pid: number;
  parent: number;
  group: number;
  /** In ticks since the boot. */
  start: number;
  state?: 'S' | 'Z';
  unkillable?: boolean;
}

/** A machine of a child, a llama-server that has a session of its own, and the process of a stranger. */
function machine() {
  const processes = new Map<number, FakeProcess>();
  const add = (process: FakeProcess): void => void processes.set(process.pid, process);
  add({ pid: root, parent: 1, group: root, start: 1_000 });
  add({ pid: 101, parent: root, group: 101, start: 1_001 });
  add({ pid: 200, parent: 1, group: 200, start: 500 });

  const signals: string[] = [];
  const spy = vi.spyOn(process, 'kill').mockImplementation((pid, signal) => {
    signals.push(`${signal} ${pid}`);
    if (signal === 'SIGKILL' && processes.get(pid)?.unkillable !== true) processes.delete(pid);
    return true;
  });
  atEndOfTest(() => spy.mockRestore());

  const guarded = new Set<string>();
  const rig = { rootLives: true, filesAnswer: true, hasDescriptors: true };
  const descendants = new Descendants({
    root,
    rootLives: () => rig.rootLives,
    guard: {
      addProcess: (pid, start) => void guarded.add(`${pid} of ${start}`),
      removeProcess: (pid, start) => void guarded.delete(`${pid} of ${start}`),
    },
    table: () =>
      Promise.resolve({
        resolutionMs: 10,
        processes: Array.from(processes.values(), (each) => ({ ...each, cpuMs: 0 })),
      }),
    readStat: (pid) => {
      if (!rig.filesAnswer) return new Promise(() => undefined);
      if (!rig.hasDescriptors) return Promise.reject(Object.assign(new Error('EMFILE'), { code: 'EMFILE' }));
      const found = processes.get(pid);
      if (!found) return Promise.reject(Object.assign(new Error('ENOENT'), { code: 'ENOENT' }));
      const { state = 'S', parent, group, start } = found;
      const between = '0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0';
      return Promise.resolve(`${pid} (a) S (b) ${state} ${parent} ${group} ${group} ${between} ${start} 9 9`);
    },
  });
  return { descendants, processes, add, signals, guarded, rig };
}

describe('what a child has started', () => {
  it('is signalled where it has left the group, and no stranger with it', async () => {
    const { descendants, signals, guarded } = machine();
    await descendants.look();
    expect([...guarded]).toEqual(['101 of 1001']);
    await descendants.signal('SIGTERM');
    expect(signals).toEqual(['SIGTERM 101']);
  });

  it('is signalled only once where it has not: the signal to the group has reached it', async () => {
    const { descendants, add, signals } = machine();
    add({ pid: 102, parent: root, group: root, start: 1_002 });
    await descendants.look();
    await descendants.signal('SIGTERM');
    expect(signals).toEqual(['SIGTERM 101']);
  });

  it('is killed when the child is gone, with what it has started since the last look', async () => {
    const { descendants, processes, add, signals, guarded, rig } = machine();
    await descendants.look();
    rig.rootLives = false;
    processes.delete(root);
    add({ pid: 101, parent: 1, group: 101, start: 1_001 });
    add({ pid: 103, parent: 101, group: 103, start: 1_003 });
    expect(await descendants.end(10_000)).toEqual([]);
    expect(new Set(signals)).toEqual(new Set(['SIGKILL 101', 'SIGKILL 103']));
    expect(guarded).toEqual(new Set());
  });

  it('is not a stranger that was given the number of one that had gone', async () => {
    const { descendants, add, signals, guarded } = machine();
    await descendants.look();
    add({ pid: 101, parent: 1, group: 101, start: 9_999 });
    await descendants.signal('SIGTERM');
    expect(await descendants.end(10_000)).toEqual([]);
    expect(signals).toEqual([]);
    expect(guarded).toEqual(new Set());
  });

  it('is not what a stranger has that was given the number of the child', async () => {
    const { descendants, processes, add, signals, rig } = machine();
    await descendants.look();
    rig.rootLives = false;
    add({ pid: root, parent: 1, group: root, start: 9_999 });
    processes.delete(101);
    add({ pid: 104, parent: root, group: 104, start: 9_999 });
    await descendants.look();
    expect(await descendants.end(10_000)).toEqual([]);
    expect(signals).toEqual([]);
  });

  it('is gone when it has ended, though nobody may ever wait for it', async () => {
    const { descendants, add, signals } = machine();
    await descendants.look();
    add({ pid: 101, parent: 1, group: 101, start: 1_001, state: 'Z' });
    expect(await descendants.end(10_000)).toEqual([]);
    expect(signals).toEqual([]);
  });

  it('is reported when it survives, stays with the guard, and its end is told', async () => {
    const { descendants, processes, add, guarded } = machine();
    add({ pid: 101, parent: root, group: 101, start: 1_001, unkillable: true });
    await descendants.look();
    const [survivor, ...others] = await descendants.end(50);
    expect(others).toEqual([]);
    if (!survivor) throw new Error('no survivor is reported');
    expect(survivor.pid).toBe(101);
    expect(guarded).toEqual(new Set(['101 of 1001']));
    processes.delete(101);
    await withDeadline('its end is told', survivor.exited, 10_000);
    expect(guarded).toEqual(new Set());
  });

  it('is not taken for gone when that cannot be read for want of a descriptor', async () => {
    const { descendants, guarded, rig, signals } = machine();
    await descendants.look();
    rig.hasDescriptors = false;
    await descendants.look();
    await descendants.signal('SIGTERM');
    expect(signals).toEqual([]);
    const ended = descendants.end(10_000);
    expect(guarded).toEqual(new Set(['101 of 1001']));
    rig.hasDescriptors = true;
    expect(await ended).toEqual([]);
    expect(signals).toEqual(['SIGKILL 101']);
  });

  it('is killed, too, when it is found after the others were', async () => {
    const { descendants, processes, add, signals } = machine();
    add({ pid: 101, parent: root, group: 101, start: 1_001, unkillable: true });
    await descendants.look();
    const ended = descendants.end(10_000);
    await eventually('the first is killed', () => signals.includes('SIGKILL 101'));
    add({ pid: 103, parent: 101, group: 103, start: 1_003 });
    await descendants.look();
    await eventually('so is the other', () => signals.includes('SIGKILL 103'));
    processes.delete(101);
    expect(await ended).toEqual([]);
  });

  it('is not waited for longer than was said, though files do not answer', async () => {
    const { descendants, rig } = machine();
    await descendants.look();
    rig.filesAnswer = false;
    await withDeadline('the look is given up', descendants.look(), 10_000);
    const survivors = await withDeadline('the end is given up', descendants.end(50), 10_000);
    expect(survivors.map(({ pid }) => pid)).toEqual([101]);
  });
});
