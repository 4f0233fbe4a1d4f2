import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { RouterError } from '../errors.js';
import type { BodyBudget } from './body-budget.js';

/** Longest silence while a body is being sent. */
const stallMs = 60_000;

/** Up to here a body in several chunks is copied into one: a single write to the child is worth the copy. */
const joinBytes = 64 * 1024;

/**
 * So many chunks of less than so many bytes are joined as they come: each is an object of its own, and a body of
 * one-byte chunks would cost hundreds of times the bytes that the limits count.
 */
const smallChunk = { maxBytes: 1024, count: 1024 } as const;

export interface BodyLimits {
  readonly maxBytes: number;
  readonly budget: BodyBudget;
}

/** A request body as the client sent it, in the chunks in which it came (small ones joined), and in no other copy. */
export class RequestBody {
  readonly bytes: number;
  #chunks: Buffer[];
  #release: (() => void) | undefined;

  constructor(chunks: Buffer[], bytes: number, release: () => void) {
    this.#chunks = chunks;
    this.bytes = bytes;
    this.#release = release;
  }

  /** The body in the form in which it is sent; can be asked for again until `release`. */
  forSending(): Buffer | Readable | null {
    if (this.bytes === 0) return null;
    const [only] = this.#chunks;
    if (this.#chunks.length === 1 && only) return only;
    if (this.bytes <= joinBytes) return Buffer.concat(this.#chunks);
    return Readable.from(this.#chunks, { objectMode: false });
  }

  /** Lets go of the bytes and of their share of the budget. */
  release(): void {
    this.#chunks = [];
    this.#release?.();
    this.#release = undefined;
  }
}

/**
 * Reads a body whole, each chunk shown to `onChunk` as it comes.
 *
 * @throws RouterError body_too_large, body_memory_full, body_timeout, body_encoded, client_gone
 */
export function readBody(
  incoming: IncomingMessage,
  { maxBytes, budget }: BodyLimits,
  onChunk: (chunk: Buffer) => void,
): Promise<RequestBody> {
  const encoding = incoming.headers['content-encoding'];
  if (encoding !== undefined && encoding !== 'identity') {
    const message = `request body is ${encoding}-encoded; send it without Content-Encoding`;
    return Promise.reject(new RouterError('body_encoded', message));
  }
  if (Number(incoming.headers['content-length'] ?? 0) > maxBytes) return Promise.reject(tooLarge(maxBytes));

  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    let smallChunks = 0;
    const stalled = (): void =>
      fail(new RouterError('body_timeout', `no byte of the body came for ${stallMs / 1000} s`));
    const timer = setTimeout(stalled, stallMs);

    const onData = (chunk: Buffer): void => {
      try {
        if (bytes + chunk.length > maxBytes) throw tooLarge(maxBytes);
        budget.take(chunk.length);
      } catch (error) {
        fail(error);
        return;
      }
      bytes += chunk.length;
      chunks.push(chunk);
      smallChunks = chunk.length < smallChunk.maxBytes ? smallChunks + 1 : 0;
      if (smallChunks === smallChunk.count) {
        chunks.push(Buffer.concat(chunks.splice(-smallChunks)));
        smallChunks = 0;
      }
      onChunk(chunk);
      timer.refresh();
    };
    const onEnd = (): void => {
      stop();
      resolve(new RequestBody(chunks, bytes, () => budget.give(bytes)));
    };
    const onClose = (): void =>
      fail(new RouterError('client_gone', 'the client left while sending its request'));
    const stop = (): void => {
      clearTimeout(timer);
      incoming.off('data', onData).off('end', onEnd).off('close', onClose).off('error', onClose);
    };
    const fail = (error: unknown): void => {
      stop();
      budget.give(bytes);
      reject(error instanceof Error ? error : new Error(String(error)));
    };
    incoming.on('data', onData).on('end', onEnd).on('close', onClose).on('error', onClose);
  });
}

function tooLarge(maxBytes: number): RouterError {
  return new RouterError('body_too_large', `request body is over ${maxBytes} bytes (--body-max)`);
}
