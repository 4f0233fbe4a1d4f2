import type { IncomingMessage, ServerResponse } from 'node:http';
import type { RouterError } from '../errors.js';
import type { Counters } from '../observe/counters.js';
import type { Logger } from '../observe/log.js';

/** What is noted about one request while it is answered, for its line in the log. Times are monotonic ms. */
export interface RequestTrace {
  readonly id: string;
  readonly startedAt: number;
  /** The matched route; unmatched ones share a name, so that counters stay bounded. */
  route: string;
  model: string | undefined;
  admittedAt: number | undefined;
  firstByteAt: number | undefined;
  readonly error: RouterError | undefined;
  /** Notes why it failed. When its line is written already, because its client had left, that is one more line. */
  fail(error: RouterError): void;
}

class Trace implements RequestTrace {
  readonly id: string;
  readonly startedAt = performance.now();
  readonly #onLateFailure: (trace: Trace, error: RouterError) => void;
  route = 'other';
  model: string | undefined;
  admittedAt: number | undefined;
  firstByteAt: number | undefined;
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
const quietRoutes = new Set(['/health', '/v1/health', '/*']);

/** Gives every request a trace, and writes its line and counts it once its answer has ended. */
export class RequestTracer {
  readonly #log: Logger;
  readonly #counters: Counters;
  #last = 0;

  constructor(log: Logger, counters: Counters) {
    this.#log = log;
    this.#counters = counters;
  }

  begin(incoming: IncomingMessage, outgoing: ServerResponse): RequestTrace {
    this.#last += 1;
    const trace = new Trace(requestId(incoming) ?? `${process.pid}-${this.#last}`, this.#failedLate);
    this.#counters.inFlight += 1;
    outgoing.once('close', () => this.#end(trace, incoming, outgoing));
    return trace;
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
    counters.inFlight -= 1;
    counters.countRequest(trace.route, outgoing.statusCode);
    // An answer that ended early without an error of ours was left by its client; who waited for it hears so later.
    const left = trace.error ? trace.error.code === 'client_gone' : !outgoing.writableFinished;
    if (left) counters.cancelled += 1;
    if (trace.error?.code === 'queue_full' || trace.error?.code === 'body_memory_full') counters.refused += 1;
    const { startedAt, admittedAt, firstByteAt, error } = trace;
    const line = {
      id: trace.id,
      method: incoming.method,
      path: pathOnly(incoming.url),
      status: outgoing.headersSent ? outgoing.statusCode : undefined,
      model: trace.model,
      ms: since(startedAt, performance.now()),
      queueMs: admittedAt === undefined ? undefined : since(startedAt, admittedAt),
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

function since(start: number, end: number): number {
  return Math.round((end - start) * 10) / 10;
}
