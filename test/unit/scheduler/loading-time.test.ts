/** For how long a model has been loading: what requests that wait for it are told. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { gone, passes, Rig, settled, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

it('passes while the model loads, and at no other time', async () => {
  const rig = new Rig();
  const { scheduler } = rig;
  expect(scheduler.loadingMs('a')).toBe(0);
  await rig.ask('a');
  await passes(300);
  expect(scheduler.loadingMs('a')).toBe(300);
  await passes(200);
  rig.instance('a').becomesReady();
  await passes(1_000);
  rig.instance('a').fallsAsleep();
  await passes(1_000);
  expect(scheduler.loadingMs('a')).toBe(500);
  expect(scheduler.loadingMs('b')).toBe(0);
});

it('is that of all loads together, whether or not they succeeded', async () => {
  const rig = new Rig();
  const { scheduler } = rig;
  await rig.ask('a');
  await passes(100);
  rig.instance('a').exits();
  await passes(1_000);
  await rig.ask('a');
  await passes(200);
  rig.instance('a').becomesReady();
  await passes(1_000);
  rig.instance('a').exits();
  await passes(1_000);
  expect(scheduler.loadingMs('a')).toBe(300);
});

it('is forgotten with the model', async () => {
  const rig = new Rig();
  await rig.ask('a');
  await passes(100);
  rig.instance('a').exits();
  rig.publish({ a: gone });
  await settled();
  expect(rig.scheduler.loadingMs('a')).toBe(0);
});
