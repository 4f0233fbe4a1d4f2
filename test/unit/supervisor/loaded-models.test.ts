import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { EventBus } from '../../../src/events/events.js';
import { LoadedModels, type AbsentModel, type LoadedList } from '../../../src/supervisor/loaded-models.js';

/** Longer than bursts are waited for, and shorter than the order is looked at. Milliseconds. */
const aWhileMs = 5_000;

/** A list whose disk is the test's, and which hears of models what the test tells. */
function rig(
  restored: readonly string[] = [],
  absent: readonly AbsentModel[] = [],
  late?: Promise<LoadedList>,
) {
  const events = new EventBus((error) => {
    throw error;
  });
  const written: (readonly string[])[] = [];
  const writtenAbsent: string[][] = [];
  const back = new Set<string>();
  const cameBack: string[] = [];
  const forgotten: string[] = [];
  const errors: unknown[] = [];
  const usedAt = new Map<string, Date>();
  const disk: { write: () => Promise<void> } = { write: () => Promise.resolve() };
  const loaded = new LoadedModels(
    {
      write: async (list) => {
        await disk.write();
        written.push(list.models);
        writtenAbsent.push(list.absent.map(({ model }) => model));
      },
      comeBack: (model) => {
        if (back.has(model)) cameBack.push(model);
        return Promise.resolve(back.has(model));
      },
      onForgotten: ({ model }) => forgotten.push(model),
      usedAt: (model) => usedAt.get(model),
      onError: (error) => errors.push(error),
    },
    { models: restored, absent, ...(late && { late }) },
  );
  loaded.listenTo(events);
  return {
    loaded,
    events,
    written,
    writtenAbsent,
    cameBack,
    forgotten,
    /** The catalog has these models from now on. */
    finds: (...models: string[]) => {
      for (const model of models) back.add(model);
      events.emit({
        type: 'catalog.changed',
        ...{ added: models, removed: [], changed: [], broken: [], warnings: [] },
      });
    },
    errors,
    disk,
    loads: (...models: string[]) => {
      for (const model of models) events.emit({ type: 'model.loaded', model, loadMs: 1, info: undefined });
    },
    ends: (model: string, reason: string, { failed = false } = {}) =>
      events.emit({ type: 'model.unloaded', model, reason, failed, exitCode: 0, lastLines: [] }),
    uses: (model: string) => usedAt.set(model, new Date()),
    passes: (ms = aWhileMs) => vi.advanceTimersByTimeAsync(ms),
  };
}

describe('the list of loaded models', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('is kept half a second after it has changed, once for a burst of changes', async () => {
    const { written, loads, passes } = rig();
    await passes();
    written.length = 0;
    loads('a', 'b');
    await passes(499);
    loads('c');
    expect(written).toEqual([]);
    await passes(1);
    expect(written).toEqual([['c', 'b', 'a']]);
    await passes();
    expect(written).toHaveLength(1);
  });

  it('has the most recently used first, although no event tells of a use', async () => {
    const { loaded, written, loads, uses, passes } = rig();
    loads('a', 'b', 'c');
    await passes();
    uses('a');
    await passes();
    uses('b');
    expect(loaded.models).toEqual(['b', 'a', 'c']);
    await passes(60_000);
    expect(written.at(-1)).toEqual(['b', 'a', 'c']);
    const times = written.length;
    await passes(600_000);
    expect(written).toHaveLength(times);
  });

  it.each(['unloaded', 'evicted', 'removed'])('is without a model that was %s', async (reason) => {
    const { written, loads, ends, passes } = rig();
    loads('a', 'b');
    ends('b', reason);
    await passes();
    expect(written.at(-1)).toEqual(['a']);
  });

  it.each([
    ['crashed', 'was ended by SIGSEGV', true],
    ['is to be started in another form', 'changed', false],
    ['was ended by a shutdown', 'shutdown', false],
  ])('keeps a model that %s', async (_, reason, failed) => {
    const { written, loads, ends, passes } = rig();
    loads('a', 'b');
    ends('a', reason, { failed });
    await passes();
    expect(written.at(-1)).toEqual(['b', 'a']);
  });

  it('is empty when all were unloaded', async () => {
    const { written, loads, ends, passes } = rig(['a']);
    loads('a', 'b');
    await passes();
    ends('a', 'unloaded');
    ends('b', 'unloaded');
    await passes();
    expect(written.at(-1)).toEqual([]);
  });

  it('is without what was deleted, or is in the catalog no more, also when it was not running', async () => {
    const { written, events, loads, passes } = rig(['gone', 'deleted']);
    loads('a');
    events.emit({
      type: 'catalog.changed',
      ...{ added: [], removed: ['gone'], changed: ['a'], broken: [], warnings: [] },
    });
    events.emit({ type: 'model.removed', model: 'deleted' });
    await passes();
    expect(written.at(-1)).toEqual(['a']);
  });

  it('has from the start what is being restored, which keeps its order until it is used', async () => {
    const { written, loads, uses, passes } = rig(['a', 'b', 'c']);
    loads('c', 'a');
    await passes();
    expect(written).toEqual([['a', 'b', 'c']]);
    uses('c');
    loads('d');
    await passes();
    expect(written.at(-1)).toEqual(['c', 'd', 'a', 'b']);
  });

  it('keeps what was left out at the start, and has it loaded when the catalog has it', async () => {
    const since = new Date().toISOString();
    const absent = ['x', 'y'].map((model) => ({ model, since }));
    const { written, writtenAbsent, cameBack, finds, passes } = rig(['a'], absent);
    await passes();
    expect(writtenAbsent.at(-1)).toEqual(['x', 'y']);
    finds('other');
    expect(cameBack).toEqual([]);
    finds('y');
    finds('later');
    await passes();
    expect(cameBack).toEqual(['y']);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['a', 'y'], ['x']]);
  });

  it('waits no more for what was left out and has been loaded since', async () => {
    const { written, writtenAbsent, cameBack, loads, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date().toISOString() }],
    );
    loads('x');
    finds('x');
    await passes();
    expect(cameBack).toEqual([]);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['x'], []]);
  });

  it('waits no more for what was left out and has been deleted since', async () => {
    const { loaded, events, writtenAbsent, cameBack, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date().toISOString() }],
    );
    events.emit({ type: 'model.removed', model: 'x' });
    finds('x');
    await passes();
    await loaded.close();
    expect(cameBack).toEqual([]);
    expect(writtenAbsent.at(-1)).toEqual([]);
  });

  it('waits no more for what was left out and is called off, or was unloaded while it was loading', async () => {
    const since = new Date().toISOString();
    const { loaded, writtenAbsent, cameBack, ends, finds, passes } = rig(
      [],
      ['called off', 'unloaded', 'away'].map((model) => ({ model, since })),
    );
    expect(loaded.callOff('called off')).toBe(true);
    expect(loaded.callOff('called off')).toBe(false);
    ends('unloaded', 'unloaded');
    finds('called off', 'unloaded');
    await passes();
    expect(cameBack).toEqual([]);
    expect(writtenAbsent.at(-1)).toEqual(['away']);
  });

  it('waits for what was left out as long as there is no room for it, but not longer than a week', async () => {
    const sixDays = 6 * 24 * 3_600_000;
    const { written, writtenAbsent, cameBack, forgotten, finds, passes } = rig(
      ['a'],
      [{ model: 'x', since: new Date(Date.now() - sixDays).toISOString() }],
    );
    finds();
    await passes();
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['a'], ['x']]);
    await vi.advanceTimersByTimeAsync(23 * 3_600_000);
    expect(forgotten).toEqual([]);
    await vi.advanceTimersByTimeAsync(2 * 3_600_000);
    expect(forgotten).toEqual(['x']);
    expect(writtenAbsent.at(-1)).toEqual([]);
    finds('x');
    await passes();
    expect(cameBack).toEqual([]);
  });

  it('does not load what is back only after a week, also when it was not written meanwhile', async () => {
    const { cameBack, forgotten, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date(Date.now() - 8 * 24 * 3_600_000).toISOString() }],
    );
    finds('x');
    await passes(0);
    expect([cameBack, forgotten]).toEqual([[], ['x']]);
  });

  it('is not written before that of the last run is there, whose models then come back', async () => {
    const since = new Date().toISOString();
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { written, writtenAbsent, cameBack, loads, finds, passes } = rig([], [], late);
    finds('a', 'c');
    loads('b');
    await passes(600_000);
    expect(written).toEqual([]);
    arrive({ models: ['a', 'b', 'x'], absent: [{ model: 'c', since }] });
    await passes();
    expect(cameBack).toEqual(['a', 'c']);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['b', 'a', 'c'], ['x']]);
  });

  it('has no model of the last run that was told to go before that list was there', async () => {
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { cameBack, written, loads, ends, finds, passes } = rig([], [], late);
    finds('a', 'b');
    loads('a', 'b');
    ends('a', 'unloaded');
    ends('b', 'evicted');
    loads('b');
    arrive({ models: ['a', 'b'], absent: [] });
    await passes();
    finds();
    await passes();
    expect(cameBack).toEqual([]);
    expect(written.at(-1)).toEqual(['b']);
  });

  it('has what was loaded before it was followed', async () => {
    const { loaded, events, written, passes } = rig(['a'], [{ model: 'b', since: new Date().toISOString() }]);
    loaded.listenTo(events, ['b']);
    await passes();
    expect(written.at(-1)).toEqual(['b', 'a']);
  });

  it('of a run that ends before that of the last one was there is not written, and nothing comes back', async () => {
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { loaded, written, cameBack, loads, finds, passes } = rig([], [], late);
    finds('a');
    loads('b');
    await loaded.close();
    arrive({ models: ['a'], absent: [] });
    await passes(600_000);
    expect([written, cameBack]).toEqual([[], []]);
  });

  it('is kept once more by a shutdown, in its last order, and what that ends does not change it', async () => {
    const { loaded, written, loads, ends, uses, passes } = rig();
    loads('a', 'b');
    uses('a');
    await loaded.close();
    expect(written).toEqual([['a', 'b']]);
    ends('a', 'unloaded');
    uses('b');
    await passes(600_000);
    expect(written).toEqual([['a', 'b']]);
  });

  it('is kept later when it cannot be kept now, and that is told once until it can', async () => {
    const { written, errors, disk, loads, passes } = rig();
    await passes();
    const full = new Error('ENOSPC');
    disk.write = () => Promise.reject(full);
    loads('a');
    await passes();
    loads('b');
    await passes(600_000);
    expect(errors).toEqual([full]);
    disk.write = () => Promise.resolve();
    await passes(60_000);
    expect(written.at(-1)).toEqual(['b', 'a']);
    disk.write = () => Promise.reject(full);
    loads('c');
    await passes();
    expect(errors).toEqual([full, full]);
  });

  it('is written by one at a time, and a disk that does not answer keeps a shutdown two seconds', async () => {
    const { loaded, disk, loads, passes } = rig();
    let writes = 0;
    disk.write = () => {
      writes += 1;
      return new Promise(() => undefined);
    };
    loads('a');
    await passes();
    loads('b');
    await passes();
    let closed = false;
    void loaded.close().then(() => (closed = true));
    await passes(1_999);
    expect(closed).toBe(false);
    await passes(1);
    expect(closed).toBe(true);
    expect(writes).toBe(1);
  });
});
