import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { NvidiaSmi } from '../../../../src/instance/hang/nvidia-evidence.js';
import { watchChild } from '../../../../src/instance/hang/watch-child.js';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** Watches this very process, which has one request. */
function watchWithRequest(signal: AbortSignal) {
  const watch = watchChild({
    pid: process.pid,
    address: { port: 9, apiKey: '', apiPrefix: '' },
    hangTimeoutMs: 60_000,
    isAwake: () => true,
    onHang: () => undefined,
    signal,
    nvidiaSmi: new NvidiaSmi(),
  });
  watch.begin(() => false);
}

test('a child that is stopped or gone is watched no more', () => {
  const end = new AbortController();
  watchWithRequest(end.signal);
  expect(vi.getTimerCount()).toBe(1);
  end.abort();
  expect(vi.getTimerCount()).toBe(0);
});

// A signal that was aborted before says so to nobody.
test('a child that is already stopped or gone is not watched at all', () => {
  watchWithRequest(AbortSignal.abort());
  expect(vi.getTimerCount()).toBe(0);
});
