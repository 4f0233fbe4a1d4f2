import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
  closeSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { newJournal } from '../helpers/journal.js';
import { counting, endless, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, modelEntry } from '../helpers/supervisor-client.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import {
  arrayPair,
  boolPair,
  ggufWith,
  LONG_AGO,
  stringPair,
  writeSparse,
} from '../unit/models/gguf-header.js';
import { echoIn, jsonIn, wireError, type ListEntry } from './serve-fakes.js';

interface Listed extends ListEntry {
  facts?: Record<string, unknown>;
  architecture: { input_modalities: string[] };
}

async function list(url: string): Promise<Listed[]> {
  return (jsonIn(await rawRequest(`${url}/models`)) as { data: Listed[] }).data;
}

async function entry(url: string, id: string): Promise<Listed> {
  const found = (await list(url)).find((model) => model.id === id);
  if (!found) throw new Error(`${id} is not listed`);
  return found;
}

/** Waits until the facts of all models are there, and gives them by id. */
function untilFacts(url: string): Promise<Map<string, Record<string, unknown>>> {
  return eventually('the facts are there', async () => {
    const entries = await list(url);
    const missing = entries.filter(({ facts }) => facts === undefined).map(({ id }) => id);
    if (missing.length > 0) throw new Error(`none of ${missing.join(', ')}`);
    return new Map(entries.map(({ id, facts = {} }) => [id, facts]));
  });
}

/**
 * The tokens of a known-answer model that says so many words: three special ones, one for each byte, the blank, the
 * words, and the first word once more when it comes round again.
 */
function vocabularySize(words: number, { loop = false } = {}): number {
  return 3 + 256 + 1 + words + (loop ? 1 : 0);
}

/** The weights of a known-answer model of one layer, tensor by tensor; `width` is that of an embedding. */
function parameters(tokens: number, width: number): number {
  const [head, feedForward] = [32, 32];
  const norms = 3 * width;
  const attention = 4 * width * head;
  return 2 * tokens * width + norms + attention + 3 * width * feedForward;
}

/** A projector, as it lies beside a model that sees and hears: a header that names no tensors. */
function projector(has: { vision: boolean; audio: boolean }): Buffer {
  return ggufWith({
    pairs: [
      stringPair('general.architecture', 'clip'),
      boolPair('clip.has_vision_encoder', has.vision),
      boolPair('clip.has_audio_encoder', has.audio),
    ],
  });
}

describe('the list of models', () => {
  it('has the facts of models that are not loaded, as they were made', async () => {
    const dir = await writeModels({
      plain: { ...counting(60), contextLength: 1234 },
      endless: endless(),
      bare: { ...counting(4), chatTemplate: '' },
      'folder/weights': counting(4),
    });
    const { url } = await startSupervisor({ args: ['--models-dir', dir] });
    const facts = await untilFacts(url);

    const size = (file: string) => statSync(join(dir, file)).size;
    const [plain, loop, small] = [vocabularySize(60), vocabularySize(50, { loop: true }), vocabularySize(4)];
    const common = { architecture: 'llama', quantization: 'F32', chat_template: true };
    expect(Object.fromEntries(facts)).toEqual({
      plain: {
        ...common,
        name: 'plain',
        n_params: parameters(plain, 320),
        size: size('plain.gguf'),
        n_ctx_train: 1234,
        n_embd: 320,
        n_vocab: plain,
      },
      endless: {
        ...common,
        name: 'endless',
        n_params: parameters(loop, 320),
        size: size('endless.gguf'),
        n_ctx_train: 65_536,
        n_embd: 320,
        n_vocab: loop,
      },
      bare: {
        ...common,
        name: 'bare',
        n_params: parameters(small, 288),
        size: size('bare.gguf'),
        n_ctx_train: 4096,
        n_embd: 288,
        n_vocab: small,
        chat_template: false,
      },
      folder: {
        ...common,
        name: 'weights',
        n_params: parameters(small, 288),
        size: size('folder/weights.gguf'),
        n_ctx_train: 4096,
        n_embd: 288,
        n_vocab: small,
      },
    });
    for (const { status } of await list(url)) expect(status.value).toBe('unloaded');
  });

  it('says of a model what its own child will say of it', async () => {
    const dir = await writeModels({ model: { ...counting(7), contextLength: 512 } });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    const facts = (await untilFacts(url)).get('model');
    await chat(url, 'model');
    const { meta } = (await modelEntry(url, 'model')) as unknown as { meta: Record<string, unknown> };
    for (const name of ['n_params', 'n_ctx_train', 'n_embd', 'n_vocab']) {
      expect([name, facts?.[name]]).toEqual([name, meta[name]]);
    }
    expect((await entry(url, 'model')).facts).toEqual(facts);
  });

  it('answers at once while headers are still read, and a model that is asked for does not wait for its turn', async () => {
    const dir = await writeModels({ 'z-good': sayingItsName('z-good') });
    // A vocabulary of empty words, which are eight zeros each: the file is a hole, and still has to be walked through.
    const emptyWords = 24_000_000;
    const words = arrayPair('tokenizer.ggml.tokens', 8, emptyWords, Buffer.alloc(0));
    const header = ggufWith({ pairs: [stringPair('general.architecture', 'llama'), words] });
    const slow = ['a', 'b', 'c', 'd', 'e', 'f'].map((id) => `slow-${id}`);
    for (const id of slow) {
      writeSparse(join(dir, `${id}.gguf`), header, { sizeBytes: header.length + 8 * emptyWords });
    }
    const { url } = await startSupervisor({ args: ['--models-dir', dir] });
    const used = await rawRequest(`${url}/infill`, jsonPost({ model: 'z-good' }));
    expect(used.status).toBe(200);
    const entries = await list(url);
    expect(entries.map(({ id }) => id)).toEqual([...slow, 'z-good']);
    const known = entries.filter(({ facts }) => facts !== undefined).map(({ id }) => id);
    expect(known).toContain('z-good');
    expect(known.length).toBeLessThan(slow.length);
  });

  it('says what a model can be given, by the projector beside it', async () => {
    const dir = await writeModels({
      'all/weights': counting(1),
      'sees/weights': counting(1),
      'blind/weights': counting(1),
      'reads/weights': counting(1),
    });
    writeFileSync(join(dir, 'all', 'mmproj-F16.gguf'), projector({ vision: true, audio: true }));
    writeFileSync(join(dir, 'sees', 'mmproj-F16.gguf'), projector({ vision: true, audio: false }));
    writeFileSync(join(dir, 'blind', 'mmproj-F16.gguf'), projector({ vision: false, audio: false }));
    const { url } = await startSupervisor({ args: ['--models-dir', dir] });
    await untilFacts(url);
    const modalities = (await list(url)).map(({ id, architecture }) => [id, architecture.input_modalities]);
    expect(Object.fromEntries(modalities)).toEqual({
      all: ['text', 'image', 'audio'],
      sees: ['text', 'image'],
      blind: ['text'],
      reads: ['text'],
    });
  });

  it('knows the facts after a restart without reading the files again', async () => {
    const cacheHome = tempDir();
    const dir = await writeModels({ model: counting(9) });
    const file = join(dir, 'model.gguf');
    utimesSync(file, LONG_AGO, LONG_AGO);
    const first = await startSupervisor({ args: ['--models-dir', dir], cacheHome });
    const before = await untilFacts(first.url);
    await first.stop();

    // All that the header said is gone, and nothing else about the file has changed: who reads it finds no facts. Its
    // first 24 bytes stay, because those are looked at in every start.
    const blank = Buffer.alloc(statSync(file).size - 24);
    const handle = openSync(file, 'r+');
    writeSync(handle, blank, 0, blank.length, 24);
    closeSync(handle);
    utimesSync(file, LONG_AGO, LONG_AGO);

    const second = await startSupervisor({ args: ['--models-dir', dir], cacheHome });
    expect(await untilFacts(second.url)).toEqual(before);
    const third = await startSupervisor({ args: ['--models-dir', dir] });
    const { status } = await eventually('a supervisor without that cache finds it broken', async () => {
      const found = await entry(third.url, 'model');
      return found.status.failed === true && found;
    });
    expect(status.error?.reason).toBe('model_invalid');
  });
});

interface Broken {
  /** Makes the file; `whole` is a model. */
  make: (path: string, whole: Buffer) => void;
  /** What is said of it after its name. */
  reason: RegExp;
}

/** Files that are no models by what is in them or by what they are; their names do not tell. */
const broken: Readonly<Record<string, Broken>> = {
  empty: { make: (path) => writeFileSync(path, ''), reason: /is empty$/ },
  truncated: {
    make: (path, whole) => writeSparse(path, whole.subarray(0, whole.length / 2)),
    reason: /holds \d+\.\d kB of \d+\.\d kB: the file is truncated; copy or download it again$/,
  },
  'truncated-in-its-header': {
    make: (path, whole) => writeSparse(path, whole.subarray(0, 1000)),
    reason: /has a truncated header/,
  },
  'short-of-one-byte': {
    make: (path, whole) => writeSparse(path, whole.subarray(0, -1)),
    reason: /holds \d+ bytes of \d+ bytes: the file is truncated/,
  },
  archive: {
    make: (path) => writeFileSync(path, 'PK\u0003\u0004, a zip file'),
    reason: /is not a GGUF file \(starts with 0x504b0304\)$/,
  },
  'git-lfs-pointer': {
    make: (path) =>
      writeFileSync(path, 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'),
    reason: /is a Git LFS pointer, not a GGUF file/,
  },
  adapter: {
    make: (path) => writeFileSync(path, ofType('adapter')),
    reason: /is a LoRA adapter, not a model$/,
  },
  matrix: {
    make: (path) => writeFileSync(path, ofType('imatrix')),
    reason: /is an importance matrix, not a model$/,
  },
  'eyes-only': {
    make: (path) => writeFileSync(path, projector({ vision: true, audio: false })),
    reason: /is a multimodal projector, not a model$/,
  },
  'preallocated-zeros': {
    make: (path) => writeSparse(path, '', { sizeBytes: 40e9 }),
    reason: /is not a GGUF file \(starts with 0x00000000\)$/,
  },
  'dangling-link': {
    make: (path) => symlinkSync('nowhere', path),
    reason: /is a link to a file that does not exist$/,
  },
  // In a directory it is passed over; a section that names it would make its child wait for ever.
  'fifo-of-a-section': {
    make: (path) => execFileSync('mkfifo', [path]),
    reason: /is not a regular file$/,
  },
};

function ofType(type: string): Buffer {
  return ggufWith({ pairs: [stringPair('general.type', type), stringPair('general.architecture', 'llama')] });
}

describe('a file that is no model', () => {
  const journal = newJournal();
  let dir: string;
  let supervisor: SupervisorProcess;
  let url: string;
  let goodPid: number;
  beforeAll(async () => {
    dir = await writeModels({ good: sayingItsName('good'), whole: sayingItsName('whole') });
    const whole = readFileSync(join(dir, 'whole.gguf'));
    for (const [name, { make }] of Object.entries(broken)) make(join(dir, `${name}.gguf`), whole);
    const presets = join(tempDir(), 'presets.ini');
    writeFileSync(presets, `[fifo-of-a-section]\nmodel = ${dir}/fifo-of-a-section.gguf\n`);
    supervisor = await startSupervisor({
      args: ['--models-dir', dir, '--models-preset', presets, '--models-max', '1'],
      env: journal.env,
    });
    ({ url } = supervisor);
    const used = await rawRequest(`${url}/infill`, jsonPost({ model: 'good' }));
    goodPid = echoIn(used).pid;
  });

  it.each(Object.entries(broken))(
    '(%s) is listed as failed with the reason, refused with it, and costs no other its place',
    async (id, { reason }) => {
      const { status } = await eventually('it is listed as failed', async () => {
        const found = await entry(url, id);
        return found.status.failed === true && found;
      });
      expect(status).toMatchObject({ value: 'unloaded', error: { reason: 'model_invalid' } });
      const message = status.error?.message ?? '';
      expect(message).toMatch(reason);
      expect(message).toContain(`'${join(dir, `${id}.gguf`)}'`);

      for (const path of ['/infill', '/v1/chat/completions', '/models/load']) {
        const error = wireError(
          await rawRequest(url + path, jsonPost({ model: id })),
          503,
          'unavailable_error',
        );
        expect(error).toMatchObject({ reason: 'model_invalid', model: id });
        expect(error.message).toContain(message);
      }
      const query = `model=${id}&autoload=true`;
      wireError(await rawRequest(`${url}/props?${query}`), 503, 'unavailable_error');

      expect((await entry(url, 'good')).pid).toBe(goodPid);
      expect(journal.of('start').map(({ alias }) => alias)).toEqual(['good']);
    },
  );

  it('has no facts', async () => {
    const withFacts = (await list(url)).filter(({ facts }) => facts !== undefined).map(({ id }) => id);
    expect(withFacts).toEqual(['good', 'whole']);
  });

  it('is told of once in the log, however often it was asked for, and never loaded', async () => {
    await supervisor.stop();
    const about = (msg: string) =>
      supervisor
        .log()
        .filter((line) => line.msg === msg)
        .map((line) => line['model']);
    expect(about('model.loading')).toEqual(['good']);
    expect(about('model cannot be served').toSorted()).toEqual(Object.keys(broken).toSorted());
  });
});

it.skipIf(process.getuid?.() === 0 || process.platform === 'win32')(
  'a file that may not be read is failed with the reason (skipped for root, who may read everything)',
  async () => {
    const dir = await writeModels({ locked: sayingItsName('locked') });
    chmodSync(join(dir, 'locked.gguf'), 0);
    const { url } = await startSupervisor({ args: ['--models-dir', dir] });
    const { status } = await entry(url, 'locked');
    expect(status).toMatchObject({ failed: true, error: { reason: 'model_invalid' } });
    expect(status.error?.message).toMatch(/locked\.gguf' cannot be read: EACCES$/);
    const refused = await rawRequest(`${url}/infill`, jsonPost({ model: 'locked' }));
    expect(wireError(refused, 503, 'unavailable_error').message).toContain('EACCES');
  },
);

it('companions of models are not listed as models when their names tell what they are', async () => {
  const dir = await writeModels({ model: sayingItsName('model') });
  writeFileSync(join(dir, 'mmproj-F16.gguf'), projector({ vision: true, audio: false }));
  writeFileSync(join(dir, 'model.imatrix.gguf'), ofType('imatrix'));
  mkdirSync(join(dir, 'projector-alone'));
  writeFileSync(join(dir, 'projector-alone', 'mmproj-F16.gguf'), projector({ vision: true, audio: false }));
  const { url } = await startSupervisor({ args: ['--models-dir', dir] });
  expect((await list(url)).map(({ id }) => id)).toEqual(['model']);
});
