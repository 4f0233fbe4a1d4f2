import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import { passes, Rig, settled, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => {
  vi.useRealTimers();
});

const deleted = new RouterError('model_not_running', 'it is being deleted');

async function readyRig(): Promise<Rig> {
  const rig = new Rig({ modelsMax: 2 });
  const first = await rig.ask('a');
  rig.instance('a').becomesReady();
  await settled();
  first.finish();
  return rig;
}

describe('attaching to what runs', () => {
  it('gives a lease also on an instance that takes no new requests, and none on one that stops', async () => {
    const rig = await readyRig();
    const busy = await rig.ask('a');
    rig.scheduler.unload('a');
    expect(rig.scheduler.tryAcquire('a', { wake: true })).toBeUndefined();
    const attached = rig.scheduler.tryAttach('a');
    expect(attached?.upstream).toBe(rig.instance('a').upstream);
    busy.finish();
    expect(rig.instance('a').stopReason).toBeUndefined();
    attached?.release('use');
    expect(rig.instance('a').stopReason).toBe('unloaded');
    expect(rig.scheduler.tryAttach('a')).toBeUndefined();
  });

  it('gives none on one that loads, and loads nothing', async () => {
    const rig = new Rig();
    expect(rig.scheduler.tryAttach('a')).toBeUndefined();
    expect(rig.launches).toEqual([]);
    await rig.ask('a');
    expect(rig.scheduler.tryAttach('a')).toBeUndefined();
  });
});

describe('an unload by force', () => {
  it('stops a busy instance at once, also one that is being drained', async () => {
    const rig = await readyRig();
    await rig.ask('a');
    rig.scheduler.unload('a');
    expect(rig.instance('a').stopReason).toBeUndefined();
    rig.scheduler.unload('a');
    expect(rig.instance('a').stopReason).toBeUndefined();
    rig.scheduler.unload('a', { force: true });
    expect(rig.instance('a').stopReason).toBe('unloaded');
  });
});

describe('a model that is withdrawn', () => {
  it('ends the requests it has, takes no others, and is gone when its process is', async () => {
    const rig = await readyRig();
    const busy = await rig.ask('a');
    let goBack: (() => void) | undefined;
    const withdrawn = rig.scheduler.withdraw('a', deleted).then((undo) => (goBack = undo));
    const late = await rig.ask('a');
    expect(late.error).toBe(deleted);
    busy.finish();
    expect(rig.instance('a').stopReason).toBe('unloaded');
    await settled();
    expect(goBack).toBeUndefined();
    rig.instance('a').exits();
    await withdrawn;
    expect((await rig.ask('a')).error).toBe(deleted);
    expect(rig.launches).toEqual(['a']);

    goBack?.();
    await rig.ask('a');
    expect(rig.launches).toEqual(['a', 'a']);
  });

  it('cuts requests that do not end in time', async () => {
    const rig = await readyRig();
    await rig.ask('a');
    void rig.scheduler.withdraw('a', deleted);
    await passes(59_999);
    expect(rig.instance('a').stopReason).toBeUndefined();
    await passes(1);
    expect(rig.instance('a').stopReason).toBe('unloaded');
  });

  it('tells those who wait for it, and does not go on loading', async () => {
    const rig = new Rig();
    const waiting = await rig.ask('a');
    const withdrawn = rig.scheduler.withdraw('a', deleted);
    await settled();
    expect(waiting.error).toBe(deleted);
    expect(rig.instance('a').stopReason).toBe('unloaded');
    rig.instance('a').exits();
    await withdrawn;
  });

  it('that does not run is gone at once', async () => {
    const rig = new Rig();
    await rig.scheduler.withdraw('a', deleted);
    expect((await rig.ask('a')).error).toBe(deleted);
  });

  it('does not wait for ever for one that has changed and whose requests do not end', async () => {
    const rig = await readyRig();
    await rig.ask('a');
    rig.publish({ a: 'second form' });
    void rig.scheduler.withdraw('a', deleted);
    await passes(60_000);
    expect(rig.instance('a').stopReason).toBeDefined();
  });
});
