import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { GGMLFileQuantizationType, GGMLQuantizationType } from '@huggingface/gguf';
import { describe, expect, it } from 'vitest';
import { fileTypeName, TENSOR_TYPES } from '../../../../src/models/gguf/ggml-types.js';

const constants = fileURLToPath(
  new URL('../../../../vendor/llama.cpp/gguf-py/gguf/constants.py', import.meta.url),
);

/** Names with the elements and bytes of a block, from lines such as `GGMLQuantizationType.Q4_0: (32, 2 + 16),`. */
function upstreamBlocks(): Map<string, [number, number]> {
  const lines = readFileSync(constants, 'utf8').matchAll(/GGMLQuantizationType\.(\w+): +\((\d+), ([^)]+)\)/g);
  return new Map(
    [...lines].map(([, name = '', elements, bytes = '']) => [name, [Number(elements), evaluate(bytes)]]),
  );
}

/** Sums of products and quotients: `2 + QK_K // 4 + 4 * 13`. */
function evaluate(expression: string): number {
  return expression
    .split('+')
    .map((term) => {
      const [first = '', ...rest] = term.trim().split(/ +/);
      let value = operand(first);
      for (let index = 0; index < rest.length; index += 2) {
        const right = operand(rest[index + 1] ?? '');
        value = rest[index] === '*' ? value * right : Math.floor(value / right);
      }
      return value;
    })
    .reduce((sum, value) => sum + value, 0);
}

function operand(word: string): number {
  return word === 'QK_K' ? 256 : Number(word);
}

describe('tensor types', () => {
  it('have the blocks of the pinned llama.cpp', (context) => {
    if (!existsSync(constants)) context.skip('needs the sources that ./build-llama.sh fetches');
    const upstream = upstreamBlocks();
    expect(upstream.size).toBeGreaterThan(30);
    const ours = [...TENSOR_TYPES.values()].map(
      ({ name, blockElements, blockBytes }) => [name, [blockElements, blockBytes]] as const,
    );
    expect(new Map(ours)).toEqual(upstream);
  });

  it('have the numbers that the oracle knows', () => {
    const oracle = Object.entries(GGMLQuantizationType).filter(([, number]) => typeof number === 'number');
    expect(oracle.length).toBeGreaterThan(30);
    const differing = oracle.filter(([name, number]) => TENSOR_TYPES.get(Number(number))?.name !== name);
    expect(differing).toEqual([]);
  });
});

describe('file types', () => {
  it('have the names that the oracle knows', () => {
    const oracle = Object.entries(GGMLFileQuantizationType).filter(
      ([, number]) => typeof number === 'number' && fileTypeName(number) !== undefined,
    );
    expect(oracle.length).toBeGreaterThan(30);
    const differing = oracle.filter(([name, number]) => fileTypeName(Number(number)) !== name);
    expect(differing).toEqual([]);
  });

  it('are known when a tool has guessed them, too', () => {
    expect(fileTypeName(1024 + 15)).toBe('Q4_K_M');
    expect(fileTypeName(999)).toBeUndefined();
  });
});
