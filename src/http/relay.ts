import type { ServerResponse } from 'node:http';
import type { Dispatcher } from 'undici';
import { cutOff } from './break-off.js';
import { responseHeaders } from './header-policy.js';

export interface RelayOptions {
  /**
   * Set when the answer is read to its end although the client has left, because it can be read on (X-Conversation-Id):
   * until this is aborted.
   */
  readonly detachedUntil: AbortSignal | undefined;
  /** Longest time for which a client may not read what is ready for it; 0 = no bound. */
  readonly slowReaderMs: number;
  readonly onFirstByte: () => void;
}

/** How a relayed answer ended. */
export type RelayEnd =
  | {
      readonly kind: 'complete';
      /** Whether the answer announced its length. */
      readonly framed: boolean;
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
  #clientGone = false;
  #responseStarted = false;
  #isEventStream = false;
  #framed = false;
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
    if (this.#clientGone && !this.#isDetached) controller.abort(clientLeft);
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
    this.#responseStarted = true;
    this.#framed = headers['content-length'] !== undefined;
    const contentType = headers['content-type'];
    this.#isEventStream = typeof contentType === 'string' && contentType.startsWith('text/event-stream');
    if (this.#clientGone) return;
    const raw = responseHeaders(asStrings(controller.rawHeaders), { isEventStream: this.#isEventStream });
    if (statusMessage) this.#outgoing.writeHead(statusCode, statusMessage, raw);
    else this.#outgoing.writeHead(statusCode, raw);
    // An answer of known length goes out with its first bytes, in one write; others show at once that they began.
    if (!this.#framed) this.#outgoing.flushHeaders();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#clientGone || this.#outgoing.write(chunk)) return;
    controller.pause();
    this.#outgoing.once('drain', this.#onDrain);
    this.#slowReaderTimer = this.#boundSlowReader();
  }

  onResponseEnd(): void {
    this.#finish(this.#clientGone ? { kind: 'client gone' } : { kind: 'complete', framed: this.#framed });
    if (this.#clientGone) return;
    this.#outgoing.end();
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
      responseStarted: this.#responseStarted,
      isEventStream: this.#isEventStream,
    });
  }

  /** Ends it from our side, as if the child had failed. */
  cut(error: Error): void {
    this.#controller?.abort(error);
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

function asStrings(rawHeaders: Dispatcher.DispatchController['rawHeaders']): string[] {
  if (!Array.isArray(rawHeaders)) return [];
  return rawHeaders.map((item) => (typeof item === 'string' ? item : item.toString('latin1')));
}
