import { beforeEach, describe, expect, test } from 'vitest';
import { HealthWatch } from '../../../../src/instance/hang/health-watch.js';
import { StandingClock } from './hang-rig.js';

/** Long enough for every hang to be found: twice the silence, and two questions. */
const longMs = 40_000;
const answerMs = 5_000;

let clock: StandingClock;
let watch: HealthWatch;
let isHealthy: boolean;
let questions: number;
let hangs: number;

beforeEach(() => {
  clock = new StandingClock();
  isHealthy = false;
  questions = 0;
  hangs = 0;
  watch = new HealthWatch({
    // One that is healthy answers at once, and for the other is waited.
    isHealthy: async () => {
      questions += 1;
      if (!isHealthy) await new Promise<void>((resolve) => clock.after(answerMs, resolve));
      return isHealthy;
    },
    onHang: () => void (hangs += 1),
    clock,
  });
});

describe('a process that does not answer /health', () => {
  test('hangs when it is silent and does not answer twice, which is said once', async () => {
    watch.begin();
    await clock.passes(9_999);
    expect(questions).toBe(0);
    await clock.passes(1 + answerMs);
    expect([questions, hangs]).toEqual([1, 0]);
    await clock.passes(longMs);
    expect([questions, hangs]).toEqual([2, 1]);
    watch.begin();
    await clock.passes(10 * longMs);
    expect([questions, hangs]).toEqual([2, 1]);
  });

  test('hangs also when each of its clients gives up long before', async () => {
    for (let n = 0; n < 10; n += 1) {
      const request = watch.begin();
      await clock.passes(3_000);
      request.ended();
      await clock.passes(2_000);
    }
    expect(hangs).toBe(1);
  });

  test('hangs also when it refuses whatever comes', async () => {
    for (let n = 0; n < 40; n += 1) {
      watch.begin().broken('connect ECONNREFUSED');
      await clock.passes(1_000);
    }
    expect(hangs).toBe(1);
  });

  test('is not asked while it has nothing to do', async () => {
    const request = watch.begin();
    await clock.passes(5_000);
    request.ended();
    await clock.passes(100 * longMs);
    expect(questions).toBe(0);
    expect(clock.timers).toBe(0);
  });

  test('is not asked while bytes come', async () => {
    const request = watch.begin();
    request.answered(200);
    for (let n = 0; n < 60; n += 1) {
      await clock.passes(1_000);
      request.progressed();
    }
    expect(questions).toBe(0);
  });

  test('is left alone when something comes while it is asked', async () => {
    const request = watch.begin();
    await clock.passes(10_000 + answerMs + 1_000);
    expect(questions).toBe(2);
    request.progressed();
    await clock.passes(answerMs);
    expect(hangs).toBe(0);
  });

  test('is left alone when it answers the second time', async () => {
    watch.begin();
    await clock.passes(10_000 + answerMs);
    isHealthy = true;
    await clock.passes(2_000);
    expect([questions, hangs]).toEqual([2, 0]);
  });

  test('is not judged once the watch is closed', async () => {
    watch.begin();
    await clock.passes(11_000);
    watch.close();
    watch.begin();
    await clock.passes(longMs);
    expect(hangs).toBe(0);
    expect(clock.timers).toBe(0);
  });
});

test('a process that answers /health may work as long as it likes, and is asked now and then', async () => {
  isHealthy = true;
  watch.begin();
  await clock.passes(3_600_000);
  expect(hangs).toBe(0);
  expect(questions).toBe(360);
});

test('a process that hangs later is found, too', async () => {
  isHealthy = true;
  watch.begin();
  await clock.passes(600_000);
  isHealthy = false;
  await clock.passes(longMs);
  expect(hangs).toBe(1);
});
