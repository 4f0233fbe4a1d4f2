import type { IncomingMessage, ServerResponse } from 'node:http';
import type { RouterError } from '../errors.js';
import type { Counters } from '../observe/counters.js';
import type { Logger } from '../observe/log.js';
import type { ModelWait } from './model-wait.js';

/** What is noted about one request while it is answered, for its line in the log. Times are monotonic ms. */
export interface RequestTrace {
  readonly id: string;
  readonly startedAt: number;
  /** The matched route; unmatched ones share a name, so that counters stay bounded. */
  route: string;
  model: string | undefined;
  /** Set when it could not be admitted at once. */
  wait: ModelWait | undefined;
  /** Whether it has been forwarded to a child. */
  isForwarded: boolean;
  firstByteAt: number | undefined;
  /** What its child answered, when another status had been sent already: the stream had been begun. */
  childStatus: number | undefined;
  readonly error: RouterError | undefined;
  /** Notes why it failed. When its line is written already, because its client had left, that is one more line. */
  fail(error: RouterError): void;
}

/** An answer as the log names it. */
export interface UnreadAnswer {
  readonly id: string;
  readonly method: string | undefined;
  readonly path: string;
  readonly model: string | undefined;
}

class Trace implements RequestTrace {
  readonly id: string;
  readonly startedAt = performance.now();
  readonly #onLateFailure: (trace: Trace, error: RouterError) => void;
  route = 'other';
  model: string | undefined;
  wait: ModelWait | undefined;
  isForwarded = false;
  firstByteAt: number | undefined;
  childStatus: number | undefined;
  error: RouterError | undefined;
  isWritten = false;

  constructor(id: string, onLateFailure: (trace: Trace, error: RouterError) => void) {
    this.id = id;
    this.#onLateFailure = onLateFailure;
  }

  fail(error: RouterError): void {
    this.error = error;
    if (this.isWritten) this.#onLateFailure(this, error);
  }
}

/** Probes come every few seconds, and a page of the web UI has a hundred parts; their lines are for debugging. */
const quietRoutes = new Set(['/health', '/v1/health', '/livez', '/readyz', '/*']);

/** Gives every request a trace, and writes its line and counts it once its answer has ended. */
export class RequestTracer {
  readonly #log: Logger;
  readonly #counters: Counters;
  readonly #open = new Map<ServerResponse, Trace>();
  #onEnd: (() => void) | undefined;
  #last = 0;

  constructor(log: Logger, counters: Counters) {
    this.#log = log;
    this.#counters = counters;
  }

  begin(incoming: IncomingMessage, outgoing: ServerResponse): RequestTrace {
    this.#last += 1;
    const trace = new Trace(requestId(incoming) ?? `${process.pid}-${this.#last}`, this.#failedLate);
    this.#counters.inFlight += 1;
    this.#open.set(outgoing, trace);
    outgoing.once('close', () => this.#end(trace, incoming, outgoing));
    return trace;
  }

  /** The answers that are made and of which bytes are still on their way to who reads them. */
  get unread(): readonly UnreadAnswer[] {
    return Array.from(this.#open, ([outgoing, { id, model }]): UnreadAnswer[] => {
      const { method, url } = outgoing.req;
      return outgoing.writableEnded ? [{ id, method, path: pathOnly(url), model }] : [];
    }).flat();
  }

  /** Settles when every answer that is made has been read, or after `ms`. */
  async readWithin(ms: number): Promise<void> {
    if (ms <= 0) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#onEnd = () => {
        for (const { writableEnded } of this.#open.keys()) if (writableEnded) return;
        clearTimeout(timer);
        resolve();
      };
      this.#onEnd();
    });
    this.#onEnd = undefined;
  }

  /** The answer of a client that had left could be read on, and was lost. */
  readonly #failedLate = ({ id, model }: Trace, error: RouterError): void => {
    if (error.status < 500) return;
    const line = { id, model, error: { reason: error.code, message: error.message } };
    this.#log.warn(line, 'failed after its client had left');
  };

  #end(trace: Trace, incoming: IncomingMessage, outgoing: ServerResponse): void {
    const counters = this.#counters;
    trace.isWritten = true;
    this.#open.delete(outgoing);
    this.#onEnd?.();
    counters.inFlight -= 1;
    counters.countRequest(trace.route, statusOf(trace, outgoing));
    const left = wasLeft(trace, outgoing);
    if (left) counters.cancelled += 1;
    if (trace.error?.code === 'queue_full' || trace.error?.code === 'body_memory_full') counters.refused += 1;
    const { startedAt, firstByteAt, childStatus, error } = trace;
    const times = trace.wait?.times;
    const line = {
      id: trace.id,
      method: incoming.method,
      path: pathOnly(incoming.url),
      status: outgoing.headersSent ? outgoing.statusCode : undefined,
      childStatus,
      model: trace.model,
      ms: since(startedAt, performance.now()),
      queueMs: times && tenths(times.queueMs),
      loadMs: times && tenths(times.loadMs),
      firstByteMs: firstByteAt === undefined ? undefined : since(startedAt, firstByteAt),
      clientGone: left ? true : undefined,
      error: error === undefined || left ? undefined : { reason: error.code, message: error.message },
    };
    if (error?.code === 'internal') this.#log.error({ ...line, err: error.cause }, 'request');
    else if (error && error.status >= 500 && !left) this.#log.warn(line, 'request');
    else if (quietRoutes.has(trace.route)) this.#log.debug(line, 'request');
    else this.#log.info(line, 'request');
  }
}

/** A client's own id, when it is one that cannot hurt a log. */
function requestId(incoming: IncomingMessage): string | undefined {
  const id = incoming.headers['x-request-id'];
  return typeof id === 'string' && /^[\w.:+/=-]{1,128}$/.test(id) ? id : undefined;
}

/** Queries can hold secrets. */
function pathOnly(url = ''): string {
  const end = url.indexOf('?');
  return end === -1 ? url : url.slice(0, end);
}

/** What came of it: a stream that has begun says 200 however it ends. */
function statusOf({ error, childStatus }: RequestTrace, outgoing: ServerResponse): number {
  if (childStatus !== undefined) return childStatus;
  // What was sent whole is what it says, also with a failure in it, as of one prediction among several.
  return outgoing.writableFinished || error === undefined ? outgoing.statusCode : error.status;
}

/** Whether its client has left before the end of its answer: who waited for it hears so later. */
function wasLeft({ error, childStatus }: RequestTrace, outgoing: ServerResponse): boolean {
  if (error) return error.code === 'client_gone';
  // What the child refuses in a stream that has been begun is ended by cutting it.
  return !outgoing.writableFinished && childStatus === undefined;
}

function since(start: number, end: number): number {
  return tenths(end - start);
}

function tenths(ms: number): number {
  return Math.round(ms * 10) / 10;
}
