import { fileTypeName } from './ggml-types.js';
import { shardProblem, type Shard } from './gguf-file.js';
import type { GgufMetadata, MetadataValue } from './gguf-metadata.js';

export type Modality = 'text' | 'image' | 'audio';

/** What the files of a model say about it. Undefined is what they do not say. */
export interface ModelFacts {
  /** As llama.cpp names it: `llama`, `qwen3moe`. */
  readonly architecture: string | undefined;
  /** Tokens that the model was trained for. */
  readonly contextLength: number | undefined;
  /** The number of weights, those of all shards together. */
  readonly parameters: number;
  /** On disk, all shards together, without the projector. */
  readonly sizeBytes: number;
  /** Such as `Q4_K_M`; the most frequent type of weights where the file does not name its mix. */
  readonly quantization: string | undefined;
  readonly embeddingLength: number | undefined;
  readonly vocabSize: number | undefined;
  /** Whether the model brings a chat template. */
  readonly chatTemplate: boolean;
  readonly name: string | undefined;
  readonly inputModalities: readonly Modality[];
}

export type FactsReport =
  | { readonly kind: 'facts'; readonly facts: ModelFacts }
  /** `problem` is a sentence that names the file at fault; `transient`: it may pass by itself, look again. */
  | { readonly kind: 'problem'; readonly problem: string; readonly transient: boolean }
  /** It could not be read, and that says nothing against it: storage that is slow or hangs, a reader that failed. */
  | { readonly kind: 'unread'; readonly reason: string };

/** What is kept of one file's header. */
export interface HeaderFacts {
  readonly type?: string | undefined;
  readonly architecture?: string | undefined;
  readonly name?: string | undefined;
  readonly fileType?: number | undefined;
  readonly contextLength?: number | undefined;
  readonly embeddingLength?: number | undefined;
  readonly vocabSize?: number | undefined;
  readonly chatTemplate?: boolean | undefined;
  readonly visionEncoder?: boolean | undefined;
  readonly audioEncoder?: boolean | undefined;
  /** Counted from 0. */
  readonly splitNumber?: number | undefined;
  readonly splitCount?: number | undefined;
  readonly tensorCount: number;
  readonly parameters: number;
  /** The name of the type that most elements are of. */
  readonly tensorType?: string | undefined;
  /** How long the file is when it is whole. */
  readonly wholeBytes?: number | undefined;
}

/** What its header says about a file; a fault is a phrase that follows the file's name. */
export type FileReading =
  | { readonly kind: 'header'; readonly header: HeaderFacts }
  | { readonly kind: 'fault'; readonly fault: string };

/** What a file is found to be; `message` is a phrase that follows its name. */
export type FileVerdict =
  | { readonly kind: 'whole'; readonly header: HeaderFacts }
  | { readonly kind: 'problem'; readonly message: string; readonly transient: boolean };

/** Picks what is kept from a whole header. */
export function headerFacts({ pairs, ...tensors }: GgufMetadata): HeaderFacts {
  const architecture = text(pairs.get('general.architecture'));
  const ofArchitecture = (key: string): number | undefined =>
    count(pairs.get(`${architecture ?? ''}.${key}`));
  return {
    type: text(pairs.get('general.type')),
    architecture,
    name: text(pairs.get('general.name')),
    fileType: count(pairs.get('general.file_type')),
    contextLength: ofArchitecture('context_length'),
    embeddingLength: ofArchitecture('embedding_length'),
    vocabSize: length(pairs.get('tokenizer.ggml.tokens')) ?? ofArchitecture('vocab_size'),
    chatTemplate: (length(pairs.get('tokenizer.chat_template')) ?? 0) > 0,
    visionEncoder: pairs.get('clip.has_vision_encoder') === true,
    audioEncoder: pairs.get('clip.has_audio_encoder') === true,
    splitNumber: count(pairs.get('split.no')),
    splitCount: count(pairs.get('split.count')),
    tensorCount: tensors.tensorCount,
    parameters: tensors.parameters,
    tensorType: tensors.tensorTypes[0],
    wholeBytes: tensors.sizeBytes,
  };
}

function text(value: MetadataValue | undefined): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function count(value: MetadataValue | undefined): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}

/** Of an array or a string. */
function length(value: MetadataValue | undefined): number | undefined {
  return typeof value === 'string' || typeof value === 'object' ? value.length : undefined;
}

/** Whether all that the header describes is in the file; one with tensors of unknown types is given the benefit. */
export function isWhole(reading: FileReading, sizeBytes: number): boolean {
  return reading.kind === 'header' && sizeBytes >= (reading.header.wholeBytes ?? 0);
}

/**
 * Judges a file by what was read of it.
 *
 * @param writing the file is still being written, so that a fault may pass
 */
export function judgeFile(
  reading: FileReading,
  { sizeBytes, writing }: { readonly sizeBytes: number; readonly writing: boolean },
): FileVerdict {
  if (reading.kind === 'fault') return { kind: 'problem', message: reading.fault, transient: writing };
  const { header } = reading;
  if (isWhole(reading, sizeBytes)) return { kind: 'whole', header };
  const [has, whole] = formatSizes(sizeBytes, header.wholeBytes ?? 0);
  const message = writing
    ? `is still being written: ${has} of ${whole} so far`
    : `holds ${has} of ${whole}: the file is truncated; copy or download it again`;
  return { kind: 'problem', message, transient: writing };
}

const UNITS = [
  [1e9, 'GB'],
  [1e6, 'MB'],
  [1e3, 'kB'],
] as const;

/** Both in the unit that suits the larger one, or exactly where they would look the same. */
function formatSizes(part: number, whole: number): [string, string] {
  const [bytes, unit] = UNITS.find(([unitBytes]) => whole >= unitBytes) ?? [1, 'bytes'];
  const inUnit = (size: number): string => `${(size / bytes).toFixed(bytes === 1 ? 0 : 1)} ${unit}`;
  if (inUnit(part) !== inUnit(whole)) return [inUnit(part), inUnit(whole)];
  return [`${part} bytes`, `${whole} bytes`];
}

/**
 * The facts of a model whose files are all whole, or why they are not the files of a model.
 *
 * @param shards all files of the model, in order
 * @param projector the header of its multimodal projector, if it has one that can be read
 */
export function describeModel(
  shards: readonly { readonly shard: Shard; readonly sizeBytes: number; readonly header: HeaderFacts }[],
  projector: HeaderFacts | undefined,
): FactsReport {
  const tensorCount = sum(shards.map(({ header }) => header.tensorCount));
  for (const { shard, header } of shards) {
    const problem = splitProblem(shard, header) ?? kindProblem(header, tensorCount);
    if (problem !== undefined) {
      return { kind: 'problem', problem: shardProblem(shard, problem), transient: false };
    }
  }
  const first = shards[0]?.header;
  return {
    kind: 'facts',
    facts: {
      architecture: first?.architecture,
      contextLength: first?.contextLength,
      parameters: sum(shards.map(({ header }) => header.parameters)),
      sizeBytes: sum(shards.map(({ sizeBytes }) => sizeBytes)),
      quantization: quantization(shards.map(({ header }) => header)),
      embeddingLength: first?.embeddingLength,
      vocabSize: first?.vocabSize,
      chatTemplate: first?.chatTemplate === true,
      name: first?.name,
      inputModalities: modalities(projector),
    },
  };
}

/** llama.cpp finds the shards by their names and checks them by their metadata, which both have to say the same. */
function splitProblem({ index, count }: Shard, { splitNumber, splitCount }: HeaderFacts): string | undefined {
  if (splitNumber !== undefined && splitNumber !== index - 1) {
    return `is shard ${splitNumber + 1} by its own words, but not by its name`;
  }
  if (splitCount === undefined || splitCount === 0 || splitCount === count) return undefined;
  return count === 1
    ? `is one of ${splitCount} shards by its own words, but its name does not end in "-00001-of-${String(splitCount).padStart(5, '0')}.gguf"`
    : `is one of ${splitCount} shards by its own words, but not by its name`;
}

const KINDS: ReadonlyMap<string | undefined, string> = new Map([
  ['adapter', 'is a LoRA adapter, not a model'],
  ['imatrix', 'is an importance matrix, not a model'],
  ['mmproj', 'is a multimodal projector, not a model'],
]);
const ARCHITECTURES: ReadonlyMap<string | undefined, string> = new Map([
  ['clip', 'is a multimodal projector, not a model'],
  ['controlvector', 'is a control vector, not a model'],
]);

/** Files that are no model by their own words. Of others, the child knows better whether it can load them. */
function kindProblem(
  { type, architecture, vocabSize }: HeaderFacts,
  tensorCount: number,
): string | undefined {
  const problem = KINDS.get(type) ?? ARCHITECTURES.get(architecture);
  if (problem !== undefined) return problem;
  return tensorCount === 0 && vocabSize !== undefined
    ? 'is a vocabulary without weights, not a model'
    : undefined;
}

function quantization(headers: readonly HeaderFacts[]): string | undefined {
  const fileType = headers[0]?.fileType;
  const named = fileType === undefined ? undefined : fileTypeName(fileType);
  return named ?? headers.find(({ tensorType }) => tensorType !== undefined)?.tensorType;
}

function modalities(projector: HeaderFacts | undefined): Modality[] {
  const all: Modality[] = ['text'];
  if (projector?.visionEncoder === true) all.push('image');
  if (projector?.audioEncoder === true) all.push('audio');
  return all;
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
