import { createGunzip, type Gunzip } from 'node:zlib';
import type { Dispatcher } from 'undici';
import type { Relay } from './relay.js';

export interface AssetAnswerOptions {
  /** In front of the places that the answer sends the client to. */
  readonly prefix: string;
  /** The client does not take the compressed bytes in which the binary keeps its web UI. */
  readonly decompress: boolean;
  /** False for an answer to HEAD. */
  readonly hasBody: boolean;
}

type Controller = Dispatcher.DispatchController;

/** The refusals that are told in our own words. */
const refusals = new Set([401, 404]);

const refused = new Error('the helper refused the request');

/**
 * Stands between the helper child and a `Relay` for answers of the web UI: holds back refusals, puts our prefix before
 * the target of a redirect, and decompresses for clients that cannot. Back-pressure passes through it.
 */
export class AssetAnswer implements Dispatcher.DispatchHandler {
  readonly #relay: Relay;
  readonly #options: AssetAnswerOptions;
  #refusal: number | undefined;
  #gunzip: Gunzip | undefined;
  /** What the relay takes for the controller. */
  #adapted: Controller | undefined;

  constructor(relay: Relay, options: AssetAnswerOptions) {
    this.#relay = relay;
    this.#options = options;
  }

  /** The status of an answer that was held back. The relay has then ended as one that failed. */
  get refusal(): number | undefined {
    return this.#refusal;
  }

  onRequestStart(controller: Controller): void {
    this.#relay.onRequestStart(controller);
  }

  onResponseStart(
    controller: Controller,
    statusCode: number,
    headers: Record<string, string | string[] | undefined>,
    statusMessage?: string,
  ): void {
    if (refusals.has(statusCode)) {
      this.#refusal = statusCode;
      controller.abort(refused);
      return;
    }
    const decompress = this.#options.decompress && headers['content-encoding'] === 'gzip';
    const raw = this.#headers(asStrings(controller.rawHeaders), { decompress });
    if (decompress && this.#options.hasBody && statusCode !== 304) this.#gunzip = this.#open(controller);
    this.#adapted = adapt(controller, raw, this.#gunzip, (reason) =>
      this.onResponseError(controller, reason),
    );
    const length = decompress ? undefined : headers['content-length'];
    this.#relay.onResponseStart(
      this.#adapted,
      statusCode,
      { ...headers, 'content-length': length },
      statusMessage,
    );
  }

  onResponseData(controller: Controller, chunk: Buffer): void {
    if (!this.#gunzip) this.#relay.onResponseData(this.#adapted ?? controller, chunk);
    else if (!this.#gunzip.write(chunk)) controller.pause();
  }

  onResponseEnd(): void {
    if (this.#gunzip) this.#gunzip.end();
    else this.#relay.onResponseEnd();
  }

  onResponseError(controller: Controller, error: Error): void {
    this.#gunzip?.destroy();
    this.#relay.onResponseError(controller, error);
  }

  #open(controller: Controller): Gunzip {
    const gunzip = createGunzip();
    gunzip.on('data', (chunk: Buffer) => this.#relay.onResponseData(this.#adapted ?? controller, chunk));
    gunzip.on('drain', () => controller.resume());
    gunzip.on('end', () => this.#relay.onResponseEnd());
    gunzip.on('error', (error) => {
      controller.abort(error);
      this.onResponseError(controller, error);
    });
    return gunzip;
  }

  #headers(raw: readonly string[], { decompress }: { decompress: boolean }): string[] {
    const headers: string[] = [];
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const name = raw[i] ?? '';
      const value = raw[i + 1] ?? '';
      switch (name.toLowerCase()) {
        case 'location':
          headers.push(name, value.startsWith('/') ? this.#options.prefix + value : value);
          break;
        case 'content-encoding':
        case 'content-length':
        case 'accept-ranges':
          if (!decompress) headers.push(name, value);
          break;
        case 'etag':
          // Of other bytes it is another tag; the binary compares it as it compares a weak one.
          headers.push(name, decompress && !value.startsWith('W/') ? `W/${value}` : value);
          break;
        default:
          headers.push(name, value);
      }
    }
    return headers;
  }
}

/** The controller as the relay needs it: with other headers, and with the decompression between it and the child. */
function adapt(
  controller: Controller,
  rawHeaders: string[],
  gunzip: Gunzip | undefined,
  onAbort: (reason: Error) => void,
): Controller {
  return {
    get aborted() {
      return controller.aborted;
    },
    get paused() {
      return controller.paused;
    },
    get reason() {
      return controller.reason;
    },
    rawHeaders,
    abort(reason) {
      controller.abort(reason);
      // The child may have said all; what is yet to be decompressed is then for nobody.
      if (gunzip) onAbort(reason);
    },
    pause() {
      if (gunzip) gunzip.pause();
      else controller.pause();
    },
    resume() {
      if (gunzip) gunzip.resume();
      else controller.resume();
    },
  };
}

function asStrings(rawHeaders: Controller['rawHeaders']): string[] {
  if (!Array.isArray(rawHeaders)) return [];
  return rawHeaders.map((item) => (typeof item === 'string' ? item : item.toString('latin1')));
}
