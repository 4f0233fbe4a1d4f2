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
  #rawHeaders: string[] = [];
  /** What the relay takes for the controller. */
  #stage!: Controller;

  constructor(relay: Relay, options: AssetAnswerOptions) {
    this.#relay = relay;
    this.#options = options;
  }

  /** The status of an answer that was held back. The relay has then ended as one that failed. */
  get refusal(): number | undefined {
    return this.#refusal;
  }

  onRequestStart(controller: Controller): void {
    this.#stage = this.#stageBefore(controller);
    this.#relay.onRequestStart(this.#stage);
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
    this.#rawHeaders = this.#adapt(asStrings(controller.rawHeaders), { decompress });
    if (decompress && this.#options.hasBody && statusCode !== 304) this.#gunzip = this.#open(controller);
    const length = decompress ? undefined : headers['content-length'];
    this.#relay.onResponseStart(
      this.#stage,
      statusCode,
      { ...headers, 'content-length': length },
      statusMessage,
    );
  }

  onResponseData(controller: Controller, chunk: Buffer): void {
    if (!this.#gunzip) this.#relay.onResponseData(this.#stage, chunk);
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
    gunzip.on('data', (chunk: Buffer) => this.#relay.onResponseData(this.#stage, chunk));
    gunzip.on('drain', () => controller.resume());
    gunzip.on('end', () => this.#relay.onResponseEnd());
    gunzip.on('error', (error) => this.#stage.abort(error));
    return gunzip;
  }

  /** The controller with other headers, and with the decompression between it and the relay. */
  #stageBefore(controller: Controller): Controller {
    // Getters have a `this` of their own.
    const headers = (): string[] => this.#rawHeaders;
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
      get rawHeaders() {
        return headers();
      },
      abort: (reason) => {
        controller.abort(reason);
        // The helper may have said all: what is yet to be decompressed is then for nobody.
        if (this.#gunzip) this.onResponseError(controller, reason);
      },
      pause: () => (this.#gunzip ?? controller).pause(),
      resume: () => (this.#gunzip ?? controller).resume(),
    };
  }

  #adapt(raw: readonly string[], { decompress }: { decompress: boolean }): string[] {
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

function asStrings(rawHeaders: Controller['rawHeaders']): string[] {
  if (!Array.isArray(rawHeaders)) return [];
  return rawHeaders.map((item) => (typeof item === 'string' ? item : item.toString('latin1')));
}
