/** Models with load-on-startup, which are meant to be there. */
import { expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { sigkill } from '../helpers/processes.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { serveFakes, wireError } from '../http/serve-fakes.js';

const presets = ['[steady]', 'load-on-startup = true'].join('\n');

it('one that crashes comes back by itself, later each time it crashes at once', async () => {
  const service = await serveFakes({ models: { steady: {}, other: {} }, presets });
  let { pid } = await service.until('it is loaded', 'steady', ({ status }) => status.value === 'loaded');
  for (let crash = 1; crash <= 3; crash += 1) {
    const before = pid;
    sigkill(before ?? NaN);
    const back = await service.until(
      `it is back after crash ${crash}`,
      'steady',
      (entry) => entry.status.value === 'loaded' && entry.pid !== before,
    );
    ({ pid } = back);
  }
  const timesOf = (wanted: string) =>
    service.supervisor
      .log()
      .flatMap(({ msg, time }) => (String(msg).startsWith(wanted) ? [Date.parse(String(time))] : []));
  const crashed = timesOf('model.unloaded');
  const [none = NaN, first = NaN, second = NaN, ...more] = timesOf('loading it again').map(
    (time, at) => time - (crashed[at] ?? NaN),
  );
  expect(more).toEqual([]);
  // None after the first crash; then one second and two, a fifth more or less.
  expect(none).toBeLessThan(first / 4);
  expect(first).toBeGreaterThanOrEqual(800);
  expect(second).toBeGreaterThanOrEqual(1_600);
});

it('one that does not even load is tried again by itself, with the same pauses, until it does', async () => {
  const service = await serveFakes({
    models: { steady: { exitWhileLoading: { code: 3, lines: ['error: no legs'] } } },
    presets,
  });
  const starts = () => service.journal.of('start').map(({ atMs }) => atMs);
  await eventually('it is tried again and again', () => starts().length >= 4);
  const [, second = NaN, third = NaN, fourth = NaN] = starts();
  expect(third - second).toBeGreaterThan(800);
  expect(fourth - third).toBeGreaterThan(1_600);

  service.setBehaviour('steady', {});
  await service.until('it is there', 'steady', ({ status }) => status.value === 'loaded');
});

it('while it is left alone, requests are told why and when to come again, and one that loads it by hand is served', async () => {
  const service = await serveFakes({
    models: { weak: { exitWhileLoading: { code: 3, lines: ['error: no legs'] } } },
  });
  const ask = () => rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'weak' }));
  const refused = await eventually('it is left alone', async () => {
    const answer = await ask();
    return wireError(answer, 503, 'unavailable_error').reason === 'model_failing' && answer;
  });
  const error = wireError(refused, 503, 'unavailable_error');
  expect(error['last_lines']).toContain('error: no legs');
  const failures = service.journal.of('start').length;
  expect(failures).toBeGreaterThanOrEqual(2);
  expect(error.message).toContain(`has failed ${failures} times in a row`);
  expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
  expect((await service.entry('weak')).status.error).toMatchObject({ reason: 'load_failed', failures });

  service.setBehaviour('weak', {});
  const load = await rawRequest(`${service.url}/models/load`, jsonPost({ model: 'weak' }));
  expect(load.status).toBe(200);
  await eventually('it answers', async () => (await ask()).status === 200);
});

it('one that is unloaded stays so', async () => {
  const service = await serveFakes({ models: { steady: {} }, presets });
  await service.until('it is loaded', 'steady', ({ status }) => status.value === 'loaded');
  await rawRequest(`${service.url}/models/unload`, jsonPost({ model: 'steady' }));
  await service.until('it is unloaded', 'steady', ({ status }) => status.value === 'unloaded');
  const log = service.supervisor.log();
  expect(log.some(({ msg }) => String(msg).startsWith('loading it again'))).toBe(false);
});
