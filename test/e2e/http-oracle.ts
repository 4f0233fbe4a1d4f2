/**
 * The native router and ours as servers, side by side on the same models: each request is played to both, and their
 * answers are compared in a form without what differs from run to run.
 */
import { expect } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { writeModels, type KnownAnswers } from '../helpers/known-answer-models.js';
import { rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseSplitter } from '../helpers/sse.js';
import { openSocket } from '../http/raw-socket.js';
import { OracleHome, startNative } from './native-oracle.js';

const answerMs = 30_000;

/** One request, as a client writes it. */
export interface OracleRequest {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Text or bytes as they are; anything else is sent as JSON. */
  readonly body?: unknown;
}

/** An answer in the form in which two are compared. */
export interface OracleAnswer {
  readonly status: number;
  /** Those of the headers that say something about the answer and not about its connection. */
  readonly headers: Readonly<Record<string, string>>;
  /** JSON, the events of a stream, or text. */
  readonly body: unknown;
}

export interface PairOptions {
  readonly models: Readonly<Record<string, KnownAnswers>>;
  /** For both, besides the models directory and where to listen. */
  readonly args?: readonly string[];
  readonly env?: Record<string, string>;
  /** The text of a presets file for both. */
  readonly presets?: string;
}

/** Both routers, until the end of the test or of the file. */
export interface Pair {
  readonly native: string;
  readonly ours: string;
  /** Plays the request to both, to the native router first. */
  play(request: OracleRequest): Promise<{ native: OracleAnswer; ours: OracleAnswer }>;
  /** Plays the request to both and has the answers be the same. */
  expectSame(request: OracleRequest): Promise<OracleAnswer>;
  /** Sends both these bytes, and gives all that comes until they close the connection. */
  playText(request: string): Promise<{ native: string; ours: string }>;
  /** Waits until the model is listed as `word` by both. */
  untilBoth(model: string, word: string): Promise<void>;
}

export async function startPair({ models, args = [], env = {}, presets }: PairOptions): Promise<Pair> {
  const home = new OracleHome();
  const directory = await writeModels(models);
  const shared = ['--models-dir', directory, '--threads', '1', ...args];
  if (presets !== undefined) shared.push('--models-preset', await home.write('presets.ini', presets));
  const [native, ours] = await Promise.all([
    startNative(home, { args: shared, env }),
    startRealSupervisor({ args: shared, env }),
  ]);
  const play = async (request: OracleRequest): Promise<{ native: OracleAnswer; ours: OracleAnswer }> => ({
    native: await ask(native.url, request),
    ours: await ask(ours.url, request),
  });
  return {
    native: native.url,
    ours: ours.url,
    play,
    expectSame: async (request) => {
      const answers = await play(request);
      expect(answers.ours, title(request)).toEqual(answers.native);
      return answers.native;
    },
    playText: async (request) => ({
      native: await answerTo(native.url, request),
      ours: await answerTo(ours.url, request),
    }),
    untilBoth: async (model, word) => {
      for (const url of [native.url, ours.url]) {
        const whose = url === ours.url ? 'ours' : 'the native router';
        await eventually(
          `${model} is ${word} at ${whose}`,
          async () => statusOf(await ask(url, { path: '/models' }), model) === word,
          { deadlineMs: answerMs },
        );
      }
    },
  };
}

/** A request as a line. */
export function title({ method = 'GET', path, headers = {}, body }: OracleRequest): string {
  const said = Object.entries(headers).map(([name, value]) => `${name}: ${value}`);
  if (Buffer.isBuffer(body)) said.push(`${body.length} bytes`);
  else if (body !== undefined) said.push(typeof body === 'string' ? body : JSON.stringify(body));
  return [`${method} ${path}`, ...said].join(' ').slice(0, 160);
}

/** Sends one request and reads its answer whole. */
export async function ask(url: string, request: OracleRequest): Promise<OracleAnswer> {
  const { method = 'GET', path, headers = {}, body } = request;
  const isJson = body !== undefined && typeof body !== 'string' && !Buffer.isBuffer(body);
  const answer = await withDeadline(
    title(request),
    rawRequest(url + path, {
      method,
      headers: { ...(isJson ? { 'Content-Type': 'application/json' } : {}), ...headers },
      ...(body === undefined ? {} : { body: bytesOf(body) }),
    }),
    answerMs,
  );
  const text = answer.body.toString().replaceAll(url, 'http://ROUTER');
  const type = answer.headers['content-type'] ?? '';
  return { status: answer.status, headers: comparable(answer.headers), body: comparableBody(text, type) };
}

/** As bytes: Node would write a text, and the headers before it, in an encoding of its own. */
function bytesOf(body: unknown): Buffer {
  return Buffer.isBuffer(body) ? body : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
}

async function answerTo(url: string, request: string): Promise<string> {
  const client = openSocket(Number(new URL(url).port));
  client.send(request);
  return client.closed(`the answer to ${request.slice(0, 80)}`);
}

function statusOf({ body }: OracleAnswer, model: string): string | undefined {
  const { data } = body as { data: { id: string; status: { value: string } }[] };
  return data.find(({ id }) => id === model)?.status.value;
}

/** What belongs to a connection, to its framing or to the server's name is not compared. */
const notCompared = new Set([
  // See `head-ranges`.
  'accept-ranges',
  'connection',
  'content-length',
  'date',
  'keep-alive',
  'process-start-time-unix',
  'server',
  'transfer-encoding',
  // Additions of ours.
  'retry-after',
  'server-timing',
  'vary',
]);

function comparable(headers: Readonly<Record<string, unknown>>): Record<string, string> {
  const isEventStream = String(headers['content-type']).startsWith('text/event-stream');
  const kept = Object.entries(headers).filter(([name, value]) => {
    if (notCompared.has(name)) return false;
    // See `cors-without-origin` and `no-buffering`.
    if (name === 'access-control-allow-origin') return value !== '';
    return name !== 'x-accel-buffering' || isEventStream;
  });
  return Object.fromEntries(kept.map(([name, value]) => [name, String(value)]));
}

function comparableBody(text: string, type: string): unknown {
  if (type.startsWith('text/event-stream')) return events(text);
  // Prometheus: which metrics there are, not what they measure.
  if (type.startsWith('text/plain; version=')) return text.replace(/ \S+$/gm, '');
  return withoutChance(asJson(text));
}

function events(text: string): unknown[] {
  const splitter = sseSplitter();
  return splitter.push(Buffer.from(text)).map(({ data, ...rest }) => ({
    ...rest,
    ...(data === undefined ? {} : { data: withoutChance(asJson(data)) }),
  }));
}

function asJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Fields that tell of time, of a process or of chance: that they are there is compared, not what they say. */
const byChance = new Set([
  'created',
  'timings',
  'id_slot',
  'created_at',
  'started_at',
  'completed_at',
  'media_marker',
  'time_ms',
]);

/** Fields that we add to an entry of the list, or to an error. */
export const additions = new Set([
  'path',
  'facts',
  'stale',
  'progress',
  'pid',
  'in_flight',
  'waiting',
  'changing',
  'memory',
  'last_used',
]);
/** Of a model that is not loaded, we say the `meta` that its file tells. */
function isAddition(key: string, entry: object): boolean {
  const { value } = (entry as { status: { value: string } }).status;
  return additions.has(key) || (key === 'meta' && value === 'unloaded');
}

const errorAdditions = new Set(['reason', 'model', 'last_lines']);

function withoutChance(value: unknown): unknown {
  if (Array.isArray(value)) return withoutPort(value.map((item) => withoutChance(item)));
  if (typeof value !== 'object' || value === null) return generated(value);
  const isListEntry = 'source' in value && 'status' in value;
  const isError = 'type' in value && 'message' in value && 'code' in value;
  const isList = 'data' in value && 'object' in value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => !(isListEntry && isAddition(key, value)) && !(isError && errorAdditions.has(key)))
      .filter(([key]) => !(isList && key === 'models'))
      .map(([key, item]) => [key, byChance.has(key) ? typeof item : withoutChance(item)]),
  );
}

/** Ids that are made for each answer; those of calls of tools are 32 letters. */
function generated(value: unknown): unknown {
  if (typeof value !== 'string') return value;
  if (/^[A-Za-z0-9]{32}$/.test(value)) return 'ID';
  return value.replace(/^(chatcmpl-|cmpl-|resp_|msg_|rs_|fc_|call_)[\w-]{8,}$/, '$1ID');
}

/** The port in a command line. */
function withoutPort(items: unknown[]): unknown[] {
  const at = items.indexOf('--port');
  return at === -1 ? items : items.with(at + 1, 'PORT');
}
