import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decide, type InstanceView, type QueueView, type Snapshot } from '../../../src/scheduler/decide.js';

const fairAfter = 1_000;
const now = 10_000;

type Views<T> = Partial<Omit<T, 'model'>>;

function instance(model: string, view: Views<InstanceView> = {}): InstanceView {
  return { model, phase: 'ready', leases: 0, lastUsed: 0, readySince: 0, ...view };
}

/** Waiters for the model; by default they have come just now. */
function waiting(model: string, { since = now }: Views<QueueView> = {}): QueueView {
  return { model, since };
}

function decided(
  limit: number,
  instances: InstanceView[],
  queue: QueueView[],
  held: string[] = [],
  cramped: string[] = [],
): ReturnType<typeof decide> {
  return decide({ limit, instances, queue, held, cramped: new Set(cramped), now, fairAfter });
}

const nothing = { admit: [], start: [], stop: [], hold: [] };
const starving = { since: now - fairAfter };
const hardlyWaiting = { since: now - fairAfter + 1 };
const busy = { leases: 1 };

describe('decide, case by case', () => {
  it('does nothing when nobody waits, however full it is', () => {
    expect(decided(1, [instance('a')], [])).toEqual(nothing);
    expect(decided(1, [instance('a', busy)], [])).toEqual(nothing);
  });

  describe('1. an entry whose own instance is on its way, there or back, waits for that', () => {
    it('while it loads, even when an idle instance could be stopped', () => {
      expect(decided(2, [instance('a', { phase: 'loading' }), instance('idle')], [waiting('a')])).toEqual(
        nothing,
      );
    });

    it('while it is drained, even when an idle instance could be stopped', () => {
      const draining = instance('a', { phase: 'draining', leases: 1 });
      expect(decided(2, [draining, instance('idle')], [waiting('a', starving)])).toEqual(nothing);
    });
  });

  describe('2. a free slot starts an entry', () => {
    it('as many as there are slots, in order of arrival', () => {
      const queue = [waiting('c'), waiting('a'), waiting('b')];
      expect(decided(3, [instance('x', busy)], queue)).toEqual({ ...nothing, start: ['c', 'a'] });
    });

    it('any number without a limit', () => {
      const queue = ['c', 'a', 'b'].map((model) => waiting(model));
      expect(decided(0, [instance('x')], queue)).toEqual({ ...nothing, start: ['c', 'a', 'b'] });
    });

    it('but not beside an instance of the same model that is still stopping', () => {
      expect(decided(0, [instance('a', { phase: 'stopping' })], [waiting('a')])).toEqual(nothing);
      expect(decided(2, [instance('a', { phase: 'stopping' })], [waiting('a'), waiting('b')])).toEqual({
        ...nothing,
        start: ['b'],
      });
    });
  });

  describe('2. an entry whose load has run out of memory', () => {
    const leaving = instance('x', { phase: 'stopping' });

    it('does not start while what was stopped for it is still there', () => {
      expect(decided(0, [leaving], [waiting('a')], [], ['a'])).toEqual(nothing);
      expect(decided(0, [leaving], [waiting('a')], [], [])).toEqual({ ...nothing, start: ['a'] });
    });

    it('keeps its slot meanwhile', () => {
      const queue = [waiting('a'), waiting('b'), waiting('c')];
      expect(decided(3, [leaving], queue, [], ['a'])).toEqual({ ...nothing, start: ['b'] });
    });
  });

  describe('3. a slot that is becoming free is promised once', () => {
    it('to the first, while the next gets a victim of its own', () => {
      const instances = [instance('going', { phase: 'stopping' }), instance('idle')];
      expect(decided(2, instances, [waiting('a')])).toEqual(nothing);
      expect(decided(2, instances, [waiting('a'), waiting('b')])).toEqual({ ...nothing, stop: ['idle'] });
    });

    it('but not by an instance that is drained, which can take long', () => {
      const instances = [instance('draining', { phase: 'draining', leases: 1 }), instance('idle')];
      expect(decided(2, instances, [waiting('a')])).toEqual({ ...nothing, stop: ['idle'] });
    });
  });

  describe('4. a victim is stopped', () => {
    it('the least recently used, and of those used at one time the first by id', () => {
      const instances = [
        instance('new', { lastUsed: 2 }),
        instance('old-b', { lastUsed: 1 }),
        instance('old-a', { lastUsed: 1 }),
      ];
      expect(decided(3, instances, [waiting('x')])).toEqual({ ...nothing, stop: ['old-a'] });
    });

    it('one for each entry', () => {
      const instances = [
        instance('a', { lastUsed: 1 }),
        instance('b', { lastUsed: 2 }),
        instance('c', { lastUsed: 3 }),
      ];
      expect(decided(3, instances, [waiting('x'), waiting('y')])).toEqual({ ...nothing, stop: ['a', 'b'] });
    });

    it.each([
      ['busy', instance('a', busy)],
      ['loading', instance('a', { phase: 'loading' })],
      ['drained', instance('a', { phase: 'draining', leases: 1 })],
    ])('not one that is %s', (_, candidate) => {
      expect(decided(1, [candidate], [waiting('x')])).toEqual(nothing);
    });

    it('not one that somebody waits for: between loaded and leased it cannot be taken away', () => {
      expect(decided(1, [instance('a')], [waiting('x', starving), waiting('a')])).toEqual({
        ...nothing,
        admit: ['a'],
      });
    });

    it('but one that was held for an entry, also when others wait for it since', () => {
      const queue = [waiting('x', starving), waiting('a')];
      expect(decided(1, [instance('a')], queue, ['a'])).toEqual({ ...nothing, stop: ['a'] });
    });

    it('not one that was held, for an entry that came after those who wait for it', () => {
      const queue = [waiting('a'), waiting('x')];
      expect(decided(1, [instance('a')], queue, ['a'])).toEqual({ ...nothing, admit: ['a'] });
    });
  });

  describe('5. what keeps an entry waiting for fair-after takes no new leases', () => {
    it('from the very moment on, and not before', () => {
      const instances = [instance('a', busy)];
      expect(decided(1, instances, [waiting('x', hardlyWaiting)])).toEqual(nothing);
      expect(decided(1, instances, [waiting('x', starving)])).toEqual({ ...nothing, hold: ['a'] });
    });

    it('the one that has been ready longest', () => {
      const instances = [
        instance('young', { ...busy, readySince: 2 }),
        instance('old', { ...busy, readySince: 1 }),
      ];
      expect(decided(2, instances, [waiting('x', starving)])).toEqual({ ...nothing, hold: ['old'] });
    });

    it('unless another is held already: that stays the one', () => {
      const instances = [
        instance('old', { ...busy, readySince: 1 }),
        instance('held', { ...busy, readySince: 2 }),
      ];
      expect(decided(2, instances, [waiting('x', starving)], ['held'])).toEqual({
        ...nothing,
        hold: ['held'],
      });
    });

    it('of several that are held the one that was held for the same entry', () => {
      const instances = [
        instance('old', { ...busy, readySince: 1 }),
        instance('young', { ...busy, readySince: 2 }),
      ];
      // If x took the old one now, y could not have the young one, and that would take new leases again.
      const queue = [waiting('x', starving), waiting('young', starving), waiting('y', starving)];
      expect(decided(2, instances, queue, ['young', 'old'])).toEqual({ ...nothing, hold: ['young', 'old'] });
    });

    it('one for each entry that starves', () => {
      const instances = ['a', 'b', 'c'].map((model) => instance(model, busy));
      const queue = [waiting('x', starving), waiting('y', starving), waiting('z', hardlyWaiting)];
      expect(decided(3, instances, queue)).toEqual({ ...nothing, hold: ['a', 'b'] });
    });

    it('not the one that those wait for who came before', () => {
      const instances = [instance('a', busy), instance('b', { ...busy, readySince: 5 })];
      expect(decided(2, instances, [waiting('a', starving), waiting('x', starving)], ['a'])).toEqual({
        ...nothing,
        admit: ['a'],
        hold: ['b'],
      });
    });

    it('no longer, once a slot is promised to the entry', () => {
      const instances = [instance('a', busy), instance('b', { phase: 'stopping' })];
      expect(decided(2, instances, [waiting('x', starving), waiting('a')], ['a'])).toEqual({
        ...nothing,
        admit: ['a'],
      });
    });
  });

  it('6. lets an entry wait when everything is busy or loading', () => {
    const instances = [instance('a', busy), instance('b', { phase: 'loading' })];
    expect(decided(2, instances, [waiting('x')])).toEqual(nothing);
  });

  describe('7. an entry whose instance is ready is admitted', () => {
    it('beside other requests and before those who came earlier for another model', () => {
      const instances = [instance('a', busy), instance('b', busy)];
      expect(decided(2, instances, [waiting('x'), waiting('a'), waiting('b')])).toEqual({
        ...nothing,
        admit: ['a', 'b'],
      });
    });

    it('unless the instance is held for somebody who starves', () => {
      expect(decided(1, [instance('a', busy)], [waiting('x', starving), waiting('a')])).toEqual({
        ...nothing,
        hold: ['a'],
      });
    });
  });
});

const modelIds = ['a', 'b', 'c', 'd', 'e', 'f'];

const anyInstance = (model: string): fc.Arbitrary<InstanceView> =>
  fc
    .record({
      phase: fc.constantFrom<InstanceView['phase'][]>('loading', 'ready', 'ready', 'draining', 'stopping'),
      leases: fc.constantFrom(0, 0, 1, 5),
      // Few different times, so that there are ties.
      lastUsed: fc.integer({ min: 0, max: 3 }),
      readySince: fc.integer({ min: 0, max: 3 }),
    })
    .map((view) => ({ ...view, model, leases: view.phase === 'loading' ? 0 : view.leases }));

/** Any snapshot that keeps the limit; also such as a scheduler would never come to. */
const snapshots: fc.Arbitrary<Snapshot> = fc
  .record({
    running: fc.shuffledSubarray(modelIds, { maxLength: 5 }),
    queued: fc.shuffledSubarray(modelIds),
    spare: fc.nat({ max: 2 }),
    limited: fc.boolean(),
    arrivals: fc.array(fc.integer({ min: now - 2 * fairAfter, max: now }), { minLength: 6, maxLength: 6 }),
  })
  .chain(({ running, queued, spare, limited, arrivals }) =>
    fc.record({
      limit: fc.constant(limited ? running.length + spare : 0),
      instances: fc.tuple(...running.map(anyInstance)),
      queue: fc.constant(inOrderOfArrival(queued, arrivals)),
      held: fc.shuffledSubarray(running),
      cramped: fc.constant(new Set<string>()),
      now: fc.constant(now),
      fairAfter: fc.constant(fairAfter),
    }),
  );

function inOrderOfArrival(models: readonly string[], arrivals: readonly number[]): QueueView[] {
  const times = arrivals.toSorted((a, b) => a - b);
  return models.map((model, place) => waiting(model, { since: times[place] ?? now }));
}

/** Holds for every snapshot. `fc.assert` names the smallest one for which it does not. */
function always(check: (snapshot: Snapshot, decision: ReturnType<typeof decide>) => void): void {
  const runs = { numRuns: 1_000 };
  fc.assert(
    fc.property(snapshots, (snapshot) => check(snapshot, decide(snapshot))),
    runs,
  );
}

const instanceOf = ({ instances }: Snapshot, model: string): InstanceView | undefined =>
  instances.find((one) => one.model === model);

const placeOf = ({ queue }: Snapshot, model: string): number =>
  queue.findIndex((entry) => entry.model === model);

/** Entries that need a slot: nothing of theirs is on its way. */
const needy = (snapshot: Snapshot): readonly QueueView[] =>
  snapshot.queue.filter(({ model }) => {
    const phase = instanceOf(snapshot, model)?.phase;
    return phase === undefined || phase === 'stopping';
  });

const stoppingIn = ({ instances }: Snapshot): number =>
  instances.filter(({ phase }) => phase === 'stopping').length;

describe('decide, always', () => {
  it('starts nothing above the limit, nothing twice, and only what somebody waits for', () => {
    always((snapshot, { start }) => {
      const { limit, instances, queue } = snapshot;
      if (limit > 0) expect(instances.length + start.length).toBeLessThanOrEqual(limit);
      expect(new Set(start).size).toBe(start.length);
      for (const model of start) {
        expect(instanceOf(snapshot, model)).toBeUndefined();
        expect(queue.map((entry) => entry.model)).toContain(model);
      }
    });
  });

  it('stops only what is ready, without leases, and not waited for by anybody who came before', () => {
    always((snapshot, { stop }) => {
      for (const model of stop) {
        const victim = instanceOf(snapshot, model);
        expect(victim).toMatchObject({ phase: 'ready', leases: 0 });
        if (placeOf(snapshot, model) === -1) continue;
        expect(snapshot.held).toContain(model);
        expect(placeOf(snapshot, model)).toBeGreaterThan(placeOf(snapshot, needy(snapshot)[0]?.model ?? ''));
      }
    });
  });

  it('stops no more than one victim for each slot that is needed and not becoming free', () => {
    always((snapshot, { start, stop }) => {
      if (stop.length === 0) return;
      expect(start.length + stoppingIn(snapshot) + stop.length).toBeLessThanOrEqual(needy(snapshot).length);
    });
  });

  it('stops the least recently used of those that nobody waits for', () => {
    always((snapshot, { stop }) => {
      const stopped = snapshot.instances.filter(({ model }) => stop.includes(model));
      const spared = snapshot.instances.filter(
        ({ model, phase, leases }) =>
          phase === 'ready' && leases === 0 && placeOf(snapshot, model) === -1 && !stop.includes(model),
      );
      for (const victim of stopped) {
        for (const other of spared) expect(victim.lastUsed).toBeLessThanOrEqual(other.lastUsed);
      }
    });
  });

  it('leaves nothing idle that nobody waits for while an entry gets no slot', () => {
    always((snapshot, { start, stop }) => {
      if (needy(snapshot).length <= start.length + stoppingIn(snapshot) + stop.length) return;
      const spared = snapshot.instances.filter(
        ({ model, phase, leases }) =>
          phase === 'ready' && leases === 0 && placeOf(snapshot, model) === -1 && !stop.includes(model),
      );
      expect(spared).toEqual([]);
    });
  });

  it('holds only what is busy, one for each entry that starves, and from nobody who came before those', () => {
    always((snapshot, { hold }) => {
      const starvingEntries = needy(snapshot).filter(({ since }) => snapshot.now - since >= fairAfter);
      expect(hold.length).toBeLessThanOrEqual(starvingEntries.length);
      for (const model of hold) {
        const instanceHeld = instanceOf(snapshot, model);
        expect(instanceHeld?.phase).toBe('ready');
        expect(instanceHeld?.leases).toBeGreaterThan(0);
        if (placeOf(snapshot, model) === -1) continue;
        expect(placeOf(snapshot, model)).toBeGreaterThan(placeOf(snapshot, starvingEntries[0]?.model ?? ''));
      }
    });
  });

  it('holds something busy when somebody starves and gets no slot', () => {
    always((snapshot, { start, stop, hold }) => {
      const promised = start.length + stoppingIn(snapshot) + stop.length;
      const first = needy(snapshot)[0];
      if (promised > 0 || first === undefined || snapshot.now - first.since < fairAfter) return;
      const before = placeOf(snapshot, first.model);
      const candidates = snapshot.instances.filter(
        ({ model, phase, leases }) =>
          phase === 'ready' &&
          leases > 0 &&
          (placeOf(snapshot, model) === -1 || placeOf(snapshot, model) > before),
      );
      expect(hold.length > 0).toBe(candidates.length > 0);
    });
  });

  it('keeps to what it holds, whoever comes later', () => {
    always((snapshot, first) => {
      const queued = snapshot.queue.map(({ model }) => model);
      const others = modelIds.filter((model) => !queued.includes(model));
      // Requests for an idle model are admitted at once: they never wait behind what is held.
      const late = others.filter((model) => instanceOf(snapshot, model)?.leases !== 0);
      const queue = [...snapshot.queue, ...late.map((model) => waiting(model, starving))];
      const start = { ...snapshot, held: first.hold };
      const before = decide(start);
      const after = decide({ ...start, queue, held: before.hold });
      expect(after.hold.slice(0, before.hold.length)).toEqual(before.hold);
    });
  });

  it('never passes over an earlier entry that could start for a later one', () => {
    always((snapshot, { start }) => {
      const startable = snapshot.queue
        .map(({ model }) => model)
        .filter((model) => !instanceOf(snapshot, model));
      expect(start).toEqual(startable.slice(0, start.length));
    });
  });

  it('gives the earlier entries the same starts whoever comes after them', () => {
    always((snapshot, { start }) => {
      const front = snapshot.queue.slice(0, Math.ceil(snapshot.queue.length / 2));
      const expected = start.filter((model) => front.some((entry) => entry.model === model));
      expect(decide({ ...snapshot, queue: front }).start).toEqual(expected);
    });
  });

  it('admits, in order of arrival, exactly those whose instance is ready and neither held nor stopped', () => {
    always((snapshot, { admit, hold, stop }) => {
      const expected = snapshot.queue
        .map(({ model }) => model)
        .filter((model) => instanceOf(snapshot, model)?.phase === 'ready')
        .filter((model) => !hold.includes(model) && !stop.includes(model));
      expect(admit).toEqual(expected);
    });
  });

  it('says one thing of each model at most', () => {
    always((_, { admit, start, stop, hold }) => {
      const named = [...admit, ...start, ...stop, ...hold];
      expect(new Set(named).size).toBe(named.length);
    });
  });

  it('starts everything and stops and holds nothing without a limit', () => {
    always((snapshot) => {
      const { start, stop, hold } = decide({ ...snapshot, limit: 0 });
      const startable = snapshot.queue
        .map(({ model }) => model)
        .filter((model) => !instanceOf(snapshot, model));
      expect({ start, stop, hold }).toEqual({ start: startable, stop: [], hold: [] });
    });
  });

  it('decides the same whatever the order of the instances, and changes nothing it was given', () => {
    always((snapshot, decision) => {
      const before = structuredClone(snapshot);
      expect(decide({ ...snapshot, instances: snapshot.instances.toReversed() })).toEqual(decision);
      expect(decide(snapshot)).toEqual(decision);
      expect(snapshot).toEqual(before);
    });
  });
});
