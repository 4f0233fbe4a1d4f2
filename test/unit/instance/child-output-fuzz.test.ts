/** Whatever a child prints, and however the kernel cuts it: the same lines, the same messages, and never a throw. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LineSplitter } from '../../../src/instance/line-splitter.js';
import { LogTail } from '../../../src/instance/log-tail.js';
import { parseChildLine, parseWorkerLine, type ChildMessage } from '../../../src/instance/protocol.js';

/** `FUZZ_RUNS` times as many as it takes to notice a plain mistake. */
const numRuns = 200 * Number(process.env['FUZZ_RUNS'] ?? 1);
const prefix = 'cmd_child_to_router:state:';
const maxLineLength = 64 * 1024;

/** What a child's output is read as: its messages, and the lines of its log. */
interface Reading {
  messages: ChildMessage[];
  log: string[];
}

function read(pieces: Iterable<Buffer>): Reading {
  const reading: Reading = { messages: [], log: [] };
  const splitter = new LineSplitter((line) => {
    const message = parseChildLine(line);
    if (message === undefined) reading.log.push(line);
    else reading.messages.push(message);
  });
  for (const piece of pieces) splitter.push(piece);
  splitter.end();
  return reading;
}

function* cut(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    // A copy that is overwritten afterwards shows that no piece is kept.
    const piece = Buffer.from(bytes.subarray(at, at + (sizes[turn % sizes.length] ?? 1)));
    yield piece;
    at += piece.length;
    piece.fill('?');
  }
}

const stateLine = fc
  .record({
    state: fc.oneof(fc.constantFrom('loading', 'ready', 'sleeping', 'dancing', '__proto__'), fc.jsonValue()),
    payload: fc.jsonValue(),
  })
  .map((message) => Buffer.from(`${prefix}${JSON.stringify(message)}`));
const part = fc.oneof(
  stateLine,
  fc.string({ unit: 'binary', maxLength: 20 }).map((text) => Buffer.from(text)),
  fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)),
  fc
    .constantFrom('\n', '\r\n', '\r', '\0', prefix, prefix.slice(0, 9), '{"state":"ready"}', '\u2028')
    .map((text) => Buffer.from(text)),
  fc
    .tuple(
      fc.constantFrom('x', '🦙', '\\', '['),
      fc.integer({ min: maxLineLength - 3, max: maxLineLength + 3 }),
    )
    .map(([text, length]) => Buffer.from(text.repeat(length / text.length))),
);
const output = fc
  .array(fc.oneof({ weight: 3, arbitrary: part }, { weight: 2, arbitrary: fc.constant(Buffer.from('\n')) }), {
    maxLength: 12,
  })
  .map((parts) => Buffer.concat(parts));
const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 70_000 })), {
  minLength: 1,
  maxLength: 6,
});

describe('the output of a child', () => {
  test('is read alike however it is cut', () => {
    fc.assert(
      fc.property(output, sizes, (bytes, pieces) => {
        expect(read(cut(bytes, pieces))).toEqual(read([bytes]));
      }),
      { numRuns },
    );
  });

  test('is the lines that its text has, each no longer than the bound', () => {
    fc.assert(
      fc.property(output, (bytes) => {
        const lines: string[] = [];
        const splitter = new LineSplitter((line) => lines.push(line));
        splitter.push(bytes);
        splitter.end();
        const text = bytes.toString().split('\n');
        const [last = ''] = text.splice(-1);
        const whole = [...text.map((line) => line.replace(/\r$/, '')), ...(last === '' ? [] : [last])];
        expect(lines).toEqual(whole.map((line) => line.slice(0, maxLineLength)));
      }),
      { numRuns },
    );
  });

  test('holds no message but in lines that begin with its mark and go on as an object of a known state', () => {
    fc.assert(
      fc.property(output, (bytes) => {
        const { messages, log } = read([bytes]);
        const told = [...messages.map(({ kind }) => kind)];
        const lines = bytes
          .toString()
          .split('\n')
          .map((line) => line.slice(0, maxLineLength));
        const meant = lines.flatMap((line) => {
          if (!line.startsWith(prefix)) return [];
          try {
            const { state } = JSON.parse(line.slice(prefix.length)) as { state?: unknown };
            return typeof state === 'string' && /^(loading|ready|sleeping)$/.test(state) ? [state] : [];
          } catch {
            return [];
          }
        });
        expect(told).toEqual(meant);
        const tail = new LogTail();
        for (const line of log) tail.add(line);
        expect(tail.lines().length).toBeLessThanOrEqual(40);
        for (const line of tail.lines()) expect(line.length).toBeLessThanOrEqual(501);
      }),
      { numRuns },
    );
  });

  test('a state line is heard at every cut there is, and with either line end', () => {
    const ready = { state: 'ready', payload: { id: 'ä🦙', meta: { n_ctx: 512 } } };
    for (const end of ['\n', '\r\n']) {
      const bytes = Buffer.from(`log\n${prefix}${JSON.stringify(ready)}${end}log${end}`);
      for (let at = 0; at <= bytes.length; at++) {
        expect(read([bytes.subarray(0, at), bytes.subarray(at)])).toEqual({
          messages: [{ kind: 'ready', info: ready.payload }],
          log: ['log', 'log'],
        });
      }
    }
  });

  test('a line that its own end cuts is over the bound like any other', () => {
    const lines: string[] = [];
    const splitter = new LineSplitter((line) => lines.push(line));
    // The first byte of a character that never comes makes the line one longer than what has been counted.
    splitter.push(Buffer.concat([Buffer.alloc(maxLineLength, 'x'), Buffer.from([0xf0])]));
    splitter.end();
    expect(lines).toEqual(['x'.repeat(maxLineLength)]);
  });
});

describe('a message', () => {
  const nested = (depth: number, open = '[', close = ']'): string => open.repeat(depth) + close.repeat(depth);

  // The list of models would fail for all of them: JSON.stringify overflows the stack where JSON.parse does not.
  test.each([
    ['lists', nested(20_000)],
    ['objects', `${'{"a":'.repeat(9_000)}1${'}'.repeat(9_000)}`],
    ['a few too many lists', nested(40)],
  ])('whose payload is nested too deeply, in %s, is a line of the log', (_what, value) => {
    for (const state of ['loading', 'ready', 'downloading']) {
      const line = `${prefix}{"state":"${state}","payload":{"url":"u","downloaded":1,"total":1,"x":${value}}}`;
      expect(line.length).toBeLessThan(maxLineLength);
      expect([parseChildLine(line), parseWorkerLine(line)]).toEqual([undefined, undefined]);
    }
  });

  test('can be written again, whatever it holds', () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 10 }), fc.nat(30), (value, depth) => {
        const payload = `{"x":${'['.repeat(depth)}${JSON.stringify(value)}${']'.repeat(depth)}}`;
        const message = parseChildLine(`${prefix}{"state":"ready","payload":${payload}}`);
        if (message === undefined) return;
        expect(message).toEqual({ kind: 'ready', info: JSON.parse(payload) as unknown });
        expect(JSON.parse(JSON.stringify(message))).toEqual(
          JSON.parse(JSON.stringify({ kind: 'ready', info: JSON.parse(payload) as unknown })),
        );
      }),
      { numRuns },
    );
  });

  test('as deep as the real ones, and some more, is heard', () => {
    expect(parseChildLine(`${prefix}{"state":"ready","payload":{"x":${nested(20)}}}`)).toMatchObject({
      kind: 'ready',
    });
  });
});
