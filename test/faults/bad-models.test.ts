/** Files that are no models, or cannot be read: said once, refused with the reason, and nobody else notices. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { writeFakeModel } from '../helpers/fake-llama-server.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { echoIn, jsonIn, wireError, type ListEntry } from '../http/serve-fakes.js';

const canMakePipes = process.platform !== 'win32';
const isRoot = process.getuid?.() === 0;

/** Version 3 with these counts of tensors and of metadata, and then `rest`. Layout: ggml's docs/gguf.md. */
function gguf(tensors: bigint, metadata: bigint, rest: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(24);
  header.write('GGUF');
  header.writeUInt32LE(3, 4);
  header.writeBigUInt64LE(tensors, 8);
  header.writeBigUInt64LE(metadata, 16);
  return Buffer.concat([header, rest]);
}

function uint64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
}

/** A key, its type and the beginning of its value. */
function metadatum(key: string, type: number, value: Buffer): Buffer {
  const typeBytes = Buffer.alloc(4);
  typeBytes.writeUInt32LE(type);
  return Buffer.concat([uint64(BigInt(key.length)), Buffer.from(key), typeBytes, value]);
}

const string = 8;
const array = 9;
const huge = 2n ** 60n;

const files: [name: string, contents: Buffer, problem: RegExp][] = [
  ['zero-bytes', Buffer.alloc(0), /is empty$/],
  ['text', Buffer.from('This was never a model, whatever its name says.'), /is not a GGUF file/],
  ['cut', gguf(0n, 1n).subarray(0, 20), /has a truncated header/],
  ['huge-tensors', gguf(huge, 0n), /it claims \d+ tensors/],
  ['huge-metadata', gguf(0n, huge), /it claims \d+ metadata pairs/],
  ['huge-both', gguf(huge, huge, Buffer.alloc(4096, 0xff)), /it claims \d+ tensors/],
  ['huge-key', gguf(0n, 1n, uint64(huge)), /a key of \d+ bytes/],
  ['huge-string', gguf(0n, 1n, metadatum('general.name', string, uint64(huge))), /a string of \d+ bytes/],
  [
    'huge-array',
    gguf(
      0n,
      1n,
      metadatum(
        'tokenizer.ggml.tokens',
        array,
        Buffer.concat([Buffer.from([string, 0, 0, 0]), uint64(huge)]),
      ),
    ),
    /an array of \d+ elements/,
  ],
  [
    'no-such-type',
    gguf(0n, 1n, metadatum('general.name', 4_000_000_000, Buffer.alloc(64))),
    /a value of the unknown type 4000000000/,
  ],
  [
    'future-version',
    Buffer.concat([Buffer.from('GGUF'), Buffer.from([99, 0, 0, 0]), Buffer.alloc(64)]),
    /is of GGUF version 99/,
  ],
  [
    'other-byte-order',
    Buffer.concat([Buffer.from('GGUF'), Buffer.from([0, 0, 0, 3]), Buffer.alloc(64)]),
    /of the other byte order/,
  ],
];

/** What sections of a presets file name. */
const paths: [name: string, problem: RegExp, make: (path: string) => void][] = [
  ['a-pipe', /is not a regular file/, (path) => execFileSync('mkfifo', [path])],
  ['a-directory', /is a directory/, (path) => mkdirSync(path)],
  ['dangling', /is a link to a file that does not exist/, (path) => symlinkSync('nowhere.gguf', path)],
  ['a-loop', /ELOOP/, (path) => symlinkSync(path, path)],
  ['missing', /does not exist/, () => undefined],
  ['a-socket', /is not a regular file/, () => undefined],
  ['below-a-file', /ENOTDIR/, () => undefined],
];

describe.runIf(canMakePipes)('among good models', () => {
  let supervisor: SupervisorProcess;
  let url: string;

  beforeAll(async () => {
    const modelsDir = tempDir();
    const elsewhere = tempDir();
    for (const name of ['good-1', 'good-2']) writeFakeModel(modelsDir, name);
    for (const [name, contents] of files) writeFileSync(join(modelsDir, `${name}.gguf`), contents);
    mkdirSync(join(modelsDir, 'a-directory-of-that-name.gguf'));
    execFileSync('mkfifo', [join(modelsDir, 'a-pipe-of-that-name.gguf')]);
    symlinkSync('nowhere.gguf', join(modelsDir, 'dangling-here.gguf'));
    symlinkSync('loop-here.gguf', join(modelsDir, 'loop-here.gguf'));
    if (!isRoot) {
      writeFakeModel(modelsDir, 'unreadable');
      chmodSync(join(modelsDir, 'unreadable.gguf'), 0);
    }
    const socket = createServer().listen(join(elsewhere, 'a-socket.gguf'));
    await once(socket, 'listening');
    atEndOfTest(() => void socket.close());
    symlinkSync(join(elsewhere, 'a-socket.gguf'), join(modelsDir, 'socket-here.gguf'));

    writeFileSync(join(elsewhere, 'file'), '');
    const sections = paths.map(([name, , make]) => {
      const path = join(elsewhere, name === 'below-a-file' ? 'file/x.gguf' : `${name}.gguf`);
      make(path);
      return `[section-${name}]\nmodel = ${path}\n`;
    });
    const presets = join(elsewhere, 'presets.ini');
    writeFileSync(presets, sections.join('\n'));
    supervisor = await startSupervisor({ args: ['--models-dir', modelsDir, '--models-preset', presets] });
    ({ url } = supervisor);
  });

  async function entries(): Promise<ListEntry[]> {
    return (jsonIn(await rawRequest(`${url}/models`)) as { data: ListEntry[] }).data;
  }

  const broken: [string, RegExp][] = [
    ...files.map(([name, , problem]): [string, RegExp] => [name, problem]),
    ...paths.map(([name, problem]): [string, RegExp] => [`section-${name}`, problem]),
    ['dangling-here', /is a link to a file that does not exist/],
    ['loop-here', /ELOOP/],
    ...(isRoot ? [] : [['unreadable', /EACCES/] as [string, RegExp]]),
  ];

  it.each(broken)('%s is listed as failed with its reason, and refused with it', async (name, problem) => {
    const { status } = await eventually(`${name} is known to be broken`, async () => {
      const entry = (await entries()).find(({ id }) => id === name);
      return entry?.status.failed === true && entry;
    });
    expect(status).toMatchObject({ value: 'unloaded', failed: true, error: { reason: 'model_invalid' } });
    expect(status.error?.message).toMatch(problem);
    expect(status.error?.message).not.toMatch(/internal|undefined|RangeError|is not a function/);

    const refused = await rawRequest(`${url}/infill`, jsonPost({ model: name }));
    const error = wireError(refused, 503, 'unavailable_error');
    expect(error).toMatchObject({ reason: 'model_invalid', model: name });
    expect(error.message).toContain(status.error?.message);
  });

  it('what is not even a file by that name is not listed', async () => {
    const ids = (await entries()).map(({ id }) => id);
    expect(ids).toEqual(expect.arrayContaining(['good-1', 'good-2']));
    for (const name of ['a-pipe-of-that-name', 'a-directory-of-that-name', 'socket-here']) {
      expect(ids).not.toContain(name);
    }
  });

  it('each is told once in the log, however often it is asked for and the list is made anew', async () => {
    for (let n = 0; n < 5; n++) {
      for (const [name] of broken) await rawRequest(`${url}/infill`, jsonPost({ model: name }));
      expect((await rawRequest(`${url}/models?reload=1`)).status).toBe(200);
    }
    for (const [name] of broken) {
      const told = supervisor
        .log()
        .filter(({ msg, model }) => msg === 'model cannot be served' && model === name);
      expect({ name, times: told.length }).toEqual({ name, times: 1 });
    }
  });

  it('the good ones are served, each time', async () => {
    for (const name of ['good-1', 'good-2', 'good-1']) {
      const response = await rawRequest(`${url}/infill`, jsonPost({ model: name }));
      expect(response.status, response.body.toString()).toBe(200);
      expect(echoIn(response).alias).toBe(name);
    }
  });
});
