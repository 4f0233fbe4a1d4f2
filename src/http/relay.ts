import type { ServerResponse } from 'node:http';
import type { Dispatcher } from 'undici';
import { cutOff } from './break-off.js';
import type { EarlyStream } from './early-stream.js';
import { responseHeaders } from './header-policy.js';
import { UnstreamedAnswer } from './unstreamed-answer.js';

export interface RelayOptions {
  /**
   * Set when the answer is read to its end although the client has left, because it can be read on (X-Conversation-Id):
   * until this is aborted.
   */
  readonly detachedUntil: AbortSignal | undefined;
  /** Longest time for which a client may not read what is ready for it; 0 = no bound. */
  readonly slowReaderMs: number;
  readonly onFirstByte: () => void;
  /** Set when the stream may have been begun while its answer was waited for. */
  readonly early?: EarlyStream | undefined;
}

/** How a relayed answer ended. */
export type RelayEnd =
  | {
      readonly kind: 'complete';
      /** Of the child's answer: the client may have been sent another one before. */
      readonly status: number;
      /** Whether the answer announced its length. */
      readonly framed: boolean;
      /** Set when it cannot go on the stream that had been begun, of which the caller has to make an end. */
      readonly isUnfit: boolean;
    }
  /** The client left, or did not read; the child was told by closing its connection, or has answered nobody to the end. */
  | { readonly kind: 'client gone' }
  /** The child's side failed. */
  | {
      readonly kind: 'upstream failed';
      readonly error: Error;
      /** Whether the request may have reached the child. */
      readonly requestStarted: boolean;
      readonly responseStarted: boolean;
      readonly isEventStream: boolean;
    };

/**
 * Streams a child's answer to a client as it comes: undici's handler on one side, Node's response on the other,
 * with nothing between them but the chunks. A slow client slows the child; a client that leaves ends the
 * child's work at once; what the child fails at is for the caller to tell.
 */
export class Relay implements Dispatcher.DispatchHandler {
  readonly end: Promise<RelayEnd>;
  readonly #outgoing: ServerResponse;
  readonly #options: RelayOptions;
  #settle!: (end: RelayEnd) => void;
  #controller: Dispatcher.DispatchController | undefined;
  /** Set when it was ended from our side before the child could be reached. */
  #cutBy: Error | undefined;
  #clientGone = false;
  /** 0 until the answer has begun. */
  #status = 0;
  #isEventStream = false;
  #framed = false;
  /** Writes the head of the answer, once. */
  #heldHead: (() => void) | undefined;
  #unstreamed: UnstreamedAnswer | undefined;
  #slowReaderTimer: NodeJS.Timeout | undefined;

  constructor(outgoing: ServerResponse, options: RelayOptions) {
    this.#outgoing = outgoing;
    this.#options = options;
    this.end = new Promise((resolve) => (this.#settle = resolve));
    if (outgoing.destroyed) this.#clientGone = true;
    outgoing.once('close', this.#onClose);
    options.detachedUntil?.addEventListener('abort', this.#onAttach);
  }

  get #isDetached(): boolean {
    return this.#options.detachedUntil?.aborted === false;
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#cutBy) controller.abort(this.#cutBy);
    else if (this.#clientGone && !this.#isDetached) controller.abort(clientLeft);
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: Record<string, string | string[] | undefined>,
    statusMessage?: string,
  ): void {
    // Informational answers (1xx) belong to the connection to the child.
    if (statusCode < 200) return;
    this.#options.onFirstByte();
    this.#options.early?.stop();
    this.#status = statusCode;
    this.#framed = headers['content-length'] !== undefined;
    const contentType = headers['content-type'];
    this.#isEventStream = typeof contentType === 'string' && contentType.startsWith('text/event-stream');
    if (this.#clientGone) return;
    if (this.#options.early?.hasBegun) {
      if (statusCode !== 200 || !this.#isEventStream) this.#unstreamed = new UnstreamedAnswer(statusCode);
      return;
    }
    const raw = responseHeaders(asStrings(controller.rawHeaders), { isEventStream: this.#isEventStream });
    this.#heldHead = () => {
      if (Object.values(headers).some(Array.isArray)) keepRepeated(this.#outgoing, raw);
      if (statusMessage) this.#outgoing.writeHead(statusCode, statusMessage, raw);
      else this.#outgoing.writeHead(statusCode, raw);
    };
    // An answer of known length goes out with its first bytes, in one write: without those it can still become an error.
    // Others show at once that they began.
    if (this.#framed) return;
    this.#writeHead();
    this.#outgoing.flushHeaders();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#unstreamed) {
      this.#unstreamed.add(chunk);
      return;
    }
    if (this.#clientGone) return;
    this.#writeHead();
    if (this.#outgoing.write(chunk)) return;
    controller.pause();
    this.#outgoing.once('drain', this.#onDrain);
    this.#slowReaderTimer = this.#boundSlowReader();
  }

  onResponseEnd(): void {
    if (this.#clientGone) {
      this.#finish({ kind: 'client gone' });
      return;
    }
    this.#writeHead();
    const isUnfit = this.#unstreamed?.endInto(this.#outgoing) === false;
    this.#finish({ kind: 'complete', status: this.#status, framed: this.#framed, isUnfit });
    if (!this.#unstreamed) this.#outgoing.end();
    if (this.#outgoing.writableLength === 0) return;
    // The child is done with it; what the client has yet to read is bounded like the rest.
    const timer = this.#boundSlowReader();
    this.#outgoing.once('close', () => clearTimeout(timer));
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    // An answer that can be read on has failed also when nobody reads it just now.
    if (this.#clientGone && !this.#isDetached) {
      this.#finish({ kind: 'client gone' });
      return;
    }
    this.#finish({
      kind: 'upstream failed',
      error,
      requestStarted: this.#controller !== undefined,
      responseStarted: this.#status !== 0 && this.#heldHead === undefined,
      isEventStream: this.#isEventStream || this.#options.early?.hasBegun === true,
    });
  }

  /** Ends it from our side, as if the child had failed. */
  cut(error: Error): void {
    if (this.#controller) this.#controller.abort(error);
    else this.#cutBy = error;
  }

  readonly #onClose = (): void => {
    if (this.#outgoing.writableFinished) return;
    this.#clientGone = true;
    clearTimeout(this.#slowReaderTimer);
    if (!this.#isDetached) this.#controller?.abort(clientLeft);
    else this.#controller?.resume();
  };

  readonly #onAttach = (): void => {
    if (this.#clientGone) this.#controller?.abort(clientLeft);
  };

  readonly #onDrain = (): void => {
    clearTimeout(this.#slowReaderTimer);
    this.#controller?.resume();
  };

  #writeHead(): void {
    this.#heldHead?.();
    this.#heldHead = undefined;
  }

  #boundSlowReader(): NodeJS.Timeout | undefined {
    const { slowReaderMs } = this.#options;
    return slowReaderMs > 0 ? setTimeout(() => cutOff(this.#outgoing), slowReaderMs) : undefined;
  }

  #finish(end: RelayEnd): void {
    clearTimeout(this.#slowReaderTimer);
    this.#outgoing.off('close', this.#onClose).off('drain', this.#onDrain);
    this.#options.detachedUntil?.removeEventListener('abort', this.#onAttach);
    this.#settle(end);
  }
}

const clientLeft = new Error('the client left');

/**
 * Of a header that is there several times Node 20 sends the last only, once another one has been set before: `writeHead`
 * is then given nothing but what stands there once.
 *
 * @param raw names and values in turn; emptied of what has been set
 */
function keepRepeated(outgoing: ServerResponse, raw: string[]): void {
  if (outgoing.getHeaderNames().length === 0) return;
  const all = raw.splice(0);
  for (let at = 0; at < all.length; at += 2) outgoing.removeHeader(all[at] ?? '');
  for (let at = 0; at < all.length; at += 2) outgoing.appendHeader(all[at] ?? '', all[at + 1] ?? '');
}

function asStrings(rawHeaders: Dispatcher.DispatchController['rawHeaders']): string[] {
  if (!Array.isArray(rawHeaders)) return [];
  return rawHeaders.map((item) => (typeof item === 'string' ? item : item.toString('latin1')));
}
