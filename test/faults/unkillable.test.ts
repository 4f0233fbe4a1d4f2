/** Processes that SIGKILL does not end: they are reported, and nobody waits for them. */
import { expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { alive, canListProcesses, sigkill } from '../helpers/processes.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import type { LogLine } from '../helpers/supervisor-process.js';
import { serveFakes, wireError, type FakeService, type ListEntry } from '../http/serve-fakes.js';
import { runInstance } from '../process/run-instance.js';

const fixture = new URL('../fixtures/unkillable-children.js', import.meta.url).href;

/** In a supervisor whose SIGKILL ends nothing. */
const env = { NODE_OPTIONS: `--import ${fixture}` };

/** A child that goes when the kernel says so, and not before. */
const stubborn = { ignoreExitCommand: true, ignoreSigterm: true };
const presets = '[stuck]\nstop-timeout = 1\n';

const unkillable = 'SIGKILL did not end it; leaving it behind';

function portOf({ status }: ListEntry): string | undefined {
  return status.args[status.args.indexOf('--port') + 1];
}

function reports({ supervisor }: FakeService): readonly LogLine[] {
  return supervisor.log().filter(({ msg }) => msg === unkillable);
}

it('one is reported and listed, its slot goes to who waits for it, and its model runs again beside it', async () => {
  const service = await serveFakes({
    models: { stuck: stubborn, other: {} },
    presets,
    args: ['--models-max', '1'],
    env,
  });
  const first = await service.use('stuck');
  const port = portOf(await service.entry('stuck'));

  // The waiter for its slot gets that when nobody can do any more about the process.
  expect((await service.use('other')).alias).toBe('other');
  expect(alive(first.pid)).toBe(true);
  const report = await eventually('it is reported', () => reports(service)[0]);
  expect(report).toMatchObject({ level: 50, model: 'stuck', pid: first.pid });
  expect(Date.parse(String(report['since']))).toBeLessThan(Date.now());
  expect(report['remedy']).toContain(`-p ${first.pid}`);
  const since = report['since'];
  expect(await service.entry('stuck')).toMatchObject({
    status: { value: 'unloaded' },
    left_behind: [{ pid: first.pid, since }],
  });

  service.setBehaviour('stuck', {});
  const second = await service.use('stuck');
  expect(second.pid).not.toBe(first.pid);
  const entry = await service.entry('stuck');
  expect(entry).toMatchObject({ status: { value: 'loaded' }, left_behind: [{ pid: first.pid }] });
  expect(portOf(entry)).not.toBe(port);

  // The device has answered at last, or somebody with more rights has ended it.
  sigkill(first.pid);
  await service.until('it is listed no more', 'stuck', (now) => now['left_behind'] === undefined);
  await eventually('its end is told', () =>
    service.supervisor.log().some(({ msg, ...told }) => {
      return msg === 'what was left behind has ended' && told['pid'] === first.pid;
    }),
  );
  expect((await service.use('stuck')).pid).toBe(second.pid);
});

it('one that does not become ready is given up at the load deadline, and its clients are told', async () => {
  const service = await serveFakes({
    models: { stuck: { ...stubborn, neverReady: true } },
    args: ['--load-timeout', '1'],
    env,
  });
  const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'stuck' }));
  const error = wireError(response, 503, 'unavailable_error');
  expect(error).toMatchObject({ reason: 'load_failed', model: 'stuck' });
  expect(error.message).toContain('--load-timeout');
  const [{ pid } = { pid: NaN }] = service.journal.of('start');
  expect(await service.entry('stuck')).toMatchObject({
    status: { failed: true, error: { failures: 1 } },
    left_behind: [{ pid }],
  });
});

it('the end of the program does not wait for one, is in order all the same, and says which it was', async () => {
  const service = await serveFakes({ models: { stuck: stubborn, other: {} }, presets, env });
  const { pid } = await service.use('stuck');
  await service.use('other');
  expect(await service.supervisor.stop()).toEqual({ code: 0, signal: null });
  expect(reports(service)).toMatchObject([{ model: 'stuck', pid }]);
  expect(service.supervisor.log().map(({ msg }) => msg)).toContain('stopped');
});

it.skipIf(!canListProcesses)(
  'one that a wrapper has started in a session of its own is reported itself',
  async () => {
    const wrapper = ['sh', '-c', 'setsid "$@"; exit $?', 'wrapper'];
    const run = runInstance({ wrapper, behaviour: stubborn, stopTimeoutMs: 200 });
    await run.reaches('ready');
    const [{ pid } = { pid: NaN }] = run.journal.of('start');
    atEndOfTest(() => sigkill(pid));
    // Otherwise it would notice that its standard input has ended.
    process.kill(pid, 'SIGSTOP');
    const kill = process.kill.bind(process);
    const spy = vi.spyOn(process, 'kill').mockImplementation((target, signal) => {
      return target === pid || kill(target, signal);
    });
    atEndOfTest(() => spy.mockRestore());
    run.instance.stop('evicted');
    expect(await run.outcome()).toMatchObject({ kind: 'stopped', reason: 'evicted' });
    expect(run.log.filter((line) => line === unkillable)).toHaveLength(1);
    expect(run.instance.leftBehind).toMatchObject([{ pid }]);
    expect(alive(run.instance.pid ?? NaN)).toBe(false);

    spy.mockRestore();
    expect(alive(pid)).toBe(true);
    sigkill(pid);
    await eventually('its end is told', () => run.log.includes('what was left behind has ended'));
  },
);

it('one that belongs to another user by now is such a one', async () => {
  const run = runInstance({ behaviour: stubborn, stopTimeoutMs: 200 });
  await run.reaches('ready');
  const pid = run.instance.pid ?? NaN;
  const spy = vi.spyOn(process, 'kill').mockImplementation(() => {
    throw Object.assign(new Error('kill EPERM'), { code: 'EPERM' });
  });
  atEndOfTest(() => spy.mockRestore());
  run.instance.stop('evicted');
  expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'evicted', exitCode: 0 });
  expect(run.log).toContain(unkillable);
  const [leftBehind] = run.instance.leftBehind;
  expect(leftBehind).toMatchObject({ pid });

  spy.mockRestore();
  expect(alive(pid)).toBe(true);
  sigkill(pid);
  await withDeadline(
    'its end is noticed',
    leftBehind?.gone ?? Promise.reject(new Error('nothing is')),
    10_000,
  );
  expect(run.log).toContain('what was left behind has ended');
});
