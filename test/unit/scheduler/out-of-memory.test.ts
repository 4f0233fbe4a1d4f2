/** Loads that run out of memory. */
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { passes, Rig, settled, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

it('what is idle is stopped, and the load tried once more when that has gone', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = [await rig.loadIdle('a'), await rig.loadIdle('b')];
  const busy = await rig.askAndLoad('busy');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  expect(idle.map(({ stopReason }) => stopReason)).toEqual(['evicted', 'evicted']);
  expect(rig.instance('busy').stopReason).toBeUndefined();

  idle[0]?.exits();
  await settled();
  expect(rig.launches.filter((model) => model === 'large')).toHaveLength(1);
  idle[1]?.exits();
  await settled();
  expect(rig.launches.filter((model) => model === 'large')).toHaveLength(2);
  rig.instance('large').becomesReady();
  await settled();
  expect(ask.lease).toBeDefined();
  busy.finish();
});

it('a second time it is refused, and the refusal says what was stopped for it', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  idle.exits();
  await settled();
  // Something else has become idle meanwhile: that is left alone.
  await rig.loadIdle('b');
  await rig.fails('large', 'out of memory');
  expect(ask.error?.code).toBe('out_of_memory');
  expect(ask.error?.status).toBe(503);
  expect(Number(ask.error?.headers['Retry-After'])).toBeGreaterThan(0);
  expect(ask.error?.message).toContain('also without a');
  expect(rig.instance('b').stopReason).toBeUndefined();
});

it('who waits for the second try has --queue-timeout from then on, and no longer', async () => {
  const rig = new Rig({ modelsMax: 0, queueTimeoutMs: 1_000 });
  await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await passes(5_000);
  await rig.fails('large', 'out of memory');
  await passes(999);
  expect(ask.error).toBeUndefined();
  await passes(1);
  expect(ask.error?.code).toBe('queue_timeout');
});

it('it is refused at once when nothing is idle', async () => {
  const rig = new Rig({ modelsMax: 0 });
  await rig.askAndLoad('busy');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  expect(ask.error?.code).toBe('out_of_memory');
  expect(ask.error?.message).toContain('nothing idle could make room');
  expect(rig.instance('busy').stopReason).toBeUndefined();
});

it('an explicit load, which was answered already, is tried once more, too', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  await rig.ask('large', 'load');
  await rig.fails('large', 'out of memory');
  expect(idle.stopReason).toBe('evicted');
  idle.exits();
  await settled();
  expect(rig.instance('large').isAlive).toBe(true);
  expect(rig.launches).toEqual(['a', 'large', 'large']);
});

it('it is not tried again for a client that has left', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  ask.leave();
  await settled();
  idle.exits();
  await settled();
  expect(rig.launches).toEqual(['a', 'large']);
  // The next one gets a try of its own, with room made for it.
  const other = await rig.loadIdle('b');
  await rig.ask('large');
  await rig.fails('large', 'out of memory');
  expect(other.stopReason).toBe('evicted');
});

it('it is tried again for who waits for it, also when somebody only looks', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  await rig.ask('large', 'load');
  await rig.ask('large', 'look');
  await rig.fails('large', 'out of memory');
  idle.exits();
  await settled();
  expect(rig.launches).toEqual(['a', 'large', 'large']);
});

it('a load that nobody waits for any more stops nothing', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  ask.leave();
  await settled();
  await rig.fails('large', 'out of memory');
  expect(idle.stopReason).toBeUndefined();
  expect(rig.launches).toEqual(['a', 'large']);
});

it('what it did not fit without is not stopped for it again, until it is asked for anew; something else is', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const failsTwice = async () => {
    const ask = await rig.ask('large');
    await rig.fails('large', 'out of memory');
    rig.instance('a').exits();
    await settled();
    await rig.fails('large', 'out of memory');
    return ask;
  };
  await rig.loadIdle('a');
  await failsTwice();
  vi.advanceTimersByTime(400_000);

  const again = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  expect(again.stopReason).toBeUndefined();
  expect(ask.error?.message).toContain('also without a');
  vi.advanceTimersByTime(400_000);

  const other = await rig.loadIdle('b');
  await rig.ask('large');
  await rig.fails('large', 'out of memory');
  expect([again.stopReason, other.stopReason]).toEqual(['evicted', 'evicted']);
});

it('its second try waits for what was stopped for it, and for nothing that stops later', async () => {
  const rig = new Rig({ modelsMax: 3 });
  const idle = await rig.loadIdle('a');
  const later = await rig.askAndLoad('later');
  await rig.ask('large');
  await rig.fails('large', 'out of memory');
  later.finish();
  rig.scheduler.unload('later');
  await settled();
  idle.exits();
  await settled();
  expect(rig.launches.filter((model) => model === 'large')).toHaveLength(2);
});

it('room is made for one, too, that was killed the time before', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'signal');
  await rig.fails('large', 'out of memory');
  expect(idle.stopReason).toBe('evicted');
  idle.exits();
  await settled();
  rig.instance('large').becomesReady();
  await settled();
  expect(ask.lease).toBeDefined();
});

it('room is made once for those who wait, also when it is killed after that', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  idle.exits();
  await settled();
  const later = await rig.loadIdle('b');
  await rig.fails('large', 'signal');
  await rig.fails('large', 'out of memory');
  expect(rig.launches.filter((model) => model === 'large')).toHaveLength(3);
  expect(ask.error?.code).toBe('out_of_memory');
  expect(ask.error?.message).toContain('also without a');
  expect(later.stopReason).toBeUndefined();
});

it('an unload calls its second try off', async () => {
  const rig = new Rig({ modelsMax: 0 });
  const idle = await rig.loadIdle('a');
  const ask = await rig.ask('large');
  await rig.fails('large', 'out of memory');
  rig.scheduler.unload('large');
  await settled();
  expect(ask.error?.code).toBe('model_unloaded_meanwhile');
  idle.exits();
  await settled();
  expect(rig.launches).toEqual(['a', 'large']);
});
