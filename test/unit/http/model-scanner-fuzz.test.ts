/** The scanners of request bodies against whatever a client may send; what JSON bodies name is in model-name-json.test.ts. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { eventually } from '../../helpers/eventually.js';
import { modelScannerFor, type ModelName } from '../../../src/http/model-name/index.js';

/** `FUZZ_RUNS` times as many as it takes to notice a plain mistake. */
const numRuns = 2_000 * Number(process.env['FUZZ_RUNS'] ?? 1);

interface Reading {
  name: ModelName;
  asksForStream: boolean;
}

function scan(body: Buffer, type: string | undefined, sizes: readonly number[] = [Infinity]): Reading {
  const scanner = modelScannerFor(type);
  for (let at = 0, turn = 0; at < body.length; turn++) {
    const chunk = Buffer.from(body.subarray(at, at + (sizes[turn % sizes.length] ?? Infinity)));
    scanner.push(chunk);
    at += chunk.length;
    chunk.fill('"');
  }
  return { name: scanner.end(), asksForStream: scanner.asksForStream };
}

const sizes = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 });
const type = fc.constantFrom(
  undefined,
  'application/json',
  'text/plain',
  'multipart/form-data; boundary=b',
  'multipart/form-data; boundary="b"; charset=x',
  'Multipart/Form-Data;boundary=b',
  'multipart/form-data',
  'multipart/form-data; boundary=',
);

/** Bits of what bodies are made of, in no order: most of them are broken, and each in a way of its own. */
const fragment = fc.oneof(
  fc
    .constantFrom(
      ...[
        '{',
        '}',
        '[',
        ']',
        ':',
        ',',
        '"',
        '\\',
        '"model"',
        '"model":',
        '"alpha"',
        '"stream":true',
        ' ',
        '\0',
      ],
      ...['\\u006d', '\\ud83e', '1e5', 'null', '\ufeff', '--b', '--b\r\n', '--b--', '\r\n', '\r\n\r\n'],
      'Content-Disposition: form-data; name="model"\r\n\r\n',
      'Content-Disposition: form-data; name="model"; filename="x"\r\n',
    )
    .map((text) => Buffer.from(text)),
  fc.uint8Array({ maxLength: 6 }).map((bytes) => Buffer.from(bytes)),
);
const soup = fc.array(fragment, { maxLength: 30 }).map((parts) => Buffer.concat(parts));

describe('any bytes, under any type', () => {
  test('are answered, and alike however they are cut', () => {
    fc.assert(
      fc.property(soup, type, sizes, (body, contentType, cuts) => {
        const whole = scan(body, contentType);
        expect(scan(body, contentType, cuts)).toEqual(whole);
        const { name } = whole;
        if (name.kind === 'malformed') expect(name.reason).not.toBe('');
        if (name.kind === 'found') {
          expect(name.name).not.toBe('');
          expect(Buffer.byteLength(name.name)).toBeLessThanOrEqual(4096);
          // No half of a surrogate pair: it could not be written as UTF-8.
          expect(name.name).not.toMatch(/\p{Surrogate}/u);
        }
      }),
      { numRuns },
    );
  });

  test('give no name that a parser of the whole would not find, unless that refuses them', () => {
    const utf8 = new TextDecoder('utf-8', { fatal: true });
    fc.assert(
      fc.property(soup, (body) => {
        let parsed: unknown;
        try {
          parsed = JSON.parse(utf8.decode(body));
        } catch {
          return;
        }
        const { name } = scan(body, 'application/json');
        const model =
          typeof parsed === 'object' && parsed !== null && 'model' in parsed ? parsed.model : undefined;
        if (name.kind === 'found') expect(name.name).toBe(model);
        if (name.kind === 'missing') expect(typeof model === 'string' && model !== '').toBe(false);
      }),
      { numRuns },
    );
  });
});

describe('a JSON body', () => {
  const entry = fc.oneof(
    fc.tuple(fc.constantFrom('model', 'stream', 'Stream', 'streams', 'x'), fc.jsonValue({ maxDepth: 2 })),
    fc.tuple(fc.constant('stream'), fc.boolean()),
    fc.tuple(fc.constant('model'), fc.string()),
  );

  test('asks for a stream when the last member of that name is true, and for that model which is named last', () => {
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 6 }), sizes, (entries, cuts) => {
        const members = entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
        const text = `{${members.join(',')}}`;
        // Halves of surrogate pairs come through JSON.parse and no further; they have tests of their own.
        fc.pre(!/\\ud[89a-f]/i.test(text));
        const { stream, model } = JSON.parse(text) as { stream?: unknown; model?: unknown };
        const expected =
          typeof model === 'string' && model !== '' ? { kind: 'found', name: model } : { kind: 'missing' };
        expect(scan(Buffer.from(text), 'application/json', cuts)).toEqual({
          name: expected,
          asksForStream: stream === true,
        });
      }),
      { numRuns },
    );
  });
});

describe('a body without an end takes no memory', () => {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void;
  const pieces = 64;
  const pieceBytes = 1024 * 1024;

  test.each<[string, string | undefined, string, string]>([
    ['of one string', undefined, '{"x":"', 'y'],
    ['of one key', undefined, '{"', 'y'],
    ['of one name', undefined, '{"model":"', 'y'],
    ['of backslashes', undefined, '{"x":"', '\\'],
    ['of open brackets', undefined, '{"x":', '['],
    ['of blanks', undefined, '', ' '],
    ['of one number', undefined, '{"x":', '1'],
    ['of keys', undefined, '{', '"model":"y",'],
    [
      'of one field',
      'multipart/form-data; boundary=b',
      '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n',
      'y',
    ],
    [
      'of one file',
      'multipart/form-data; boundary=b',
      '--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n',
      'y',
    ],
    ['of one header', 'multipart/form-data; boundary=b', '--b\r\n', 'y'],
    ['before its first part', 'multipart/form-data; boundary=b', '', '\r\n--'],
    [
      'of beginnings of boundaries',
      'multipart/form-data; boundary=bb',
      '--bb\r\nContent-Disposition: form-data; name="model"\r\n\r\n',
      '\r\n--b',
    ],
  ])('%s', async (_what, contentType, start, filling) => {
    const scanner = modelScannerFor(contentType);
    scanner.push(Buffer.from(start));
    const held = (): number => {
      collectGarbage();
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      return heapUsed + arrayBuffers;
    };
    const before = held();
    // Each a buffer of its own, as they come from a socket: one that is kept is seen.
    for (let n = 0; n < pieces; n++) scanner.push(Buffer.alloc(pieceBytes, filling));
    // What is collected is given back a moment later; what is held never is.
    await eventually('it holds next to nothing', () => held() - before < (pieces * pieceBytes) / 16);
    // Used afterwards, or it might be what has been collected.
    expect(scanner.end().kind).toMatch(/^(malformed|missing)$/);
  });
});
