/** Children that SIGKILL ends, and what the kernel's count of kills has to do with them. */
import getPort from 'get-port';
import { describe, expect, test } from 'vitest';
import { KernelKills } from '../../src/instance/kernel-kills.js';
import { sigkill } from '../helpers/processes.js';
import { runInstance } from '../process/run-instance.js';

/** A kernel that is the test's; `watched` tells how many children are watched now. */
class CountedKills extends KernelKills {
  watched = 0;

  override watch() {
    this.watched += 1;
    const watch = super.watch();
    const end = (): void => {
      this.watched -= 1;
      watch.end();
    };
    return { ...watch, end };
  }
}

function kernel() {
  const counted = { kills: 0 };
  const kernelKills = new CountedKills({ file: 'memory.events', count: () => counted.kills });
  return { counted, kernelKills };
}

describe('a child that the kernel kills', () => {
  test('has run out of memory, and is watched no more', async () => {
    const { counted, kernelKills } = kernel();
    const run = runInstance({ kernelKills });
    await run.reaches('ready');
    expect(kernelKills.watched).toBe(1);
    counted.kills += 1;
    sigkill(run.instance.pid ?? NaN);
    expect(await run.outcome()).toMatchObject({ kind: 'failed', cause: 'out of memory' });
    expect(kernelKills.watched).toBe(0);
  });

  test('while it is being stopped is the one that was killed, and no other', async () => {
    const { counted, kernelKills } = kernel();
    const other = kernelKills.watch();
    const run = runInstance({ kernelKills, behaviour: { ignoreExitCommand: true, ignoreSigterm: true } });
    await run.reaches('ready');
    run.instance.stop('evicted');
    counted.kills += 1;
    sigkill(run.instance.pid ?? NaN);
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
    expect(other.claim()).toBeUndefined();
    other.end();
  });
});

describe('a child that we kill', () => {
  test.each(['while it loads', 'because it does not exit'])(
    '%s is not taken for one that the kernel has killed',
    async (when) => {
      const { counted, kernelKills } = kernel();
      const other = kernelKills.watch();
      const loading = when === 'while it loads';
      const behaviour = { neverReady: loading, ignoreExitCommand: true, ignoreSigterm: true };
      const run = runInstance({ kernelKills, behaviour, stopTimeoutMs: 300 });
      await run.reaches(loading ? 'loading' : 'ready');
      counted.kills += 1;
      run.instance.stop('evicted');
      expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
      expect(other.claim()).toContain('oom_kill 1 ');
      other.end();
    },
  );
});

describe('a child that never runs', () => {
  test.each<[string, (port: number) => readonly string[]]>([
    ['has no program', () => ['/nowhere/llama-server']],
    [
      'has no command line',
      () => {
        throw new Error('cannot be made');
      },
    ],
  ])('because it %s is not watched', async (_why, command) => {
    const { kernelKills } = kernel();
    const run = runInstance({ kernelKills, command });
    expect(await run.outcome()).toMatchObject({ kind: 'failed', cause: 'other' });
    expect(kernelKills.watched).toBe(0);
  });

  test('because its port was taken is watched no more when the next one is', async () => {
    const { kernelKills } = kernel();
    const run = runInstance({
      kernelKills,
      freePort: () => getPort(),
      behaviour: { byStart: [{ bindFails: true }] },
    });
    await run.reaches('ready');
    expect(run.journal.of('start')).toHaveLength(2);
    expect(kernelKills.watched).toBe(1);
  });
});
