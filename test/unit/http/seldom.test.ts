import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { seldom } from '../../../src/http/seldom.js';

beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

it('says the first at once, and then no more often than each interval, with how often it has happened', () => {
  const said: [number, string][] = [];
  const happens = seldom(1_000, (times, what: string) => said.push([times, what]));
  happens('a');
  expect(said).toEqual([[1, 'a']]);
  for (let time = 0; time < 500; time++) happens('b');
  vi.advanceTimersByTime(999);
  happens('c');
  expect(said).toHaveLength(1);
  vi.advanceTimersByTime(1);
  happens('d');
  happens('e');
  expect(said).toEqual([
    [1, 'a'],
    [502, 'd'],
  ]);
});
