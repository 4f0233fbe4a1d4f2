/** What lists say of models that do not do well. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { passes, Rig, settled, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

/** The model is asked for, and fails to load. */
async function fails(rig: Rig, model: string): Promise<void> {
  await rig.ask(model);
  rig.instance(model).exits();
  await settled();
}

it('a model that fails is listed with its failures in a row, and with a time when it is left alone', async () => {
  const rig = new Rig();
  expect(rig.scheduler.status('a')).toMatchObject({ failures: 0, retryAt: undefined });
  await fails(rig, 'a');
  expect(rig.scheduler.status('a')).toMatchObject({ failures: 1, retryAt: undefined });
  await fails(rig, 'a');
  const before = Date.now();
  const { failures, retryAt } = rig.scheduler.status('a');
  expect(failures).toBe(2);
  // The first pause is a second, a fifth more or less.
  expect(retryAt?.getTime()).toBeGreaterThanOrEqual(before + 800);
  expect(retryAt?.getTime()).toBeLessThanOrEqual(Date.now() + 1_200);
  await passes(1_201);
  expect(rig.scheduler.status('a')).toMatchObject({ failures: 2, retryAt: undefined });

  // It counts until it has done well, which a load alone is not.
  const ask = await rig.askAndLoad('a');
  expect(rig.scheduler.status('a')).toMatchObject({ value: 'loaded', failures: 2 });
  ask.lease?.succeeded();
  expect(rig.scheduler.status('a')).toMatchObject({ failures: 0 });
});

it('processes that could not be killed are listed until they are gone, while their model runs again', async () => {
  const rig = new Rig();
  const since = new Date(0);
  const ends: (() => void)[] = [];
  for (const pid of [7, 8]) {
    const instance = await rig.loadIdle('a');
    instance.leftBehind = [{ pid, since, gone: new Promise<void>((resolve) => ends.push(resolve)) }];
    rig.scheduler.unload('a');
    instance.exits();
  }
  await rig.loadIdle('a');
  expect(rig.scheduler.status('a')).toMatchObject({
    value: 'loaded',
    leftBehind: [
      { pid: 7, since },
      { pid: 8, since },
    ],
  });
  expect(rig.scheduler.status('b').leftBehind).toEqual([]);
  ends[0]?.();
  await settled();
  expect(rig.scheduler.status('a').leftBehind).toMatchObject([{ pid: 8 }]);
  ends[1]?.();
  await settled();
  expect(rig.scheduler.status('a').leftBehind).toEqual([]);
});
