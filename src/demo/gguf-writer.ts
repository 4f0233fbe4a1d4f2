/**
 * A writer of GGUF version 3 files with F32 tensors.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 *
 *     magic "GGUF" | version | tensor count | pair count | pairs | tensor infos | padding | tensor data
 *
 * Everything is little-endian, counts and offsets are 64 bits wide, and a tensor's offset counts from the
 * start of the tensor data.
 */
import { Buffer } from 'node:buffer';
import { open } from 'node:fs/promises';
import { endianness } from 'node:os';

/** One metadata value with its GGUF type. */
export type GgufValue =
  | { type: 'uint32'; value: number }
  | { type: 'float32'; value: number }
  | { type: 'bool'; value: boolean }
  | { type: 'string'; value: string }
  | { type: 'int32[]'; value: readonly number[] }
  | { type: 'float32[]'; value: readonly number[] }
  | { type: 'string[]'; value: readonly string[] };

export interface GgufTensor {
  name: string;
  /** Lengths of the dimensions, the contiguous one (the row) first, as GGUF counts them. */
  shape: readonly number[];
  /** The elements, row after row. Absent: all zero, which costs neither memory here nor disk in the file. */
  data?: Float32Array;
}

/** A file in parts. Bytes that no part covers are zero. */
export interface GgufFile {
  sizeBytes: number;
  parts: readonly { offset: number; bytes: Buffer }[];
}

const GGUF_VERSION = 3;

/** What the format assumes when `general.alignment` is not among the metadata. */
const ALIGNMENT_BYTES = 32;

const VALUE_TYPE = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

const TENSOR_TYPE_F32 = 0;

/**
 * Arranges metadata and tensors as one GGUF file, both in the order given.
 *
 * @throws RangeError when a tensor's data is not as long as its shape says.
 */
export function arrangeGguf(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): GgufFile {
  const header: Buffer[] = [
    Buffer.from('GGUF', 'latin1'),
    uint32(GGUF_VERSION),
    uint64(tensors.length),
    uint64(metadata.size),
  ];
  for (const [key, value] of metadata) header.push(string(key), encodeValue(value));

  let dataBytes = 0;
  const placed: { tensor: GgufTensor; offsetInData: number }[] = [];
  for (const tensor of tensors) {
    header.push(
      string(tensor.name),
      uint32(tensor.shape.length),
      ...tensor.shape.map(uint64),
      uint32(TENSOR_TYPE_F32),
      uint64(dataBytes),
    );
    placed.push({ tensor, offsetInData: dataBytes });
    dataBytes += aligned(elementCount(tensor) * Float32Array.BYTES_PER_ELEMENT);
  }

  const headerBytes = Buffer.concat(header);
  const dataStart = aligned(headerBytes.length);
  const parts: { offset: number; bytes: Buffer }[] = [{ offset: 0, bytes: headerBytes }];
  for (const { tensor, offsetInData } of placed) {
    if (tensor.data) parts.push({ offset: dataStart + offsetInData, bytes: float32Bytes(tensor.data) });
  }
  return { sizeBytes: dataStart + dataBytes, parts };
}

/** The whole file in memory. */
export function ggufToBuffer(file: GgufFile): Buffer {
  const whole = Buffer.alloc(file.sizeBytes);
  for (const { offset, bytes } of file.parts) bytes.copy(whole, offset);
  return whole;
}

/**
 * Writes the file to `path`, replacing what is there. All-zero tensors become holes where the file system
 * knows holes, so a file of gigabytes is written in no time.
 */
export async function writeGguf(path: string, file: GgufFile): Promise<void> {
  const handle = await open(path, 'w');
  try {
    await handle.truncate(file.sizeBytes);
    for (const { offset, bytes } of file.parts) {
      let written = 0;
      while (written < bytes.length) {
        const { bytesWritten } = await handle.write(bytes, written, bytes.length - written, offset + written);
        written += bytesWritten;
      }
    }
  } finally {
    await handle.close();
  }
}

function encodeValue(value: GgufValue): Buffer {
  switch (value.type) {
    case 'uint32':
      return Buffer.concat([uint32(VALUE_TYPE.uint32), uint32(value.value)]);
    case 'float32':
      return Buffer.concat([uint32(VALUE_TYPE.float32), float32(value.value)]);
    case 'bool':
      return Buffer.concat([uint32(VALUE_TYPE.bool), Buffer.from([value.value ? 1 : 0])]);
    case 'string':
      return Buffer.concat([uint32(VALUE_TYPE.string), string(value.value)]);
    case 'int32[]':
      return encodeArray(VALUE_TYPE.int32, value.value.map(int32));
    case 'float32[]':
      return encodeArray(VALUE_TYPE.float32, value.value.map(float32));
    case 'string[]':
      return encodeArray(VALUE_TYPE.string, value.value.map(string));
  }
}

function encodeArray(elementType: number, elements: readonly Buffer[]): Buffer {
  return Buffer.concat([uint32(VALUE_TYPE.array), uint32(elementType), uint64(elements.length), ...elements]);
}

function elementCount(tensor: GgufTensor): number {
  const count = tensor.shape.reduce((product, length) => product * length, 1);
  if (tensor.data && tensor.data.length !== count) {
    throw new RangeError(
      `Tensor ${tensor.name} has the shape ${tensor.shape.join(' x ')} but ${tensor.data.length} elements`,
    );
  }
  return count;
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
}

function string(value: string): Buffer {
  const utf8 = Buffer.from(value, 'utf8');
  return Buffer.concat([uint64(utf8.length), utf8]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}

function uint64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function float32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function float32Bytes(values: Float32Array): Buffer {
  const inMemory = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  return endianness() === 'LE' ? inMemory : Buffer.from(inMemory).swap32();
}
