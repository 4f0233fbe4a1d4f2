import { expect, it } from 'vitest';
import { canonicalTag, parseGgufName, shardPath } from '../../../../src/models/disk/gguf-name.js';

it.each([
  ['X-UD-Q4_K_XL.gguf', 'X-UD-Q4_K_XL', 'Q4_K_XL', 1, 1],
  ['Qwen3-8B.gguf', 'Qwen3-8B', '8B', 1, 1],
  ['x.q8_0.gguf', 'x.q8_0', 'Q8_0', 1, 1],
  ['model.gguf', 'model', undefined, 1, 1],
  ['BF16/big-BF16-00002-of-00003.gguf', 'BF16/big-BF16', 'BF16', 2, 3],
  ['a-b/c.gguf', 'a-b/c', undefined, 1, 1],
  ['x-00001-of-00002.extra.gguf', 'x-00001-of-00002.extra', 'EXTRA', 1, 1],
])('%s: prefix, tag and shard', (path, prefix, tag, index, count) => {
  expect(parseGgufName(path)).toEqual({ prefix, tag, index, count });
});

it.each(['model.GGUF', 'model.gguf.part', 'gguf', 'model'])('%s is no GGUF file by its name', (path) => {
  expect(parseGgufName(path)).toBeUndefined();
});

it('any shard leads to every other, and a file that is no shard to itself', () => {
  expect(shardPath('/m/x-00002-of-00012.gguf', 1)).toBe('/m/x-00001-of-00012.gguf');
  expect(shardPath('/m/x-00001-of-00012.gguf', 12)).toBe('/m/x-00012-of-00012.gguf');
  expect(shardPath('/m/x.gguf', 1)).toBe('/m/x.gguf');
  expect(shardPath('/m/x-00001-of-00012.bin', 2)).toBe('/m/x-00001-of-00012.bin');
});

it('a tag is upper-cased, and only its last component is kept', () => {
  expect(canonicalTag('ud-q4_k_xl')).toBe('Q4_K_XL');
  expect(canonicalTag('latest')).toBe('LATEST');
  expect(canonicalTag('')).toBe('');
});
