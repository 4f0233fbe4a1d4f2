import type { IncomingMessage, ServerResponse } from 'node:http';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { asRouterError, RouterError } from '../errors.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import type { Lease, Outcome, Scheduler } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import { readBody, type BodyLimits, type RequestBody } from './request-body.js';
import { modelScannerFor } from './model-name/index.js';
import { findModel, invalidModel } from './find-model.js';
import { requireName } from './require-name.js';
import { requestHeaders } from './header-policy.js';
import { Relay, type RelayEnd } from './relay.js';
import { sendError } from './send-error.js';

export interface ProxyOptions {
  readonly catalog: () => Catalog;
  readonly scheduler: Scheduler;
  readonly bodyLimits: BodyLimits;
  /** Why a model that is not loaded can not be; looks into its files, if nobody has yet. */
  readonly vet: (model: Model) => Promise<string | undefined>;
  /** Whether a request may load a model when its query does not say. */
  readonly autoload: boolean;
  /** Longest time for which a client may not read; 0 = no bound. */
  readonly slowReaderMs: number;
}

type ProxyContext = Context<HttpEnv>;

/** Proxied GETs that wake a sleeping child; its others are answered asleep. */
const wakingLooks = new Set(['/slots', '/lora-adapters']);

/** A request may be sent to a child this many times: again only when no byte of it had gone out. */
const attempts = 2;

/** How long the exit of a child that broke a connection is waited for, so that its reason can be told. */
const reasonPatienceMs = 500;

/** A client that does not read the error that ends its stream is not waited for longer. */
const lastEventMs = 5_000;

/**
 * Proxied POST routes: the model is named in the body, JSON or multipart. The handler works on Node's own
 * request and response: the body passes as it came, the answer as the child gives it.
 */
export function proxyByBody(options: ProxyOptions) {
  return async function proxyByBodyHandler(c: ProxyContext): Promise<Response> {
    const { incoming, trace } = c.env;
    let body: RequestBody | undefined;
    try {
      const scanner = modelScannerFor(incoming.headers['content-type']);
      body = await readBody(incoming, options.bodyLimits, (chunk) => scanner.push(chunk));
      const model = findModel(options.catalog(), requireName(await scanner.end()));
      trace.model = model.id;
      const autoload = autoloadIn(incoming.url) ?? options.autoload;
      await forward(options, c, { method: 'POST', model, body, autoload, wake: true });
    } catch (error) {
      refuse(c, error);
    } finally {
      body?.release();
    }
    return RESPONSE_ALREADY_SENT;
  };
}

/** Proxied GET routes: the model is named in the query. Looking loads nothing unless it says `autoload=true`. */
export function proxyByQuery(options: ProxyOptions) {
  return async function proxyByQueryHandler(c: ProxyContext): Promise<Response> {
    const { incoming, trace } = c.env;
    try {
      const name = queryOf(incoming.url)?.get('model') ?? '';
      const model = findModel(
        options.catalog(),
        requireName(name === '' ? { kind: 'missing' } : { kind: 'found', name }),
      );
      trace.model = model.id;
      await forward(options, c, {
        method: 'GET',
        model,
        body: undefined,
        autoload: autoloadIn(incoming.url) ?? false,
        wake: !wakingLooks.has(c.env.trace.route),
      });
    } catch (error) {
      refuse(c, error);
    }
    return RESPONSE_ALREADY_SENT;
  };
}

interface ForwardRequest {
  readonly method: 'GET' | 'POST';
  readonly model: Model;
  readonly body: RequestBody | undefined;
  readonly autoload: boolean;
  /** Whether a sleeping model may be woken by it. */
  readonly wake: boolean;
}

/** Takes a lease, relays, releases; what goes wrong is answered or thrown. */
async function forward(options: ProxyOptions, c: ProxyContext, request: ForwardRequest): Promise<void> {
  const { incoming, outgoing, trace } = c.env;
  const { model } = request;
  const detached = incoming.headers['x-conversation-id'] !== undefined;
  for (let attempt = 1; ; attempt += 1) {
    const lease =
      options.scheduler.tryAcquire(model.id, request) ?? (await waitForLease(options, c, request, detached));
    trace.admittedAt ??= performance.now();
    try {
      const relay = new Relay(outgoing, {
        detached,
        slowReaderMs: options.slowReaderMs,
        onFirstByte: () => {
          trace.firstByteAt ??= performance.now();
          // It is not sent again after this: the memory is for other requests.
          request.body?.release();
        },
      });
      const finish = lease.upstream.dispatch(
        {
          method: request.method,
          path: pathOf(incoming.url),
          headers: headersFor(incoming, request.body),
          body: request.body?.forSending() ?? null,
        },
        relay,
      );
      const end = await relay.end;
      finish(end.kind === 'complete' && end.framed);
      if (end.kind !== 'upstream failed') return;
      // Waited for also before another attempt, which must not find the same dying instance again.
      const outcome = await lease.outcomeWithin(reasonPatienceMs);
      if (!end.requestStarted && attempt < attempts) continue;
      const error = upstreamError(model.id, end.error, outcome);
      if (!end.responseStarted) throw error;
      trace.error = error;
      breakOff(outgoing, end, error, { silent: detached });
      return;
    } finally {
      lease.release(request.method === 'GET' ? 'look' : 'use');
    }
  }
}

/**
 * Waits in the queue; a client that leaves is a waiter no more, unless its answer can be resumed. No model has to make
 * room for one whose file cannot be loaded.
 */
async function waitForLease(
  { scheduler, vet }: ProxyOptions,
  { env: { outgoing } }: ProxyContext,
  { model, autoload, wake }: ForwardRequest,
  detached: boolean,
): Promise<Lease> {
  const client = new AbortController();
  const onClose = (): void => client.abort();
  if (!detached) outgoing.once('close', onClose);
  if (outgoing.destroyed && !detached) client.abort();
  try {
    if (autoload && scheduler.status(model.id).value === 'unloaded') {
      const problem = await vet(model);
      if (problem !== undefined) throw invalidModel(model.id, problem);
    }
    return await scheduler.acquire(model.id, client.signal, { autoload, wake });
  } finally {
    outgoing.off('close', onClose);
  }
}

/**
 * Ends a stream whose child failed so that the client sees it: an error event where the stream is one of
 * events, then a cut connection, never a clean end. A stream that can be resumed by byte offset is only cut.
 */
function breakOff(
  outgoing: ServerResponse,
  { isEventStream }: RelayEnd & { kind: 'upstream failed' },
  error: RouterError,
  { silent }: { silent: boolean },
): void {
  if (!isEventStream || silent) {
    outgoing.destroy();
    return;
  }
  const timer = setTimeout(() => outgoing.destroy(), lastEventMs);
  // The blank line first closes an event the child had begun.
  outgoing.write(`\n\ndata: ${JSON.stringify(error)}\n\n`, () => {
    clearTimeout(timer);
    outgoing.destroy();
  });
}

function upstreamError(model: string, cause: Error, outcome: Outcome | undefined): RouterError {
  if (outcome?.kind === 'failed') {
    const { message, lastLines } = outcome;
    const text = `model name=${model} failed while it was answering: its process ${message}`;
    return new RouterError('child_gone', text, { model, lastLines, cause, retryAfterS: 1 });
  }
  if (outcome?.kind === 'stopped' && outcome.reason === 'shutdown') {
    const text = `the supervisor is shutting down; model name=${model} had not finished its answer`;
    return new RouterError('shutting_down', text, { model, cause, retryAfterS: 5 });
  }
  if (outcome?.kind === 'stopped') {
    const text = `model name=${model} was stopped (${outcome.reason}) while it was answering`;
    return new RouterError('child_gone', text, { model, cause, retryAfterS: 1 });
  }
  const code = 'code' in cause ? cause.code : undefined;
  if (code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT') {
    const text = `model name=${model} was silent for longer than --timeout allows`;
    return new RouterError('child_timeout', text, { model, cause });
  }
  const text = `model name=${model} broke off its answer: ${cause.message}`;
  return new RouterError('child_gone', text, { model, cause, retryAfterS: 1 });
}

function refuse(c: ProxyContext, thrown: unknown): void {
  const { incoming, outgoing, trace } = c.env;
  const error = asRouterError(thrown);
  trace.error = error;
  sendError(incoming, outgoing, error);
}

function headersFor(incoming: IncomingMessage, body: RequestBody | undefined): string[] {
  const headers = requestHeaders(incoming.rawHeaders);
  if (body) headers.push('content-length', String(body.bytes));
  return headers;
}

/** Path and query as sent, also when the client used the absolute form. */
function pathOf(url = '/'): string {
  if (url.startsWith('/')) return url;
  const { pathname, search } = new URL(url);
  return pathname + search;
}

function queryOf(url = ''): URLSearchParams | undefined {
  const start = url.indexOf('?');
  return start === -1 ? undefined : new URLSearchParams(url.slice(start + 1));
}

/** `?autoload=`: empty or absent leaves it to the server; `true` and `1` are on, anything else is off. */
function autoloadIn(url: string | undefined): boolean | undefined {
  const value = queryOf(url)?.get('autoload') ?? '';
  return value === '' ? undefined : value === 'true' || value === '1';
}
