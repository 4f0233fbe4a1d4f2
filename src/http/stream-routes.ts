import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { Lease, Scheduler, Upstream } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import type { Conversations, ConversationTurn } from './conversations.js';
import { requestHeaders } from './header-policy.js';
import { jsonAnswer } from './json-answer.js';
import { parseJson } from './parse-json.js';
import { refuse, relayAnswer } from './proxy.js';
import { readBody, type BodyLimits } from './request-body.js';
import { pathOf, queryValue } from './request-target.js';
import { answerOf } from './upstream-answer.js';

export interface StreamRoutesOptions {
  readonly scheduler: Scheduler;
  readonly conversations: Conversations;
  readonly bodyLimits: BodyLimits;
  /** In front of the children's routes, as of ours. */
  readonly apiPrefix: string;
  readonly slowReaderMs: number;
}

type StreamContext = Context<HttpEnv>;

/** How long a child may take to say what it has, or to end a stream. */
const childLimits = { timeoutMs: 2_000, maxBytes: 4 * 1024 * 1024 } as const;

/** A lookup names conversations, and nothing else. */
const maxLookupBytes = 1024 * 1024;

/**
 * `GET /v1/stream?conv_id=ID&from=BYTES`: reads an answer on from an offset, as the child that gives it keeps it. Nothing
 * is loaded for it, a sleeping child is not woken, and the model stays until what is read has ended.
 */
export function resumeStream(options: StreamRoutesOptions) {
  return async function resumeStreamHandler(c: StreamContext): Promise<Response> {
    const { incoming, trace } = c.env;
    const id = conversationIn(c);
    const turn = options.conversations.find(id);
    if (turn === undefined) throw new RouterError('stream_unknown', 'Stream not found or expired');
    const { model, failure } = turn;
    trace.model = model;
    // Its child may be another one by now.
    if (failure !== undefined) throw lost(model, failure);
    const lease = attach(options.scheduler, turn);
    if (lease === undefined) throw notThere(turn);
    try {
      const headers = requestHeaders(incoming.rawHeaders);
      await relayAnswer(
        c,
        lease,
        { method: 'GET', path: pathOf(incoming.url), headers, body: null },
        // What is not of the child would be counted by who resumes by offset.
        { slowReaderMs: options.slowReaderMs, silent: true },
      );
    } catch (error) {
      refuse(c, error);
    } finally {
      lease.release('use');
    }
    return RESPONSE_ALREADY_SENT;
  };
}

/**
 * `POST /v1/streams/lookup {"conversation_ids": [...]}`: what the children know of these answers, as one array. A body
 * that is none asks for nothing, and a child that does not answer in time has nothing, as in the native router.
 */
export function lookUpStreams(options: StreamRoutesOptions) {
  return async function lookUpStreamsHandler(c: StreamContext): Promise<Response> {
    const ids = await conversationsIn(c, options.bodyLimits);
    const byChild = new Map<Upstream, { readonly turn: ConversationTurn; readonly ids: string[] }>();
    for (const id of ids) {
      const turn = options.conversations.find(id);
      if (turn?.upstream === undefined) continue;
      const ofChild = byChild.get(turn.upstream);
      if (ofChild) ofChild.ids.push(id);
      else byChild.set(turn.upstream, { turn, ids: [id] });
    }
    const found = await Promise.all(Array.from(byChild.values(), (asked) => askChild(options, asked)));
    return jsonAnswer(c, found.flat());
  };
}

/** `DELETE /v1/stream?conv_id=ID`: ends the answer, or the wait for it. 204, whatever was there to end. */
export function stopStream({ scheduler, conversations, apiPrefix }: StreamRoutesOptions) {
  return async function stopStreamHandler(c: StreamContext): Promise<Response> {
    const id = conversationIn(c);
    const turn = conversations.find(id);
    const lease = turn && attach(scheduler, turn);
    if (turn) c.env.trace.model = turn.model;
    // First, so that a request that is still waiting is not sent after the child has been told.
    conversations.stop(id);
    if (lease) {
      const path = `${apiPrefix}/v1/stream?conv_id=${encodeURIComponent(id)}`;
      await askOnce(lease, { method: 'DELETE', path, headers: [], body: null });
    }
    return c.body(null, 204, { 'Content-Type': 'application/json' });
  };
}

async function askChild(
  { scheduler, apiPrefix }: StreamRoutesOptions,
  { turn, ids }: { readonly turn: ConversationTurn; readonly ids: readonly string[] },
): Promise<unknown[]> {
  const lease = attach(scheduler, turn);
  if (lease === undefined) return [];
  const body = Buffer.from(JSON.stringify({ conversation_ids: ids }));
  const headers = ['content-type', 'application/json', 'content-length', String(body.length)];
  const answer = await askOnce(lease, {
    method: 'POST',
    path: `${apiPrefix}/v1/streams/lookup`,
    headers,
    body,
  });
  const known = answer?.status === 200 ? parseJson(answer.body) : undefined;
  return Array.isArray(known) ? (known as unknown[]) : [];
}

async function askOnce(lease: Lease, request: Parameters<typeof answerOf>[1]): ReturnType<typeof answerOf> {
  try {
    return await answerOf(lease.upstream, request, childLimits);
  } finally {
    lease.release('look');
  }
}

function lost(model: string, why: string): RouterError {
  return new RouterError('stream_unknown', `Stream not found or expired: ${why}`, { model });
}

/** A lease on the child that answers it, or has; undefined when there is none yet, or it has gone. */
function attach(scheduler: Scheduler, { model, upstream, isWaiting }: ConversationTurn): Lease | undefined {
  const lease = isWaiting ? undefined : scheduler.tryAttach(model);
  if (lease === undefined || lease.upstream === upstream) return lease;
  lease.release('look');
  return undefined;
}

function notThere({ model, isWaiting }: ConversationTurn): RouterError {
  if (isWaiting) {
    const message = 'Stream owner model is loading, retry later';
    return new RouterError('stream_not_yet', message, { model });
  }
  return new RouterError('stream_unknown', 'Stream not found or expired', { model });
}

function conversationIn(c: StreamContext): string {
  const id = queryValue(c.env.incoming.url, 'conv_id');
  if (id === '') throw new RouterError('request_malformed', 'Missing conversation id in path');
  return id;
}

async function conversationsIn(c: StreamContext, { budget }: BodyLimits): Promise<ReadonlySet<string>> {
  const chunks: Buffer[] = [];
  const limits = { maxBytes: maxLookupBytes, budget };
  const body = await readBody(c.env.incoming, limits, (chunk) => chunks.push(chunk));
  body.release();
  const asked = parseJson(Buffer.concat(chunks));
  const ids = typeof asked === 'object' && asked !== null && 'conversation_ids' in asked ? asked : undefined;
  const list: unknown = ids?.conversation_ids;
  return new Set(Array.isArray(list) ? list.filter((id) => typeof id === 'string') : []);
}
