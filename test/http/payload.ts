import { createHash } from 'node:crypto';

/** Length and digest of a body, in the shape in which a fake llama-server tells what it received. */
export function sha256(bytes: Buffer): { length: number; sha256: string } {
  return { length: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

/** A JSON body of about `length` bytes that names the model at its end; its string holds all bytes that it may. */
export function bodyOf(length: number, model: string): Buffer {
  const head = Buffer.from('{"prompt":"');
  const tail = Buffer.from(`","model":"${model}"}`);
  const filling = Buffer.alloc(Math.max(0, length - head.length - tail.length));
  // A generator of all bytes in no order that repeats early (Numerical Recipes, ranqd1).
  let state = length;
  for (let at = 0; at < filling.length; at++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const byte = state >>> 24;
    const allowed = byte >= 0x20 && byte !== 0x22 && byte !== 0x5c;
    filling[at] = allowed ? byte : 0x2e;
  }
  return Buffer.concat([head, filling, tail]);
}

/** The bytes in pieces of `size`, for an upload without a length. */
export async function* piecesOf(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) {
    yield bytes.subarray(at, at + size);
    // Each piece must be a write, hence a chunk, of its own.
    await new Promise(setImmediate);
  }
}
