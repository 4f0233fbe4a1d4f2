import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { RouterError } from '../errors.js';
import type { BodyBudget } from './body-budget.js';
import { BodySpool, type Spooling } from './body-spool.js';
import { isMultipartForm } from './model-name/multipart-scanner.js';

/** Longest time for which a body may make no headway while it is being sent, and longest wait for the disk. */
const stallMs = 60_000;

/** What counts as headway, unless it is the end: a client that sends a byte now and then is not waited for. */
const headwayBytes = 16 * 1024;

/** Up to here a body in several chunks is copied into one: a single write to the child is worth the copy. */
const joinBytes = 64 * 1024;

/** A form that may go to the disk is held in memory up to here, and written in pieces of about this size. */
const spoolAboveBytes = 1024 * 1024;

/**
 * So many chunks of less than so many bytes are joined as they come: each is an object of its own, and a body of
 * one-byte chunks would cost hundreds of times the bytes that the limits count.
 */
const smallChunk = { maxBytes: 1024, count: 1024 } as const;

export interface BodyLimits {
  readonly maxBytes: number;
  /** Of the memory. */
  readonly budget: BodyBudget;
  /** Where forms of more than a mebibyte are kept while their model is made ready; undefined = in memory as well. */
  readonly spooling?: Spooling | undefined;
}

/** A request body as the client sent it. */
export interface RequestBody {
  readonly bytes: number;
  /** The body in the form in which it is sent; can be asked for again until `release`. */
  forSending(): Buffer | Readable | null;
  /** Lets go of the bytes and of their share of the budget; what is being sent is sent to its end. */
  release(): void;
}

/** A body in memory, in the chunks in which it came (small ones joined), and in no other copy. */
class HeldBody implements RequestBody {
  readonly #budget: BodyBudget;
  #chunks: Buffer[] = [];
  #bytes = 0;
  #smallChunks = 0;

  constructor(budget: BodyBudget) {
    this.#budget = budget;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get chunks(): readonly Buffer[] {
    return this.#chunks;
  }

  /** @throws RouterError body_memory_full */
  push(chunk: Buffer): void {
    this.#budget.take(chunk.length);
    this.#bytes += chunk.length;
    this.#chunks.push(chunk);
    this.#smallChunks = chunk.length < smallChunk.maxBytes ? this.#smallChunks + 1 : 0;
    if (this.#smallChunks === smallChunk.count) {
      this.#chunks.push(Buffer.concat(this.#chunks.splice(-smallChunk.count)));
      this.#smallChunks = 0;
    }
  }

  forSending(): Buffer | Readable | null {
    if (this.#bytes === 0) return null;
    const [only] = this.#chunks;
    if (this.#chunks.length === 1 && only) return only;
    if (this.#bytes <= joinBytes) return Buffer.concat(this.#chunks);
    return Readable.from(this.#chunks, { objectMode: false });
  }

  release(): void {
    this.#budget.give(this.#bytes);
    this.#chunks = [];
    this.#bytes = 0;
    this.#smallChunks = 0;
  }
}

/**
 * Reads a body whole, each chunk shown to `onChunk` as it comes. It is held in memory, but for the bulk of a large
 * form: that is mostly files, and the load that it may wait for can take minutes.
 *
 * @throws RouterError body_too_large, body_memory_full, body_timeout, body_encoded, disk_full, internal, client_gone
 */
export function readBody(
  incoming: IncomingMessage,
  { maxBytes, budget, spooling }: BodyLimits,
  onChunk: (chunk: Buffer) => void,
): Promise<RequestBody> {
  const { 'content-encoding': encoding, 'content-type': contentType } = incoming.headers;
  if (encoding !== undefined && encoding !== 'identity') {
    const message = `request body is ${encoding}-encoded; send it without Content-Encoding`;
    return Promise.reject(new RouterError('body_encoded', message));
  }
  if (Number(incoming.headers['content-length'] ?? 0) > maxBytes) return Promise.reject(tooLarge(maxBytes));

  return new Promise((resolve, reject) => {
    const held = new HeldBody(budget);
    const spool = spooling && isMultipartForm(contentType) ? new BodySpool(spooling) : undefined;
    let isWriting = false;
    let headway = 0;
    const stalled = (): void =>
      fail(
        isWriting
          ? new RouterError(
              'internal',
              `the request body could not be written to the disk in ${stallMs / 1000} s`,
            )
          : new RouterError(
              'body_timeout',
              `less than ${headwayBytes} bytes of the body, and not its end, came within ${stallMs / 1000} s`,
            ),
      );
    const timer = setTimeout(stalled, stallMs);

    const onData = (chunk: Buffer): void => {
      try {
        if ((spool?.bytes ?? 0) + held.bytes + chunk.length > maxBytes) throw tooLarge(maxBytes);
        held.push(chunk);
      } catch (error) {
        fail(error);
        return;
      }
      onChunk(chunk);
      headway += chunk.length;
      if (headway >= headwayBytes) {
        headway = 0;
        timer.refresh();
      }
      if (spool === undefined || held.bytes <= spoolAboveBytes) return;
      // The disk sets the pace.
      incoming.pause();
      moveTo(spool).then(() => incoming.resume(), fail);
    };
    const moveTo = async (spool: BodySpool): Promise<void> => {
      isWriting = true;
      await spool.append(held.chunks);
      held.release();
      isWriting = false;
      timer.refresh();
    };
    const onEnd = (): void => {
      stopListening();
      if (spool === undefined || spool.bytes === 0) take(held);
      else moveTo(spool).then(() => take(spool), fail);
    };
    const onClose = (): void =>
      fail(new RouterError('client_gone', 'the client left while sending its request'));
    const take = (body: RequestBody): void => {
      clearTimeout(timer);
      resolve(body);
    };
    const fail = (error: unknown): void => {
      clearTimeout(timer);
      stopListening();
      held.release();
      spool?.release();
      reject(error instanceof Error ? error : new Error(String(error)));
    };
    const stopListening = (): void => {
      incoming.off('data', onData).off('end', onEnd).off('close', onClose).off('error', onClose);
    };
    incoming.on('data', onData).on('end', onEnd).on('close', onClose).on('error', onClose);
  });
}

function tooLarge(maxBytes: number): RouterError {
  return new RouterError('body_too_large', `request body is over ${maxBytes} bytes (--body-max)`);
}
