import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { arrangeGguf, ggufToBuffer, writeGguf } from '../../../src/demo/gguf-writer.js';
import type { GgufTensor, GgufValue } from '../../../src/demo/gguf-writer.js';
import { parseGguf } from './parse-gguf.js';

const everyType = new Map<string, GgufValue>([
  ['a.uint32', { type: 'uint32', value: 0xfffffffe }],
  ['a.float32', { type: 'float32', value: -0.5 }],
  ['a.true', { type: 'bool', value: true }],
  ['a.false', { type: 'bool', value: false }],
  ['a.string', { type: 'string', value: 'ä ▁ "🙂"\n' }],
  ['an.empty.string', { type: 'string', value: '' }],
  ['some.int32', { type: 'int32[]', value: [-1, 0, 2 ** 31 - 1] }],
  ['some.float32', { type: 'float32[]', value: [0.25, -3] }],
  ['some.strings', { type: 'string[]', value: ['', '▁word', '<0x0A>'] }],
]);

// The first two end in the middle of an alignment step, so that the tensors behind them need padding.
const tensors: GgufTensor[] = [
  { name: 'three', shape: [3], data: Float32Array.of(1, 2, 3) },
  { name: 'zero', shape: [5, 3] },
  { name: 'matrix', shape: [2, 3], data: Float32Array.of(1.5, -2, 3, 4, 5, 6) },
];

describe('the GGUF writer', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'gguf-writer-'));
  });
  afterAll(() => rm(dir, { recursive: true }));

  it('writes version 3 with every metadata value in the order given', () => {
    const parsed = parseGguf(ggufToBuffer(arrangeGguf(everyType, [])));
    expect(parsed.version).toBe(3);
    expect([...parsed.metadata]).toEqual([...everyType].map(([key, { value }]) => [key, value]));
  });

  it('writes the shape and the elements of every tensor', () => {
    const parsed = parseGguf(ggufToBuffer(arrangeGguf(new Map(), tensors)));
    expect([...parsed.tensors.keys()]).toEqual(['three', 'zero', 'matrix']);
    expect(parsed.tensors.get('three')).toMatchObject({ shape: [3], data: Float32Array.of(1, 2, 3) });
    expect(parsed.tensors.get('zero')).toMatchObject({ shape: [5, 3], data: new Float32Array(15) });
    expect(parsed.tensors.get('matrix')).toMatchObject({
      shape: [2, 3],
      data: Float32Array.of(1.5, -2, 3, 4, 5, 6),
    });
  });

  it('aligns every tensor and the end of the file to 32 bytes, whatever the length of the metadata', () => {
    for (let nameLength = 0; nameLength < 33; nameLength += 1) {
      const name: GgufValue = { type: 'string', value: 'n'.repeat(nameLength) };
      const file = ggufToBuffer(arrangeGguf(new Map([['name', name]]), tensors));
      const { dataStart, tensors: parsed } = parseGguf(file);
      // 3 and 15 elements of 4 bytes, each rounded up to a multiple of 32.
      expect([...parsed.values()].map(({ start }) => start - dataStart)).toEqual([0, 32, 96]);
      expect(file.length - dataStart).toBe(128);
      expect(dataStart % 32).toBe(0);
    }
  });

  it('writes the same bytes to a file as to memory, and replaces a longer file', async () => {
    const file = arrangeGguf(everyType, tensors);
    const path = join(dir, 'replaced.gguf');
    await writeFile(path, Buffer.alloc(file.sizeBytes + 1000, 0xff));
    await writeGguf(path, file);
    expect(ggufToBuffer(file).equals(await readFile(path))).toBe(true);
  });

  it('refuses a tensor whose data is not as long as its shape says', () => {
    expect(() =>
      arrangeGguf(new Map(), [{ name: 'short', shape: [4, 2], data: new Float32Array(7) }]),
    ).toThrow('Tensor short has the shape 4 x 2 but 7 elements');
  });
});
