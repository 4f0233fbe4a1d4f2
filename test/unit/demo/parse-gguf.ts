/**
 * Reads a GGUF file back as its format description says, sharing no line with the writer that is tested:
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
export interface ParsedTensor {
  shape: number[];
  type: number;
  /** Counted from the start of the file. */
  start: number;
  data: Float32Array;
}

export interface ParsedGguf {
  version: number;
  metadata: Map<string, unknown>;
  tensors: Map<string, ParsedTensor>;
  dataStart: number;
}

const F32 = 0;

export function parseGguf(file: Uint8Array): ParsedGguf {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  let at = 0;
  const take = (bytes: number): number => {
    at += bytes;
    return at - bytes;
  };
  const u32 = (): number => view.getUint32(take(4), true);
  const u64 = (): number => Number(view.getBigUint64(take(8), true));
  const text = (): string => {
    const length = u64();
    const start = take(length);
    return new TextDecoder('utf-8', { fatal: true }).decode(file.subarray(start, start + length));
  };
  const value = (type: number): unknown => {
    switch (type) {
      case 4:
        return u32();
      case 5:
        return view.getInt32(take(4), true);
      case 6:
        return view.getFloat32(take(4), true);
      case 7:
        return view.getUint8(take(1)) === 1;
      case 8:
        return text();
      case 9: {
        const elementType = u32();
        return Array.from({ length: u64() }, () => value(elementType));
      }
      default:
        throw new Error(`value type ${type} before byte ${at}`);
    }
  };

  const magic = new TextDecoder().decode(file.subarray(0, take(4) + 4));
  if (magic !== 'GGUF') throw new Error(`not a GGUF file: ${magic}`);
  const version = u32();
  const tensorCount = u64();
  const pairCount = u64();

  const metadata = new Map<string, unknown>();
  for (let index = 0; index < pairCount; index += 1) metadata.set(text(), value(u32()));

  const infos = Array.from({ length: tensorCount }, () => {
    const name = text();
    const shape = Array.from({ length: u32() }, u64);
    return { name, shape, type: u32(), offset: u64() };
  });

  const dataStart = at + ((32 - (at % 32)) % 32);
  const tensors = new Map<string, ParsedTensor>();
  for (const { name, shape, type, offset } of infos) {
    if (type !== F32) throw new Error(`${name} has the tensor type ${type}`);
    const count = shape.reduce((product, length) => product * length, 1);
    const start = dataStart + offset;
    const data = Float32Array.from({ length: count }, (_, index) => view.getFloat32(start + index * 4, true));
    tensors.set(name, { shape, type, start, data });
  }
  return { version, metadata, tensors, dataStart };
}
