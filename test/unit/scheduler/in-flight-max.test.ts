/** `--in-flight-max`: how many requests one instance answers at once. */
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { passes, Rig, settled, stopTheClock, type Ask } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

/** As many requests, one after the other. */
async function asks(rig: Rig, model: string, count: number): Promise<Ask[]> {
  const all: Ask[] = [];
  for (let n = 0; n < count; n += 1) {
    all.push(await rig.ask(model));
    await passes(1);
  }
  return all;
}

const served = (all: readonly Ask[]): boolean[] => all.map(({ lease }) => lease !== undefined);

describe('an instance', () => {
  it('answers as many requests at once as it may; the others wait in order of arrival', async () => {
    const rig = new Rig({ inFlightMax: 2 });
    const all = [await rig.askAndLoad('a'), ...(await asks(rig, 'a', 4))];
    expect(served(all)).toEqual([true, true, false, false, false]);
    all[1]?.finish();
    await settled();
    expect(served(all)).toEqual([true, true, true, false, false]);
    all[0]?.finish();
    all[2]?.finish();
    await settled();
    expect(served(all)).toEqual([true, true, true, true, true]);
    expect(rig.launches).toEqual(['a']);
  });

  it('may be looked at while it is full, and that takes no place', async () => {
    const rig = new Rig({ inFlightMax: 2 });
    await rig.askAndLoad('a');
    const looks = [1, 2, 3].map(() => rig.scheduler.tryAcquire('a', { wake: true, look: true }));
    expect(looks.map((lease) => lease !== undefined)).toEqual([true, true, true]);
    const [second, third] = await asks(rig, 'a', 2);
    expect([second, third].map((ask) => ask?.lease !== undefined)).toEqual([true, false]);
    expect(rig.scheduler.tryAcquire('a', { wake: true, look: true })).toBeDefined();
    looks[0]?.release('look');
    await settled();
    expect(third?.lease).toBeUndefined();
    second?.finish();
    await settled();
    expect(third?.lease).toBeDefined();
  });

  it.each([
    ['behind', [false, true, false]],
    ['before', [true, false, false]],
  ])('is looked at by who waited for its load %s others, and that takes no place', async (_, looks) => {
    const rig = new Rig({ inFlightMax: 1 });
    const { signal } = new AbortController();
    const leases: boolean[] = looks.map(() => false);
    for (const [at, look] of looks.entries()) {
      const options = { autoload: true, wake: true, look };
      void rig.scheduler.acquire('a', signal, options).then(() => (leases[at] = true));
      await passes(1);
    }
    rig.instance('a').becomesReady();
    await settled();
    // The look, and the first of the others.
    expect(leases.filter((isServed, at) => isServed && looks[at])).toHaveLength(1);
    expect(leases.filter((isServed, at) => isServed && !looks[at])).toHaveLength(1);
    expect(leases.at(-1)).toBe(false);
  });

  it('takes no more than that of those who waited for its load', async () => {
    const rig = new Rig({ inFlightMax: 3 });
    const all = await asks(rig, 'a', 5);
    rig.instance('a').becomesReady();
    await settled();
    expect(served(all)).toEqual([true, true, true, false, false]);
    expect(rig.scheduler.status('a')).toMatchObject({ inFlight: 3, waiting: 2 });
  });

  it('has no bound with 0', async () => {
    const rig = new Rig({ inFlightMax: 0 });
    const all = await asks(rig, 'a', 90);
    rig.instance('a').becomesReady();
    await settled();
    expect(served(all)).not.toContain(false);
  });

  it('tells those who wait too long that it was busy', async () => {
    const rig = new Rig({ inFlightMax: 1, queueTimeoutMs: 5_000 });
    await rig.askAndLoad('a');
    const ask = await rig.ask('a');
    await passes(5_000);
    expect(ask.error?.code).toBe('queue_timeout');
    expect(ask.error?.message).toContain('it was busy all the time, with 1 in flight (--in-flight-max)');
  });

  // Their bound was that of the load, and there was none any more when it had ended.
  it('bounds by queue-timeout, from then on, the wait of those whom it cannot take when it is loaded', async () => {
    const rig = new Rig({ inFlightMax: 1, queueTimeoutMs: 5_000 });
    const [first, second] = await asks(rig, 'a', 2);
    await passes(20_000);
    rig.instance('a').becomesReady();
    await passes(4_999);
    expect([first?.holdsLease, second?.isWaiting]).toEqual([true, true]);
    await passes(1);
    expect(second?.error?.code).toBe('queue_timeout');
  });
});

it('a model with a queue of its own does not starve another one', async () => {
  const rig = new Rig({ inFlightMax: 1, fairAfterMs: 1_000 });
  let answering = await rig.askAndLoad('a');
  let next = await rig.ask('a');
  const other = await rig.ask('b');
  // There is always one more request for `a`, each answered within half a second.
  for (let n = 0; n < 20 && rig.instance('a').stopReason === undefined; n += 1) {
    const later = await rig.ask('a');
    await passes(500);
    answering.finish();
    await settled();
    if (next.lease === undefined) break;
    [answering, next] = [next, later];
  }
  answering.finish();
  await settled();
  expect(rig.instance('a').stopReason).toBe('evicted');
  rig.instance('a').exits();
  await settled();
  rig.instance('b').becomesReady();
  await settled();
  expect(other.lease).toBeDefined();
});

it('who waits too long for a slot hears who holds them', async () => {
  const rig = new Rig({ queueTimeoutMs: 5_000, modelsMax: 2 });
  await rig.askAndLoad('a');
  await rig.ask('b');
  const ask = await rig.ask('c');
  await passes(5_000);
  expect(ask.error?.message).toContain('no slot became free, which are held by a (1 in flight), b (loading)');
});

it('who waits too long for a model that is to make room for another hears that', async () => {
  const rig = new Rig({ queueTimeoutMs: 5_000, fairAfterMs: 1_000 });
  await rig.askAndLoad('a');
  await rig.ask('b');
  await passes(1_000);
  const ask = await rig.ask('a');
  await rig.ask('b');
  await passes(5_000);
  expect(ask.error?.code).toBe('queue_timeout');
  expect(ask.error?.message).toContain('it takes no new requests, 1 in flight');
  expect(ask.error?.message).toContain('(--fair-after)');
});
