import fc from 'fast-check';
import { expect, it } from 'vitest';
import { wrap } from '../../../src/config/wrap.js';

it.each([
  ['', 10, ['']],
  ['one two three', 7, ['one two', 'three']],
  ['one two three', 3, ['one', 'two', 'three']],
  ['aaaa,bbbb;cccc|dd', 10, ['aaaa,bbbb;', 'cccc|dd']],
  ['x aaaa,bbbb,cccc', 8, ['x aaaa,', 'bbbb,', 'cccc']],
  ['at https://example.org/path now', 10, ['at', 'https://example.org/path', 'now']],
])('breaks %j at %i columns into %j', (text, width, lines) => {
  expect(wrap(text, width)).toEqual(lines);
});

it('loses and adds nothing but blanks', () => {
  const words = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', ',', ';', '|', '-', ' ') }), {
    maxLength: 12,
  });
  fc.assert(
    fc.property(words, fc.integer({ min: 1, max: 20 }), (parts, width) => {
      const text = parts.join(' ');
      expect(wrap(text, width).join('').replaceAll(' ', '')).toBe(text.replaceAll(' ', ''));
    }),
  );
});
