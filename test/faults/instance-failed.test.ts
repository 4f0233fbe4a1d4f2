import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { rawRequest } from '../helpers/raw-http.js';
import { sigkill, alive } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';
import { runInstance, type InstanceRun } from '../process/run-instance.js';

async function failure(run: InstanceRun) {
  const outcome = await run.outcome();
  if (outcome.kind !== 'failed') throw new Error(`it did not fail: ${JSON.stringify(outcome)}`);
  return outcome;
}

describe('a child that exits while loading', () => {
  test('is a failed load, with its exit code and its last lines', async () => {
    const lines = ['llama_model_load: error loading model', "srv load_model: failed to load 'alpha.gguf'"];
    const run = runInstance({ behaviour: { loadMs: 100, exitWhileLoading: { code: 3, lines } } });
    const outcome = await failure(run);

    expect(outcome).toMatchObject({ phase: 'loading', message: 'exited with code 3', exitCode: 3 });
    expect(outcome.lastLines.slice(-2)).toEqual(lines);
    expect(Date.now() - outcome.at.getTime()).toBeLessThan(10_000);
    expect(run.states).not.toContain('ready');
    expect(run.instance.upstream).toBeUndefined();
    expect(run.events.at(-1)).toMatchObject({
      type: 'model.unloaded',
      failed: true,
      exitCode: 3,
      reason: 'exited with code 3',
    });
    // One run is one attempt: whether it is tried again is not for the instance to say.
    expect(run.journal.of('start')).toHaveLength(1);
  });

  test('by a signal is named by it, and has exit code 1 as with the native router', async () => {
    const run = runInstance({ behaviour: { exitWhileLoading: { signal: 'SIGSEGV' } } });
    expect(await failure(run)).toMatchObject({
      phase: 'loading',
      message: 'was ended by SIGSEGV',
      exitCode: 1,
    });
  });

  test('with code 0 has failed, too: it never served', async () => {
    const run = runInstance({ behaviour: { exitWhileLoading: { code: 0 } } });
    expect(await failure(run)).toMatchObject({ phase: 'loading', exitCode: 0 });
  });

  test('gives its last words also when they have no line end', async () => {
    const script = 'process.stdout.write("no line end", () => process.exit(4))';
    const run = runInstance({ command: () => [process.execPath, '-e', script] });
    expect(await failure(run)).toMatchObject({ exitCode: 4, lastLines: ['no line end'] });
  });
});

describe('a child that is never ready', () => {
  test('is killed at the load deadline, and the message names the option', async () => {
    const run = runInstance({
      behaviour: { neverReady: true, ignoreSigterm: true, forkGrandchild: true },
      loadTimeoutMs: 700,
    });
    const outcome = await failure(run);
    expect(outcome).toMatchObject({
      phase: 'loading',
      message: 'was not ready within 0.7 s (--load-timeout)',
      exitCode: 1,
    });
    expect(run.events).toContainEqual({ type: 'model.stopping', model: 'alpha', reason: 'load deadline' });
    await run.nothingLeft();
    // It did not get a chance to ignore a polite request: a loading child is killed.
    expect(run.journal.of('ignored')).toEqual([]);
  });
});

describe('a child that dies when it is ready', () => {
  test('has failed while running, and its connections end with it', async () => {
    const run = runInstance();
    await run.reaches('ready');
    const { pid, port } = run.instance;
    sigkill(pid ?? NaN);
    expect(await failure(run)).toMatchObject({
      phase: 'running',
      message: 'was ended by SIGKILL',
      exitCode: 1,
    });
    await expect(rawRequest(`http://127.0.0.1:${port}/health`)).rejects.toThrow('ECONNREFUSED');
  });

  test('takes with it what it started', async () => {
    const run = runInstance({ behaviour: { forkGrandchild: { ignoreSigterm: true } } });
    await run.reaches('ready');
    const [{ grandchildPid } = { grandchildPid: 0 }] = run.journal.of('grandchild');
    expect(alive(grandchildPid)).toBe(true);
    sigkill(run.instance.pid ?? NaN);
    await run.outcome();
    await run.nothingLeft();
  });
});

describe('a child that cannot be spawned', () => {
  test('because there is no such program is a failed load that names program and reason', async () => {
    const missing = join(tempDir(), 'no-such-llama-server');
    const run = runInstance({ command: () => [missing] });
    const { phase, message, lastLines } = await failure(run);
    expect(phase).toBe('loading');
    // Where a parent-death signal is set it is setpriv that finds nothing to run, and says so.
    const told = [message, ...lastLines].join('\n');
    expect(told).toContain(missing);
    expect(told).toMatch(/no such file|ENOENT/i);
  });

  test('because its command line is longer than the system takes is told at once', async () => {
    const run = runInstance({ command: () => [process.execPath, '-e', '0', 'x'.repeat(8 * 1024 * 1024)] });
    expect(await failure(run)).toMatchObject({
      phase: 'loading',
      message: expect.stringMatching(/^could not be started: .*E2BIG/) as string,
    });
    expect(run.instance.pid).toBeUndefined();
    // There was nothing that began to load.
    expect(run.events.map(({ type }) => type)).toEqual(['model.unloaded']);
  });

  test('because an argument holds a NUL is a failure of this model and nothing else', async () => {
    const run = runInstance({ command: () => [process.execPath, 'a\0b'] });
    expect(await failure(run)).toMatchObject({
      message: expect.stringMatching(/^could not be started: .*null bytes/) as string,
    });
  });

  test('because its command line cannot be made is a failure of this model and nothing else', async () => {
    const run = runInstance({
      command: () => {
        throw new Error("this llama-server has no option '--alias'");
      },
    });
    expect(await failure(run)).toMatchObject({
      phase: 'loading',
      message: "could not be started: this llama-server has no option '--alias'",
      lastLines: [],
    });
  });

  test('because there is no free port is a failure of this model and nothing else', async () => {
    const run = runInstance({ freePort: () => Promise.reject(new Error('no free port')) });
    expect(await failure(run)).toMatchObject({ message: 'could not be started: no free port' });
    await run.instance.spawned;
  });
});
