import { describe, expect, it } from 'vitest';
import type { Model } from '../../../src/models/model.js';
import { OwnLoads } from '../../../src/supervisor/own-loads.js';

/** A scheduler that gives a slot to each load, of so many, and a catalog whose files the test reads. */
function rig({ modelsMax }: { modelsMax: number }) {
  const taken: string[] = [];
  const errors: unknown[] = [];
  const problems = new Map<string, string>();
  const slow = new Map<string, Promise<void>>();
  const calledOff = new Set<string>();
  const loads = new OwnLoads({
    modelsMax,
    catalog: {
      current: { resolve: (id) => ({ id }) as Model },
      vet: async ({ id }) => {
        await slow.get(id);
        return problems.get(id);
      },
    },
    scheduler: {
      get slotsTaken() {
        return taken.length;
      },
      status: (model) =>
        ({ value: taken.includes(model) ? 'loading' : 'unloaded', waiting: 0 }) as ReturnType<
          ConstructorParameters<typeof OwnLoads>[0]['scheduler']['status']
        >,
      load: (model) => {
        taken.push(model);
        return Promise.resolve();
      },
    },
  });
  const onError = (_model: string, error: unknown): void => void errors.push(error);
  return {
    taken,
    errors,
    problems,
    calledOff,
    inOrder: (...models: string[]) => loads.inOrder(models, onError),
    ifItFits: (model: string) => loads.ifItFits(model, () => !calledOff.has(model), onError),
    /** Its files are read until the function that this returns is called. */
    reading: (model: string): (() => void) => {
      let end: () => void = () => undefined;
      slow.set(model, new Promise((resolve) => (end = resolve)));
      return end;
    },
  };
}

describe('loads that nobody asks for', () => {
  it('take as many slots as are left, so that models which come back together do not evict each other', async () => {
    const { taken, ifItFits } = rig({ modelsMax: 2 });
    taken.push('asked for');
    expect([await ifItFits('a'), await ifItFits('b')]).toEqual([true, false]);
    expect(taken).toEqual(['asked for', 'a']);
  });

  it('have no bound where slots have none', async () => {
    const { taken, ifItFits } = rig({ modelsMax: 0 });
    for (const model of ['a', 'b', 'c']) expect(await ifItFits(model)).toBe(true);
    expect(taken).toEqual(['a', 'b', 'c']);
  });

  it('leave the slots to those that are still to be loaded at the start', async () => {
    const { taken, inOrder, ifItFits, reading } = rig({ modelsMax: 2 });
    const read = reading('first');
    const started = inOrder('first', 'second');
    expect([await ifItFits('back'), await ifItFits('second')]).toEqual([false, false]);
    read();
    await started;
    expect(taken).toEqual(['first', 'second']);
  });

  it('take no slot that somebody has taken while the files were read', async () => {
    const { taken, ifItFits, reading } = rig({ modelsMax: 1 });
    const read = reading('back');
    const isLoaded = ifItFits('back');
    taken.push('asked for');
    read();
    expect(await isLoaded).toBe(false);
    expect(taken).toEqual(['asked for']);
  });

  it('do not come when they were called off while the files were read', async () => {
    const { taken, calledOff, ifItFits, reading } = rig({ modelsMax: 0 });
    const read = reading('back');
    const isLoaded = ifItFits('back');
    calledOff.add('back');
    read();
    expect(await isLoaded).toBe(false);
    expect(taken).toEqual([]);
  });

  it('at the start are none for a model that a request has loaded meanwhile', async () => {
    const { taken, errors, inOrder, reading } = rig({ modelsMax: 0 });
    const read = reading('first');
    const started = inOrder('first', 'second');
    taken.push('second');
    read();
    await started;
    expect(taken).toEqual(['second', 'first']);
    expect(errors).toEqual([]);
  });

  it('are none for a model that is loaded already, or whose files are not whole', async () => {
    const { taken, errors, problems, inOrder, ifItFits } = rig({ modelsMax: 0 });
    taken.push('loaded');
    problems.set('cut', 'ends early');
    expect([await ifItFits('loaded'), await ifItFits('cut')]).toEqual([false, false]);
    await inOrder('cut', 'whole');
    expect(taken).toEqual(['loaded', 'whole']);
    expect(errors).toEqual([]);
  });
});
