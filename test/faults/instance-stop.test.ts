import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { alive, canListProcesses, sigkill } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';
import { runInstance, type InstanceRun } from '../process/run-instance.js';

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

const canFindDescendants = canListProcesses && spawnSync('setsid', ['true']).status === 0;
const needed = canFindDescendants ? '' : ' (skipped: no /proc, or no setsid)';

describe.skipIf(!canFindDescendants)(`a wrapper whose llama-server has a session of its own${needed}`, () => {
  /** What follows the real one keeps the shell from becoming it. */
  const wrapper = ['sh', '-c', 'setsid "$@"; exit $?', 'wrapper'];
  const wrapperThatIgnoresSigterm = ['sh', '-c', `trap '' TERM; setsid "$@"; exit $?`, 'wrapper'];
  const deaf = { ignoreExitCommand: true, ignoreSigterm: true, forkGrandchild: { ignoreSigterm: true } };

  /** One that is wedged does not even notice that its standard input has ended. */
  function freeze(pid: number): void {
    process.kill(pid, 'SIGSTOP');
  }

  function processOf({ journal, instance }: InstanceRun): number {
    const [start] = journal.of('start');
    if (start === undefined) throw new Error('llama-server was never started');
    // Nobody else would, should they survive.
    atEndOfTest(() => {
      for (const { grandchildPid } of journal.of('grandchild')) sigkill(grandchildPid);
      sigkill(start.pid);
    });
    expect(start.pgid).toBe(start.pid);
    expect(start.pid).not.toBe(instance.pid);
    return start.pid;
  }

  test('has it stopped as politely as any other', async () => {
    const run = runInstance({ wrapper, behaviour: { stopMs: 100 } });
    await run.reaches('ready');
    processOf(run);
    run.instance.stop('unloaded');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'unloaded', exitCode: 0 });
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['exit command']);
    expect(run.journal.of('exit').map(({ code }) => code)).toEqual([0]);
  });

  test('has it sent SIGTERM, which its group would not have brought it', async () => {
    const run = runInstance({
      wrapper: wrapperThatIgnoresSigterm,
      behaviour: { noProtocol: true },
      stopTimeoutMs: 60_000,
    });
    await run.reaches('ready');
    processOf(run);
    run.instance.stop('unloaded');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'unloaded' });
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['SIGTERM']);
  });

  test.each([
    ['it ends itself by SIGTERM', wrapper],
    ['it is killed', wrapperThatIgnoresSigterm],
  ])('has it killed, with what that has started, when %s', async (_, command) => {
    const run = runInstance({ wrapper: command, behaviour: deaf, stopTimeoutMs: 400 });
    await run.reaches('ready');
    const pid = processOf(run);
    freeze(pid);
    run.instance.stop('unloaded');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'unloaded' });
    // Gone by then, not soon after: who waits for the slot needs the memory.
    expect(alive(pid)).toBe(false);
    expect(run.instance.leftBehind).toEqual([]);
    await run.nothingLeft();
  });

  test('has it killed while it loads', async () => {
    const run = runInstance({ wrapper, behaviour: { ...deaf, neverReady: true }, stopTimeoutMs: 60_000 });
    await eventually('it loads', () => run.events.some(({ type }) => type === 'model.progress'));
    const pid = processOf(run);
    freeze(pid);
    run.instance.stop('evicted');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
    expect(alive(pid)).toBe(false);
    await run.nothingLeft();
  });

  test('does not leave it behind when it dies itself', async () => {
    const told = vi.spyOn(OrphanGuard.prototype, 'addProcess');
    atEndOfTest(() => told.mockRestore());
    const run = runInstance({ wrapper, behaviour: deaf });
    await run.reaches('ready');
    const pid = processOf(run);
    await eventually('it is known whose it is', () => told.mock.calls.some(([known]) => known === pid));
    freeze(pid);
    sigkill(run.instance.pid ?? NaN);
    expect(await run.outcome()).toMatchObject({ kind: 'failed', phase: 'running' });
    await run.nothingLeft();
  });
});

test('a daemon that its child has started, with its pipes and its port, holds up neither stop nor next run', async () => {
  // As one that was started by a tool would, which inherits the socket its parent listens on; its own parent is gone.
  const daemonFile = join(tempDir(), 'daemon');
  const child = `
    const [, port, daemonFile] = process.argv;
    const server = require('node:http').createServer().listen(Number(port), '127.0.0.1', () => {
      const stdio = ['ignore', 'inherit', 'inherit', server._handle.fd];
      const script = 'sleep 300 & echo $! >"$0"';
      require('node:child_process').spawnSync('sh', ['-c', script, daemonFile], { detached: true, stdio });
      console.log('\\ncmd_child_to_router:state:' + JSON.stringify({ state: 'ready', payload: {} }));
    });`;
  const run = runInstance({
    command: (port) => [process.execPath, '-e', child, String(port), daemonFile],
    stopTimeoutMs: 60_000,
  });
  await run.reaches('ready');
  const daemon = Number(readFileSync(daemonFile, 'utf8'));
  atEndOfTest(() => sigkill(daemon));
  const { port } = run.instance;
  run.instance.stop('evicted');
  // It has to go by SIGTERM, being told nothing else.
  expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
  expect(alive(daemon)).toBe(true);
  const taken = createServer().listen(port, '127.0.0.1');
  const [error] = (await once(taken, 'error')) as [NodeJS.ErrnoException];
  expect(error.code).toBe('EADDRINUSE');

  const next = runInstance();
  await next.reaches('ready');
  expect(next.instance.port).not.toBe(port);
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
