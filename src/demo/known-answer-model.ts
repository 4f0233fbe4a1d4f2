/**
 * Models whose answers are known: small GGUF files that the real llama-server runs and that say the same
 * words whatever they are asked.
 *
 * The architecture is `llama` with attention and feed-forward weights of zero, so a token's embedding
 * reaches the output as it is. Embeddings are one-hot, which makes the output matrix a table: the column of
 * a token names the token that follows it. The chain of words is written into that table.
 */
import type { Buffer } from 'node:buffer';
import { arrangeGguf, ggufToBuffer, writeGguf } from './gguf-writer.js';
import type { GgufFile, GgufTensor, GgufValue } from './gguf-writer.js';
import { BEGIN_ID, END_ID, UNKNOWN_ID, vocabulary } from './vocabulary.js';
import type { Token } from './vocabulary.js';

export type Pooling = 'none' | 'mean' | 'cls' | 'last' | 'rank';

export interface KnownAnswerSpec {
  /** `general.name` in the file. */
  name: string;
  /**
   * What the model says, one token each: the answer is exactly `words.join(' ')`. No word may be there
   * twice, because the next word depends on the one before and on nothing else.
   */
  words: readonly string[];
  /** The last word leads back to the first: the answer ends only where the context does. */
  loop?: boolean;
  /** Jinja source. Default: a ChatML template; '' leaves it out of the file. */
  chatTemplate?: string | undefined;
  /**
   * Makes an embedding model (llama-server then needs `--embeddings`, for `rank` `--reranking`). `mean`
   * embeds a text as the histogram of its tokens (mostly bytes), `last` as its last token, `cls` as the same
   * vector always, and `rank` scores every document 1.
   */
  pooling?: Pooling;
  /** Tokens that the model was "trained" for. Default 4096, with `loop` 65536. */
  contextLength?: number;
  /**
   * At least so many bytes of zero weights more, for slow loads and memory tests. They are computed with, so
   * the model becomes slower too. `writeKnownAnswerModel` stores them as a hole that takes no disk space.
   */
  extraBytes?: number;
}

/**
 * The model as the bytes of a GGUF file.
 *
 * @throws RangeError when the words are none, empty, doubled or contain `▁`, or `extraBytes` is too large.
 */
export function knownAnswerModel(spec: KnownAnswerSpec): Buffer {
  return ggufToBuffer(describe(spec));
}

/** Writes the model to `file`, replacing what is there. Throws as `knownAnswerModel` does. */
export async function writeKnownAnswerModel(file: string, spec: KnownAnswerSpec): Promise<void> {
  await writeGguf(file, describe(spec));
}

/** The words '1', '2', … to `n`: an answer that shows which event was lost, doubled or moved. */
export function countingWords(n: number): string[] {
  return Array.from({ length: n }, (_, index) => String(index + 1));
}

const DEFAULT_CONTEXT_LENGTH = 4096;

/** Takes about two minutes to fill on one core, and 32 MiB of KV cache with llama-server's four slots. */
const DEFAULT_LOOP_CONTEXT_LENGTH = 65_536;

const DEFAULT_CHAT_TEMPLATE = [
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n",
  "{{ message['content'] }}<|im_end|>\n{% endfor %}",
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}',
].join('');

/** `enum llama_pooling_type` of llama.h. */
const POOLING_TYPE: Readonly<Record<Pooling, number>> = { none: 0, mean: 1, cls: 2, last: 3, rank: 4 };

/** Widths are multiples of 32, which every back end has fast kernels for. */
const WIDTH_STEP = 32;

/** One head of this width keeps the KV cache at 128 bytes per token and layer. */
const HEAD_WIDTH = 32;

const FEED_FORWARD_WIDTH = 32;

/** Wide enough to reach gigabytes in few layers, narrow enough for a compute buffer of some ten megabytes. */
const EXTRA_FEED_FORWARD_WIDTH = 8192;

/** `LLAMA_MAX_LAYERS` of llama.cpp. */
const MAX_LAYERS = 512;

/**
 * The next token's logit; all others are 0. So far apart that no temperature, penalty or logit bias in its
 * usual range changes the choice, and within the range of 16-bit floats, which GPUs may compute in.
 */
const WINNING_LOGIT = 1000;

function describe(spec: KnownAnswerSpec): GgufFile {
  const tokens = vocabulary(spec.words, { loop: spec.loop ?? false });
  const shape = modelShape({ tokenCount: tokens.length, extraBytes: spec.extraBytes ?? 0 });
  return arrangeGguf(metadata(spec, tokens, shape), weights(tokens, shape, spec.pooling ?? 'none'));
}

interface ModelShape {
  /** Length of an embedding: one place per token. */
  width: number;
  feedForwardWidth: number;
  layers: number;
}

function modelShape({ tokenCount, extraBytes }: { tokenCount: number; extraBytes: number }): ModelShape {
  const width = Math.ceil(tokenCount / WIDTH_STEP) * WIDTH_STEP;
  if (extraBytes === 0) return { width, feedForwardWidth: FEED_FORWARD_WIDTH, layers: 1 };

  const bytesPerLayer = 3 * width * EXTRA_FEED_FORWARD_WIDTH * Float32Array.BYTES_PER_ELEMENT;
  const layers = Math.ceil(extraBytes / bytesPerLayer);
  if (layers > MAX_LAYERS) {
    throw new RangeError(
      `extraBytes is ${extraBytes}, but at most ${bytesPerLayer * MAX_LAYERS} can be added`,
    );
  }
  return { width, feedForwardWidth: EXTRA_FEED_FORWARD_WIDTH, layers };
}

function metadata(
  spec: KnownAnswerSpec,
  tokens: readonly Token[],
  shape: ModelShape,
): Map<string, GgufValue> {
  const { loop = false, pooling = 'none', chatTemplate = DEFAULT_CHAT_TEMPLATE } = spec;
  const contextLength = spec.contextLength ?? (loop ? DEFAULT_LOOP_CONTEXT_LENGTH : DEFAULT_CONTEXT_LENGTH);

  const pairs = new Map<string, GgufValue>([
    ['general.architecture', { type: 'string', value: 'llama' }],
    ['general.type', { type: 'string', value: 'model' }],
    ['general.name', { type: 'string', value: spec.name }],
    ['llama.vocab_size', { type: 'uint32', value: tokens.length }],
    ['llama.context_length', { type: 'uint32', value: contextLength }],
    ['llama.embedding_length', { type: 'uint32', value: shape.width }],
    ['llama.block_count', { type: 'uint32', value: shape.layers }],
    ['llama.feed_forward_length', { type: 'uint32', value: shape.feedForwardWidth }],
    ['llama.attention.head_count', { type: 'uint32', value: 1 }],
    ['llama.attention.head_count_kv', { type: 'uint32', value: 1 }],
    ['llama.attention.key_length', { type: 'uint32', value: HEAD_WIDTH }],
    ['llama.attention.value_length', { type: 'uint32', value: HEAD_WIDTH }],
    ['llama.attention.layer_norm_rms_epsilon', { type: 'float32', value: 1e-6 }],
    ['llama.rope.dimension_count', { type: 'uint32', value: HEAD_WIDTH }],
    ['tokenizer.ggml.model', { type: 'string', value: 'llama' }],
    ['tokenizer.ggml.tokens', { type: 'string[]', value: tokens.map(({ text }) => text) }],
    ['tokenizer.ggml.scores', { type: 'float32[]', value: tokens.map(() => 0) }],
    ['tokenizer.ggml.token_type', { type: 'int32[]', value: tokens.map(({ type }) => type) }],
    ['tokenizer.ggml.unknown_token_id', { type: 'uint32', value: UNKNOWN_ID }],
    ['tokenizer.ggml.bos_token_id', { type: 'uint32', value: BEGIN_ID }],
    ['tokenizer.ggml.eos_token_id', { type: 'uint32', value: END_ID }],
    ['tokenizer.ggml.add_bos_token', { type: 'bool', value: true }],
    // A prompt that ends in one of the words would be continued from there. With </s> after every prompt the
    // answer always begins at the first word. An embedding must not see it: with `last` it would be all of it.
    ['tokenizer.ggml.add_eos_token', { type: 'bool', value: pooling === 'none' }],
    ['tokenizer.ggml.add_space_prefix', { type: 'bool', value: false }],
  ]);
  if (pooling !== 'none') pairs.set('llama.pooling_type', { type: 'uint32', value: POOLING_TYPE[pooling] });
  if (chatTemplate !== '') pairs.set('tokenizer.chat_template', { type: 'string', value: chatTemplate });
  return pairs;
}

function weights(
  tokens: readonly Token[],
  { width, feedForwardWidth, layers }: ModelShape,
  pooling: Pooling,
): GgufTensor[] {
  const embedding = new Float32Array(width * tokens.length);
  const output = new Float32Array(width * tokens.length);
  // The norm before the output divides by the root mean square, which turns the 1 of a one-hot vector into
  // the square root of its length.
  const winningWeight = WINNING_LOGIT / Math.sqrt(width);
  for (const [id, { nextId }] of tokens.entries()) {
    embedding[id * width + id] = 1;
    output[nextId * width + id] = winningWeight;
  }
  // Without a classifier, llama.cpp takes one element of the first token's embedding as the score, and which
  // one depends on the document's place in the batch. So all of them are 1, which the norm keeps.
  if (pooling === 'rank') embedding.fill(1, BEGIN_ID * width, (BEGIN_ID + 1) * width);
  const ones = new Float32Array(width).fill(1);

  const tensors: GgufTensor[] = [
    { name: 'token_embd.weight', shape: [width, tokens.length], data: embedding },
    { name: 'output_norm.weight', shape: [width], data: ones },
    { name: 'output.weight', shape: [width, tokens.length], data: output },
  ];
  for (let layer = 0; layer < layers; layer += 1) {
    tensors.push(
      { name: `blk.${layer}.attn_norm.weight`, shape: [width], data: ones },
      { name: `blk.${layer}.attn_q.weight`, shape: [width, HEAD_WIDTH] },
      { name: `blk.${layer}.attn_k.weight`, shape: [width, HEAD_WIDTH] },
      { name: `blk.${layer}.attn_v.weight`, shape: [width, HEAD_WIDTH] },
      { name: `blk.${layer}.attn_output.weight`, shape: [HEAD_WIDTH, width] },
      { name: `blk.${layer}.ffn_norm.weight`, shape: [width], data: ones },
      { name: `blk.${layer}.ffn_gate.weight`, shape: [width, feedForwardWidth] },
      { name: `blk.${layer}.ffn_up.weight`, shape: [width, feedForwardWidth] },
      { name: `blk.${layer}.ffn_down.weight`, shape: [feedForwardWidth, width] },
    );
  }
  return tensors;
}
