import { describe, expect, test } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { sigkill } from '../helpers/processes.js';
import { runInstance } from './run-instance.js';

describe('a ready child that is stopped', () => {
  test('is asked by the exit command, exits with 0, and takes its grandchild with it', async () => {
    const run = runInstance({ behaviour: { forkGrandchild: { ignoreSigterm: true }, stopMs: 100 } });
    await run.reaches('ready');
    run.instance.stop('evicted');

    expect(run.instance.state).toMatchObject({ name: 'stopping', reason: 'evicted', was: 'loaded' });
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 0 });
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['exit command']);
    expect(run.journal.of('exit').map(({ code }) => code)).toEqual([0]);
    await run.nothingLeft();
    expect(run.events.slice(-2)).toMatchObject([
      { type: 'model.stopping', reason: 'evicted' },
      { type: 'model.unloaded', reason: 'evicted', failed: false, exitCode: 0 },
    ]);
  });

  test('is known to be gone at once, not after a fixed wait for its last words', async () => {
    const delaysMs: number[] = [];
    for (let n = 0; n < 4; n += 1) {
      const run = runInstance();
      await run.reaches('ready');
      run.instance.stop('evicted');
      await run.outcome();
      const [{ atMs } = { atMs: NaN }] = run.journal.of('exit');
      delaysMs.push(Date.now() - atMs);
    }
    // Once every stop waited the 250 ms that a process with an open pipe may cost. A busy machine delays some, not all.
    expect(Math.min(...delaysMs)).toBeLessThan(200);
  });

  test('keeps the first reason, whatever is asked for later', async () => {
    const run = runInstance({ behaviour: { stopMs: 200 } });
    await run.reaches('ready');
    run.instance.stop('evicted');
    run.instance.stop('unloaded');
    run.instance.stop('shutdown');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
    expect(run.events.filter(({ type }) => type === 'model.stopping')).toHaveLength(1);

    run.instance.stop('unloaded');
    expect(run.instance.state.name).toBe('exited');
  });

  test('is sent SIGTERM when it does not speak the protocol', async () => {
    const run = runInstance({ behaviour: { noProtocol: true } });
    await run.reaches('ready');
    run.instance.stop('unloaded');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'unloaded', exitCode: 0 });
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['SIGTERM']);
  });

  // llama-server forgets the exit command in the moment after it has become ready.
  test('as soon as it is ready, and forgets the exit command, is sent SIGTERM', async () => {
    const run = runInstance({ behaviour: { ignoreExitCommand: true }, stopTimeoutMs: 60_000 });
    await run.reaches('ready');
    run.instance.stop('evicted');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 0 });
    expect(run.journal.of('ignored').map((entry) => entry.what)).toEqual(['exit command']);
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['SIGTERM']);
  });

  test.each([
    ['the exit command', { ignoreExitCommand: true, ignoreSigterm: true }],
    ['SIGTERM', { noProtocol: true, ignoreSigterm: true }],
  ])('and ignores %s is killed after its stop timeout, its group with it', async (what, behaviour) => {
    const stopTimeoutMs = 400;
    const run = runInstance({
      behaviour: { ...behaviour, forkGrandchild: { ignoreSigterm: true } },
      stopTimeoutMs,
    });
    await run.reaches('ready');
    const asked = performance.now();
    run.instance.stop('unloaded');
    const outcome = await run.outcome();
    const tookMs = performance.now() - asked;

    // Asked for is asked for: a child that had to be killed is stopped, not failed.
    expect(outcome).toEqual({ kind: 'stopped', reason: 'unloaded', exitCode: 0 });
    expect(tookMs).toBeGreaterThanOrEqual(stopTimeoutMs - 5);
    expect(tookMs).toBeLessThan(stopTimeoutMs + 3000);
    expect(run.journal.of('ignored').map((entry) => entry.what)).toEqual([what.replace('the ', '')]);
    expect(run.log).toContain('did not exit when asked to; killing it');
    await run.nothingLeft();
  });

  test('and dies of it instead of exiting is stopped all the same', async () => {
    const run = runInstance({ behaviour: { stopMs: 60_000 }, stopTimeoutMs: 30_000 });
    await run.reaches('ready');
    run.instance.stop('evicted');
    await eventually('it begins to stop', () => run.journal.of('stopping').length === 1);
    run.instance.kill();
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 0 });
  });

  test('serves no connection any more', async () => {
    const run = runInstance();
    await run.reaches('ready');
    const { upstream } = run.instance;
    run.instance.stop('evicted');
    await run.outcome();
    const error = await new Promise<Error>((resolve, reject) => {
      upstream?.dispatch(
        { method: 'GET', path: '/health', headers: [], body: null },
        {
          onRequestStart: () => undefined,
          onResponseStart: () => reject(new Error('it answered')),
          onResponseData: () => undefined,
          onResponseEnd: () => undefined,
          onResponseError: (_controller, cause) => resolve(cause),
        },
      );
    });
    expect(error.message).toBe('the child is gone');
  });
});

describe('a loading child that is stopped', () => {
  test('is killed at once: it has nothing to lose, and would not listen', async () => {
    const run = runInstance({
      behaviour: { neverReady: true, ignoreSigterm: true, forkGrandchild: { ignoreSigterm: true } },
      stopTimeoutMs: 60_000,
    });
    await eventually('it loads', () => run.events.some(({ type }) => type === 'model.progress'));
    run.instance.stop('evicted');
    expect(run.instance.state).toMatchObject({ name: 'stopping', was: 'loading' });
    // Clients that wait for the load by events, as the web UI does, take 0 for no failure of it and wait on.
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 1 });
    await run.nothingLeft();
  });

  test('is never started when the stop comes before it', async () => {
    const run = runInstance();
    run.instance.stop('shutdown');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'shutdown', exitCode: 1 });
    await run.instance.spawned;
    expect(run.instance.pid).toBeUndefined();
    expect(run.journal.all()).toEqual([]);
  });

  test('is stopped, not failed, when it dies in the same moment', async () => {
    const run = runInstance({ behaviour: { neverReady: true } });
    await eventually('it loads', () => run.events.some(({ type }) => type === 'model.progress'));
    // Dead, but nobody can know it before this turn is over.
    sigkill(run.instance.pid ?? NaN);
    run.instance.stop('unloaded');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'unloaded' });
  });
});
