import type { IncomingHttpHeaders } from 'node:http';
import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline, type Patience } from './eventually.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from './raw-http.js';
import { sseSplitter } from './sse.js';

/** Longest wait for one answer, waiting in the supervisor's queue included. Milliseconds. */
const answerMs = 30_000;

/** An answer that was read to its end. */
export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  /** The body read as JSON; undefined when it is none. */
  json: unknown;
}

/** What a test reads of an entry of `GET /models`. */
export interface ModelEntry {
  id: string;
  aliases: string[];
  source: string;
  status: {
    value: string;
    args: string[];
    failed?: boolean;
    exit_code?: number;
    error?: {
      reason: string;
      message: string;
      last_lines?: string[];
      at?: string;
      failures?: number;
      retry_at?: string;
    };
  };
  pid?: number;
  in_flight: number;
  waiting: number;
}

/** What a test reads of an error's body. */
export interface ErrorBody {
  code: number;
  type: string;
  message: string;
  reason?: string;
  model?: string;
  last_lines?: string[];
}

/** Sends `body` as JSON; rejects when there is no whole answer. */
export async function post(
  url: string,
  path: string,
  body: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const request = jsonPost(body);
  const sent = rawRequest(url + path, { ...request, headers: { ...request.headers, ...headers } });
  return whole(`POST ${path}`, sent);
}

/** Rejects when there is no whole answer. */
export async function get(url: string, path: string, headers: Record<string, string> = {}): Promise<Answer> {
  return whole(`GET ${path}`, rawRequest(url + path, { headers }));
}

/** The error in a JSON body, or in the data of an event; throws when there is none. */
export function errorIn(text: string): ErrorBody {
  const { error } = JSON.parse(text) as { error?: ErrorBody };
  if (!error) throw new Error(`no error: ${text}`);
  return error;
}

/**
 * What a model answers to a chat; rejects when the answer is none, with what came instead. The native router is asked
 * again when a load fails there, because its children lose their ports to others on a busy machine.
 */
export async function chat(url: string, model: string, more: object = {}): Promise<string> {
  const ask = () => post(url, '/v1/chat/completions', { ...question(model), ...more });
  let answer = await ask();
  for (let tries = 1; tries < 3 && isLoadFailedNatively(answer); tries += 1) answer = await ask();
  const { status, text, json } = answer;
  if (status !== 200) throw new Error(`${model} answered ${status}: ${text}`);
  return (json as { choices: [{ message: { content: string } }] }).choices[0].message.content;
}

/** In words that our router never uses: it says why, and with another status. */
function isLoadFailedNatively({ status, text }: { status: number; text: string }): boolean {
  return status === 500 && /"message":"model name=[^"]* failed to load","type"/.test(text);
}

/** The body of a chat request, without options. */
export function question(model: string): { model: string; messages: object[] } {
  return { model, messages: [{ role: 'user', content: 'Who are you?' }] };
}

/** An answer that is streamed as events. */
export interface EventStream {
  /** The data of every event so far. */
  events(): readonly string[];
  /** The text of every event so far that brought some. */
  pieces(): readonly string[];
  /** Settles when so many pieces have come. */
  untilPieces(count: number): Promise<void>;
  /** The end of the response; `complete` is false when its connection broke. */
  ended(): Promise<RawResponse>;
  /** Leaves. */
  abort(): void;
}

/** A streamed chat. */
export function streamChat(url: string, model: string, more: object = {}): EventStream {
  return streamEvents(url, '/v1/chat/completions', { ...question(model), ...more });
}

/** A streamed answer of any route that gives the text of a chat or of a completion. Left at the end of the test. */
export function streamEvents(url: string, path: string, body: object): EventStream {
  const splitter = sseSplitter();
  const events: string[] = [];
  const pieces: string[] = [];
  const exchange = rawExchange(url + path, {
    ...jsonPost({ ...body, stream: true }),
    onChunk: (chunk) => {
      for (const { data } of splitter.push(chunk)) {
        if (data === undefined) continue;
        events.push(data);
        const piece = textOf(data);
        if (piece !== '') pieces.push(piece);
      }
    },
  });
  // Without this a test that failed would leave its supervisor waiting for an endless stream.
  atEndOfTest(() => exchange.abort());
  return {
    events: () => events,
    pieces: () => pieces,
    untilPieces: async (count) => {
      await eventually(`${count} pieces of text`, () => pieces.length >= count, { deadlineMs: answerMs });
    },
    ended: () => withDeadline(`the end of the stream of ${path}`, exchange.ended, answerMs),
    abort: () => exchange.abort(),
  };
}

export async function listModels(url: string): Promise<ModelEntry[]> {
  const { json } = await get(url, '/models');
  return (json as { data: ModelEntry[] }).data;
}

export async function modelEntry(url: string, id: string): Promise<ModelEntry> {
  const entry = (await listModels(url)).find((model) => model.id === id);
  if (!entry) throw new Error(`${id} is not listed`);
  return entry;
}

/** Waits until a model's status has this word, and returns its entry. */
export function untilStatus(
  url: string,
  id: string,
  value: string,
  patience?: Patience,
): Promise<ModelEntry> {
  return eventually(
    `${id} is ${value}`,
    async () => {
      const entry = await modelEntry(url, id);
      if (entry.status.value !== value) throw new Error(`it is ${JSON.stringify(entry.status)}`);
      return entry;
    },
    patience,
  );
}

/** How many slots of a loaded model are generating, as its child says. */
export async function busySlots(url: string, model: string): Promise<number> {
  const { status, text, json } = await get(url, `/slots?model=${encodeURIComponent(model)}`);
  if (status !== 200) throw new Error(`/slots answered ${status}: ${text}`);
  return (json as { is_processing: boolean }[]).filter((slot) => slot.is_processing).length;
}

async function whole(label: string, response: Promise<RawResponse>): Promise<Answer> {
  const { status, headers, body, complete } = await withDeadline(label, response, answerMs);
  const text = body.toString('utf8');
  if (!complete) throw new Error(`${label}: the answer broke off after ${text}`);
  return { status, headers, text, json: asJson(text) };
}

function asJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * The text in an event of a chat (`choices[0].delta.content`) or of a completion (`content`). `[DONE]` has none, and
 * neither has an event that was cut off by a crash.
 */
function textOf(data: string): string {
  const event = asJson(data) as
    { content?: string; choices?: { delta?: { content?: string | null } }[] } | undefined;
  return event?.content ?? event?.choices?.[0]?.delta?.content ?? '';
}
