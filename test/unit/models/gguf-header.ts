import { endianness } from 'node:os';
import { truncateSync, utimesSync, writeFileSync } from 'node:fs';

/** The first 24 bytes of a GGUF file without tensors and metadata: magic, version, and two counts of zero. */
export function ggufHeader({
  version = 3,
  byteOrder = 'LE',
}: { version?: number; byteOrder?: 'LE' | 'BE' } = {}): Buffer {
  const header = Buffer.alloc(24);
  header.write('GGUF', 'latin1');
  if (byteOrder === 'LE') header.writeUInt32LE(version, 4);
  else header.writeUInt32BE(version, 4);
  return header;
}

/** One metadata pair as it stands in a file; made by `pair` and the functions below it. */
export type Pair = Buffer;

export interface TensorHeader {
  name?: string;
  shape: readonly (number | bigint)[];
  /** A `ggml_type`. Default: 0, F32. */
  type?: number;
  /** Counted from the start of the data. Default: 0. */
  offset?: number | bigint;
}

/**
 * The header of a GGUF file of this machine's byte order: everything before the padding and the data. The counts can
 * be made to lie.
 */
export function ggufWith({
  version = 3,
  pairs = [],
  tensors = [],
  pairCount = pairs.length,
  tensorCount = tensors.length,
}: {
  version?: number;
  pairs?: readonly Pair[];
  tensors?: readonly TensorHeader[];
  pairCount?: number | bigint;
  tensorCount?: number | bigint;
}): Buffer {
  return Buffer.concat([
    Buffer.from('GGUF', 'latin1'),
    uint32(version),
    uint64(tensorCount),
    uint64(pairCount),
    ...pairs,
    ...tensors.map(({ name = 't', shape, type = 0, offset = 0 }) =>
      Buffer.concat([string(name), uint32(shape.length), ...shape.map(uint64), uint32(type), uint64(offset)]),
    ),
  ]);
}

/** @param type a `gguf_type` */
export function pair(key: string, type: number, value: Buffer): Pair {
  return Buffer.concat([string(key), uint32(type), value]);
}

export function uint32Pair(key: string, value: number): Pair {
  return pair(key, 4, uint32(value));
}

export function uint16Pair(key: string, value: number): Pair {
  return pair(key, 2, uint32(value).subarray(...(little ? [0, 2] : [2, 4])));
}

export function boolPair(key: string, value: boolean): Pair {
  return pair(key, 7, Buffer.from([value ? 1 : 0]));
}

export function stringPair(key: string, value: string): Pair {
  return pair(key, 8, string(value));
}

/** An array's own header, before its elements. */
export function arrayPair(key: string, elementType: number, count: number | bigint, elements: Buffer): Pair {
  return pair(key, 9, Buffer.concat([uint32(elementType), uint64(count), elements]));
}

export function stringsPair(key: string, values: readonly string[]): Pair {
  return arrayPair(key, 8, values.length, Buffer.concat(values.map(string)));
}

export function string(text: string): Buffer {
  return Buffer.concat([uint64(Buffer.byteLength(text)), Buffer.from(text)]);
}

const little = endianness() === 'LE';

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  if (little) bytes.writeUInt32LE(value);
  else bytes.writeUInt32BE(value);
  return bytes;
}

export function uint64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  if (little) bytes.writeBigUInt64LE(BigInt(value));
  else bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** Long enough ago that no file of that age is taken to be still being written. */
export const LONG_AGO = new Date('2024-02-29T12:00:00Z');

/**
 * Writes a file that begins with `start` and is `sizeBytes` long (the rest is a hole that takes no space), last
 * written at `time`.
 */
export function writeSparse(
  path: string,
  start: Uint8Array | string,
  { sizeBytes, time = LONG_AGO }: { sizeBytes?: number; time?: Date } = {},
): string {
  writeFileSync(path, start);
  if (sizeBytes !== undefined) truncateSync(path, sizeBytes);
  utimesSync(path, time, time);
  return path;
}
