/**
 * Reads the header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) without its arrays and
 * long strings: the vocabulary of a large model would take seconds and hundreds of megabytes, and nothing here wants
 * it. What arrays hold is passed over: those of numbers by seeking, those of strings from length to length.
 *
 * Headers come from the network, so every count and length is one that an attacker may have chosen. All of them are
 * bounded here; what is beyond is a fault of the file. Only what llama.cpp refuses too, or what no file can hold, is
 * a fault: a file that it loads must not be kept from it.
 */
import { endianness } from 'node:os';
import { TENSOR_TYPES } from './ggml-types.js';
import { CUT_HEADER, GGUF_HEADER_BYTES, headerProblem } from './gguf-file.js';

/** Where the bytes of a file come from. */
export interface GgufSource {
  readonly sizeBytes: number;
  /** Fills `target` with what begins at `position`, as far as it can at once; returns the bytes read, 0 at the end. */
  read(target: Uint8Array, position: number): number;
}

/** A value that was passed over: an array, with the number of its elements, or a long string, with its bytes. */
export interface SkippedValue {
  readonly skipped: 'array' | 'string';
  readonly length: number;
}

export type MetadataValue = number | boolean | string | SkippedValue;

export interface GgufMetadata {
  readonly pairs: ReadonlyMap<string, MetadataValue>;
  readonly tensorCount: number;
  /** The elements of all tensors. */
  readonly parameters: number;
  /** The names of the tensors' types, that with the most elements first; undefined stands for unknown ones. */
  readonly tensorTypes: readonly (string | undefined)[];
  /** How long the file is that this header describes; undefined when it has tensors of unknown types. */
  readonly sizeBytes: number | undefined;
}

export type GgufReading =
  | { readonly kind: 'metadata'; readonly metadata: GgufMetadata }
  /** `fault` is a phrase that follows the file's name. */
  | { readonly kind: 'fault'; readonly fault: string };

/** What is read at once, and so about all that this reader holds of a file. */
const CHUNK_BYTES = 64 * 1024;
/** The largest vocabularies of today (a quarter of a million words and their merges) take about 15 MB. */
const MAX_READ_BYTES = 256 * 1024 * 1024;
/** Real files have less than a hundred. */
const MAX_PAIRS = 10_000;
/** Real files have some thousands; nothing is kept of each. */
const MAX_TENSORS = 1_000_000;
/** What the format allows. */
const MAX_KEY_BYTES = 65_535;
const MAX_DIMENSIONS = 4;
/** What llama.cpp allows (gguf.cpp). */
const MAX_STRING_BYTES = 2 ** 30;
const MAX_ARRAY_ELEMENTS = 2 ** 30;
/** Longer keys and strings are not what is looked for here; they are passed over. */
const MAX_KEPT_KEY_BYTES = 256;
const MAX_KEPT_STRING_BYTES = 1024;
/** Unless `general.alignment` says otherwise. */
const DEFAULT_ALIGNMENT = 32;

const LITTLE_ENDIAN = endianness() === 'LE';

interface Scalar {
  readonly bytes: number;
  readonly read: (view: DataView, at: number) => number | boolean;
}

const SCALARS: ReadonlyMap<number, Scalar> = new Map([
  [0, { bytes: 1, read: (view, at) => view.getUint8(at) }],
  [1, { bytes: 1, read: (view, at) => view.getInt8(at) }],
  [2, { bytes: 2, read: (view, at) => view.getUint16(at, LITTLE_ENDIAN) }],
  [3, { bytes: 2, read: (view, at) => view.getInt16(at, LITTLE_ENDIAN) }],
  [4, { bytes: 4, read: (view, at) => view.getUint32(at, LITTLE_ENDIAN) }],
  [5, { bytes: 4, read: (view, at) => view.getInt32(at, LITTLE_ENDIAN) }],
  [6, { bytes: 4, read: (view, at) => view.getFloat32(at, LITTLE_ENDIAN) }],
  [7, { bytes: 1, read: (view, at) => view.getInt8(at) !== 0 }],
  [10, { bytes: 8, read: (view, at) => Number(view.getBigUint64(at, LITTLE_ENDIAN)) }],
  [11, { bytes: 8, read: (view, at) => Number(view.getBigInt64(at, LITTLE_ENDIAN)) }],
  [12, { bytes: 8, read: (view, at) => view.getFloat64(at, LITTLE_ENDIAN) }],
] satisfies [number, Scalar][]);
const UINT32 = 4;
const STRING = 8;
const ARRAY = 9;

/** Reads the header in `source`. Throws only what `source.read` throws. */
export function readGgufMetadata(source: GgufSource): GgufReading {
  try {
    return { kind: 'metadata', metadata: readHeader(new Cursor(source)) };
  } catch (error) {
    if (error instanceof HeaderFault) return { kind: 'fault', fault: error.message };
    throw error;
  }
}

/** Its message is a phrase that follows the file's name. */
class HeaderFault extends Error {}

function damaged(what: string): HeaderFault {
  return new HeaderFault(`has a damaged header: ${what}`);
}

function readHeader(cursor: Cursor): GgufMetadata {
  const problem = headerProblem(cursor.peek(GGUF_HEADER_BYTES));
  if (problem !== undefined) throw new HeaderFault(problem);
  // Magic and version are good.
  cursor.skip(8);
  const tensorCount = bounded(cursor.uint64(), MAX_TENSORS, 'tensors');
  const pairCount = bounded(cursor.uint64(), MAX_PAIRS, 'metadata pairs');

  const pairs = readPairs(cursor, pairCount);
  return { pairs, tensorCount, ...readTensors(cursor, tensorCount, alignmentOf(pairs)) };
}

function bounded(count: number, limit: number, what: string): number {
  if (count > limit) throw damaged(`it claims ${count} ${what}`);
  return count;
}

function readPairs(cursor: Cursor, count: number): Map<string, MetadataValue> {
  const pairs = new Map<string, MetadataValue>();
  for (let index = 0; index < count; index++) {
    const key = readKey(cursor);
    const type = cursor.uint32();
    const value = readValue(cursor, type);
    if (key === undefined) continue;
    if (pairs.has(key)) throw damaged(`it has the key ${JSON.stringify(key)} twice`);
    if (key === 'general.alignment' && type !== UINT32) throw damaged('its alignment is no 32-bit number');
    pairs.set(key, value);
  }
  return pairs;
}

/** Undefined for a key that is too long to be one that anybody asks for. */
function readKey(cursor: Cursor): string | undefined {
  const bytes = cursor.uint64();
  if (bytes > MAX_KEY_BYTES) throw damaged(`it has a key of ${bytes} bytes`);
  if (bytes <= MAX_KEPT_KEY_BYTES) return cursor.text(bytes);
  cursor.skip(bytes);
  return undefined;
}

function readValue(cursor: Cursor, type: number): MetadataValue {
  const scalar = SCALARS.get(type);
  if (scalar !== undefined) return cursor.scalar(scalar);
  if (type === ARRAY) return { skipped: 'array', length: skipArray(cursor) };
  if (type !== STRING) throw damaged(`it has a value of the unknown type ${type}`);

  const length = stringLength(cursor);
  if (length <= MAX_KEPT_STRING_BYTES) return cursor.text(length);
  cursor.skip(length);
  return { skipped: 'string', length };
}

function stringLength(cursor: Cursor): number {
  const bytes = cursor.uint64();
  if (bytes > MAX_STRING_BYTES) throw damaged(`it has a string of ${bytes} bytes`);
  return bytes;
}

/** Returns the number of elements. */
function skipArray(cursor: Cursor): number {
  const type = cursor.uint32();
  const count = cursor.uint64();
  if (count > MAX_ARRAY_ELEMENTS) throw damaged(`it has an array of ${count} elements`);
  const scalar = SCALARS.get(type);
  if (scalar !== undefined) {
    cursor.skip(count * scalar.bytes);
    return count;
  }
  // llama.cpp reads no arrays of arrays, so there is nothing to descend into.
  if (type !== STRING) throw damaged(`it has an array of the unknown type ${type}`);
  for (let index = 0; index < count; index++) cursor.skip(stringLength(cursor));
  return count;
}

function alignmentOf(pairs: ReadonlyMap<string, MetadataValue>): number {
  const alignment = pairs.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (typeof alignment !== 'number' || !Number.isInteger(Math.log2(alignment))) {
    throw damaged(`its alignment is not a power of 2`);
  }
  return alignment;
}

function readTensors(
  cursor: Cursor,
  count: number,
  alignment: number,
): Pick<GgufMetadata, 'parameters' | 'tensorTypes' | 'sizeBytes'> {
  const elementsOfType = new Map<string | undefined, number>();
  let parameters = 0;
  let dataBytes = 0;
  for (let index = 0; index < count; index++) {
    const { type, elements, endOfData } = readTensor(cursor, index + 1);
    elementsOfType.set(type, (elementsOfType.get(type) ?? 0) + elements);
    parameters = exact(parameters + elements);
    dataBytes = Math.max(dataBytes, endOfData);
  }

  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  const sizeBytes = count === 0 ? cursor.position : exact(dataStart + dataBytes);
  return {
    parameters,
    tensorTypes: [...elementsOfType].sort(([, a], [, b]) => b - a).map(([type]) => type),
    sizeBytes: elementsOfType.has(undefined) ? undefined : sizeBytes,
  };
}

interface TensorInfo {
  /** Undefined if it is not known, and with it how many bytes its elements take. */
  readonly type: string | undefined;
  readonly elements: number;
  /** Where its elements end, counted from the start of the data. */
  readonly endOfData: number;
}

function readTensor(cursor: Cursor, number: number): TensorInfo {
  const nameBytes = cursor.uint64();
  if (nameBytes > MAX_KEY_BYTES) throw damaged(`tensor ${number} has a name of ${nameBytes} bytes`);
  cursor.skip(nameBytes);
  const dimensions = cursor.uint32();
  if (dimensions > MAX_DIMENSIONS) throw damaged(`tensor ${number} has ${dimensions} dimensions`);
  const shape = Array.from({ length: dimensions }, () => cursor.uint64());
  const elements = exact(shape.reduce((product, length) => product * length, 1));
  const type = TENSOR_TYPES.get(cursor.uint32());
  const offset = cursor.uint64();

  if (type === undefined) return { type, elements, endOfData: offset };
  const [row = 1] = shape;
  if (row % type.blockElements !== 0) {
    throw damaged(`tensor ${number} has rows of ${row} elements, which ${type.name} can not hold`);
  }
  const endOfData = exact(offset + (elements / type.blockElements) * type.blockBytes);
  return { type: type.name, elements, endOfData };
}

/** A sum or product, which no real file makes too large to be exact. */
function exact(value: number): number {
  if (!Number.isSafeInteger(value)) throw damaged('its tensors are impossibly large');
  return value;
}

/** Goes through a file in one direction, holding a chunk of it. Throws `HeaderFault` at the file's end. */
class Cursor {
  readonly #source: GgufSource;
  readonly #chunk = Buffer.alloc(CHUNK_BYTES);
  readonly #view = new DataView(this.#chunk.buffer, this.#chunk.byteOffset, this.#chunk.byteLength);
  #chunkStart = 0;
  #chunkEnd = 0;
  #bytesRead = 0;
  #position = 0;

  constructor(source: GgufSource) {
    this.#source = source;
  }

  /** Where the next bytes are read from, counted from the start of the file. */
  get position(): number {
    return this.#position;
  }

  uint32(): number {
    return this.#view.getUint32(this.#take(4), LITTLE_ENDIAN);
  }

  /** Not exact above 2^53, where every use of it has a limit far below. */
  uint64(): number {
    const at = this.#take(8);
    const [low, high] = LITTLE_ENDIAN ? [at, at + 4] : [at + 4, at];
    return this.#view.getUint32(high, LITTLE_ENDIAN) * 2 ** 32 + this.#view.getUint32(low, LITTLE_ENDIAN);
  }

  scalar({ bytes, read }: Scalar): number | boolean {
    return read(this.#view, this.#take(bytes));
  }

  /** @param bytes at most a chunk */
  text(bytes: number): string {
    const at = this.#take(bytes);
    return this.#chunk.toString('utf8', at, at + bytes);
  }

  /** The next bytes, fewer only where the file ends. */
  peek(bytes: number): Buffer {
    const length = Math.min(bytes, this.#source.sizeBytes - this.#position);
    this.#fill(length);
    const at = this.#position - this.#chunkStart;
    return this.#chunk.subarray(at, at + length);
  }

  skip(bytes: number): void {
    if (bytes > this.#source.sizeBytes - this.#position) throw new HeaderFault(CUT_HEADER);
    this.#position += bytes;
  }

  /** Passes over `bytes` bytes and returns where in the chunk they are. */
  #take(bytes: number): number {
    if (this.#position + bytes > this.#chunkEnd) this.#fill(bytes);
    const at = this.#position - this.#chunkStart;
    this.#position += bytes;
    return at;
  }

  /** Makes the chunk begin at the position and hold at least `bytes` bytes. */
  #fill(bytes: number): void {
    if (bytes > this.#source.sizeBytes - this.#position) throw new HeaderFault(CUT_HEADER);
    this.#chunkStart = this.#chunkEnd = this.#position;
    while (this.#chunkEnd - this.#chunkStart < bytes) {
      const target = this.#chunk.subarray(this.#chunkEnd - this.#chunkStart);
      const bytesRead = this.#source.read(target, this.#chunkEnd);
      // Shorter than its size said: it has been cut meanwhile.
      if (bytesRead === 0) throw new HeaderFault(CUT_HEADER);
      this.#chunkEnd += bytesRead;
      this.#bytesRead += bytesRead;
      if (this.#bytesRead > MAX_READ_BYTES) throw damaged(`it has more than ${MAX_READ_BYTES} bytes`);
    }
  }
}
