import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { firstForm, gone, passes, Rig, settled, stopTheClock, type Ask } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => {
  vi.useRealTimers();
});

/** Steady traffic: `next` begins before the request at hand ends, so that the model is never idle. */
async function handOver(current: Ask, next: () => Promise<Ask>): Promise<Ask> {
  const following = await next();
  current.finish();
  await settled();
  return following;
}

describe('loading on request', () => {
  it('starts one instance for thirty cold requests and admits them all when it is ready', async () => {
    const rig = new Rig();
    const asks = await Promise.all(Array.from({ length: 30 }, () => rig.ask('a')));
    expect(rig.launches).toEqual(['a']);
    expect(rig.scheduler.status('a')).toMatchObject({ value: 'loading', waiting: 30, inFlight: 0 });

    rig.instance('a').becomesReady();
    await settled();
    expect(asks.every((ask) => ask.lease?.upstream === rig.instance('a').upstream)).toBe(true);
    expect(rig.scheduler.status('a')).toMatchObject({ value: 'loaded', waiting: 0, inFlight: 30 });
  });

  it('loads different models side by side while slots are free (the native router: one after another)', async () => {
    const rig = new Rig({ modelsMax: 3 });
    for (const model of ['a', 'b', 'c']) await rig.ask(model);
    expect(rig.alive.map(({ modelId, state }) => [modelId, state.name])).toEqual([
      ['a', 'loading'],
      ['b', 'loading'],
      ['c', 'loading'],
    ]);
  });

  it('has no limit when the limit is 0', async () => {
    const rig = new Rig({ modelsMax: 0 });
    const models = Array.from({ length: 40 }, (_, n) => `model-${n}`);
    for (const model of models) await rig.ask(model);
    expect(rig.launches).toEqual(models);
  });

  it('swaps three times, not six, when requests for a, b, c, a, b, c meet at one slot', async () => {
    const rig = new Rig();
    const asks: Ask[] = [];
    for (const model of ['a', 'b', 'c', 'a', 'b', 'c']) asks.push(await rig.ask(model));
    for (const model of ['a', 'b', 'c']) {
      rig.instance(model).becomesReady();
      await settled();
      for (const ask of asks.filter((each) => each.model === model)) ask.finish();
      rig.instance(model).exits();
      await settled();
    }
    expect(rig.launches).toEqual(['a', 'b', 'c']);
    expect(asks.every(({ lease }) => lease !== undefined)).toBe(true);
  });

  it('goes on with a load whose last waiter has left, and then has an ordinary idle victim', async () => {
    const rig = new Rig();
    const gone = await rig.ask('a');
    gone.leave();
    await settled();
    expect(gone.error?.code).toBe('client_gone');
    expect(rig.instance('a').state.name).toBe('loading');

    const next = await rig.ask('b');
    expect(rig.instance('a').stopReason).toBeUndefined();
    rig.instance('a').becomesReady();
    expect(rig.instance('a').stopReason).toBe('evicted');
    rig.instance('a').exits();
    rig.instance('b').becomesReady();
    await settled();
    expect(next.lease).toBeDefined();
  });

  it('loads nothing for waiters whose clients have left', async () => {
    const rig = new Rig();
    const busy = await rig.askAndLoad('a');
    const asks = [await rig.ask('b'), await rig.ask('b')];
    for (const ask of asks) ask.leave();
    busy.finish();
    await settled();
    expect(asks.map(({ error }) => error?.code)).toEqual(['client_gone', 'client_gone']);
    expect(rig.launches).toEqual(['a']);
    expect(rig.instance('a').stopReason).toBeUndefined();
  });

  it('still loads for those who stay when one of several clients leaves', async () => {
    const rig = new Rig();
    const busy = await rig.askAndLoad('a');
    const [leaver, stayer] = [await rig.ask('b'), await rig.ask('b')];
    leaver.leave();
    busy.finish();
    rig.instance('a').exits();
    rig.instance('b').becomesReady();
    await settled();
    expect(stayer.lease).toBeDefined();
  });

  it('refuses at once a client that had left before it was asked', async () => {
    const rig = new Rig();
    const signal = AbortSignal.abort();
    await expect(rig.scheduler.acquire('a', signal, { autoload: true, wake: true })).rejects.toMatchObject({
      code: 'client_gone',
    });
    expect(rig.launches).toEqual([]);
  });
});

describe('models that fail', () => {
  it('tells every waiter why a load failed and is not wedged by it, also with waiters that came late', async () => {
    const rig = new Rig();
    const early = await Promise.all(Array.from({ length: 16 }, () => rig.ask('broken')));
    const other = await rig.ask('sound');
    const late = await Promise.all(Array.from({ length: 16 }, () => rig.ask('broken')));
    rig.instance('broken').exits();
    await settled();
    for (const { error } of [...early, ...late]) {
      expect(error?.code).toBe('load_failed');
      expect(error?.status).toBe(503);
      expect(error?.message).toContain('unknown model architecture');
      expect(error?.details.lastLines).toEqual(['loading model', 'unknown model architecture']);
      expect(error?.headers).toHaveProperty('Retry-After');
    }
    expect(rig.launches).toEqual(['broken', 'sound']);
    rig.instance('sound').becomesReady();
    await settled();
    expect(other.lease).toBeDefined();
  });

  it('gives the slot of a model that cannot even be launched to the next in line at once', async () => {
    const rig = new Rig();
    const busy = await rig.askAndLoad('a');
    rig.unlaunchable.add('broken');
    const broken = await rig.ask('broken');
    const sound = await rig.ask('sound');
    busy.finish();
    rig.instance('a').exits();
    await settled();
    expect(broken.error?.code).toBe('load_failed');
    expect(broken.error?.message).toContain('no such file');
    expect(rig.launches).toEqual(['a', 'sound']);
    expect(sound.isWaiting).toBe(true);
  });

  it('tries a failed model again for the next request', async () => {
    const rig = new Rig();
    await rig.ask('a');
    rig.instance('a').exits();
    await settled();
    expect(rig.scheduler.status('a')).toMatchObject({
      value: 'unloaded',
      outcome: { kind: 'failed', phase: 'loading' },
    });
    await rig.askAndLoad('a');
    expect(rig.launches).toEqual(['a', 'a']);
    expect(rig.scheduler.status('a')).toMatchObject({ value: 'loaded', outcome: undefined });
  });

  it('serves by the next instance those who waited while a ready one crashed', async () => {
    const rig = new Rig({ fairAfterMs: 1_000 });
    const streaming = await rig.askAndLoad('a');
    const starving = await rig.ask('b');
    await passes(1_000);
    const withheld = await rig.ask('a');
    rig.instance('a').exits();
    await settled();
    expect(await streaming.lease?.outcomeWithin(0)).toMatchObject({ kind: 'failed', phase: 'running' });
    expect(rig.launches).toEqual(['a', 'b']);
    rig.instance('b').becomesReady();
    await settled();
    starving.finish();
    rig.instance('b').exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(withheld.lease?.upstream).toBe(rig.instance('a').upstream);
  });

  it('does not count the leases of a crashed instance against the next one', async () => {
    const rig = new Rig();
    const broken = await rig.askAndLoad('a');
    rig.instance('a').exits();
    const second = await rig.askAndLoad('a');
    broken.finish();
    expect(rig.scheduler.status('a').inFlight).toBe(1);
    await rig.ask('b');
    expect(rig.instance('a').stopReason).toBeUndefined();
    second.finish();
    expect(rig.instance('a').stopReason).toBe('evicted');
  });
});

describe('eviction', () => {
  it('never evicts a model in the middle of an answer', async () => {
    const rig = new Rig();
    const [first, second] = [await rig.askAndLoad('a'), await rig.ask('a')];
    await rig.ask('b');
    first.finish();
    first.finish();
    await settled();
    expect(rig.instance('a').stopReason).toBeUndefined();
    second.finish();
    expect(rig.instance('a').stopReason).toBe('evicted');
  });

  it('never chooses a loading model as the victim', async () => {
    const rig = new Rig();
    await rig.ask('a', 'load');
    await rig.ask('b');
    await passes(100_000);
    expect(rig.instance('a').stopReason).toBeUndefined();
  });

  it('does not let two requests at once find the same victim', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.loadIdle('a');
    await rig.loadIdle('b');
    const asks = await Promise.all([rig.ask('c'), rig.ask('d')]);
    expect(rig.launched.map(({ stopReason }) => stopReason)).toEqual(['evicted', 'evicted']);
    for (const model of ['a', 'b']) rig.instance(model).exits();
    for (const model of ['c', 'd']) rig.instance(model).becomesReady();
    await settled();
    expect(asks.every(({ lease }) => lease !== undefined)).toBe(true);
  });

  it('stops one victim for one needed slot, however many wait for it', async () => {
    const rig = new Rig({ modelsMax: 3 });
    for (const model of ['a', 'b', 'c']) await rig.loadIdle(model);
    await Promise.all(Array.from({ length: 10 }, () => rig.ask('d')));
    expect(rig.launched.filter(({ stopReason }) => stopReason !== undefined)).toHaveLength(1);
  });

  it('does not pass the limit under concurrency: the loser of the race waits', async () => {
    const rig = new Rig({ modelsMax: 2 });
    const asks = await Promise.all(['a', 'b', 'c', 'd'].map((model) => rig.ask(model)));
    expect(rig.alive).toHaveLength(2);
    expect(asks.every(({ isWaiting }) => isWaiting)).toBe(true);
  });

  it('does not evict a model between loaded and its first request', async () => {
    const rig = new Rig();
    const first = await rig.ask('a');
    const second = await rig.ask('b');
    rig.instance('a').becomesReady();
    expect(rig.instance('a').stopReason).toBeUndefined();
    await settled();
    expect(first.lease).toBeDefined();
    expect(second.isWaiting).toBe(true);
  });

  it('counts recency from the end of the last request, so that a long generation does not end as the oldest', async () => {
    const rig = new Rig({ modelsMax: 2 });
    const long = await rig.askAndLoad('long');
    await passes(10);
    const short = await rig.askAndLoad('short');
    await passes(10);
    short.finish();
    await passes(10);
    long.finish();
    await passes(10);
    await rig.ask('next');
    expect(rig.instance('short').stopReason).toBe('evicted');
    expect(rig.instance('long').stopReason).toBeUndefined();
  });

  it('does not count looking at a model as use', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.loadIdle('old');
    await passes(10);
    await rig.loadIdle('new');
    await passes(10);
    expect(rig.scheduler.status('old').value).toBe('loaded');
    const look = await rig.ask('old', 'look');
    expect(look.lease).toBeDefined();
    look.finish();
    await rig.ask('next');
    expect(rig.instance('old').stopReason).toBe('evicted');
  });

  it('evicts a sleeping model like any idle one, and gives leases on it without loading it anew', async () => {
    const rig = new Rig();
    const instance = await rig.loadIdle('a');
    instance.fallsAsleep();
    const waker = await rig.ask('a');
    expect(waker.lease?.upstream).toBe(instance.upstream);
    instance.wakes();
    await rig.ask('b');
    expect(instance.stopReason).toBeUndefined();
    waker.finish();
    expect(instance.stopReason).toBe('evicted');
  });

  it('does not count waking up as use', async () => {
    const rig = new Rig({ modelsMax: 2 });
    const old = await rig.loadIdle('old');
    await passes(10);
    await rig.loadIdle('new');
    await passes(10);
    old.fallsAsleep();
    old.wakes();
    old.becomesReady();
    await rig.ask('next');
    expect(old.stopReason).toBe('evicted');
  });

  it('serves by the next instance a request that meets a stopping one', async () => {
    const rig = new Rig();
    const first = await rig.loadIdle('a');
    const other = await rig.ask('b');
    expect(first.state.name).toBe('stopping');
    const again = await rig.ask('a');
    expect(again.isWaiting).toBe(true);
    first.exits();
    rig.instance('b').becomesReady();
    await settled();
    other.finish();
    rig.instance('b').exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(rig.launches).toEqual(['a', 'b', 'a']);
    expect(again.lease?.upstream).toBe(rig.instance('a').upstream);
  });
});

describe('fairness', () => {
  it('lets steady traffic to a loaded model starve a queued one no longer than fair-after', async () => {
    const rig = new Rig({ fairAfterMs: 1_000 });
    let traffic = await rig.askAndLoad('a');
    const starving = await rig.ask('b');
    for (let waited = 0; waited < 1_000; waited += 100) {
      traffic = await handOver(traffic, () => rig.ask('a'));
      expect(traffic.lease, `after ${waited} ms`).toBeDefined();
      await passes(100);
    }
    const withheld = await rig.ask('a');
    expect(withheld.isWaiting).toBe(true);
    traffic.finish();
    rig.instance('a').exits();
    rig.instance('b').becomesReady();
    await settled();
    expect(starving.lease).toBeDefined();

    starving.finish();
    rig.instance('b').exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(withheld.lease).toBeDefined();
  });

  it('does not let a model that became ready when another was starving already go on for ever', async () => {
    const rig = new Rig({ fairAfterMs: 1_000 });
    const first = await rig.ask('a');
    await rig.ask('b');
    await passes(5_000);
    rig.instance('a').becomesReady();
    await settled();
    expect(first.lease).toBeDefined();
    expect(rig.scheduler.tryAcquire('a', { wake: true })).toBeUndefined();
    first.finish();
    expect(rig.instance('a').stopReason).toBe('evicted');
  });

  it('gives leases again on a model that was withheld once nobody starves', async () => {
    const rig = new Rig({ fairAfterMs: 1_000 });
    await rig.askAndLoad('a');
    const starving = await rig.ask('b');
    await passes(1_000);
    const withheld = await rig.ask('a');
    expect(withheld.isWaiting).toBe(true);
    starving.leave();
    await settled();
    expect(withheld.lease).toBeDefined();
    expect(rig.scheduler.tryAcquire('a', { wake: true })).toBeDefined();
  });

  it('withholds one model for one that starves, the one that has been ready longest', async () => {
    const rig = new Rig({ modelsMax: 2, fairAfterMs: 1_000 });
    await rig.askAndLoad('young-name-old-age');
    await passes(10);
    await rig.askAndLoad('a');
    await rig.ask('b');
    await passes(1_000);
    expect(rig.scheduler.tryAcquire('young-name-old-age', { wake: true })).toBeUndefined();
    expect(rig.scheduler.tryAcquire('a', { wake: true })).toBeDefined();
  });

  it('does not withhold a model from those who came before the one that starves', async () => {
    const rig = new Rig({ modelsMax: 2, fairAfterMs: 1_000 });
    await rig.askAndLoad('a');
    await passes(10);
    const busy = await rig.askAndLoad('x');
    await rig.ask('first');
    await passes(1_000);
    const early = await rig.ask('a');
    expect(early.isWaiting).toBe(true);
    await rig.ask('late');
    await passes(1_000);
    // A slot for the first comes free elsewhere; the early one no longer has anybody before it.
    busy.finish();
    await settled();
    expect(rig.instance('x').stopReason).toBe('evicted');
    expect(early.lease).toBeDefined();
  });

  it('waits for as long as it takes when the answer in progress is a long one', async () => {
    const rig = new Rig({ fairAfterMs: 1_000, queueTimeoutMs: 1_000_000 });
    const long = await rig.askAndLoad('a');
    const starving = await rig.ask('b');
    await passes(500_000);
    expect(rig.instance('a').stopReason).toBeUndefined();
    expect(starving.isWaiting).toBe(true);
    long.finish();
    expect(rig.instance('a').stopReason).toBe('evicted');
  });
});

describe('the queue', () => {
  it('refuses with 429 and Retry-After what it has no room for, and takes the next when somebody left', async () => {
    const rig = new Rig({ queueMax: 2 });
    await rig.askAndLoad('busy');
    const [first, second] = [await rig.ask('a'), await rig.ask('b')];
    const refused = await rig.ask('c');
    expect(refused.error?.code).toBe('queue_full');
    expect(refused.error?.status).toBe(429);
    expect(Number(refused.error?.headers['Retry-After'])).toBeGreaterThanOrEqual(1);
    expect([first.isWaiting, second.isWaiting]).toEqual([true, true]);

    first.leave();
    await settled();
    expect((await rig.ask('c')).isWaiting).toBe(true);
  });

  it('does not refuse requests for a loaded model because others are waiting', async () => {
    const rig = new Rig({ queueMax: 1 });
    await rig.askAndLoad('busy');
    await rig.ask('a');
    expect((await rig.ask('busy')).lease).toBeDefined();
  });

  it('ends a wait for a slot after queue-timeout with 503 and Retry-After', async () => {
    const rig = new Rig({ queueTimeoutMs: 5_000 });
    await rig.askAndLoad('busy');
    const ask = await rig.ask('a');
    await passes(4_999);
    expect(ask.isWaiting).toBe(true);
    await passes(1);
    expect(ask.error?.code).toBe('queue_timeout');
    expect(ask.error?.status).toBe(503);
    expect(Number(ask.error?.headers['Retry-After'])).toBeGreaterThanOrEqual(1);
    expect(rig.scheduler.waiting).toBe(0);
  });

  it('leaves the wait for a load in progress to the bound of that load', async () => {
    const rig = new Rig({ queueTimeoutMs: 5_000 });
    const first = await rig.ask('slow');
    await passes(4_000);
    const late = await rig.ask('slow');
    await passes(50_000);
    rig.instance('slow').becomesReady();
    await settled();
    expect(first.lease).toBeDefined();
    expect(late.lease).toBeDefined();
  });

  it('announces a model as queued once, and not for a request that it refuses', async () => {
    const rig = new Rig({ queueMax: 1 });
    await rig.askAndLoad('busy');
    await rig.ask('a');
    await rig.ask('a');
    const queued = rig.events.filter(({ type }) => type === 'model.queued');
    expect(queued).toEqual([
      { type: 'model.queued', model: 'busy', position: 1 },
      { type: 'model.queued', model: 'a', position: 1 },
    ]);
  });
});

describe('requests that load nothing (autoload=false)', () => {
  it('are refused when the model is not running or is stopping', async () => {
    const rig = new Rig();
    expect((await rig.ask('a', 'look')).error?.code).toBe('model_not_loaded');
    await rig.loadIdle('a');
    rig.scheduler.unload('a');
    expect((await rig.ask('a', 'look')).error?.code).toBe('model_not_loaded');
    expect(rig.launches).toEqual(['a']);
  });

  it('wait for a load in progress', async () => {
    const rig = new Rig();
    await rig.ask('a');
    const look = await rig.ask('a', 'look');
    rig.instance('a').becomesReady();
    await settled();
    expect(look.lease).toBeDefined();
  });

  it.each(['is evicted for one that starves', 'crashes'])(
    'do not load a model anew when it %s while they wait',
    async (how) => {
      const rig = new Rig({ fairAfterMs: 1_000 });
      const busy = await rig.askAndLoad('a');
      await rig.ask('b');
      await passes(1_000);
      const look = await rig.ask('a', 'look');
      expect(look.isWaiting).toBe(true);
      if (how !== 'crashes') busy.finish();
      rig.instance('a').exits();
      await settled();
      expect(look.error?.code).toBe('model_not_loaded');
      rig.instance('b').exits();
      expect(rig.launches).toEqual(['a', 'b']);
    },
  );
});

describe('explicit loads', () => {
  it('settle when the child is spawned, not when it is ready', async () => {
    const rig = new Rig();
    const load = await rig.ask('a', 'load');
    expect(load.loaded).toBe(false);
    rig.instance('a').spawns();
    await settled();
    expect(load.loaded).toBe(true);
    expect(rig.instance('a').state.name).toBe('loading');
  });

  it('wait for their turn at the limit instead of failing', async () => {
    const rig = new Rig();
    const busy = await rig.askAndLoad('busy');
    const load = await rig.ask('a', 'load');
    expect(load.isWaiting).toBe(true);
    busy.finish();
    rig.instance('busy').exits();
    rig.instance('a').spawns();
    await settled();
    expect(load.loaded).toBe(true);
  });

  it('are withdrawn when their client leaves', async () => {
    const rig = new Rig();
    const busy = await rig.askAndLoad('busy');
    const load = await rig.ask('a', 'load');
    load.leave();
    busy.finish();
    await settled();
    expect(load.error?.code).toBe('client_gone');
    expect(rig.launches).toEqual(['busy']);
    expect(rig.instance('busy').stopReason).toBeUndefined();
  });

  it('do not miss that the victim is gone when it is wanted again at once', async () => {
    const rig = new Rig();
    const victim = await rig.loadIdle('victim');
    const load = await rig.ask('a', 'load');
    await rig.ask('victim');
    victim.exits();
    rig.instance('a').spawns();
    await settled();
    expect(load.loaded).toBe(true);
    expect(rig.launches).toEqual(['victim', 'a']);
  });

  it('are refused for a model that is loading or ready, and take their turn for one that is stopping', async () => {
    const rig = new Rig();
    await rig.ask('a');
    expect((await rig.ask('a', 'load')).error?.code).toBe('model_already_running');
    rig.instance('a').becomesReady();
    await settled();
    expect((await rig.ask('a', 'load')).error?.code).toBe('model_already_running');

    rig.scheduler.unload('a');
    const load = await rig.ask('a', 'load');
    expect(load.isWaiting).toBe(true);
  });

  it('do not hold the model: it is idle when it is ready', async () => {
    const rig = new Rig();
    await rig.ask('a', 'load');
    rig.instance('a').becomesReady();
    await rig.ask('b');
    expect(rig.instance('a').stopReason).toBe('evicted');
  });
});

describe('explicit unloads', () => {
  it('stop an idle model at once and say so when there is nothing to unload', async () => {
    const rig = new Rig();
    expect(() => rig.scheduler.unload('a')).toThrow('model is not running');
    const instance = await rig.loadIdle('a');
    rig.scheduler.unload('a');
    expect(instance.stopReason).toBe('unloaded');
    instance.exits();
    expect(() => rig.scheduler.unload('a')).toThrow('model is not running');
  });

  it('of a model that is on its way out change nothing: it is listed as before, so they are no mistake', async () => {
    const rig = new Rig({ drainTimeoutMs: 2_000 });
    await rig.askAndLoad('a');
    const instance = rig.instance('a');
    rig.scheduler.unload('a');
    await passes(1_000);
    rig.scheduler.unload('a');
    await passes(1_000);
    expect(instance.stopReason).toBe('unloaded');
    expect(rig.scheduler.status('a').value).toBe('loaded');
    for (const force of [false, true]) rig.scheduler.unload('a', { force });
    instance.exits();
    expect(rig.scheduler.status('a').value).toBe('unloaded');
  });

  it('let requests in flight end, while new ones wait for the next instance', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    const first = rig.instance('a');
    rig.scheduler.unload('a');
    expect(first.stopReason).toBeUndefined();
    const next = await rig.ask('a');
    expect(next.isWaiting).toBe(true);

    streaming.finish();
    expect(first.stopReason).toBe('unloaded');
    first.exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(next.lease?.upstream).toBe(rig.instance('a').upstream);
    expect(next.lease?.upstream).not.toBe(first.upstream);
  });

  it('wait for requests in flight no longer than drain-timeout', async () => {
    const rig = new Rig({ drainTimeoutMs: 2_000 });
    const streaming = await rig.askAndLoad('a');
    rig.scheduler.unload('a');
    await passes(1_999);
    expect(rig.instance('a').stopReason).toBeUndefined();
    await passes(1);
    expect(rig.instance('a').stopReason).toBe('unloaded');
    expect(streaming.holdsLease).toBe(true);
  });

  it('leave no timer behind when the child crashes while it is drained', async () => {
    const rig = new Rig();
    await rig.askAndLoad('a');
    rig.scheduler.unload('a');
    expect(vi.getTimerCount()).toBe(1);
    rig.instance('a').exits();
    expect(vi.getTimerCount()).toBe(0);
  });

  it('of a loading model tell those who wait for that load, and serve those who come later', async () => {
    const rig = new Rig();
    const waiter = await rig.ask('a');
    rig.scheduler.unload('a');
    const later = await rig.ask('a');
    expect(waiter.error?.code).toBe('model_unloaded_meanwhile');
    rig.instance('a').exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(later.lease).toBeDefined();
  });

  it('that take long do not keep other models from a slot that an idle one can give', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.askAndLoad('draining');
    await rig.loadIdle('idle');
    rig.scheduler.unload('draining');
    await rig.ask('next');
    expect(rig.instance('idle').stopReason).toBe('evicted');
    rig.instance('idle').exits();
    expect(rig.launches).toEqual(['draining', 'idle', 'next']);
  });

  it('of a model that was held for one that starves have another held at once', async () => {
    const rig = new Rig({ modelsMax: 2, fairAfterMs: 1_000 });
    await rig.askAndLoad('a');
    await rig.askAndLoad('b');
    await rig.ask('starving');
    await passes(1_000);
    expect((await rig.ask('b')).holdsLease).toBe(true);
    rig.scheduler.unload('a');
    expect((await rig.ask('b')).isWaiting).toBe(true);
  });

  it('do not cost an idle model its slot when the same model is wanted again', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.askAndLoad('draining');
    await rig.loadIdle('idle');
    rig.scheduler.unload('draining');
    await rig.ask('draining');
    expect(rig.instance('idle').stopReason).toBeUndefined();
  });
});

describe('a new catalog', () => {
  it('stops an idle instance of a changed model; the next request starts the new form', async () => {
    const rig = new Rig();
    await rig.loadIdle('a');
    const old = rig.instance('a');
    rig.publish({ a: 'second form' });
    expect(old.stopReason).toBe('changed');
    expect(rig.launches).toEqual(['a']);

    const next = await rig.ask('a');
    old.exits();
    await settled();
    rig.instance('a').becomesReady();
    await settled();
    expect(rig.launches).toEqual(['a', 'a']);
    expect(next.lease?.upstream).toBe(rig.instance('a').upstream);
  });

  it('lets a busy instance of a changed model end its requests, and takes no new one in its old form', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    const old = rig.instance('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    expect(old.stopReason).toBeUndefined();
    expect(next.isWaiting).toBe(true);

    streaming.finish();
    expect(old.stopReason).toBe('changed');
    old.exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(rig.launches).toEqual(['a', 'a']);
    expect(next.lease?.upstream).toBe(rig.instance('a').upstream);
  });

  it('refuses those who have waited fair-after for the old form to end, saying so; the old requests go on', async () => {
    const rig = new Rig({ fairAfterMs: 2_000 });
    const streaming = await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    await passes(1_999);
    expect(next.isWaiting).toBe(true);
    await passes(1);
    expect(next.error?.code).toBe('model_changing');
    expect(next.error?.headers).toHaveProperty('Retry-After');
    expect(streaming.holdsLease).toBe(true);
    expect(rig.instance('a').stopReason).toBeUndefined();
  });

  it('bounds the wait for the new form by queue-timeout once the old one is stopping', async () => {
    const rig = new Rig({ fairAfterMs: 2_000, queueTimeoutMs: 10_000 });
    const streaming = await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    streaming.finish();
    await passes(9_999);
    expect(next.isWaiting).toBe(true);
    await passes(1);
    expect(next.error?.code).toBe('queue_timeout');
  });

  it('goes on with an instance whose change is taken back, and serves those who waited', async () => {
    const rig = new Rig();
    await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    rig.publish({ a: firstForm });
    await settled();
    expect(next.lease?.upstream).toBe(rig.instance('a').upstream);
    expect(rig.instance('a').stopReason).toBeUndefined();
  });

  it('starts a load anew whose model changes, and keeps those who wait for it', async () => {
    const rig = new Rig();
    const waiter = await rig.ask('a');
    const old = rig.instance('a');
    rig.publish({ a: 'second form' });
    expect(old.stopReason).toBe('changed');
    old.exits();
    rig.instance('a').becomesReady();
    await settled();
    expect(rig.launches).toEqual(['a', 'a']);
    expect(waiter.lease?.upstream).toBe(rig.instance('a').upstream);
  });

  it('lets the instance of a model that went finish its requests, and refuses those who wait for such a model', async () => {
    const rig = new Rig({ modelsMax: 1 });
    const streaming = await rig.askAndLoad('a');
    const waiter = await rig.ask('b');
    rig.publish({ a: gone, b: gone });
    await settled();
    expect(waiter.error?.code).toBe('model_unknown');
    expect(rig.instance('a').stopReason).toBeUndefined();
    streaming.finish();
    expect(rig.instance('a').stopReason).toBe('removed');
  });

  it('lets an unload bound the wait for the requests of a changed model', async () => {
    const rig = new Rig({ drainTimeoutMs: 2_000 });
    await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    rig.scheduler.unload('a');
    await passes(2_000);
    expect(rig.instance('a').stopReason).toBe('unloaded');
  });

  it('forgets how the last run of a changed model ended, and all of one that went', async () => {
    const rig = new Rig({ modelsMax: 3 });
    for (const model of ['changed', 'gone', 'same']) {
      await rig.ask(model);
      rig.instance(model).exits();
    }
    rig.publish({ changed: 'second form', gone });
    const { port } = rig.instance('changed');
    expect(rig.scheduler.status('changed')).toMatchObject({ port, outcome: undefined });
    expect(rig.scheduler.status('gone')).toMatchObject({ port: 0, outcome: undefined });
    expect(rig.scheduler.status('same').outcome).toBeDefined();
  });

  it('says nothing of a failure that only an old form has had', async () => {
    const rig = new Rig({ modelsMax: 2 });
    for (const model of ['changed', 'same']) {
      await rig.askAndLoad(model);
      rig.publish({ changed: 'second form' });
      rig.instance(model).exits();
    }
    expect(rig.scheduler.status('changed').outcome).toBeUndefined();
    expect(rig.scheduler.status('same').outcome?.kind).toBe('failed');
  });

  it('refuses at once who comes for a model that went a moment ago, and evicts nothing for it', async () => {
    const rig = new Rig({ modelsMax: 1 });
    const idle = await rig.loadIdle('b');
    rig.publish({ a: gone });
    const [request, load] = [await rig.ask('a'), await rig.ask('a', 'load')];
    expect([request.error?.code, load.error?.code]).toEqual(['model_unknown', 'model_unknown']);
    expect(idle.stopReason).toBeUndefined();
  });

  it('refuses at once who comes for a model that went while its last requests are being answered', async () => {
    const rig = new Rig();
    await rig.askAndLoad('a');
    rig.publish({ a: gone });
    expect((await rig.ask('a')).error?.code).toBe('model_unknown');
  });

  it('does not begin the wait for an old form anew when the next catalog comes', async () => {
    const rig = new Rig({ fairAfterMs: 2_000 });
    await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    await passes(1_500);
    rig.publish({ a: 'third form' });
    await passes(500);
    expect(next.error?.code).toBe('model_changing');
  });

  it('bounds by fair-after also the waits that began before the change', async () => {
    const rig = new Rig({ fairAfterMs: 2_000 });
    await rig.askAndLoad('a');
    await rig.ask('b');
    await passes(2_000);
    const held = await rig.ask('a');
    await passes(1_500);
    rig.publish({ a: 'second form' });
    await passes(1_999);
    expect(held.isWaiting).toBe(true);
    await passes(1);
    expect(held.error?.code).toBe('model_changing');
  });

  it('blames queue-timeout when that is over before fair-after', async () => {
    const rig = new Rig({ fairAfterMs: 2_000, queueTimeoutMs: 1_000 });
    await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    await passes(1_000);
    expect(next.error?.code).toBe('queue_timeout');
  });

  it.each([
    ['taken back while the model is held for another', (rig: Rig) => rig.publish({ a: firstForm })],
    ['overtaken by an unload', (rig: Rig) => rig.scheduler.unload('a')],
    ['overtaken by a crash', (rig: Rig) => rig.instance('a').exits()],
  ])('does not blame a change that is %s', async (_, overtakes) => {
    const rig = new Rig({ fairAfterMs: 2_000, queueTimeoutMs: 10_000 });
    await rig.askAndLoad('a');
    const first = await rig.ask('b');
    await passes(2_000);
    rig.publish({ a: 'second form' });
    const next = await rig.ask('a');
    overtakes(rig);
    await passes(2_000);
    expect([first.isWaiting, next.isWaiting]).toEqual([true, true]);
  });

  it('bounds a wait by queue-timeout however often the model that loads for it changes', async () => {
    const rig = new Rig({ queueTimeoutMs: 10_000 });
    const waiter = await rig.ask('a');
    for (const form of ['second form', 'third form', 'fourth form']) {
      await passes(3_000);
      rig.publish({ a: form });
      rig.instance('a').exits();
    }
    await passes(3_000);
    expect(rig.launches).toHaveLength(4);
    expect(waiter.isWaiting).toBe(true);
    rig.publish({ a: 'fifth form' });
    await passes(1);
    expect(waiter.error?.code).toBe('queue_timeout');
  });

  it('serves an explicit load by the instance whose change is taken back, without a hold on it', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const load = await rig.ask('a', 'load');
    expect(load.isWaiting).toBe(true);
    rig.publish({ a: firstForm });
    await settled();
    expect(load.loaded).toBe(true);
    streaming.finish();
    expect(rig.scheduler.inFlight).toBe(0);
  });

  it('starts a model for an explicit load when its change is taken back too late, the old form stopping already', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    const load = await rig.ask('a', 'load');
    streaming.finish();
    rig.publish({ a: firstForm });
    await settled();
    expect(load.isWaiting).toBe(true);
    rig.instance('a').exits();
    rig.instance('a').spawns();
    await settled();
    expect(load.loaded).toBe(true);
    expect(rig.launches).toEqual(['a', 'a']);
  });

  it('does not take back an unload with the change', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    rig.publish({ a: 'second form' });
    rig.scheduler.unload('a');
    rig.publish({ a: firstForm });
    expect((await rig.ask('a')).isWaiting).toBe(true);
    streaming.finish();
    expect(rig.instance('a').stopReason).toBe('unloaded');
  });

  it('admits nobody to an old form while the many changes of one catalog are carried out', async () => {
    const rig = new Rig({ modelsMax: 2, fairAfterMs: 1_000 });
    await rig.ask('loading');
    await rig.askAndLoad('busy');
    await rig.ask('starving');
    await passes(1_000);
    const held = await rig.ask('busy');
    // The end of the load is the slot that `busy` was held for.
    rig.publish({ loading: gone, busy: 'second form' });
    await settled();
    expect(held.isWaiting).toBe(true);
    expect(rig.scheduler.status('busy').inFlight).toBe(1);
  });

  it('leaves other models and what runs as it would be started alone', async () => {
    const rig = new Rig({ modelsMax: 2 });
    const streaming = await rig.askAndLoad('a');
    await rig.loadIdle('b');
    rig.publish({ c: 'second form' });
    expect(rig.launched.map(({ stopReason }) => stopReason)).toEqual([undefined, undefined]);
    expect((await rig.ask('a')).lease).toBeDefined();
    expect(streaming.holdsLease).toBe(true);
  });
});

describe('the end', () => {
  it('refuses those who wait and those who come, and lets requests in flight go on', async () => {
    const rig = new Rig();
    const streaming = await rig.askAndLoad('a');
    const [waiter, load] = [await rig.ask('b'), await rig.ask('c', 'load')];
    rig.scheduler.close();
    await settled();
    const late = [await rig.ask('a'), await rig.ask('d'), await rig.ask('d', 'load')];
    for (const { error } of [waiter, load, ...late]) {
      expect(error?.code).toBe('shutting_down');
      expect(error?.status).toBe(503);
    }
    expect(rig.scheduler.tryAcquire('a', { wake: true })).toBeUndefined();
    expect(streaming.holdsLease).toBe(true);
    expect(rig.instance('a').stopReason).toBeUndefined();
  });

  it('is reached when the last request in flight has ended', async () => {
    const rig = new Rig({ modelsMax: 2 });
    const streaming = [await rig.askAndLoad('a'), await rig.askAndLoad('b')];
    rig.scheduler.close();
    let idle = false;
    const wait = rig.scheduler.idleWithin(60_000).then(() => (idle = true));
    for (const ask of streaming) {
      await settled();
      expect(idle).toBe(false);
      ask.finish();
    }
    await wait;
    expect(rig.scheduler.inFlight).toBe(0);
  });

  it('does not wait for a request that never ends', async () => {
    const rig = new Rig();
    await rig.askAndLoad('a');
    let idle = false;
    void rig.scheduler.idleWithin(60_000).then(() => (idle = true));
    await passes(59_999);
    expect(idle).toBe(false);
    await passes(1);
    expect(idle).toBe(true);
  });

  it('stops every instance, also loading ones, and settles when all are gone', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.askAndLoad('a');
    await rig.ask('b');
    let gone = false;
    const stopped = rig.scheduler.stopAll().then(() => (gone = true));
    expect(rig.launched.map(({ stopReason }) => stopReason)).toEqual(['shutdown', 'shutdown']);
    rig.instance('a').exits();
    await settled();
    expect(gone).toBe(false);
    rig.instance('b').exits();
    await stopped;
    expect(rig.launches).toEqual(['a', 'b']);
  });

  it('comes at once when everything is to be killed', async () => {
    const rig = new Rig({ modelsMax: 2 });
    await rig.askAndLoad('a');
    await rig.ask('b');
    rig.scheduler.killAll();
    expect(rig.launched.map(({ killed }) => killed)).toEqual([true, true]);
  });
});
