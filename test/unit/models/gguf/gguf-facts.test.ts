import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { writeKnownAnswerModel } from '../../../../src/demo/known-answer-model.js';
import {
  describeModel,
  headerFacts,
  judgeFile,
  type FactsReport,
  type HeaderFacts,
  type ModelFacts,
} from '../../../../src/models/gguf/gguf-facts.js';
import { GgufChecks, shardsOf } from '../../../../src/models/gguf/gguf-file.js';
import { lookAtFile } from '../../../../src/models/gguf/gguf-look.js';
import { readGgufMetadata } from '../../../../src/models/gguf/gguf-metadata.js';
import { sayingItsName } from '../../../helpers/known-answer-models.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import {
  boolPair,
  ggufHeader,
  ggufWith,
  stringPair,
  stringsPair,
  uint16Pair,
  uint32Pair,
  writeSparse,
  type Pair,
  type TensorHeader,
} from '../gguf-header.js';

const directory = tempDir();
const tensors: TensorHeader[] = [{ shape: [256, 4], type: 12 }];
const llama = stringPair('general.architecture', 'llama');

function headerOf(pairs: readonly Pair[], itsTensors = tensors): HeaderFacts {
  const bytes = ggufWith({ pairs, tensors: itsTensors });
  const reading = readGgufMetadata({
    sizeBytes: bytes.length,
    read: (target, position) => bytes.copy(target, 0, position),
  });
  if (reading.kind === 'fault') throw new Error(reading.fault);
  return headerFacts(reading.metadata);
}

/** The report on a model of files of 1000 bytes each; `file` is the first of as many as there are headers. */
function reportOn(
  headers: readonly HeaderFacts[],
  { file = '/m/a.gguf', projector }: { file?: string; projector?: HeaderFacts } = {},
): FactsReport {
  const shards = [...shardsOf(file)].map((shard, index) => {
    const header = headers[index];
    if (header === undefined) throw new Error(`no header for ${shard.path}`);
    return { shard, sizeBytes: 1000, header };
  });
  return describeModel(shards, projector);
}

function factsOf(...args: Parameters<typeof reportOn>): ModelFacts {
  const report = reportOn(...args);
  if (report.kind !== 'facts') throw new Error(JSON.stringify(report));
  return report.facts;
}

describe('the facts', () => {
  it('of a model that we made are what it was made with', async () => {
    const file = join(directory, 'made.gguf');
    await writeKnownAnswerModel(file, { name: 'Made', ...sayingItsName('Made'), contextLength: 2048 });
    const look = lookAtFile(file);
    if (look.kind !== 'read' || look.reading.kind !== 'header') throw new Error('not read');
    const { sizeBytes } = look;
    expect(sizeBytes).toBe(statSync(file).size);
    const report = describeModel(
      [...shardsOf(file)].map((shard) => ({ shard, sizeBytes, header: headerOfLook(file) })),
      undefined,
    );
    // <unk>, <s>, </s>, 256 bytes, a space, "I", "am", "Made."; the width is the next multiple of 32.
    const [vocabulary, width] = [263, 288];
    expect(report).toEqual({
      kind: 'facts',
      facts: {
        architecture: 'llama',
        contextLength: 2048,
        // Embedding and output; three norms; q, k, v, o and gate, up, down, all 32 wide.
        parameters: 2 * width * vocabulary + 3 * width + 7 * width * 32,
        sizeBytes,
        quantization: 'F32',
        embeddingLength: width,
        vocabSize: vocabulary,
        chatTemplate: true,
        name: 'Made',
        inputModalities: ['text'],
      },
    });
  });

  it('that a file does not state are not there', () => {
    expect(factsOf([headerOf([], [])])).toEqual({
      architecture: undefined,
      contextLength: undefined,
      parameters: 0,
      sizeBytes: 1000,
      quantization: undefined,
      embeddingLength: undefined,
      vocabSize: undefined,
      chatTemplate: false,
      name: undefined,
      inputModalities: ['text'],
    });
  });

  it('that a file states as nonsense are not there', () => {
    const { architecture, contextLength, name, vocabSize } = factsOf([
      headerOf([
        llama,
        stringPair('llama.context_length', 'long'),
        uint32Pair('general.name', 7),
        boolPair('llama.vocab_size', true),
      ]),
    ]);
    expect({ architecture, contextLength, name, vocabSize }).toEqual({
      architecture: 'llama',
      contextLength: undefined,
      name: undefined,
      vocabSize: undefined,
    });
  });

  it('name the mix of types that the file names, and else the type of most weights', () => {
    const named = headerOf([llama, uint32Pair('general.file_type', 15)]);
    const unknown = headerOf([llama, uint32Pair('general.file_type', 999)]);
    const small: TensorHeader[] = [...tensors, { shape: [10] }, { shape: [20] }];
    expect(factsOf([named]).quantization).toBe('Q4_K_M');
    expect(factsOf([unknown]).quantization).toBe('Q4_K');
    expect(factsOf([headerOf([llama], small)]).quantization).toBe('Q4_K');
  });

  it('take the size of the vocabulary from its words, and else from its number', () => {
    const words = stringsPair('tokenizer.ggml.tokens', ['a', 'b', 'c']);
    expect(factsOf([headerOf([llama, words, uint32Pair('llama.vocab_size', 9)])]).vocabSize).toBe(3);
    expect(factsOf([headerOf([llama, uint32Pair('llama.vocab_size', 9)])]).vocabSize).toBe(9);
  });

  it('do not depend on where the architecture is named', () => {
    expect(factsOf([headerOf([uint32Pair('llama.context_length', 512), llama])]).contextLength).toBe(512);
  });

  it('see a chat template of any length', () => {
    const template = (text: string): HeaderFacts =>
      headerOf([llama, stringPair('tokenizer.chat_template', text)]);
    expect(['', '{{ x }}', 'x'.repeat(50_000)].map((text) => factsOf([template(text)]).chatTemplate)).toEqual(
      [false, true, true],
    );
  });

  it.each<[string, Pair[], string[]]>([
    ['neither encoder', [], ['text']],
    ['a vision encoder', [boolPair('clip.has_vision_encoder', true)], ['text', 'image']],
    [
      'only an audio encoder',
      [boolPair('clip.has_vision_encoder', false), boolPair('clip.has_audio_encoder', true)],
      ['text', 'audio'],
    ],
    [
      'both encoders',
      [boolPair('clip.has_vision_encoder', true), boolPair('clip.has_audio_encoder', true)],
      ['text', 'image', 'audio'],
    ],
  ])('take the input modalities from a projector with %s', (_what, pairs, modalities) => {
    const projector = headerOf([stringPair('general.architecture', 'clip'), ...pairs]);
    expect(factsOf([headerOf([llama])], { projector }).inputModalities).toEqual(modalities);
  });

  it('of shards are added up', () => {
    const file = '/m/a-00001-of-00003.gguf';
    const shard = (index: number, ...pairs: Pair[]): HeaderFacts =>
      headerOf([...pairs, uint16Pair('split.no', index), uint16Pair('split.count', 3)]);
    const facts = factsOf([shard(0, llama, stringPair('general.name', 'A')), shard(1), shard(2)], { file });
    expect(facts).toMatchObject({
      architecture: 'llama',
      name: 'A',
      parameters: 3 * 1024,
      sizeBytes: 3000,
      quantization: 'Q4_K',
    });
  });
});

describe('what is no model', () => {
  it.each<[string, Pair[], string]>([
    ['an adapter', [llama, stringPair('general.type', 'adapter')], 'is a LoRA adapter, not a model'],
    ['an importance matrix', [stringPair('general.type', 'imatrix')], 'is an importance matrix, not a model'],
    ['a projector', [llama, stringPair('general.type', 'mmproj')], 'is a multimodal projector, not a model'],
    [
      'a projector by its architecture',
      [stringPair('general.architecture', 'clip')],
      'is a multimodal projector, not a model',
    ],
    [
      'a control vector',
      [stringPair('general.architecture', 'controlvector')],
      'is a control vector, not a model',
    ],
  ])('%s is refused with the reason', (_what, pairs, reason) => {
    expect(reportOn([headerOf(pairs)])).toEqual({
      kind: 'problem',
      problem: `'/m/a.gguf' ${reason}`,
      transient: false,
    });
  });

  it('a vocabulary without weights is refused with the reason', () => {
    const vocabulary = headerOf([llama, stringsPair('tokenizer.ggml.tokens', ['a'])], []);
    expect(reportOn([vocabulary])).toMatchObject({
      problem: "'/m/a.gguf' is a vocabulary without weights, not a model",
    });
    // The first shard of a split model may hold no tensors.
    const file = '/m/a-00001-of-00002.gguf';
    expect(reportOn([vocabulary, headerOf([])], { file })).toMatchObject({ kind: 'facts' });
  });

  it('shards whose names and words differ are refused with the reason', () => {
    const split = (number: number, count: number): HeaderFacts =>
      headerOf([llama, uint16Pair('split.no', number), uint16Pair('split.count', count)]);
    const file = '/m/a-00001-of-00002.gguf';
    const whole = split(0, 2);
    expect(reportOn([whole, split(1, 2)], { file })).toMatchObject({ kind: 'facts' });
    expect([
      reportOn([whole, split(0, 2)], { file }),
      reportOn([split(0, 3), split(1, 3)], { file }),
      reportOn([whole]),
    ]).toMatchObject([
      {
        problem: `'/m/a-00002-of-00002.gguf' (shard 2 of 2) is shard 1 by its own words, but not by its name`,
      },
      { problem: `'${file}' (shard 1 of 2) is one of 3 shards by its own words, but not by its name` },
      {
        problem:
          `'/m/a.gguf' is one of 2 shards by its own words, but its name does not end in ` +
          '"-00001-of-00002.gguf"',
      },
    ]);
  });
});

describe('a file', () => {
  const GB = 1e9;
  function judge(wholeBytes: number | undefined, sizeBytes: number, writing = false) {
    const header = { tensorCount: 1, parameters: 1, wholeBytes };
    return judgeFile({ kind: 'header', header }, { sizeBytes, writing });
  }

  it('that is as long as its header says, or longer, is whole', () => {
    expect([judge(100, 100), judge(100, 101), judge(undefined, 5)]).toMatchObject([
      { kind: 'whole' },
      { kind: 'whole' },
      { kind: 'whole' },
    ]);
  });

  it.each<[number, number, string]>([
    [12 * GB, 40.1 * GB, '12.0 GB of 40.1 GB'],
    [400_000, 3 * GB, '0.0 GB of 3.0 GB'],
    [1_000_000, 2_500_000, '1.0 MB of 2.5 MB'],
    [999, 1_500, '1.0 kB of 1.5 kB'],
    [40, 64, '40 bytes of 64 bytes'],
    [40.1 * GB - 1, 40.1 * GB, '40099999999 bytes of 40100000000 bytes'],
  ])('of %d bytes that should be %d is truncated', (sizeBytes, wholeBytes, sizes) => {
    expect(judge(wholeBytes, sizeBytes)).toEqual({
      kind: 'problem',
      message: `holds ${sizes}: the file is truncated; copy or download it again`,
      transient: false,
    });
  });

  it('that is being written says how far it is', () => {
    expect(judge(40.1 * GB, 12 * GB, true)).toEqual({
      kind: 'problem',
      message: 'is still being written: 12.0 GB of 40.1 GB so far',
      transient: true,
    });
  });

  it('with a fault may pass only while it is being written', () => {
    const reading = { kind: 'fault', fault: 'is empty' } as const;
    expect([true, false].map((writing) => judgeFile(reading, { sizeBytes: 0, writing }))).toEqual([
      { kind: 'problem', message: 'is empty', transient: true },
      { kind: 'problem', message: 'is empty', transient: false },
    ]);
  });
});

describe('a look at a file', () => {
  it.each<[string, string | Uint8Array]>([
    ['nothing', ''],
    ['text', '<!DOCTYPE html>'],
    ['half a header', ggufHeader().subarray(0, 23)],
    ['a pointer', 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'],
    ['an old version', ggufHeader({ version: 1 })],
    ['a later version', ggufHeader({ version: 4 })],
  ])('with %s in it finds the fault that the check of its first bytes finds', async (_what, content) => {
    const path = writeSparse(join(directory, 'fault.gguf'), content);
    const look = lookAtFile(path);
    expect(look).toMatchObject({ kind: 'read', reading: { kind: 'fault' } });
    const { problem } = await new GgufChecks().check(path);
    expect(problem).toBe(`'${path}' ${faultOfLook(path)}`);
  });

  it('that is a directory or does not exist says so', () => {
    expect(faultOfLook(directory)).toBe('is a directory, not a GGUF file');
    expect(lookAtFile(join(directory, 'nowhere'))).toEqual({ kind: 'failed', code: 'ENOENT' });
  });

  it('that has become a pipe does not wait for a writer', { timeout: 5_000 }, (context) => {
    if (process.platform === 'win32') context.skip('there is no mkfifo');
    const path = join(directory, 'pipe');
    execFileSync('mkfifo', [path]);
    expect(faultOfLook(path)).toBe('is not a regular file');
  });
});

function headerOfLook(path: string): HeaderFacts {
  const look = lookAtFile(path);
  if (look.kind !== 'read' || look.reading.kind !== 'header') throw new Error(JSON.stringify(look));
  return look.reading.header;
}

function faultOfLook(path: string): string {
  const look = lookAtFile(path);
  if (look.kind !== 'read' || look.reading.kind !== 'fault') throw new Error(JSON.stringify(look));
  return look.reading.fault;
}
