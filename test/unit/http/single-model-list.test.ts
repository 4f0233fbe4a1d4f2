import { describe, expect, it } from 'vitest';
import { metaOfFile, singleModelEntry } from '../../../src/http/single-model-list.js';
import type { ModelFacts } from '../../../src/models/gguf/gguf-facts.js';
import { aModel } from '../models/a-model.js';

const facts: ModelFacts = {
  architecture: 'qwen3',
  contextLength: 40_960,
  parameters: 8_190_735_360,
  sizeBytes: 5_027_783_488,
  quantization: 'Q4_K_M',
  embeddingLength: 4096,
  vocabSize: 151_936,
  chatTemplate: true,
  name: 'Qwen3 8B',
  inputModalities: ['text'],
};

describe('singleModelEntry', () => {
  it('tells what the file of a model says, loaded or not', () => {
    const model = aModel('org/qwen3:Q4_K_M', { tags: ['big', 'chat'] });
    expect(singleModelEntry(model, facts)).toEqual({
      name: 'org/qwen3:Q4_K_M',
      model: 'org/qwen3:Q4_K_M',
      modified_at: '',
      size: '5027783488',
      digest: '',
      type: 'model',
      description: 'Qwen3 8B',
      tags: ['big', 'chat'],
      capabilities: ['completion'],
      parameters: '',
      details: {
        parent_model: '',
        format: 'gguf',
        family: 'qwen3',
        families: ['qwen3'],
        parameter_size: '8.2B',
        quantization_level: 'Q4_K_M',
      },
    });
  });

  it("is llama-server's own, with its empty values, while nothing is known", () => {
    expect(JSON.stringify(singleModelEntry(aModel('alpha'), undefined))).toBe(
      '{"name":"alpha","model":"alpha","modified_at":"","size":"","digest":"","type":"model","description":"",' +
        '"tags":[""],"capabilities":["completion"],"parameters":"","details":{"parent_model":"","format":"gguf",' +
        '"family":"","families":[""],"parameter_size":"","quantization_level":""}}',
    );
  });

  it('leaves empty what the file does not say', () => {
    const unnamed = { ...facts, name: undefined, architecture: undefined, quantization: undefined };
    const { description, details } = singleModelEntry(aModel('alpha'), unnamed);
    expect(description).toBe('');
    expect(details).toMatchObject({ family: '', families: [''], quantization_level: '' });
  });

  it('of a model with a projector says that it is multimodal, before the projector has been read', () => {
    const model = aModel('eyes', { mmproj: '/models/eyes/mmproj.gguf' });
    expect(singleModelEntry(model, undefined).capabilities).toEqual(['completion', 'multimodal']);
  });

  it.each([
    [0, '0'],
    [999, '999'],
    [1_000, '1.0K'],
    [216_864, '216.9K'],
    [999_949, '999.9K'],
    [999_950, '1.0M'],
    [134_515_008, '134.5M'],
    [8_030_261_312, '8.0B'],
    [671_026_404_352, '671.0B'],
    [1_026_404_352_000, '1.0T'],
  ])('calls %d parameters %s', (parameters, size) => {
    expect(singleModelEntry(aModel('alpha'), { ...facts, parameters }).details.parameter_size).toBe(size);
  });
});

describe('metaOfFile', () => {
  it("has what the file says, by the child's keys", () => {
    expect(JSON.stringify(metaOfFile(facts))).toBe(
      '{"n_vocab":151936,"n_ctx_train":40960,"n_embd":4096,"n_params":8190735360,"size":5027783488}',
    );
  });

  it('leaves out what it does not say', () => {
    const silent = { ...facts, vocabSize: undefined, contextLength: undefined, embeddingLength: undefined };
    expect(Object.keys(metaOfFile(silent))).toEqual(['n_params', 'size']);
  });
});
