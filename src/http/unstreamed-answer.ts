import type { ServerResponse } from 'node:http';
import { endWithError } from './break-off.js';

/** Of an error more is not told. */
const maxBytes = 256 * 1024;

/**
 * What a child answers in one piece, mostly that it refuses the request, when the stream has been begun and the status is
 * sent: it becomes an event.
 */
export class UnstreamedAnswer {
  readonly #status: number;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;

  constructor(status: number) {
    this.#status = status;
  }

  add(chunk: Buffer): void {
    this.#bytes += chunk.length;
    if (this.#bytes <= maxBytes) this.#chunks.push(chunk);
  }

  /**
   * Writes the event and ends the stream: after an error by cutting it, as every stream that fails.
   *
   * @returns false, with nothing written, when it is no error and yet nothing that an event can hold
   */
  endInto(outgoing: ServerResponse): boolean {
    const text = Buffer.concat(this.#chunks).toString();
    const value = this.#bytes <= maxBytes ? objectIn(text) : undefined;
    if (this.#status < 400) {
      if (value !== undefined) outgoing.end(`data: ${JSON.stringify(value)}\n\n`);
      return value !== undefined;
    }
    const error = { code: this.#status, message: text.slice(0, 1_000), type: 'server_error' };
    const envelope = value !== undefined && 'error' in value ? value : { error };
    endWithError(outgoing, envelope);
    return true;
  }
}

function objectIn(text: string): object | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : undefined;
  } catch {
    return undefined;
  }
}
