import type { IncomingMessage } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { asRouterError, RouterError } from '../errors.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import { isWork, type Lease, type Scheduler, type UpstreamRequest } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import { breakOff } from './break-off.js';
import { childFailure } from './child-failure.js';
import { MAX_CONVERSATION_ID, type Conversations, type ConversationTurn } from './conversations.js';
import { nameForGet, nameForPost } from './default-model.js';
import type { Downloads } from './download-routes.js';
import { EarlyStream, type EarlyStreamOptions } from './early-stream.js';
import { findModel, invalidModel } from './find-model.js';
import { requestHeaders } from './header-policy.js';
import { modelScannerFor } from './model-name/index.js';
import { ModelWait, serverTiming } from './model-wait.js';
import { Relay } from './relay.js';
import { readBody, type BodyLimits, type RequestBody } from './request-body.js';
import { pathOf, queryValue } from './request-target.js';
import { sendError } from './send-error.js';
import { stageOf } from './stage.js';

export interface ProxyOptions {
  readonly catalog: () => Catalog;
  readonly scheduler: Scheduler;
  readonly bodyLimits: BodyLimits;
  readonly conversations: Conversations;
  readonly downloads: Pick<Downloads, 'list'>;
  /** Id, alias or `auto`: the model of requests that name none; undefined = each must name one. */
  readonly defaultModel: string | undefined;
  /** Why a model that is not loaded can not be; looks into its files, if nobody has yet. */
  readonly vet: (model: Model) => Promise<string | undefined>;
  /** Whether a request may load a model when its query does not say. */
  readonly autoload: boolean;
  /** Longest time for which a client may not read; 0 = no bound. */
  readonly slowReaderMs: number;
  /** When and how a stream is begun that has to wait for its answer. */
  readonly streamPings: EarlyStreamOptions;
  /** A request is held for so long before it is passed on, which only tests of upstream's ask for. */
  readonly fakeDelayMs: number;
}

type ProxyContext = Context<HttpEnv>;

/** Proxied GETs that wake a sleeping child; its others are answered asleep. */
const wakingLooks = new Set(['/slots', '/lora-adapters']);

/** It is about a completion that its model is computing, and must not wait for the end of that. */
const controlRoute = '/v1/chat/completions/control';

/** Proxied POST routes that stream events when they are asked to. */
const streamingRoutes = new Set([
  '/completion',
  '/completions',
  '/v1/completions',
  '/chat/completions',
  '/v1/chat/completions',
  '/responses',
  '/v1/responses',
  '/v1/messages',
  '/infill',
]);

/** A request may be sent to a child this many times: again only when no byte of it had gone out. */
const attempts = 2;

/** How long the exit of a child that broke a connection is waited for, so that its reason can be told. */
const reasonPatienceMs = 1_500;

/** How long the answer of a conversation that was stopped may take to end by itself. */
const stoppedAnswerMs = 5_000;

/**
 * Proxied POST routes: the model is named in the body, JSON or multipart. The handler works on Node's own
 * request and response: the body passes as it came, the answer as the child gives it.
 */
export function proxyByBody(options: ProxyOptions) {
  return async function proxyByBodyHandler(c: ProxyContext): Promise<Response> {
    const { incoming, trace } = c.env;
    let body: RequestBody | undefined;
    let turn: ConversationTurn | undefined;
    let early: EarlyStream | undefined;
    try {
      const scanner = modelScannerFor(incoming.headers['content-type']);
      body = await readBody(incoming, options.bodyLimits, (chunk) => scanner.push(chunk));
      const { defaultModel } = options;
      const catalog = options.catalog();
      const isEmpty = body.bytes === 0 && defaultModel !== undefined;
      const found = isEmpty ? ({ kind: 'missing' } as const) : scanner.end();
      const name = nameForPost(found, { catalog, defaultModel, url: incoming.url });
      const model = findModel(catalog, name, { downloads: () => options.downloads.list() });
      trace.model = model.id;
      const autoload = autoloadIn(incoming.url) ?? options.autoload;
      // Known before any wait, so that it can be stopped while its model loads.
      turn = beginTurn(options.conversations, incoming, model.id);
      // Clients of a conversation count its bytes: nothing of ours may be among them.
      if (scanner.asksForStream && !turn && streamingRoutes.has(trace.route)) {
        early = beginEarly(options, c, model.id);
      }
      await forward(options, c, {
        method: 'POST',
        model,
        body,
        autoload,
        wake: true,
        look: trace.route === controlRoute,
        turn,
        early,
      });
    } catch (error) {
      refuse(c, error, early);
    } finally {
      early?.stop();
      body?.release();
      if (turn && trace.error) turn.failure = trace.error.message;
      turn?.ended();
    }
    return RESPONSE_ALREADY_SENT;
  };
}

/** Proxied GET routes: the model is named in the query. Looking loads nothing unless it says `autoload=true`. */
export function proxyByQuery(options: ProxyOptions) {
  return async function proxyByQueryHandler(c: ProxyContext): Promise<Response> {
    const { incoming, trace } = c.env;
    try {
      const { defaultModel } = options;
      const catalog = options.catalog();
      const name = nameForGet(incoming.url, { catalog, defaultModel });
      const model = findModel(catalog, name, { downloads: () => options.downloads.list() });
      trace.model = model.id;
      await forward(options, c, {
        method: 'GET',
        model,
        body: undefined,
        autoload: autoloadIn(incoming.url) ?? false,
        wake: !wakingLooks.has(c.env.trace.route),
        look: true,
        turn: undefined,
        early: undefined,
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
  /** Whether it asks its model for no work. */
  readonly look: boolean;
  /** Set when its answer can be read on by a client that has left. */
  readonly turn: ConversationTurn | undefined;
  /** Set when its answer is a stream that may be begun before there is one. */
  readonly early: EarlyStream | undefined;
}

/** Takes a lease, relays, releases; what goes wrong is answered or thrown. */
async function forward(options: ProxyOptions, c: ProxyContext, request: ForwardRequest): Promise<void> {
  const { incoming, trace } = c.env;
  const { model, body, turn } = request;
  for (let attempt = 1; ; attempt += 1) {
    turn?.waits();
    const attached = trace.route === controlRoute ? options.scheduler.tryAttach(model.id) : undefined;
    const lease =
      attached ??
      options.scheduler.tryAcquire(model.id, request) ??
      (await waitForLease(options, c, request));
    trace.isForwarded = true;
    try {
      if (options.fakeDelayMs > 0) await delay(options.fakeDelayMs);
      if (turn?.stopped.aborted) throw stoppedMeanwhile(model.id);
      turn?.forwarded(lease.upstream);
      const sent = {
        method: request.method,
        path: pathOf(incoming.url),
        headers: headersFor(incoming, body),
        body: body?.forSending() ?? null,
      };
      const done = await relayAnswer(c, lease, sent, {
        slowReaderMs: options.slowReaderMs,
        silent: turn !== undefined,
        early: request.early,
        ...(turn === undefined
          ? {}
          : { stopped: turn.stopped, detachedUntil: options.conversations.closing }),
        mayRepeat: attempt < attempts,
        // It is not sent again after this: the memory is for other requests.
        onFirstByte: () => body?.release(),
      });
      if (done) return;
    } finally {
      lease.release(request.method === 'GET' ? 'look' : 'use');
    }
  }
}

export interface RelayAnswerOptions {
  readonly slowReaderMs: number;
  /** Whether nothing of ours may enter a stream that fails: it is only cut. */
  readonly silent: boolean;
  readonly early?: EarlyStream | undefined;
  /** Set when the answer is read to its end although the client has left: until this is aborted. */
  readonly detachedUntil?: AbortSignal;
  /** Once this is aborted the answer has a moment to end by itself. */
  readonly stopped?: AbortSignal;
  /** Whether a request of which nothing was sent may be sent again. */
  readonly mayRepeat?: boolean;
  readonly onFirstByte?: () => void;
}

/**
 * Sends a request to the child of a lease and relays its answer; tells the client of a failure in the middle of it.
 *
 * @returns false when nothing of it was sent, and it may be sent again
 * @throws RouterError child_gone, child_timeout, shutting_down, stream_stopped, while nothing has been answered
 */
export async function relayAnswer(
  c: ProxyContext,
  lease: Lease,
  request: UpstreamRequest,
  { slowReaderMs, silent, early, detachedUntil, stopped, mayRepeat = false, onFirstByte }: RelayAnswerOptions,
): Promise<boolean> {
  const { outgoing, trace } = c.env;
  const relay = new Relay(outgoing, {
    detachedUntil,
    slowReaderMs,
    early,
    onFirstByte: () => {
      trace.firstByteAt ??= performance.now();
      onFirstByte?.();
    },
  });
  let cutTimer: NodeJS.Timeout | undefined;
  const onStop = (): void => {
    cutTimer = setTimeout(() => relay.cut(new Error('it was stopped')), stoppedAnswerMs);
  };
  stopped?.addEventListener('abort', onStop, { once: true });
  const finish = lease.upstream.dispatch(request, relay);
  const end = await relay.end;
  clearTimeout(cutTimer);
  stopped?.removeEventListener('abort', onStop);
  finish(end.kind === 'complete' && end.framed);
  // What is answered without computing says nothing about whether its model works.
  const isProof =
    end.kind === 'complete' && end.status < 300 && !end.isUnfit && isWork(request.method, request.path);
  if (isProof) lease.succeeded();
  if (end.kind === 'complete' && end.status !== outgoing.statusCode) trace.childStatus = end.status;
  if (end.kind === 'complete' && end.isUnfit) {
    const text = `model name=${lease.model} answered neither with a stream of events nor with JSON of a bearable size`;
    const error = new RouterError('child_gone', text, { model: lease.model });
    trace.fail(error);
    breakOff(outgoing, error, { isEventStream: true });
  }
  if (end.kind !== 'upstream failed') return true;
  // Waited for also before another attempt, which must not find the same dying instance again.
  const outcome = await lease.outcomeWithin(reasonPatienceMs);
  if (!end.requestStarted && mayRepeat) return false;
  const error = stopped?.aborted
    ? new RouterError('stream_stopped', 'request cancelled by a stop', { model: lease.model })
    : childFailure(lease.model, end.error, outcome);
  if (!end.responseStarted) throw error;
  trace.fail(error);
  breakOff(outgoing, error, { isEventStream: end.isEventStream && !silent });
  return true;
}

/** A request with a conversation id can be read on, and stopped, by a client that has lost its answer. */
function beginTurn(
  conversations: Conversations,
  { headers }: IncomingMessage,
  model: string,
): ConversationTurn | undefined {
  const header = headers['x-conversation-id'];
  if (typeof header !== 'string' || header === '') return undefined;
  // As the bytes that the client sent, which the query of a later request holds percent-encoded.
  const id = Buffer.from(header, 'latin1').toString();
  if (id.length > MAX_CONVERSATION_ID) {
    const message = `X-Conversation-Id is over ${MAX_CONVERSATION_ID} characters`;
    throw new RouterError('request_malformed', message, { model });
  }
  return conversations.begin(id, model);
}

/**
 * Waits in the queue; a client that leaves is a waiter no more, unless its answer can be read on. No model has to make
 * room for one whose file cannot be loaded.
 */
async function waitForLease(
  { scheduler, vet }: ProxyOptions,
  { env: { outgoing, trace } }: ProxyContext,
  { model, autoload, wake, look, turn }: ForwardRequest,
): Promise<Lease> {
  const client = new AbortController();
  const onClose = (): void => client.abort();
  if (turn === undefined) outgoing.once('close', onClose);
  if (outgoing.destroyed && turn === undefined) client.abort();
  const wait = (trace.wait ??= new ModelWait(() => scheduler.loadingMs(model.id)));
  wait.begins();
  try {
    if (autoload && scheduler.status(model.id).value === 'unloaded') {
      const problem = await vet(model);
      if (problem !== undefined) throw invalidModel(model.id, problem);
    }
    return await scheduler.acquire(model.id, turn?.stopped ?? client.signal, { autoload, wake, look });
  } catch (error) {
    throw turn?.stopped.aborted ? stoppedMeanwhile(model.id) : error;
  } finally {
    outgoing.off('close', onClose);
    wait.ends();
    const timing = serverTiming(wait.times);
    if (timing !== undefined && !outgoing.headersSent) outgoing.setHeader('Server-Timing', timing);
  }
}

function stoppedMeanwhile(model: string): RouterError {
  const message = 'request cancelled by a stop while the model was loading';
  return new RouterError('stream_stopped', message, { model });
}

/** The client is told what is waited for, when that takes long. */
function beginEarly(
  { streamPings, scheduler }: ProxyOptions,
  { env: { outgoing, trace } }: ProxyContext,
  model: string,
): EarlyStream {
  return new EarlyStream(outgoing, streamPings, {
    stage: () => {
      const isForwarded = trace.isForwarded && trace.wait?.goesOn !== true;
      return stageOf(model, scheduler.status(model), isForwarded);
    },
    timing: () => trace.wait && serverTiming(trace.wait.times),
  });
}

/** Answers with an error, on Node's own response; in a stream that has been begun it is an event. */
export function refuse(c: ProxyContext, thrown: unknown, early?: EarlyStream): void {
  const { incoming, outgoing, trace } = c.env;
  const error = asRouterError(thrown);
  trace.fail(error);
  early?.stop();
  if (early?.hasBegun) breakOff(outgoing, error, { isEventStream: true });
  else sendError(incoming, outgoing, error);
}

function headersFor(incoming: IncomingMessage, body: RequestBody | undefined): string[] {
  const headers = requestHeaders(incoming.rawHeaders);
  if (body) headers.push('content-length', String(body.bytes));
  return headers;
}

/** `?autoload=`: empty or absent leaves it to the server; `true` and `1` are on, anything else is off. */
function autoloadIn(url: string | undefined): boolean | undefined {
  const value = queryValue(url, 'autoload');
  return value === '' ? undefined : value === 'true' || value === '1';
}
