import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  countingWords,
  knownAnswerModel,
  writeKnownAnswerModel,
} from '../../../src/demo/known-answer-model.js';
import type { KnownAnswerSpec } from '../../../src/demo/known-answer-model.js';
import { parseGguf } from './parse-gguf.js';
import type { ParsedGguf } from './parse-gguf.js';

const END = '</s>';

function parse(spec: Omit<KnownAnswerSpec, 'name'>): ParsedGguf {
  return parseGguf(knownAnswerModel({ name: 'test', ...spec }));
}

function tokenTexts({ metadata }: ParsedGguf): string[] {
  return metadata.get('tokenizer.ggml.tokens') as string[];
}

function tensor({ tensors }: ParsedGguf, name: string): { shape: number[]; data: Float32Array } {
  const found = tensors.get(name);
  if (!found) throw new Error(`no tensor ${name}`);
  return found;
}

/** Every logit after one token, computed as llama.cpp does when attention and feed-forward add nothing. */
function logitsAfter(model: ParsedGguf, token: number): number[] {
  const embedding = tensor(model, 'token_embd.weight');
  const output = tensor(model, 'output.weight');
  const norm = tensor(model, 'output_norm.weight').data;
  const epsilon = model.metadata.get('llama.attention.layer_norm_rms_epsilon') as number;
  const [width = 0, tokenCount = 0] = embedding.shape;

  const x = embedding.data.subarray(token * width, (token + 1) * width);
  const meanSquare = x.reduce((sum, value) => sum + value * value, 0) / width;
  const normed = x.map((value, place) => (value / Math.sqrt(meanSquare + epsilon)) * (norm[place] ?? 0));
  return Array.from({ length: tokenCount }, (_, next) => {
    const row = output.data.subarray(next * width, (next + 1) * width);
    return row.reduce((sum, weight, place) => sum + weight * (normed[place] ?? 0), 0);
  });
}

function nextToken(model: ParsedGguf, token: number): number {
  const logits = logitsAfter(model, token);
  return logits.indexOf(Math.max(...logits));
}

/** What the model says after `prompt`, a token, until it ends or has said `limit` tokens. */
function answerAfter(model: ParsedGguf, prompt: string, limit: number): string {
  const texts = tokenTexts(model);
  let answer = '';
  let token = texts.indexOf(prompt);
  for (let said = 0; said < limit; said += 1) {
    token = nextToken(model, token);
    const text = texts[token] ?? '';
    if (text === END) return answer;
    answer += text.replaceAll('▁', ' ');
  }
  return answer;
}

describe('a known-answer model', () => {
  it('says exactly its words and then ends', () => {
    const model = parse({ words: ['I', 'say', 'three things,', 'ä', 'and', '🙂.'] });
    expect(answerAfter(model, END, 100)).toBe('I say three things, ä and 🙂.');
  });

  it('says any different words in their order', () => {
    const word = fc.stringMatching(/^[a-zA-Z0-9.,!ßé-]{1,12}$/);
    fc.assert(
      fc.property(fc.uniqueArray(word, { minLength: 1, maxLength: 12 }), (words) => {
        expect(answerAfter(parse({ words }), END, words.length + 1)).toBe(words.join(' '));
      }),
      { numRuns: 20 },
    );
  });

  it('begins at the first word after every token that is not one of its words', () => {
    const model = parse({ words: ['alpha', 'beta'] });
    const texts = tokenTexts(model);
    const others = texts.filter((text) => !['alpha', '▁beta'].includes(text));
    expect(others).toHaveLength(3 + 256 + 1);
    for (const text of others) {
      expect(nextToken(model, texts.indexOf(text)), text).toBe(texts.indexOf('alpha'));
    }
  });

  it('gives the next word a logit of 1000 and every other token 0, so that no sampling changes the choice', () => {
    const model = parse({ words: countingWords(50) });
    const ranked = logitsAfter(model, tokenTexts(model).indexOf('▁7')).toSorted((a, b) => b - a);
    expect(ranked[0]).toBeGreaterThan(999);
    expect(ranked[0]).toBeLessThan(1001);
    expect(ranked.slice(1)).toEqual(new Array(ranked.length - 1).fill(0));
  });

  it('starts again behind the last word when it loops', () => {
    expect(answerAfter(parse({ words: ['tick', 'tack', 'tock'], loop: true }), END, 7)).toBe(
      'tick tack tock tick tack tock tick',
    );
    expect(answerAfter(parse({ words: ['again'], loop: true }), END, 3)).toBe('again again again');
  });

  it('has the special tokens first, then every byte, then the space, then the words', () => {
    const { metadata } = parse({ words: ['one', 'two'] });
    const tokens = metadata.get('tokenizer.ggml.tokens') as string[];
    const types = metadata.get('tokenizer.ggml.token_type') as number[];
    expect(tokens.slice(0, 4)).toEqual(['<unk>', '<s>', '</s>', '<0x00>']);
    expect(tokens[3 + 0x0a]).toBe('<0x0A>');
    expect(tokens.slice(3 + 0xff)).toEqual(['<0xFF>', '▁', 'one', '▁two']);
    // llama.h: unknown 2, control 3, byte 6, normal 1.
    expect(types).toEqual([2, 3, 3, ...new Array<number>(256).fill(6), 1, 1, 1]);
    expect(metadata.get('tokenizer.ggml.scores')).toHaveLength(tokens.length);
    expect(metadata.get('llama.vocab_size')).toBe(tokens.length);
  });

  it('has the tensors of a one-layer llama in the shapes its metadata announces, the layer all zero', () => {
    const model = parse({ words: ['one', 'two'] });
    const { metadata, tensors } = model;
    // 3 + 256 + 1 + 2 tokens, rounded up to a multiple of 32.
    const width = 288;
    expect(metadata.get('llama.embedding_length')).toBe(width);
    expect(metadata.get('llama.block_count')).toBe(1);
    const head = metadata.get('llama.attention.key_length') as number;
    const feedForward = metadata.get('llama.feed_forward_length') as number;
    const shapes = Object.fromEntries([...tensors].map(([name, { shape }]) => [name, shape]));
    expect(shapes).toEqual({
      'token_embd.weight': [width, 262],
      'output_norm.weight': [width],
      'output.weight': [width, 262],
      'blk.0.attn_norm.weight': [width],
      'blk.0.attn_q.weight': [width, head],
      'blk.0.attn_k.weight': [width, head],
      'blk.0.attn_v.weight': [width, head],
      'blk.0.attn_output.weight': [head, width],
      'blk.0.ffn_norm.weight': [width],
      'blk.0.ffn_gate.weight': [width, feedForward],
      'blk.0.ffn_up.weight': [width, feedForward],
      'blk.0.ffn_down.weight': [feedForward, width],
    });
    for (const name of ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down']) {
      expect(
        tensor(model, `blk.0.${name}.weight`).data.every((weight) => weight === 0),
        name,
      ).toBe(true);
    }
  });

  it('puts </s> behind every prompt of a speaking model, and of no embedding model', () => {
    const addsEnd = (pooling?: 'none' | 'last'): unknown =>
      parse({ words: ['x'], ...(pooling && { pooling }) }).metadata.get('tokenizer.ggml.add_eos_token');
    expect(addsEnd()).toBe(true);
    expect(addsEnd('none')).toBe(true);
    expect(addsEnd('last')).toBe(false);
  });

  it('carries the name, the context length and the pooling it was given', () => {
    const { metadata } = parseGguf(
      knownAnswerModel({ name: 'Ada', words: ['x'], contextLength: 777, pooling: 'last' }),
    );
    expect(metadata.get('general.name')).toBe('Ada');
    expect(metadata.get('llama.context_length')).toBe(777);
    // llama.h: LLAMA_POOLING_TYPE_LAST = 3.
    expect(metadata.get('llama.pooling_type')).toBe(3);
    expect(parse({ words: ['x'] }).metadata.has('llama.pooling_type')).toBe(false);
  });

  it('carries its own chat template, the default one, or none', () => {
    const key = 'tokenizer.chat_template';
    expect(parse({ words: ['x'], chatTemplate: '{{ messages }}' }).metadata.get(key)).toBe('{{ messages }}');
    expect(parse({ words: ['x'] }).metadata.get(key)).toContain('<|im_start|>assistant');
    expect(parse({ words: ['x'], chatTemplate: '' }).metadata.has(key)).toBe(false);
  });

  it('stays around two megabytes with two hundred words', () => {
    expect(knownAnswerModel({ name: 'count', words: countingWords(200) }).length).toBeLessThan(2.5e6);
    expect(knownAnswerModel({ name: 'short', words: ['hi'] }).length).toBeLessThan(1e6);
  });

  it('grows by at least the extra bytes asked for, in layers that its metadata counts', async () => {
    const dir = await mkdtemp(join(tmpdir(), 'known-answer-'));
    try {
      const file = join(dir, 'large.gguf');
      await writeKnownAnswerModel(file, { name: 'large', words: ['big'], extraBytes: 60e6 });
      const { size } = await stat(file);
      const small = knownAnswerModel({ name: 'large', words: ['big'] }).length;
      expect(size - small).toBeGreaterThanOrEqual(60e6);
      const { metadata, tensors } = parseGguf(await readFile(file));
      const layers = metadata.get('llama.block_count') as number;
      expect([...tensors.keys()].filter((name) => name.endsWith('.ffn_up.weight'))).toHaveLength(layers);
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  it('refuses words that it could not say in order', () => {
    const making = (words: string[]) => () => knownAnswerModel({ name: 'refused', words });
    expect(making([])).toThrow('at least one word');
    expect(making(['a', ''])).toThrow('Word 2 is empty');
    expect(making(['a', 'b', 'a'])).toThrow('"a" is there twice');
    expect(making(['snake▁case'])).toThrow('"snake▁case" contains ▁');
    expect(making(['<0x41>'])).toThrow('"<0x41>" is a token already');
    expect(making([' b', 'b'])).toThrow('"▁b" is a token already');
  });

  it('refuses more extra bytes than llama.cpp has layers for, and says how many it takes', () => {
    expect(() => knownAnswerModel({ name: 'huge', words: ['x'], extraBytes: 1e12 })).toThrow(
      /extraBytes is 1000000000000, but at most \d+ can be added/,
    );
  });
});

describe('countingWords', () => {
  it('counts from 1 to n in digits', () => {
    expect(countingWords(3)).toEqual(['1', '2', '3']);
    expect(countingWords(200).at(-1)).toBe('200');
    expect(countingWords(0)).toEqual([]);
  });
});
