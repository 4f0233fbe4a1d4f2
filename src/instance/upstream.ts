import type { Readable } from 'node:stream';
import { Client, type Dispatcher } from 'undici';

/** A child closes an idle connection after five seconds; ours are let go before that. Milliseconds. */
const keepAliveMs = 4_000;
const connectTimeoutMs = 10_000;

/** Idle connections kept for the next request; more are closed. */
const maxIdle = 64;

export interface UpstreamRequest {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'DELETE';
  /** Path and query as the client sent them. */
  readonly path: string;
  /** Names and values in turn, without host and credentials. */
  readonly headers: string[];
  readonly body: Buffer | Readable | null;
  /** Whether the child's key goes with it; true unless said otherwise. */
  readonly withKey?: boolean;
}

/** For a request that was never begun: there is nothing to pause or abort. */
const noController = undefined as unknown as Dispatcher.DispatchController;

/**
 * The connections to one ready child. They belong to it and end with it, so that a port that is used again
 * never takes a request to a stranger.
 *
 * undici's own pool is not used, because a connection must be judged by the answer it carried: llama-server
 * closes it after every answer without Content-Length although it announces keep-alive, and a request sent on
 * it meanwhile would be lost.
 */
export class Upstream {
  readonly #origin: string;
  readonly #options: Client.Options;
  readonly #authorization: string;
  readonly #idle: Client[] = [];
  readonly #busy = new Set<Client>();
  #posts = 0;
  readonly #onWorkEnd: (() => void)[] = [];
  #destroyed = false;

  /** @param timeoutMs longest silence of the child, before and within an answer; 0 = no bound */
  constructor(port: number, apiKey: string, timeoutMs: number) {
    this.#origin = `http://127.0.0.1:${port}`;
    this.#authorization = `Bearer ${apiKey}`;
    this.#options = {
      pipelining: 1,
      keepAliveTimeout: keepAliveMs,
      keepAliveMaxTimeout: keepAliveMs,
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
      connect: { timeout: connectTimeoutMs },
    };
  }

  /**
   * Sends one request on a connection of its own; the handler hears of everything that follows, errors included.
   *
   * @returns to be called once when the handler has heard the end: whether the connection can carry another
   *   request, that is, whether a whole answer of announced length came over it
   */
  dispatch(
    { method, path, headers, body, withKey = true }: UpstreamRequest,
    handler: Dispatcher.DispatchHandler,
  ): (reusable: boolean) => void {
    if (this.#destroyed) {
      // Not in this turn: the caller has still to listen.
      queueMicrotask(() => handler.onResponseError?.(noController, new Error('the child is gone')));
      return () => undefined;
    }
    const client = this.#idle.pop() ?? new Client(this.#origin, this.#options);
    this.#busy.add(client);
    if (method === 'POST') this.#posts += 1;
    if (withKey) headers.push('authorization', this.#authorization);
    client.dispatch({ method, path, headers, body }, handler);
    return (reusable) => {
      this.#busy.delete(client);
      if (method === 'POST') this.#endPost();
      if (reusable && !this.#destroyed && this.#idle.length < maxIdle) this.#idle.push(client);
      else void client.destroy();
    };
  }

  /**
   * Settles when no POST is in flight. What only looks is not waited for: it may be a stream without an end, and can be
   * asked for again.
   */
  workEnd(): Promise<void> {
    if (this.#posts === 0) return Promise.resolve();
    return new Promise((resolve) => this.#onWorkEnd.push(resolve));
  }

  /** Cuts every connection; requests in flight fail. */
  destroy(): void {
    this.#destroyed = true;
    for (const client of [...this.#idle, ...this.#busy]) void client.destroy();
    this.#idle.length = 0;
  }

  #endPost(): void {
    this.#posts -= 1;
    if (this.#posts === 0) for (const resolve of this.#onWorkEnd.splice(0)) resolve();
  }
}
