import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { ModelWait, serverTiming } from '../../../src/http/model-wait.js';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'performance'] }));
afterEach(() => void vi.useRealTimers());

/** A wait for a model of which the test says when it loads. */
function waitFor(): { wait: ModelWait; queued: (ms: number) => void; loads: (ms: number) => void } {
  // It has been loaded before.
  let loadingMs = 7_000;
  return {
    wait: new ModelWait(() => loadingMs),
    queued: (ms) => void vi.advanceTimersByTime(ms),
    loads: (ms) => {
      vi.advanceTimersByTime(ms);
      loadingMs += ms;
    },
  };
}

it('a wait is the time in line and that of the load, also before it is over', () => {
  const { wait, queued, loads } = waitFor();
  wait.begins();
  queued(100);
  expect(wait.times).toEqual({ queueMs: 100, loadMs: 0 });
  loads(30);
  expect(wait.times).toEqual({ queueMs: 100, loadMs: 30 });
  expect(wait.goesOn).toBe(true);
  wait.ends();
  expect(wait.goesOn).toBe(false);
});

it('what passes after it is no part of it', () => {
  const { wait, queued, loads } = waitFor();
  wait.begins();
  queued(100);
  wait.ends();
  queued(1_000);
  loads(1_000);
  expect(wait.times).toEqual({ queueMs: 100, loadMs: 0 });
});

it('several are added up', () => {
  const { wait, queued, loads } = waitFor();
  wait.begins();
  loads(20);
  wait.ends();
  loads(500);
  wait.begins();
  queued(5);
  loads(10);
  wait.ends();
  expect(wait.times).toEqual({ queueMs: 5, loadMs: 30 });
});

it('one that outlives what is known of its model is a wait in line', () => {
  let loadingMs = 50;
  const wait = new ModelWait(() => loadingMs);
  wait.begins();
  vi.advanceTimersByTime(10);
  loadingMs = 0;
  expect(wait.times).toEqual({ queueMs: 10, loadMs: 0 });
});

it('is told in whole milliseconds, and not when it was none', () => {
  expect(serverTiming({ queueMs: 12.6, loadMs: 1_000.2 })).toBe('queue;dur=13, load;dur=1000');
  expect(serverTiming({ queueMs: 0.4, loadMs: 12 })).toBe('queue;dur=0, load;dur=12');
  expect(serverTiming({ queueMs: 0.4, loadMs: 0.2 })).toBeUndefined();
});
