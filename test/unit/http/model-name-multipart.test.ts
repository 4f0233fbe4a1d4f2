import fc from 'fast-check';
import { describe, expect, test } from 'vitest';

import type { ModelName } from '../../../src/http/model-name/json-scanner.js';
import { isMultipartForm, MultipartModelScanner } from '../../../src/http/model-name/multipart-scanner.js';

const CONTENT_TYPE = 'multipart/form-data; boundary=----frontier';

/** One part of a form: its content, and what its header says beside the field's name. */
function part(name: string, content: string, filename?: string, type?: string): string {
  const disposition = `Content-Disposition: form-data; name="${name}"`;
  const file = filename === undefined ? '' : `; filename="${filename}"`;
  const contentType = type === undefined ? '' : `\r\nContent-Type: ${type}`;
  return `------frontier\r\n${disposition}${file}${contentType}\r\n\r\n${content}\r\n`;
}

function form(...parts: string[]): string {
  return `${parts.join('')}------frontier--\r\n`;
}

function scan(body: string | Buffer, chunkBytes = Infinity, contentType: string = CONTENT_TYPE): ModelName {
  const bytes = Buffer.from(body);
  const scanner = new MultipartModelScanner(contentType);
  for (let at = 0; at < bytes.length; at += chunkBytes) scanner.push(bytes.subarray(at, at + chunkBytes));
  return scanner.end();
}

function reasonOf(body: string | Buffer, contentType?: string): string {
  const answer = scan(body, Infinity, contentType);
  return answer.kind === 'malformed' ? answer.reason : `not malformed but ${answer.kind}`;
}

describe('which field names the model', () => {
  test.each<[string, string, ModelName]>([
    ['a text field', form(part('model', 'whisper')), { kind: 'found', name: 'whisper' }],
    [
      'a text field after a file',
      form(part('file', 'RIFF\r\n--data', 'a.wav', 'audio/wav'), part('model', 'whisper')),
      { kind: 'found', name: 'whisper' },
    ],
    [
      'a text field among others',
      form(part('language', 'de'), part('model', 'ä/b:Q4'), part('prompt', 'x'.repeat(100_000))),
      { kind: 'found', name: 'ä/b:Q4' },
    ],
    ['a field with an empty file name', form(part('model', 'x', '')), { kind: 'found', name: 'x' }],
    [
      'a field of a binary type, without a file name',
      form(part('model', 'x', undefined, 'application/octet-stream')),
      { kind: 'found', name: 'x' },
    ],
    [
      'a field beside a file of its name',
      form(part('model', 'x'), part('model', 'bytes', 'weights.bin')),
      { kind: 'found', name: 'x' },
    ],
    ['no file', form(part('model', 'x', 'a.txt')), { kind: 'missing' }],
    ['no repeated field', form(part('model', 'x'), part('model', 'x')), { kind: 'missing' }],
    ['no empty field', form(part('model', '')), { kind: 'missing' }],
    ['no field of another name', form(part('Model', 'x'), part('models', 'x')), { kind: 'missing' }],
    [
      'no file that looks like a field',
      form(part('file', part('model', 'x').slice(2), 'a')),
      { kind: 'missing' },
    ],
  ])('%s', (_title, body, expected) => {
    expect(scan(body)).toEqual(expected);
    expect(scan(body, 1)).toEqual(expected);
  });

  test('any name comes out whole, whatever stands around it and however the body is cut', () => {
    const content = fc
      .string({ unit: 'binary', maxLength: 200 })
      .filter((text) => !text.includes('frontier'));
    const name = content.filter((text) => text !== '' && !text.includes('\ufffd'));
    fc.assert(
      fc.property(content, name, content, fc.integer({ min: 1, max: 64 }), (file, model, other, size) => {
        const body = form(part('file', file, 'f'), part('model', model), part('other', other));
        expect(scan(body, size)).toEqual({ kind: 'found', name: model });
      }),
      { numRuns: 100 },
    );
  });

  test('a large file is passed over', () => {
    const body = Buffer.from(
      form(part('file', 'audio'.repeat(4_000_000), 'a.wav'), part('model', 'whisper')),
    );
    expect(scan(body, 65_536)).toEqual({ kind: 'found', name: 'whisper' });
  });
});

/** A part with these header lines. */
function partWith(headers: string, content = 'x'): string {
  return `------frontier\r\n${headers}\r\n\r\n${content}\r\n`;
}

describe("what a part is called is read as llama-server's own reader reads it", () => {
  const found: ModelName = { kind: 'found', name: 'x' };
  const missing: ModelName = { kind: 'missing' };
  const disposition = 'Content-Disposition: form-data';

  test.each<[string, string, ModelName]>([
    ['names in any spelling of the header', 'content-disposition:FORM-DATA;name=model', found],
    ['parameters with blanks around them', `${disposition};\tname = "model" ; x`, found],
    ['the first of two names', `${disposition}; name="model"; name="other"`, found],
    ['the second of two dispositions', `${disposition}; name="other"\r\n${disposition}; name="model"`, found],
    ['a file name in capitals as none', `${disposition}; name="model"; FILENAME="a"`, found],
    ['an encoded file name as one', `${disposition}; name="model"; filename=""; filename*=utf-8''a`, missing],
    ['a semicolon in quotes as a part of the name', `${disposition}; name="a;name=model"`, missing],
    ['a backslash as itself', `${disposition}; name="mod\\el"`, missing],
    ['escapes of URLs as they are', `${disposition}; name="%6dodel"`, missing],
    ['other quotes as part of the name', `${disposition}; name='model'`, missing],
    ['no name in an attachment', 'Content-Disposition: attachment; name="model"', missing],
    ['no name where there is no disposition', 'Content-Type: text/plain; name="model"', missing],
  ])('%s', (_title, headers, expected) => {
    const body = form(partWith(headers), part('file', 'data', 'a.wav'));
    expect(scan(body)).toEqual(expected);
    expect(scan(body, 1)).toEqual(expected);
  });

  test.each([
    ['a preamble', `preamble${form(part('model', 'x'))}`],
    ['an epilogue, were it another form', `${form(part('model', 'x'))}${form(part('model', 'y'))}`],
    [
      'a part within a part',
      form(partWith(`${disposition}; name="a"`, part('model', 'y').slice(4)), part('model', 'x')),
    ],
    ['a longer boundary within a line', form(part('a', 'b------frontiers'), part('model', 'x'))],
  ])('%s does not count', (_title, body) => {
    expect(scan(body)).toEqual(found);
    expect(scan(body, 1)).toEqual(found);
  });

  test.each([
    ['multipart/form-data;boundary=----frontier;'],
    [' multipart/form-data ; charset=utf-8; boundary = "----frontier" '],
    ['Multipart/Form-Data; Boundary=----frontier'],
    ['multipart/form-data; boundary=----frontier; boundary=other'],
  ])('the boundary of %j is found', (contentType) => {
    expect(scan(form(part('model', 'x')), Infinity, contentType)).toEqual(found);
  });

  test("a boundary may hold what no header's token may, up to 70 bytes of it", () => {
    for (const boundary of ["a'()+_,-./:=? z", 'a;b=c', 'caf\xe9', 'y'.repeat(70)]) {
      const body = form(part('model', 'x')).replaceAll('----frontier', boundary);
      const contentType = `multipart/form-data; boundary="${boundary}"`;
      expect(scan(Buffer.from(body, 'latin1'), Infinity, contentType)).toEqual(found);
    }
  });
});

test.each([
  ['multipart/form-data', true],
  ['multipart/form-data; boundary=x', true],
  ['\tMultipart/Form-Data ;boundary=x', true],
  ['multipart/mixed; boundary=x', false],
  ['multipart/form-data2', false],
  ['application/json', false],
  ['', false],
  [undefined, false],
])('a body of type %j is a form: %j', (contentType, expected) => {
  expect(isMultipartForm(contentType)).toBe(expected);
});

describe('forms that cannot be read', () => {
  test('a form that is cut off before its last boundary gives no name', () => {
    const body = Buffer.from(form(part('model', 'whisper'), part('file', 'data', 'a.wav')));
    const closed = body.length - '\r\n'.length;
    for (let length = 0; length < closed; length++) {
      expect(scan(body.subarray(0, length)).kind).toBe('malformed');
    }
    expect(scan(body.subarray(0, closed))).toEqual({ kind: 'found', name: 'whisper' });
  });

  test('a damaged form is answered, too', () => {
    const body = Buffer.from(form(part('file', 'data', 'a.wav'), part('model', 'x'), part('other', '')));
    fc.assert(
      fc.property(fc.nat(body.length), fc.nat(30), fc.uint8Array({ maxLength: 8 }), (at, removed, added) => {
        const damaged = Buffer.concat([body.subarray(0, at), added, body.subarray(at + removed)]);
        expect(['found', 'missing', 'malformed']).toContain(scan(damaged, 7).kind);
      }),
      { numRuns: 200 },
    );
  });

  test.each([
    'multipart/form-data',
    'multipart/form-data; boundary=another',
    `multipart/form-data; boundary=${'x'.repeat(300)}`,
  ])('a body that does not fit its content type %j is malformed', (contentType) => {
    expect(reasonOf(form(part('model', 'x')), contentType)).toContain(
      'the multipart/form-data body cannot be read: ',
    );
  });

  test.each([
    [
      'line breaks without CR',
      form(part('model', 'x')).replaceAll('\r\n', '\n'),
      'before its closing boundary',
    ],
    ['no parts', form(), 'before its closing boundary'],
    [
      'blanks behind a boundary',
      form(part('a', 'b'), part('model', 'x').replace('\r\n', ' \r\n')),
      'neither',
    ],
    ['a boundary that goes on', form(part('a', '\r\n------frontiers'), part('model', 'x')), 'neither'],
    ['a part without a name', form(partWith('Content-Disposition: form-data; x="y"')), 'no name'],
    ['a name in capitals', form(partWith('Content-Disposition: form-data; NAME="model"')), 'no name'],
    ['a header on two lines', form(partWith('Content-Disposition: form-data;\r\n name="model"')), 'no name'],
    ['a header without a colon', form(partWith('Content-Disposition')), 'cannot be read'],
    ['a header with a control character', form(partWith('X: a\x01b')), 'cannot be read'],
    [
      'a file name in another encoding',
      form(partWith("Content-Disposition: form-data; name=a; filename*=iso-8859-1''x")),
      'filename*',
    ],
    ['a header of 8193 bytes', form(partWith(`X: ${'y'.repeat(8190)}`)), 'longer than 8192 bytes'],
    ['101 headers', form(partWith(Array(101).fill('X: y').join('\r\n'))), 'more than 100 headers'],
  ])('with %s', (_what, body, reason) => {
    expect(reasonOf(form(part('model', 'x')))).toBe('not malformed but found');
    expect(reasonOf(body)).toContain(reason);
    expect(scan(body, 1)).toEqual(scan(body));
  });

  test('a header of 8192 bytes, and a hundred of them, are read', () => {
    const headers = ['Content-Disposition: form-data; name=model', ...Array<string>(99).fill('X: y')];
    headers[50] = `X: ${'y'.repeat(8189)}`;
    expect(scan(form(partWith(headers.join('\r\n'))), 1000)).toEqual({ kind: 'found', name: 'x' });
  });

  test('a name of 4096 bytes is found and a longer one is malformed', () => {
    const name = 'n'.repeat(4096);
    expect(scan(form(part('model', name)), 100)).toEqual({ kind: 'found', name });
    const tooLong = 'the model name is longer than 4096 bytes';
    expect(reasonOf(form(part('model', `${name}n`)))).toContain(tooLong);
    expect(reasonOf(form(part('model', name.repeat(1000)), part('file', 'data', 'a')))).toContain(tooLong);
  });

  test('a name that is not UTF-8 is malformed', () => {
    expect(reasonOf(Buffer.from(form(part('model', 'caf\xe9')), 'latin1'))).toContain('not valid UTF-8');
  });

  test('1024 parts are read and more are malformed', () => {
    const others = part('a', 'b').repeat(1023);
    expect(scan(form(others, part('model', 'x')))).toEqual({ kind: 'found', name: 'x' });
    expect(reasonOf(form(others, part('model', 'x'), part('a', 'b')))).toContain('more than 1024 parts');
  });
});
