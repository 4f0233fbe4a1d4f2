import fc from 'fast-check';
import { describe, expect, test } from 'vitest';

import { JsonModelScanner, type ModelName } from '../../../src/http/model-name/json-scanner.js';

const MISSING: ModelName = { kind: 'missing' };

function found(name: string): ModelName {
  return { kind: 'found', name };
}

/** Scans a body cut into chunks of the given sizes, taken in turn; by default the body comes in one piece. */
function scan(body: string | Buffer, chunkSizes: number[] = [Infinity]): ModelName {
  const bytes = Buffer.from(body);
  const scanner = new JsonModelScanner();
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = chunkSizes[turn % chunkSizes.length] ?? Infinity;
    // A copy that is overwritten afterwards shows that no chunk is kept.
    const chunk = Buffer.from(bytes.subarray(at, at + size));
    scanner.push(chunk);
    chunk.fill('"');
    at += chunk.length;
  }
  return scanner.end();
}

function reasonOf(body: string | Buffer): string {
  const whole = scan(body);
  expect(scan(body, [1])).toEqual(whole);
  return whole.kind === 'malformed' ? whole.reason : `not malformed but ${whole.kind}`;
}

/** What a full parser says of a body: the rule that the scanner must agree with. Throws where it does. */
function parseForModel(text: string): ModelName {
  const value: unknown = JSON.parse(text);
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, 'model')) return MISSING;
  const { model } = value as { model: unknown };
  return typeof model === 'string' && model !== '' ? found(model) : MISSING;
}

const whitespace = fc
  .array(fc.constantFrom(' ', '\n', '\r', '\t'), { maxLength: 3 })
  .map((bytes) => bytes.join(''));

function asUnicodeEscapes(character: string): string {
  return Array.from(
    { length: character.length },
    (_, i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`,
  ).join('');
}

/** A JSON string of this text, some of its characters written as themselves and some as escapes. */
function spelled(text: string): fc.Arbitrary<string> {
  const characters = Array.from(text, (character) =>
    fc.constantFrom(JSON.stringify(character).slice(1, -1), asUnicodeEscapes(character)),
  );
  return fc.tuple(...characters).map((parts) => `"${parts.join('')}"`);
}

const text = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 12 }),
  fc
    .array(fc.constantFrom('\\', '"', '{', '}', '[', ']', ',', ':', 'model'), { maxLength: 8 })
    .map((a) => a.join('')),
);
const jsonString = fc.oneof(
  text.chain(spelled),
  fc.integer({ min: 40, max: 200 }).map((length) => `"${'x'.repeat(length)}"`),
);
const modelKey = spelled('model');
const key = fc.oneof(
  modelKey,
  jsonString,
  fc.constantFrom('"Model"', '"models"', '"mode"', '"model\\u0000"', '"mod\\\\el"', '"\\"model"', '" model"'),
);
const scalar = fc.oneof(
  fc.constantFrom('null', 'true', 'false', '-0', '1e5', '0.25E-3'),
  fc.double({ noNaN: true, noDefaultInfinity: true }).map((number) => JSON.stringify(number)),
);

function separated(items: fc.Arbitrary<string>, open: string, close: string): fc.Arbitrary<string> {
  return fc
    .tuple(
      fc.array(
        fc.tuple(whitespace, items, whitespace).map((parts) => parts.join('')),
        { maxLength: 5 },
      ),
      whitespace,
    )
    .map(([parts, inside]) => (parts.length === 0 ? open + inside + close : open + parts.join(',') + close));
}

const { value: jsonValue, object: jsonObject } = fc.letrec<{ value: string; array: string; object: string }>(
  (tie) => ({
    value: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      scalar,
      jsonString,
      tie('array'),
      tie('object'),
    ),
    array: separated(tie('value'), '[', ']'),
    object: separated(
      fc
        .tuple(key, whitespace, whitespace, tie('value'))
        .map(([name, before, after, value]) => `${name}${before}:${after}${value}`),
      '{',
      '}',
    ),
  }),
);
const document = fc
  .tuple(
    whitespace,
    fc.oneof({ weight: 6, arbitrary: jsonObject }, { weight: 1, arbitrary: jsonValue }),
    whitespace,
  )
  .map((parts) => parts.join(''));
const chunkSizes = fc.oneof(
  fc.constant<number[]>([1]),
  fc.array(fc.integer({ min: 1, max: 20 }), { minLength: 1, maxLength: 10 }),
);

/** A document that lost up to three bytes at one place and perhaps got another there. */
const damaged = fc
  .tuple(
    document,
    fc.nat(),
    fc.constantFrom('"', '\\', '{', '}', '[', ']', ',', ':', '\0', 'x', '\xff', ''),
    fc.nat(3),
  )
  .map(([body, where, insert, removed]) => {
    const bytes = Buffer.from(body);
    const at = where % (bytes.length + 1);
    return Buffer.concat([
      bytes.subarray(0, at),
      Buffer.from(insert, 'latin1'),
      bytes.subarray(at + removed),
    ]);
  });

describe('against JSON.parse', () => {
  test('any JSON document in any chunks gives the model that a full parser finds', () => {
    fc.assert(
      fc.property(document, chunkSizes, (body, sizes) => {
        expect(scan(body, sizes)).toEqual(parseForModel(body));
      }),
      { numRuns: 1000 },
    );
  });

  test('an object that begins, goes on or ends with a model member gives the last one', () => {
    const member = fc.tuple(modelKey, fc.oneof(jsonString, jsonValue)).map((parts) => parts.join(': '));
    const members = fc.array(
      fc.oneof(
        member,
        fc.tuple(key, jsonValue).map((parts) => parts.join(':')),
      ),
      { minLength: 1 },
    );
    fc.assert(
      fc.property(members, chunkSizes, (parts, sizes) => {
        const body = `{${parts.join(' , ')}}`;
        expect(scan(body, sizes)).toEqual(parseForModel(body));
      }),
      { numRuns: 1000 },
    );
  });

  test('no beginning of a document gives a name before the document is complete', () => {
    fc.assert(
      fc.property(jsonObject, (body) => {
        const bytes = Buffer.from(body);
        for (let length = 1; length < bytes.length; length++) {
          expect(scan(bytes.subarray(0, length)).kind).toBe('malformed');
        }
      }),
      { numRuns: 100 },
    );
  });

  test('how a body is cut into chunks changes neither the answer nor the reason', () => {
    fc.assert(
      fc.property(damaged, chunkSizes, (body, sizes) => {
        expect(scan(body, sizes)).toEqual(scan(body));
      }),
      { numRuns: 1000 },
    );
  });

  test('a damaged document that is still valid JSON gives what a full parser finds', () => {
    const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    fc.assert(
      fc.property(damaged, (body) => {
        let expected: ModelName;
        try {
          const damagedText = utf8.decode(body);
          // JSON.parse takes the escape of half a surrogate pair, which llama-server's parser refuses.
          fc.pre(!/\\ud[89a-f]/i.test(damagedText));
          expected = parseForModel(damagedText);
        } catch (error) {
          fc.pre(!(error instanceof SyntaxError || error instanceof TypeError));
          throw error;
        }
        expect(scan(body)).toEqual(expected);
      }),
      { numRuns: 300, maxSkipsPerRun: 1000 },
    );
  });
});

describe('which member names the model', () => {
  test.each([
    ['the last of duplicates', '{"model":"a","model":"b"}', found('b')],
    ['the last of duplicates, an earlier one being no string', '{"model":{"x":[1]},"model":"b"}', found('b')],
    ['none if the last of duplicates is a number', '{"model":"a","model":1}', MISSING],
    ['none if the last of duplicates is an object', '{"model":"a","model":{"model":"b"}}', MISSING],
    ['none if the last of duplicates is empty', '{"model":"a","model":""}', MISSING],
    ['none if it is null', '{"model":null}', MISSING],
    ['none if it is a list', '{"model":["a"]}', MISSING],
    ['none of a nested object', '{"a":{"model":"x"},"b":[{"model":"y"}]}', MISSING],
    ['the one after a nested object', '{"a":{"model":"x"},"model":"y"}', found('y')],
    ['none of an object inside a list', '[{"model":"x"}]', MISSING],
    ['a key written in escapes', '{"\\u006d\\u006f\\u0064\\u0065\\u006C":"x"}', found('x')],
    ['a key written partly in escapes', '{"m\\u006fdel":"x"}', found('x')],
    [
      'no key that only looks like it',
      '{"Model":"x","model ":"x","mod\\\\el":"x","\\\\u006dodel":"x"}',
      MISSING,
    ],
    ['no string value that looks like a member', '{"a":"\\"model\\":\\"x\\","}', MISSING],
    [
      'a name in escapes and in UTF-8',
      '{"model":"\\ud83e\\udd99 é \\u00e9 \\/ \\n"}',
      found('\u{1f999} é é / \n'),
    ],
    ['a name with an escaped NUL', '{"model":"a\\u0000b"}', found('a\0b')],
    ['a name that begins with a byte order mark', '{"model":"\ufeffa"}', found('\ufeffa')],
    ['a name between other members', '\t{ "a" : [ ] , "model" :\r\n "x" , "b" : { } } ', found('x')],
    ['a name after a byte order mark', '\ufeff {"model":"x"}', found('x')],
    ['none of an empty object', '{}', MISSING],
    ['none of a list', ' [1, 2] ', MISSING],
    ['none of a string', '"model"', MISSING],
    ['none of a number', '-1.5e+3', MISSING],
    ['none of a literal', 'null', MISSING],
    ['none of whitespace', ' \r\n\t', MISSING],
  ])('%s', (_title, body, expected) => {
    expect(scan(body)).toEqual(expected);
    expect(scan(body, [1])).toEqual(expected);
  });

  test("a NUL after the object ends the body, as it does in llama-server's parser", () => {
    expect(scan('{"model":"a"} \0')).toEqual(found('a'));
    expect(scan('{"model":"a"}\0,"model":"b"}{[', [1])).toEqual(found('a'));
  });

  test('pushing empty chunks changes nothing', () => {
    const scanner = new JsonModelScanner();
    for (const part of ['', '{"mod', '', 'el":"x\\', '', '""', '', '}', '']) scanner.push(Buffer.from(part));
    expect(scanner.end()).toEqual(found('x"'));
  });
});

describe('bodies that are not JSON', () => {
  test('an empty body is malformed', () => {
    expect(new JsonModelScanner().end()).toEqual({
      kind: 'malformed',
      reason: 'the request body is empty: JSON was expected',
    });
  });

  test.each([
    ['model=a&stream=true', 'expected a value at byte 0'],
    ['{"model":"a"', 'ends after 12 bytes with a bracket still open'],
    ['{"model":"a","b":[1', 'ends after 19 bytes with a bracket still open'],
    ['[[]', 'ends after 3 bytes with a bracket still open'],
    ['{"model":"abc', 'ends inside the string that begins at byte 9'],
    ['{"model":"abc\\"}', 'ends inside the string that begins at byte 9'],
    ['{"b":["', 'ends inside the string that begins at byte 6'],
    ['{"model":"a"}}', 'expected the end of the body at byte 13'],
    ['{"model":"a"} {"model":"b"}', 'expected the end of the body at byte 14'],
    ['{"model":"a"]', 'expected "," or "}" at byte 12'],
    ['{"model":"a" "b":1}', 'expected "," or "}" at byte 13'],
    ['{"model":"a","b":1 2}', 'expected "," or "}" at byte 19'],
    ['{"model":"a",}', 'expected a member name at byte 13'],
    ['{,"model":"a"}', 'expected a member name or "}" at byte 1'],
    ['{model:"a"}', 'expected a member name or "}" at byte 1'],
    ['{"model" "a"}', 'expected ":" at byte 9'],
    ['{"model":}', 'expected a value at byte 9'],
    ['{"model"::"a"}', 'expected a value at byte 9'],
    ["{'model':'a'}", 'expected a member name or "}" at byte 1'],
    ['{"model":"a","b":[}]}', 'expected "]" at byte 18'],
    ['{"model":"a","b":{"c":[{]}}', 'expected "}" at byte 24'],
    ['\0{"model":"a"}', 'expected a value at byte 0'],
    ['{"model":\0"a"}', 'expected a value at byte 9'],
  ])('%j is malformed, and the reason says where', (body, reason) => {
    expect(reasonOf(body)).toContain(reason);
  });

  test('a broken byte order mark is malformed', () => {
    expect(reasonOf(Buffer.from([0xef, 0xbb]))).toContain('ends inside a byte order mark');
    expect(reasonOf(Buffer.from('\xef\xbb{"model":"a"}', 'latin1'))).toContain(
      'byte order mark breaks off at byte 2',
    );
  });

  test('a name in an encoding other than UTF-8 is malformed, wherever the bytes are cut', () => {
    const tails = [
      [0xff],
      [0xe9],
      [0xc3],
      [0xf0, 0x9f],
      [0xc0, 0x80],
      [0xed, 0xa0, 0x80],
      [0xf4, 0x90, 0x80, 0x80],
    ];
    for (const tail of tails) {
      const body = Buffer.concat([Buffer.from('{"model":"a'), Buffer.from(tail), Buffer.from('"}')]);
      expect(reasonOf(body)).toBe('the model name at byte 9 of the request body is not valid UTF-8');
    }
  });

  test.each(['\\x', '\\u12', '\\u12g4', '\\', '\\U0041', '\t', '\n', '\0', '\x1f'])(
    'a name that holds %j unescaped or misspelled is malformed',
    (part) => {
      const body = `{"model":"a${part}${part === '\\' ? 'z' : ''}"}`;
      expect(reasonOf(body)).toContain('a control character or an escape that JSON does not allow');
    },
  );

  test.each([
    '\\ud83e',
    '\\udd99',
    '\\udd99\\ud83e',
    '\\ud83e\\ud83e\\udd99',
    '\\ud83e\\\\udd99',
    '\\ud83e x',
  ])('a name with the lone surrogate of %s is malformed', (part) => {
    expect(reasonOf(`{"model":"${part}"}`)).toContain('half of a surrogate pair');
  });

  test('a malformed name is reported although a good one follows', () => {
    expect(reasonOf('{"model":"\\q","model":"a"}')).toContain('the model name at byte 9');
  });
});

describe('large bodies', () => {
  const SOCKET_CHUNK = [65_536];
  const MEGABYTES = 20 * 1024 * 1024;

  test('a model after a string of 20 MB is found', () => {
    for (const filling of ['A', '\\"', '\\\\', '\\n', 'ä', '"'.padStart(64, '\\')]) {
      const long = filling.repeat(MEGABYTES / Buffer.byteLength(filling));
      // The last filling is an odd run of backslashes before each quote, so that every quote is escaped.
      const body = Buffer.from(`{"messages":[{"content":"${long}"}],"model":"x"}`);
      expect(scan(body, SOCKET_CHUNK)).toEqual(found('x'));
      expect(scan(body, [1_000_003])).toEqual(found('x'));
    }
  });

  test('escapes are told from ends of strings at every distance from the cut', () => {
    for (let length = 0; length < 150; length++) {
      for (let backslashes = 0; backslashes < 6; backslashes++) {
        const string = `${'x'.repeat(length)}${'\\'.repeat(backslashes)}`;
        const quoteIsEscaped = backslashes % 2 === 1;
        const endedOnce = `{"a":["${string}"],"model":"x"}`;
        const endedTwice = `{"a":["${string}""],"model":"x"}`;
        for (const size of [1, 2, 3, 64, 65, 66, Infinity]) {
          expect(scan(endedOnce, [size]).kind).toBe(quoteIsEscaped ? 'malformed' : 'found');
          expect(scan(endedTwice, [size]).kind).toBe(quoteIsEscaped ? 'found' : 'malformed');
        }
      }
    }
  });

  test('millions of open brackets need no stack', () => {
    const depth = 2_000_000;
    const nested = '['.repeat(depth) + ']'.repeat(depth);
    expect(scan(`{"a":${nested},"model":"x"}`, SOCKET_CHUNK)).toEqual(found('x'));
    expect(scan(nested, SOCKET_CHUNK)).toEqual(MISSING);
    expect(scan('{"a":'.repeat(depth) + '1' + '}'.repeat(depth), SOCKET_CHUNK)).toEqual(MISSING);
    expect(scan(`{"model":"x","a":${nested.slice(0, -1)}}`, SOCKET_CHUNK).kind).toBe('malformed');
    expect(scan(`{"model":"x","a":${'['.repeat(depth)}`, SOCKET_CHUNK).kind).toBe('malformed');
  });

  test('a name of 4096 bytes is found and a longer one is malformed', () => {
    const body = (length: number): string => `{"model":"${'n'.repeat(length)}"}`;
    expect(scan(body(4096), [1])).toEqual(found('n'.repeat(4096)));
    expect(reasonOf(body(4097))).toBe(
      'the model name at byte 9 of the request body is longer than 4096 bytes',
    );
    expect(scan(body(MEGABYTES), SOCKET_CHUNK)).toEqual(scan(body(4097)));
  });

  test('keys of any length are told from the model', () => {
    const body = `{"${'model'.repeat(1_000_000)}":"x","${'\\u006d'.repeat(1000)}":1,"model":"y"}`;
    expect(scan(body, SOCKET_CHUNK)).toEqual(found('y'));
    expect(scan(body, [7])).toEqual(found('y'));
  });
});
