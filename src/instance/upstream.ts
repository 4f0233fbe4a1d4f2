import type { Readable } from 'node:stream';
import { Client, type Dispatcher } from 'undici';
import type { HangWatch } from './hang/hang-watch.js';
import { isWork, WatchedHandler } from './hang/watched-handler.js';

/** A child closes an idle connection after five seconds; ours are let go long before that. Milliseconds. */
const keepAliveMs = 2_500;
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
  readonly #watch: HangWatch | undefined;
  readonly #idle: { readonly client: Client; readonly usedAt: number }[] = [];
  readonly #busy = new Set<Client>();
  #posts = 0;
  readonly #onWorkEnd: (() => void)[] = [];
  #destroyed = false;

  /**
   * @param timeoutMs longest silence of the child, before and within an answer; 0 = no bound
   * @param watch told of the work that goes to the child, and of what comes back
   */
  constructor(port: number, apiKey: string, timeoutMs: number, watch?: HangWatch) {
    this.#watch = watch;
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
    const client = this.#takeIdle() ?? new Client(this.#origin, this.#options);
    const usedAt = performance.now();
    this.#busy.add(client);
    if (method === 'POST') this.#posts += 1;
    if (withKey) headers.push('authorization', this.#authorization);
    const watched = this.#watch && isWork(method, path) ? new WatchedHandler(handler, this.#watch) : handler;
    client.dispatch({ method, path, headers, body }, watched);
    return (reusable) => {
      this.#busy.delete(client);
      if (method === 'POST') this.#endPost();
      if (reusable && !this.#destroyed && this.#idle.length < maxIdle) {
        this.#idle.push({ client, usedAt });
      } else {
        void client.destroy();
      }
    };
  }

  /** Number of POSTs in flight. */
  get posts(): number {
    return this.#posts;
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
    for (const { client } of this.#idle.splice(0)) void client.destroy();
    for (const client of this.#busy) void client.destroy();
  }

  /**
   * A connection that its child cannot have closed yet. To a process that is busy the news of that comes late, as do timers
   * and answers: the clock is asked when the last request went out, which was before the child began to be idle. A request
   * on a connection that is closed would be lost.
   */
  #takeIdle(): Client | undefined {
    for (let idle = this.#idle.pop(); idle !== undefined; idle = this.#idle.pop()) {
      if (performance.now() - idle.usedAt < keepAliveMs) return idle.client;
      void idle.client.destroy();
    }
    return undefined;
  }

  #endPost(): void {
    this.#posts -= 1;
    if (this.#posts === 0) for (const resolve of this.#onWorkEnd.splice(0)) resolve();
  }
}
