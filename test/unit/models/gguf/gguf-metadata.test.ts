import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gguf } from '@huggingface/gguf';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { knownAnswerModel } from '../../../../src/demo/known-answer-model.js';
import {
  readGgufMetadata,
  type GgufMetadata,
  type GgufSource,
  type MetadataValue,
} from '../../../../src/models/gguf/gguf-metadata.js';
import { sayingItsName } from '../../../helpers/known-answer-models.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import {
  arrayPair,
  boolPair,
  ggufHeader,
  ggufWith,
  pair,
  string,
  stringPair,
  stringsPair,
  uint32,
  uint32Pair,
  uint64,
} from '../gguf-header.js';

const CUT = 'has a truncated header; it may still be being written';

/** A file in memory, zeros after its bytes up to `sizeBytes`, that counts what is read of it. */
function fileOf(bytes: Uint8Array, sizeBytes = bytes.length): GgufSource & { readonly bytesRead: number } {
  let bytesRead = 0;
  return {
    sizeBytes,
    read(target, position) {
      const length = Math.max(0, Math.min(target.length, sizeBytes - position));
      target.fill(0, 0, length);
      if (position < bytes.length) target.set(bytes.subarray(position, position + length));
      bytesRead += length;
      return length;
    },
    get bytesRead() {
      return bytesRead;
    },
  };
}

function metadataOf(source: GgufSource): GgufMetadata {
  const reading = readGgufMetadata(source);
  if (reading.kind === 'fault') throw new Error(reading.fault);
  return reading.metadata;
}

function faultOf(source: GgufSource): string | undefined {
  const reading = readGgufMetadata(source);
  return reading.kind === 'fault' ? reading.fault : undefined;
}

/** What the oracle says in the terms of ours. */
async function oracle(file: string): Promise<GgufMetadata> {
  const { metadata, tensorInfos, parameterCount } = await gguf(file, {
    allowLocalFile: true,
    computeParametersCount: true,
  });
  const pairs = new Map<string, MetadataValue>();
  for (const [key, value] of Object.entries(metadata)) {
    if (['version', 'tensor_count', 'kv_count'].includes(key)) continue;
    pairs.set(key, inOurTerms(value));
  }
  const tensorCount = tensorInfos.length;
  return { pairs, tensorCount, parameters: parameterCount, tensorTypes: [], sizeBytes: undefined };
}

function inOurTerms(value: unknown): MetadataValue {
  if (Array.isArray(value)) return { skipped: 'array', length: value.length };
  if (typeof value === 'string') {
    const length = Buffer.byteLength(value);
    return length > 1024 ? { skipped: 'string', length } : value;
  }
  return typeof value === 'boolean' ? value : Number(value);
}

const model = knownAnswerModel({ name: 'm', ...sayingItsName('m') });
/** Its tensors' elements, added up from their shapes (known-answer-model.ts), are what is left without the header. */
const headerBytes = model.length - 4 * metadataOf(fileOf(model)).parameters;

describe('what is read', () => {
  it('is what the oracle reads of a model that we made', async () => {
    const file = join(tempDir(), 'm.gguf');
    writeFileSync(file, model);
    const expected = await oracle(file);
    const { pairs, tensorCount, parameters } = metadataOf(fileOf(model));
    expect([...pairs].sort()).toEqual([...expected.pairs].sort());
    expect(pairs.size).toBeGreaterThan(20);
    expect({ tensorCount, parameters }).toEqual({
      tensorCount: expected.tensorCount,
      parameters: expected.parameters,
    });
  });

  const vocabularies = fileURLToPath(new URL('../../../../vendor/llama.cpp/models', import.meta.url));
  const real = existsSync(vocabularies)
    ? readdirSync(vocabularies).filter((name) => name.endsWith('.gguf'))
    : [];
  const absent = real.length === 0;
  it.skipIf(absent).each(absent ? ['real vocabularies'] : real)(
    'is what the oracle reads of %s (from ./build-llama.sh)',
    async (name) => {
      const file = join(vocabularies, name);
      const bytes = readFileSync(file);
      const { pairs, tensorCount, sizeBytes } = metadataOf(fileOf(bytes));
      const expected = await oracle(file);
      expect([...pairs].sort()).toEqual([...expected.pairs].sort());
      expect(tensorCount).toBe(expected.tensorCount);
      expect(sizeBytes).toBe(bytes.length);
    },
  );

  it('is every kind of number', () => {
    const float = Buffer.from(new Float32Array([1.5]).buffer);
    const double = Buffer.from(new Float64Array([-2.25]).buffer);
    const minusTwo = Buffer.from(new BigInt64Array([-2n]).buffer);
    const pairs = [
      pair('u8', 0, Buffer.from([255])),
      pair('i8', 1, Buffer.from([255])),
      pair('u16', 2, Buffer.from(new Uint16Array([65_535]).buffer)),
      pair('i16', 3, Buffer.from(new Int16Array([-3]).buffer)),
      pair('u32', 4, uint32(4_294_967_295)),
      pair('i32', 5, Buffer.from(new Int32Array([-4]).buffer)),
      pair('f32', 6, float),
      boolPair('yes', true),
      boolPair('no', false),
      pair('u64', 10, uint64(2n ** 40n)),
      pair('i64', 11, minusTwo),
      pair('f64', 12, double),
      stringPair('text', 'größer 🦙'),
    ];
    expect(Object.fromEntries(metadataOf(fileOf(ggufWith({ version: 2, pairs }))).pairs)).toEqual({
      u8: 255,
      i8: -1,
      u16: 65_535,
      i16: -3,
      u32: 4_294_967_295,
      i32: -4,
      f32: 1.5,
      yes: true,
      no: false,
      u64: 2 ** 40,
      i64: -2,
      f64: -2.25,
      text: 'größer 🦙',
    });
  });

  it('leaves long strings and arrays out and goes on behind them', () => {
    const pairs = [
      stringPair('long', 'x'.repeat(100_000)),
      stringsPair('words', ['', 'a', 'b'.repeat(70_000)]),
      arrayPair('numbers', 6, 3, Buffer.alloc(12)),
      stringPair('k'.repeat(300), 'a key that nobody asks for'),
      uint32Pair('after', 7),
    ];
    expect(Object.fromEntries(metadataOf(fileOf(ggufWith({ pairs }))).pairs)).toEqual({
      long: { skipped: 'string', length: 100_000 },
      words: { skipped: 'array', length: 3 },
      numbers: { skipped: 'array', length: 3 },
      after: 7,
    });
  });

  it('does not include what numbers an array of a gigabyte holds', () => {
    const count = 2 ** 28;
    const start = ggufWith({ pairs: [arrayPair('scores', 6, count, Buffer.alloc(0))] });
    const file = fileOf(start, start.length + 4 * count);
    expect(metadataOf(file).pairs.get('scores')).toEqual({ skipped: 'array', length: count });
    expect(file.bytesRead).toBeLessThan(200_000);
  });

  it('may come in small pieces', () => {
    const whole = fileOf(model);
    const dripping: GgufSource = {
      sizeBytes: whole.sizeBytes,
      read: (target, position) => whole.read(target.subarray(0, 7), position),
    };
    expect(readGgufMetadata(dripping)).toEqual(readGgufMetadata(fileOf(model)));
  });
});

describe('the tensors', () => {
  it('say how long the file is, whatever order they are in', () => {
    const tensors = [
      { shape: [256, 3], type: 12, offset: 128 },
      { shape: [10], type: 0, offset: 0 },
    ];
    const header = ggufWith({ tensors });
    const dataStart = Math.ceil(header.length / 32) * 32;
    // Three rows of one Q4_K block each: two half floats, 12 bytes of scales, 256 halves of a byte.
    const blocks = 3 * (4 + 12 + 128);
    const { sizeBytes, parameters, tensorTypes } = metadataOf(fileOf(header));
    expect({ sizeBytes, parameters, tensorTypes }).toEqual({
      sizeBytes: dataStart + 128 + blocks,
      parameters: 256 * 3 + 10,
      tensorTypes: ['Q4_K', 'F32'],
    });
  });

  it('begin where the alignment that the file names says', () => {
    const header = ggufWith({
      pairs: [uint32Pair('general.alignment', 4096)],
      tensors: [{ shape: [5] }],
    });
    expect(metadataOf(fileOf(header)).sizeBytes).toBe(4096 + 20);
  });

  it('of a model that we made end where its file ends', () => {
    expect(metadataOf(fileOf(model)).sizeBytes).toBe(model.length);
  });

  it('of types that are not known leave its size unknown, and count', () => {
    const header = ggufWith({ tensors: [{ shape: [7], type: 99 }, { shape: [3] }] });
    const { sizeBytes, parameters, tensorTypes } = metadataOf(fileOf(header));
    expect({ sizeBytes, parameters, tensorTypes }).toEqual({
      sizeBytes: undefined,
      parameters: 10,
      tensorTypes: [undefined, 'F32'],
    });
  });
});

describe('a fault', () => {
  const huge = 2n ** 64n - 1n;
  it.each<[string, Uint8Array, string]>([
    ['no GGUF', Buffer.from('<!DOCTYPE html>'), 'is not a GGUF file (starts with "<!DO")'],
    ['version 1', ggufHeader({ version: 1 }), 'is of GGUF version 1; versions 2 and 3 can be read'],
    ['a short start', ggufHeader().subarray(0, 23), CUT],
    [
      'endless tensors',
      ggufWith({ tensorCount: huge }),
      'has a damaged header: it claims 18446744073709552000 tensors',
    ],
    [
      'endless metadata',
      ggufWith({ pairCount: 10_001 }),
      'has a damaged header: it claims 10001 metadata pairs',
    ],
    ['missing metadata', ggufWith({ pairCount: 10_000 }), CUT],
    ['missing tensors', ggufWith({ tensorCount: 1_000_000 }), CUT],
    [
      'a key that is too long',
      ggufWith({ pairs: [uint64(65_536)] }),
      'has a damaged header: it has a key of 65536 bytes',
    ],
    ['a key that ends beyond the file', ggufWith({ pairs: [uint64(200)] }), CUT],
    [
      'a key that is there twice',
      ggufWith({ pairs: [uint32Pair('a', 1), uint32Pair('a', 2)] }),
      'has a damaged header: it has the key "a" twice',
    ],
    [
      'an unknown value type',
      ggufWith({ pairs: [pair('a', 13, Buffer.alloc(64))] }),
      'has a damaged header: it has a value of the unknown type 13',
    ],
    [
      'a string that no memory holds',
      ggufWith({ pairs: [pair('a', 8, uint64(huge))] }),
      'has a damaged header: it has a string of 18446744073709552000 bytes',
    ],
    ['a string that ends beyond the file', ggufWith({ pairs: [pair('a', 8, uint64(2 ** 30))] }), CUT],
    [
      'an array that no memory holds',
      ggufWith({ pairs: [arrayPair('a', 4, huge, Buffer.alloc(64))] }),
      'has a damaged header: it has an array of 18446744073709552000 elements',
    ],
    [
      'an array that ends beyond the file',
      ggufWith({ pairs: [arrayPair('a', 4, 2 ** 30, Buffer.alloc(8))] }),
      CUT,
    ],
    ['strings that end beyond the file', ggufWith({ pairs: [arrayPair('a', 8, 2, string('b'))] }), CUT],
    [
      'arrays in an array',
      ggufWith({ pairs: [arrayPair('a', 9, 1, Buffer.alloc(64))] }),
      'has a damaged header: it has an array of the unknown type 9',
    ],
    [
      'an alignment of 3',
      ggufWith({ pairs: [uint32Pair('general.alignment', 3)] }),
      'has a damaged header: its alignment is not a power of 2',
    ],
    [
      'an alignment of 0',
      ggufWith({ pairs: [uint32Pair('general.alignment', 0)] }),
      'has a damaged header: its alignment is not a power of 2',
    ],
    [
      'an alignment in words',
      ggufWith({ pairs: [stringPair('general.alignment', '32')] }),
      'has a damaged header: its alignment is no 32-bit number',
    ],
    [
      'a tensor with a name that is too long',
      ggufWith({ tensorCount: 1, pairs: [uint64(huge)], pairCount: 0 }),
      'has a damaged header: tensor 1 has a name of 18446744073709552000 bytes',
    ],
    [
      'a tensor of five dimensions',
      ggufWith({ tensors: [{ shape: [1, 1, 1, 1, 1] }] }),
      'has a damaged header: tensor 1 has 5 dimensions',
    ],
    [
      'a tensor that no disk holds',
      ggufWith({ tensors: [{ shape: [2 ** 40, 2 ** 40] }] }),
      'has a damaged header: its tensors are impossibly large',
    ],
    [
      'a tensor that lies where no disk reaches',
      ggufWith({ tensors: [{ shape: [1], offset: huge }] }),
      'has a damaged header: its tensors are impossibly large',
    ],
    [
      'rows of half a block',
      ggufWith({
        tensors: [
          { shape: [1], type: 0 },
          { shape: [100, 2], type: 12 },
        ],
      }),
      'has a damaged header: tensor 2 has rows of 100 elements, which Q4_K can not hold',
    ],
  ])('is found in a file with %s', (_what, bytes, fault) => {
    expect(faultOf(fileOf(bytes))).toBe(fault);
  });

  it('is a header that would take minutes to walk through', () => {
    const start = ggufWith({ pairs: [arrayPair('words', 8, 2 ** 30, Buffer.alloc(0))] });
    const file = fileOf(start, 2 ** 40);
    expect(faultOf(file)).toBe('has a damaged header: it has more than 268435456 bytes');
    expect(file.bytesRead).toBeLessThan(300_000_000);
  });

  it('is a file that has become shorter than its size said', () => {
    const whole = fileOf(model.subarray(0, 500));
    expect(faultOf({ sizeBytes: model.length, read: whole.read.bind(whole) })).toBe(CUT);
  });

  it('of reading itself is not the header’s', () => {
    const broken: GgufSource = {
      sizeBytes: 100,
      read() {
        throw new Error('EIO');
      },
    };
    expect(() => readGgufMetadata(broken)).toThrow('EIO');
  });
});

describe('whatever a file holds', () => {
  it('it is cut wherever it ends within the header', () => {
    fc.assert(
      fc.property(fc.nat(headerBytes - 32), (length) => {
        expect(faultOf(fileOf(model.subarray(0, length)))).toBe(CUT);
      }),
      { numRuns: 300 },
    );
  });

  it('reading ends, with a phrase if it fails, and takes no more than the file', () => {
    const small = ggufWith({
      pairs: [
        stringPair('general.architecture', 'llama'),
        stringsPair('tokenizer.ggml.tokens', ['<unk>', '<s>', 'a']),
        arrayPair('tokenizer.ggml.scores', 6, 3, Buffer.alloc(12)),
        uint32Pair('llama.context_length', 4096),
      ],
      tensors: [{ shape: [32, 3] }, { shape: [256], type: 12, offset: 384 }],
    });
    const mutation = fc.record({
      at: fc.nat(small.length - 1),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 8 }),
    });
    fc.assert(
      fc.property(
        fc.array(mutation, { minLength: 1, maxLength: 4 }),
        fc.constantFrom(0, 100, 1_000_000),
        (mutations, hole) => {
          const bytes = Buffer.from(small);
          for (const { at, bytes: changed } of mutations)
            bytes.set(changed.subarray(0, bytes.length - at), at);
          const file = fileOf(bytes, bytes.length + hole);
          const reading = readGgufMetadata(file);
          if (reading.kind === 'fault') expect(reading.fault).toMatch(/^(?:has|is) .+$/s);
          else expect(reading.metadata.parameters).toBeGreaterThanOrEqual(0);
          expect(file.bytesRead).toBeLessThan(20_000_000);
        },
      ),
      { numRuns: 2_000 },
    );
  });

  it('noise behind a good start is read or refused', () => {
    fc.assert(
      fc.property(
        fc.nat(20),
        fc.nat(20),
        fc.uint8Array({ maxLength: 500 }),
        (tensorCount, pairCount, noise) => {
          const file = fileOf(Buffer.concat([ggufWith({ tensorCount, pairCount }), noise]));
          expect(['metadata', 'fault']).toContain(readGgufMetadata(file).kind);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});
