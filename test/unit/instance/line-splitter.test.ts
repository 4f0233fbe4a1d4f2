import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LineSplitter } from '../../../src/instance/line-splitter.js';

/** The documented bound of one line, in characters. */
const maxLineLength = 64 * 1024;

/** The lines that come out when these pieces go in, and the output then ends. */
function split(...pieces: (string | Buffer)[]): string[] {
  const lines: string[] = [];
  const splitter = new LineSplitter((line) => lines.push(line));
  for (const piece of pieces) splitter.push(Buffer.from(piece));
  splitter.end();
  return lines;
}

describe('lines', () => {
  test('come without their ends, whether LF or CRLF', () => {
    expect(split('one\ntwo\r\n\nthree\n')).toEqual(['one', 'two', '', 'three']);
  });

  test('keep a carriage return that is not part of a line end', () => {
    expect(split('10%\r20%\r\n')).toEqual(['10%\r20%']);
  });

  test('are whole when a CRLF is split between two pieces', () => {
    expect(split('one\r', '\ntwo')).toEqual(['one', 'two']);
  });

  test('are handed over as soon as they end, and not before', () => {
    const lines: string[] = [];
    const splitter = new LineSplitter((line) => lines.push(line));
    splitter.push(Buffer.from('one\ntw'));
    expect(lines).toEqual(['one']);
    splitter.push(Buffer.from('o\n'));
    expect(lines).toEqual(['one', 'two']);
  });

  test('end with the output when the last has no end of its own', () => {
    expect(split('one\ntwo')).toEqual(['one', 'two']);
    expect(split('one\n')).toEqual(['one']);
    expect(split()).toEqual([]);
  });

  test('are the same however the bytes are cut into pieces, also within a character', () => {
    const line = fc.string({ unit: fc.constantFrom('a', ' ', 'é', '▁', '🦙'), maxLength: 12 });
    fc.assert(
      fc.property(fc.array(line, { maxLength: 6 }), fc.array(fc.nat(120)), (lines, cuts) => {
        const bytes = Buffer.from(lines.map((text) => `${text}\n`).join(''));
        const places = [0, ...cuts.filter((cut) => cut < bytes.length).sort((a, b) => a - b), bytes.length];
        const pieces = places.slice(1).map((end, at) => bytes.subarray(places[at], end));
        expect(split(...pieces)).toEqual(lines);
      }),
    );
  });

  test('hold a replacement character for bytes that are no UTF-8, cut off at the end or in the middle', () => {
    expect(split(Buffer.from([0x61, 0xff, 0x62, 0x0a, 0xf0, 0x9f]))).toEqual(['a\ufffdb', '\ufffd']);
  });
});

describe('a line over the bound', () => {
  const tooLong = 'x'.repeat(maxLineLength + 1);

  test('is handed over once, cut, whether it comes in one piece or in many', () => {
    const cut = tooLong.slice(0, maxLineLength);
    expect(split(`${tooLong}\nnext\n`)).toEqual([cut, 'next']);
    expect(split(tooLong, tooLong, 'tail\nnext\n')).toEqual([cut, 'next']);
    expect(split(tooLong, 'tail')).toEqual([cut]);
  });

  test('starts one character above it: a line of just that length is whole', () => {
    const longest = 'x'.repeat(maxLineLength);
    expect(split(longest, '\nnext')).toEqual([longest, 'next']);
    expect(split(`${longest}\r\nnext`)).toEqual([longest, 'next']);
  });

  test('is handed over before its end comes, so that one without an end is seen, too', () => {
    const lines: string[] = [];
    const splitter = new LineSplitter((line) => lines.push(line));
    splitter.push(Buffer.from(tooLong));
    expect(lines).toEqual([tooLong.slice(0, maxLineLength)]);
  });

  test('takes no more memory the longer it becomes', () => {
    setFlagsFromString('--expose-gc');
    const collectGarbage = runInNewContext('gc') as () => void;
    let lineCount = 0;
    const splitter = new LineSplitter(() => (lineCount += 1));
    const piece = Buffer.alloc(64 * 1024, 'x');
    const heapUsed = (): number => {
      collectGarbage();
      return process.memoryUsage().heapUsed;
    };
    const before = heapUsed();
    const pieces = 2048;
    for (let n = 0; n < pieces; n += 1) splitter.push(piece);
    const grownBy = heapUsed() - before;
    splitter.end();
    expect(lineCount).toBe(1);
    // 128 MiB went in; a sixteenth of that is far above what one bounded line needs.
    expect(grownBy).toBeLessThan((pieces * piece.length) / 16);
  });
});
