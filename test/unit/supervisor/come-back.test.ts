import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { RouterError, type ErrorCode } from '../../../src/errors.js';
import { EventBus } from '../../../src/events/events.js';
import type { Catalog } from '../../../src/models/catalog.js';
import { comeBack } from '../../../src/supervisor/come-back.js';

/** One model with load-on-startup, and a scheduler that does what it is told to. */
function rig() {
  const events = new EventBus((error) => {
    throw error;
  });
  const answers: (ErrorCode | undefined)[] = [];
  const loads: { at: number; signal: AbortSignal }[] = [];
  const scheduler = {
    isClosed: false,
    pause: 0,
    pauseMs: () => scheduler.pause,
    load: (_model: string, signal: AbortSignal) => {
      loads.push({ at: performance.now(), signal });
      scheduler.pause = 0;
      const refusal = answers.shift();
      return refusal === undefined ? Promise.resolve() : Promise.reject(new RouterError(refusal, 'no'));
    },
  };
  const catalog = {
    resolve: (id: string) => ({ id, loadOnStartup: id === 'steady', problem: undefined }),
  } as unknown as Catalog;
  const coming = comeBack({ events, catalog: () => catalog, scheduler, log: pino({ level: 'silent' }) });
  return {
    scheduler,
    answers,
    loads,
    coming,
    fails: (model = 'steady', failed = true) =>
      events.emit({ type: 'model.unloaded', model, reason: 'crashed', failed, exitCode: 1, lastLines: [] }),
    passes: (ms: number) => vi.advanceTimersByTimeAsync(ms),
  };
}

describe('a model with load-on-startup', () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it('that fails is loaded again at once, or when its pause is over', async () => {
    const { scheduler, loads, fails, passes } = rig();
    fails();
    await passes(1);
    expect(loads).toHaveLength(1);
    scheduler.pause = 4_000;
    fails();
    await passes(3_900);
    expect(loads).toHaveLength(1);
    scheduler.pause = 0;
    await passes(200);
    expect(loads).toHaveLength(2);
  });

  it.each(['queue_full', 'queue_timeout', 'model_failing', 'model_changing'] as const)(
    'that is refused with %s is tried again later, until it is loaded',
    async (refusal) => {
      const { answers, loads, fails, passes } = rig();
      answers.push(refusal, refusal);
      fails();
      await passes(60_000);
      expect(loads).toHaveLength(3);
    },
  );

  it.each(['model_already_running', 'model_unknown', 'shutting_down'] as const)(
    'that is refused with %s is left as it is',
    async (refusal) => {
      const { answers, loads, fails, passes } = rig();
      answers.push(refusal);
      fails();
      await passes(60_000);
      expect(loads).toHaveLength(1);
    },
  );

  it('that somebody unloads while it pauses stays away, until it fails again', async () => {
    const { scheduler, coming, loads, fails, passes } = rig();
    scheduler.pause = 4_000;
    fails();
    await passes(1_000);
    expect(coming.callOff('steady')).toBe(true);
    expect(coming.callOff('steady')).toBe(false);
    scheduler.pause = 0;
    await passes(60_000);
    expect(loads).toEqual([]);
    fails();
    await passes(1);
    expect(loads).toHaveLength(1);
  });

  it('whose load waits for room leaves the line when it is called off', async () => {
    const { scheduler, coming, loads, fails, passes } = rig();
    scheduler.load = (_model, signal) => {
      loads.push({ at: 0, signal });
      return new Promise(() => undefined);
    };
    fails();
    await passes(1);
    expect(loads[0]?.signal.aborted).toBe(false);
    coming.callOff('steady');
    expect(loads[0]?.signal.aborted).toBe(true);
  });

  it('is not loaded after it was stopped, nor another model after a failure', async () => {
    const { loads, fails, passes } = rig();
    fails('steady', false);
    fails('another');
    await passes(60_000);
    expect(loads).toEqual([]);
  });
});
