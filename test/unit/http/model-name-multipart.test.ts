import fc from 'fast-check';
import { describe, expect, test } from 'vitest';

import type { ModelName } from '../../../src/http/model-name/json-scanner.js';
import { MultipartModelScanner } from '../../../src/http/model-name/multipart-scanner.js';

const CONTENT_TYPE = 'multipart/form-data; boundary=----frontier';
const WAIT_MS = 5_000;

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

async function scan(
  body: string | Buffer,
  chunkBytes = Infinity,
  contentType: string = CONTENT_TYPE,
): Promise<ModelName> {
  const bytes = Buffer.from(body);
  const scanner = new MultipartModelScanner(contentType);
  for (let at = 0; at < bytes.length; at += chunkBytes) scanner.push(bytes.subarray(at, at + chunkBytes));
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`the scan did not end in ${WAIT_MS} ms`)), WAIT_MS);
  });
  try {
    return await Promise.race([scanner.end(), late]);
  } finally {
    clearTimeout(timer);
  }
}

async function reasonOf(body: string | Buffer, contentType?: string): Promise<string> {
  const answer = await scan(body, Infinity, contentType);
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
    ['nothing in a form without parts', form(), { kind: 'missing' }],
  ])('%s', async (_title, body, expected) => {
    expect(await scan(body)).toEqual(expected);
    expect(await scan(body, 1)).toEqual(expected);
  });

  test('any name comes out whole, whatever stands around it and however the body is cut', async () => {
    const content = fc
      .string({ unit: 'binary', maxLength: 200 })
      .filter((text) => !text.includes('frontier'));
    const name = content.filter((text) => text !== '' && !text.includes('\ufffd'));
    await fc.assert(
      fc.asyncProperty(
        content,
        name,
        content,
        fc.integer({ min: 1, max: 64 }),
        async (file, model, other, size) => {
          const body = form(part('file', file, 'f'), part('model', model), part('other', other));
          expect(await scan(body, size)).toEqual({ kind: 'found', name: model });
        },
      ),
      { numRuns: 100 },
    );
  });

  test('a large file is passed over', async () => {
    const body = Buffer.from(
      form(part('file', 'audio'.repeat(4_000_000), 'a.wav'), part('model', 'whisper')),
    );
    expect(await scan(body, 65_536)).toEqual({ kind: 'found', name: 'whisper' });
  });
});

describe('forms that cannot be read', () => {
  test('a form that is cut off before its last boundary gives no name', async () => {
    const body = Buffer.from(form(part('model', 'whisper'), part('file', 'data', 'a.wav')));
    const closed = body.length - '\r\n'.length;
    for (let length = 0; length < closed; length++) {
      expect((await scan(body.subarray(0, length))).kind).toBe('malformed');
    }
    expect(await scan(body.subarray(0, closed))).toEqual({ kind: 'found', name: 'whisper' });
  });

  test('a damaged form is answered, too', async () => {
    const body = Buffer.from(form(part('file', 'data', 'a.wav'), part('model', 'x'), part('other', '')));
    await fc.assert(
      fc.asyncProperty(
        fc.nat(body.length),
        fc.nat(30),
        fc.uint8Array({ maxLength: 8 }),
        async (at, removed, added) => {
          const damaged = Buffer.concat([body.subarray(0, at), added, body.subarray(at + removed)]);
          expect(['found', 'missing', 'malformed']).toContain((await scan(damaged, 7)).kind);
        },
      ),
      { numRuns: 200 },
    );
  });

  test.each([
    'multipart/form-data',
    'multipart/form-data; boundary=another',
    `multipart/form-data; boundary=${'x'.repeat(300)}`,
  ])('a body that does not fit its content type %j is malformed', async (contentType) => {
    expect(await reasonOf(form(part('model', 'x')), contentType)).toContain(
      'the multipart/form-data body cannot be read: ',
    );
  });

  test('a name of 4096 bytes is found and a longer one is malformed', async () => {
    const name = 'n'.repeat(4096);
    expect(await scan(form(part('model', name)), 100)).toEqual({ kind: 'found', name });
    const tooLong = 'the model name is longer than 4096 bytes';
    expect(await reasonOf(form(part('model', `${name}n`)))).toContain(tooLong);
    expect(await reasonOf(form(part('model', name.repeat(1000)), part('file', 'data', 'a')))).toContain(
      tooLong,
    );
  });

  test('a name that is not UTF-8 is malformed', async () => {
    expect(await reasonOf(Buffer.from(form(part('model', 'caf\xe9')), 'latin1'))).toContain(
      'not valid UTF-8',
    );
  });

  test('1024 parts are read and more are malformed', async () => {
    const others = part('a', 'b').repeat(1023);
    expect(await scan(form(others, part('model', 'x')))).toEqual({ kind: 'found', name: 'x' });
    expect(await reasonOf(form(others, part('model', 'x'), part('a', 'b')))).toContain(
      'more than 1024 parts',
    );
  });
});
