import { describe, expect, it } from 'vitest';
import { nearest } from '../../../src/config/nearest.js';

describe('the nearest candidate', () => {
  it.each([
    ['one letter off', '--thraeds', ['--threads', '--treats'], '--threads'],
    ['the beginning before a misspelling', '--ctx', ['--ctk', '--ctx-size'], '--ctx-size'],
    ['one with as many dashes', '--ngl', ['-ngl', '--ngl'], '--ngl'],
    ['the shorter of equals', '--slot', ['--slots-xx', '--slots-x'], '--slots-x'],
    ['underscores as dashes', '--queue_max', ['--queue-max'], '--queue-max'],
    ['letters whatever their case', '--Port', ['--port'], '--port'],
  ])('is %s', (_, text, candidates, expected) => {
    expect(nearest(text, candidates)).toBe(expected);
  });

  it('is none when too much differs, or there are no candidates', () => {
    expect(nearest('--abcde', ['--vwxyz'])).toBeUndefined();
    expect(nearest('--abcde', [])).toBeUndefined();
  });
});
