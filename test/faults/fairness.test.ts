/** Traffic that never pauses, with fewer slots than models: whole processes; `unit/scheduler/fairness.test.ts` has the bound. */
import { expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { serveFakes, textOf, words } from '../http/serve-fakes.js';

it('traffic to the only slot lets other models have their turns, and none of its answers is lost', async () => {
  const { url, journal } = await serveFakes({
    models: { steady: { tokenIntervalMs: 20 }, first: { loadMs: 300 }, second: { loadMs: 300 } },
    args: ['--models-max', '1', '--fair-after', '0.5'],
  });
  const completions = `${url}/v1/completions`;
  const count = 20;
  const begin = (): RawExchange =>
    rawExchange(completions, jsonPost({ model: 'steady', stream: true, max_tokens: count }));

  // Each begins with the first bytes of the one before, long before the end of that: it is never idle.
  const streams = [begin()];
  let othersAreServed = false;
  const keepBusy = async (): Promise<void> => {
    while (!othersAreServed) {
      const last = streams.at(-1);
      await eventually('the next may begin', () => (last?.received().length ?? 0) > 0, {
        deadlineMs: 30_000,
      });
      streams.push(begin());
    }
  };
  const askOthers = async (): Promise<number[]> => {
    await streams[0]?.head;
    try {
      const asked = ['first', 'second'].map((model) => rawRequest(completions, jsonPost({ model })));
      const answers = await withDeadline('both are served', Promise.all(asked), 30_000);
      return answers.map(({ status }) => status);
    } finally {
      othersAreServed = true;
    }
  };
  const [statuses] = await Promise.all([askOthers(), keepBusy()]);

  expect(statuses).toEqual([200, 200]);
  for (const { ended } of streams) {
    const { status, complete, body } = await withDeadline('a steady stream ends', ended, 30_000);
    expect({ status, complete }).toEqual({ status: 200, complete: true });
    expect(textOf(sseData(body))).toBe(words('steady', count));
  }
  // It was loaded again for those who had to wait behind the others.
  const starts = journal.of('start').map(({ alias }) => alias);
  expect(starts[0]).toBe('steady');
  expect(new Set(starts.slice(1, 3))).toEqual(new Set(['first', 'second']));
  expect(starts.slice(3)).toContain('steady');
});

it('a model that answers one at a time answers in order of arrival', async () => {
  const service = await serveFakes({
    models: { narrow: {} },
    args: ['--in-flight-max', '1'],
  });
  const { url, journal } = service;
  const holder = rawExchange(
    `${url}/v1/completions`,
    jsonPost({ model: 'narrow', stream: true, max_tokens: -1 }),
  );
  await holder.head;
  const answers: Promise<unknown>[] = [];
  for (let n = 1; n <= 5; n += 1) {
    answers.push(rawRequest(`${url}/infill?n=${n}`, jsonPost({ model: 'narrow' })));
    await service.until(`${n} wait`, 'narrow', ({ waiting }) => waiting === n);
  }
  holder.abort();
  await withDeadline('all are answered', Promise.all(answers), 30_000);
  const served = journal.of('request').map((entry) => entry.url);
  expect(served.filter((path) => path.startsWith('/infill'))).toEqual(
    [1, 2, 3, 4, 5].map((n) => `/infill?n=${n}`),
  );
});

it('a model that is as busy as it may be can be looked at', async () => {
  const service = await serveFakes({ models: { narrow: {} }, args: ['--in-flight-max', '1'] });
  const { url } = service;
  const holder = rawExchange(
    `${url}/v1/completions`,
    jsonPost({ model: 'narrow', stream: true, max_tokens: -1 }),
  );
  await holder.head;
  const waiting = rawExchange(`${url}/infill`, jsonPost({ model: 'narrow' }));
  await service.until('one waits', 'narrow', (entry) => entry.waiting === 1);
  for (const path of ['/slots', '/metrics', '/props']) {
    const look = rawRequest(`${url}${path}?model=narrow`);
    expect((await withDeadline(`the answer of ${path}`, look, 10_000)).status, path).toBe(200);
  }
  // What is about a completion that is being computed does not wait for its end either.
  const control = rawRequest(`${url}/v1/chat/completions/control`, jsonPost({ model: 'narrow', id: 'x' }));
  expect((await withDeadline('the answer to the control', control, 10_000)).status).toBe(200);
  expect((await service.entry('narrow')).waiting).toBe(1);
  holder.abort();
  expect((await waiting.ended).status).toBe(200);
});
