import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  RestartBudget,
  type Failure,
  type RestartBudgetOptions,
} from '../../../src/scheduler/restart-budget.js';
import { restartPaused } from '../../../src/scheduler/restart-refusal.js';

const crash: Failure = { phase: 'running', message: 'was ended by SIGSEGV', lastLines: ['last words'] };

/** Half a random number is no jitter at all. */
const noJitter = 0.5;

const minute = 60_000;

/** A budget whose clock stands until it is moved, and whose dice show what they are told. */
function rig(
  options: Omit<RestartBudgetOptions, 'now' | 'random'> = {},
  roll: () => number = () => noJitter,
) {
  let clockMs = 1_000;
  const budget = new RestartBudget({ ...options, now: () => clockMs, random: roll });
  return {
    budget,
    passMs: (ms: number) => (clockMs += ms),
    /** The pauses after failures that come as soon as they can. Milliseconds. */
    pausesOf: (count: number, model = 'a') =>
      Array.from({ length: count }, () => {
        const pauseMs = budget.failed(model, crash)?.leftMs ?? 0;
        clockMs += pauseMs;
        return pauseMs;
      }),
  };
}

describe('a model that fails again and again', () => {
  it('is started again at once the first time, then after 1, 2, 4 … seconds, and every five minutes in the end', () => {
    const seconds = rig()
      .pausesOf(13)
      .map((ms) => ms / 1000);
    expect(seconds).toEqual([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
  });

  it('is still started every five minutes after it has failed for years', () => {
    expect(rig().pausesOf(3_000).at(-1)).toBe(300_000);
  });

  it('has pauses that are up to a fifth shorter or longer, as the dice fall', () => {
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 30 }), random, (failures, roll) => {
        const pauseMs =
          rig({}, () => roll)
            .pausesOf(failures)
            .at(-1) ?? NaN;
        const plainMs = rig().pausesOf(failures).at(-1) ?? NaN;
        expect(pauseMs).toBeGreaterThanOrEqual(plainMs * 0.8);
        expect(pauseMs).toBeLessThanOrEqual(plainMs * 1.2);
      }),
    );
    expect(rig({}, () => 0).pausesOf(2)).toEqual([0, 800]);
  });

  it('tells what is left of its pause, how often it has failed and how the last time, until the pause is over', () => {
    const { budget, passMs } = rig();
    expect(budget.failed('a', crash)).toBeUndefined();
    expect(budget.pauseOf('a')).toBeUndefined();
    const last: Failure = { phase: 'loading', message: 'exited with code 3', lastLines: [] };
    expect(budget.failed('a', last)).toEqual({ leftMs: 1_000, failures: 2, last });
    passMs(999);
    expect(budget.pauseOf('a')).toEqual({ leftMs: 1, failures: 2, last });
    passMs(1);
    expect(budget.pauseOf('a')).toBeUndefined();
  });

  it('tells how often it has failed, in a pause and after it, until that is forgotten', () => {
    const { budget, passMs, pausesOf } = rig();
    expect(budget.failuresOf('a')).toBe(0);
    pausesOf(3);
    expect(budget.failuresOf('a')).toBe(3);
    expect(budget.failuresOf('b')).toBe(0);
    passMs(10 * minute - 2_001);
    expect(budget.failuresOf('a')).toBe(3);
    passMs(1);
    expect(budget.failuresOf('a')).toBe(0);
    pausesOf(1);
    expect(budget.failuresOf('a')).toBe(1);
  });

  it('does not keep another model from starting', () => {
    const { budget } = rig();
    budget.failed('a', crash);
    budget.failed('a', crash);
    expect(budget.pauseOf('b')).toBeUndefined();
    expect(budget.failed('b', crash)).toBeUndefined();
  });
});

describe('failures are forgotten', () => {
  it.each(['succeeded', 'reset'] as const)('when it has %s, a pause that is open included', (how) => {
    const { budget, pausesOf } = rig();
    pausesOf(5);
    budget.failed('a', crash);
    budget[how]('a');
    expect(budget.pauseOf('a')).toBeUndefined();
    expect(budget.size).toBe(0);
    expect(pausesOf(2)).toEqual([0, 1_000]);
  });

  it('ten minutes after the last of them, however many there were', () => {
    const { budget, passMs, pausesOf } = rig();
    pausesOf(4);
    passMs(10 * minute - 4_001);
    expect(budget.failed('a', crash)?.failures).toBe(5);
    passMs(10 * minute);
    expect(budget.failed('a', crash)).toBeUndefined();
  });

  it('not while loads take longer than that, when the window is told so', () => {
    const { budget, passMs } = rig({ windowMs: 20 * minute });
    budget.failed('a', crash);
    passMs(11 * minute);
    expect(budget.failed('a', crash)?.failures).toBe(2);
  });

  it('no earlier than the pause ends that they have brought', () => {
    const { budget, passMs } = rig({ windowMs: 10_000 });
    for (let i = 0; i < 6; i += 1) budget.failed('a', crash);
    passMs(12_000);
    budget.failed('b', crash);
    expect(budget.pauseOf('a')).toMatchObject({ leftMs: 4_000, failures: 6 });
  });

  it('of models that nobody asks for any more, so that memory holds those of one window at most', () => {
    const { budget, passMs } = rig();
    for (let model = 0; model < 10_000; model += 1) {
      passMs(minute);
      budget.failed(`model-${model}`, crash);
    }
    expect(budget.size).toBe(10);
  });
});

type Happening =
  | { readonly what: 'failed' | 'succeeded' | 'reset'; readonly model: string }
  | { readonly what: 'passes'; readonly ms: number };

const happenings: fc.Arbitrary<Happening[]> = fc.array(
  fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({ what: fc.constant('failed' as const), model: fc.constantFrom('a', 'b', 'c') }),
    },
    fc.record({
      what: fc.constantFrom('succeeded' as const, 'reset' as const),
      model: fc.constantFrom('a', 'b', 'c'),
    }),
    {
      weight: 3,
      arbitrary: fc.record({
        what: fc.constant('passes' as const),
        ms: fc.integer({ min: 1, max: 12 * minute }),
      }),
    },
  ),
  { maxLength: 60 },
);

it('whatever happens, a model is paused by its failures in a row alone', () => {
  fc.assert(
    fc.property(happenings, (all) => {
      const { budget, passMs } = rig();
      let now = 0;
      /** When each model has failed since it last did well: the whole history, which the budget does not keep. */
      const failedAt = new Map<string, number[]>();
      for (const each of all) {
        if (each.what === 'passes') {
          now += each.ms;
          passMs(each.ms);
        } else if (each.what === 'failed') {
          budget.failed(each.model, crash);
          failedAt.set(each.model, [...(failedAt.get(each.model) ?? []), now]);
        } else {
          budget[each.what](each.model);
          failedAt.delete(each.model);
        }
        for (const model of ['a', 'b', 'c']) {
          const times = failedAt.get(model) ?? [];
          const gap = times.findLastIndex((at, place) => at - (times[place - 1] ?? -Infinity) >= 10 * minute);
          const inARow = times.length - Math.max(0, gap);
          const seconds = inARow < 2 ? 0 : Math.min(300, 2 ** (inARow - 2));
          const leftMs = (times.at(-1) ?? -Infinity) + seconds * 1000 - now;
          expect(budget.pauseOf(model)).toEqual(
            leftMs > 0 && inARow > 1 ? { leftMs, failures: inARow, last: crash } : undefined,
          );
        }
      }
    }),
  );
});

it('a request in a pause is told when to come again, why, how often, and how to have it tried at once', () => {
  const { budget, passMs } = rig();
  for (let i = 0; i < 4; i += 1) budget.failed('a', crash);
  passMs(500);
  const pause = budget.pauseOf('a');
  if (!pause) throw new Error('there is no pause after four failures');
  const refusal = restartPaused('a', pause);
  expect(refusal.status).toBe(503);
  expect(refusal.headers).toEqual({ 'Retry-After': '4' });
  expect(refusal.toJSON().error).toMatchObject({ model: 'a', last_lines: ['last words'] });
  expect(refusal.message).toContain('failed 4 times in a row');
  expect(refusal.message).toContain('while running: it was ended by SIGSEGV; it said: last words');
  expect(refusal.message).toContain('POST /models/load');
});
