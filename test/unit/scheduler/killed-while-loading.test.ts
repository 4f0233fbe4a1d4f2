/** Loads that end by a signal: the child itself has said nothing against another try. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { passes, Rig, settled, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

it('who waits is served by the next instance', async () => {
  const rig = new Rig({ modelsMax: 1 });
  const asks = [await rig.ask('a'), await rig.ask('a')];
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a', 'a']);
  expect(rig.scheduler.status('a').failures).toBe(1);
  rig.instance('a').becomesReady();
  await settled();
  expect(asks.map(({ lease }) => lease !== undefined)).toEqual([true, true]);
});

it('a second time in a row they are refused, and told what it said', async () => {
  const rig = new Rig({ modelsMax: 1 });
  const ask = await rig.ask('a');
  await rig.fails('a', 'signal');
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a', 'a']);
  expect(ask.error?.code).toBe('load_failed');
  expect(ask.error?.details.lastLines).toContain('unknown model architecture');
  expect(Number(ask.error?.headers['Retry-After'])).toBeGreaterThan(0);
});

it('one that ends by itself is not tried again: it has said why', async () => {
  const rig = new Rig({ modelsMax: 1 });
  const ask = await rig.ask('a');
  rig.instance('a').exits();
  await settled();
  expect(rig.launches).toEqual(['a']);
  expect(ask.error?.code).toBe('load_failed');
});

it('nor is one whose clients have left', async () => {
  const rig = new Rig({ modelsMax: 1 });
  const ask = await rig.ask('a');
  ask.leave();
  await settled();
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a']);
});

it('one that was asked for by hand, which was answered already, is tried once more', async () => {
  const rig = new Rig({ modelsMax: 1 });
  await rig.ask('a', 'load');
  await rig.fails('a', 'signal');
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a', 'a']);
});

it('nothing is started any more when all is being stopped', async () => {
  const rig = new Rig({ modelsMax: 1 });
  await rig.ask('a', 'load');
  rig.scheduler.close();
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a']);
});

it('who has waited for longer than --queue-timeout while it was loading is not refused for that', async () => {
  const rig = new Rig({ modelsMax: 1, queueTimeoutMs: 1_000 });
  const first = await rig.ask('a');
  const second = await rig.ask('b');
  await passes(5_000);
  await rig.fails('a', 'signal');
  expect(rig.launches).toEqual(['a', 'a']);
  expect([first, second].map(({ error }) => error?.code)).toEqual([undefined, 'queue_timeout']);
});

it('one that waits for its second try can be called off', async () => {
  const rig = new Rig({ modelsMax: 1 });
  await rig.ask('a', 'load');
  await passes(1);
  const other = await rig.ask('b');
  await rig.fails('a', 'signal');
  // The slot went to who has waited longer.
  expect(rig.launches).toEqual(['a', 'b']);
  rig.scheduler.unload('a');
  rig.instance('b').becomesReady();
  await settled();
  other.finish();
  await settled();
  expect(rig.launches).toEqual(['a', 'b']);
  expect(rig.scheduler.waiting).toBe(0);
});
