import { expect, test } from 'vitest';
import { LogTail } from '../../../src/instance/log-tail.js';

function tailOf(lines: readonly string[]): string[] {
  const tail = new LogTail();
  for (const line of lines) tail.add(line);
  return tail.lines();
}

test('keeps the last forty lines, oldest first', () => {
  const lines = Array.from({ length: 100 }, (_, at) => `line ${at + 1}`);
  expect(tailOf(lines)).toEqual(lines.slice(60));
});

test('keeps a line of up to 500 characters whole and marks where it cut a longer one', () => {
  expect(tailOf(['x'.repeat(500), 'y'.repeat(501)])).toEqual(['x'.repeat(500), `${'y'.repeat(500)}…`]);
});

test('leaves out blank lines: they would push out those that say something', () => {
  expect(tailOf(['one', '', '   ', '\t', 'two'])).toEqual(['one', 'two']);
});

test('gives a copy that what comes later does not change', () => {
  const tail = new LogTail();
  tail.add('one');
  const lines = tail.lines();
  tail.add('two');
  expect(lines).toEqual(['one']);
  expect(tail.lines()).toEqual(['one', 'two']);
});
