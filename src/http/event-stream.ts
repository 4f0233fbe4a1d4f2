import type { ServerResponse } from 'node:http';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { EventBus, SupervisorEvent } from '../events/events.js';
import type { Logger } from '../observe/log.js';
import type { HttpEnv } from './app.js';
import { wireEvent } from './wire-events.js';

export interface EventFeedOptions {
  readonly events: EventBus;
  readonly log: Logger;
  /** Between two comments that keep proxies and clients from taking a quiet stream for a dead one. */
  readonly pingIntervalMs?: number;
  readonly maxListeners?: number;
  /** What a listener may leave unread, beyond what the kernel keeps for it. */
  readonly maxUnreadBytes?: number;
}

/** It has no end but the server's: its connection is not for another request. */
const head = {
  'Content-Type': 'text/event-stream',
  'Cache-Control': 'no-cache',
  'X-Accel-Buffering': 'no',
  Connection: 'close',
};

const ping = Buffer.from(': ping\n\n');

/** How long listeners get to read the end of their stream at a shutdown. */
const lastBytesMs = 1_000;

/**
 * Tells clients what happens to models, as server-sent events, in the order in which it happens. An event is put into
 * bytes once, however many listen: those bytes are shared by all that have not read them yet.
 *
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
export class EventFeed {
  readonly #listeners = new Set<ServerResponse>();
  readonly #log: Logger;
  readonly #pingIntervalMs: number;
  readonly #maxListeners: number;
  readonly #maxUnreadBytes: number;
  readonly #unsubscribe: () => void;
  #pinging: NodeJS.Timeout | undefined;
  #closed = false;

  constructor({
    events,
    log,
    pingIntervalMs = 15_000,
    maxListeners = 1_000,
    maxUnreadBytes = 1024 * 1024,
  }: EventFeedOptions) {
    this.#log = log;
    this.#pingIntervalMs = pingIntervalMs;
    this.#maxListeners = maxListeners;
    this.#maxUnreadBytes = maxUnreadBytes;
    this.#unsubscribe = events.subscribe((event) => this.#tell(event));
  }

  /** Number of clients that listen. */
  get listeners(): number {
    return this.#listeners.size;
  }

  /**
   * Begins a stream on the response; it lasts until the client leaves, falls too far behind, or `close`.
   *
   * @throws RouterError too_many_listeners, shutting_down
   */
  add(outgoing: ServerResponse): void {
    if (this.#closed) throw new RouterError('shutting_down', 'the supervisor is shutting down');
    if (this.#listeners.size >= this.#maxListeners) {
      const message = `${this.#listeners.size} clients listen to events already; try again later`;
      throw new RouterError('too_many_listeners', message);
    }
    if (outgoing.destroyed) return;
    outgoing.writeHead(200, head).flushHeaders();
    outgoing.once('close', () => this.#forget(outgoing));
    this.#listeners.add(outgoing);
    this.#pinging ??= setInterval(() => this.#ping(), this.#pingIntervalMs);
  }

  /** Ends all streams as whole ones, and begins none any more. */
  close(): void {
    this.#closed = true;
    this.#unsubscribe();
    clearInterval(this.#pinging);
    for (const outgoing of this.#listeners) outgoing.end();
    const cutOff = (): void => {
      for (const outgoing of this.#listeners) outgoing.destroy();
    };
    setTimeout(cutOff, lastBytesMs).unref();
  }

  #tell(event: SupervisorEvent): void {
    if (this.#listeners.size === 0) return;
    const record = wireEvent(event);
    if (record === undefined) return;
    const bytes = Buffer.from(`data: ${JSON.stringify(record)}\n\n`);
    for (const outgoing of this.#listeners) {
      // What is written in this turn has not had its chance yet.
      if (outgoing.writableLength > this.#maxUnreadBytes) this.#drop(outgoing);
      else outgoing.write(bytes);
    }
  }

  #ping(): void {
    for (const outgoing of this.#listeners) {
      // One that has yet to read what is there has no use for it.
      if (outgoing.writableLength === 0) outgoing.write(ping);
    }
  }

  /** It does not read. What it missed cannot be told later: that its stream breaks is how it learns of that. */
  #drop(outgoing: ServerResponse): void {
    const unreadBytes = outgoing.writableLength;
    this.#log.warn({ unreadBytes }, 'a client that listens to events does not read them; letting it go');
    this.#forget(outgoing);
    outgoing.destroy();
  }

  #forget(outgoing: ServerResponse): void {
    this.#listeners.delete(outgoing);
    if (this.#listeners.size > 0) return;
    clearInterval(this.#pinging);
    this.#pinging = undefined;
  }
}

/** `GET /models/sse`: what happens to models from now on. Hono gives HEAD to it, too, which gets the headers. */
export function streamEvents({ feed }: { readonly feed: EventFeed }) {
  return function streamEventsHandler({ env: { incoming, outgoing } }: Context<HttpEnv>): Response {
    if (incoming.method === 'HEAD') outgoing.writeHead(200, head).end();
    else feed.add(outgoing);
    return RESPONSE_ALREADY_SENT;
  };
}
