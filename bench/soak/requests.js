/**
 * What clients of the soak ask for. Each kind asks once and says how it went: right, wrong (never to be), an error, or
 * left by the client itself.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { AnswerCheck, excerpt } from './event-check.js';
import { ids, loadable, modelsMax } from './served-models.js';

/**
 * @typedef {object} Asking
 * @property {import('./client.js').Client} client
 * @property {import('./served-models.js').ServedModels} models
 * @property {import('./random.js').Random} random of this request
 *
 * @typedef {object} Outcome
 * @property {'right' | 'wrong' | 'error' | 'left'} result
 * @property {string} [model]
 * @property {string} [detail] what is wrong with it
 * @property {string} [reason] of an error
 * @property {string} [message]
 * @property {boolean} isStream whether its events were counted
 * @property {number} pieces words that came as events
 * @property {boolean} resumable
 * @property {number} startedAt
 * @property {number} firstByteAt of its body; NaN without one
 * @property {number} endedAt
 */

/** @type {Record<string, { weight: number, ask: (asking: Asking, model?: string) => Promise<Outcome> }>} */
export const kinds = {
  chat: { weight: 5, ask: chat },
  stream: { weight: 8, ask: stream },
  'slow reader': { weight: 1, ask: slowReader },
  'client that leaves': { weight: 3, ask: leavingClient },
  endless: { weight: 2, ask: endlessStream },
  'resumed stream': { weight: 2, ask: resumedStream },
  'resumed endless': { weight: 1, ask: resumedEndless },
  'stopped stream': { weight: 1, ask: stoppedStream },
  embeddings: { weight: 2, ask: embeddings },
  tokenize: { weight: 2, ask: tokenize },
  list: { weight: 2, ask: list },
  health: { weight: 2, ask: health },
  props: { weight: 2, ask: props },
  mistake: { weight: 1, ask: mistake },
};

const kindsByWeight = Object.entries(kinds).map(([kind, { weight }]) => [weight, kind]);

/** @param {import('./random.js').Random} random @returns {string} a kind */
export function anyKind(random) {
  return random.weighted(kindsByWeight);
}

/** Kinds that a model answers which may be any of those that chat. */
export const kindsForAnyTalker = ['chat', 'stream', 'tokenize'];

async function chat({ client, models, random }, model = random.pick(ids.talkers)) {
  const limit = model === ids.endless || random.chance(0.3) ? random.whole(1, 60) : undefined;
  const exchange = await client.ask(chatQuestion(model, { limit }), someConnection(random));
  return judge(exchange, { model }, ({ choices }) => {
    const [{ message, finish_reason: finish }] = choices;
    const answers = models.answersOf(model, exchange.startedAt, exchange.endedAt);
    const isRight = answers.some(({ words, loop }) => {
      const isCut = limit !== undefined && (loop || limit < words.length);
      const said = isCut ? Array.from({ length: limit }, (_, at) => words[at % words.length]) : words;
      // With exactly as many tokens as words, the end is not reached.
      const finishes = isCut ? ['length'] : limit === words.length ? ['stop', 'length'] : ['stop'];
      return message.content === said.join(' ') && finishes.includes(finish);
    });
    return isRight ? undefined : `${finish}: ${excerpt(message.content)}`;
  });
}

async function stream(asking, model = asking.random.pick(ids.talkers)) {
  const { random } = asking;
  const limit = model === ids.endless || random.chance(0.3) ? random.whole(1, 300) : undefined;
  return streamedChat(asking, { model, limit });
}

/** Reads the first part of its answer in small pieces, with rests between them. */
async function slowReader({ client, models, random }) {
  const model = random.pick(ids.counters);
  const check = checkOf(models, model, undefined);
  const untilMs = performance.now() + random.between(500, 5_000);
  const restMs = () => (performance.now() < untilMs ? random.between(20, 400) : 0);
  const exchange = await client.askSlowly(chatQuestion(model, { stream: true }), restMs);
  if (exchange.status === 200) check.push(Buffer.from(exchange.text));
  return judgeStream(exchange, check, { model });
}

/** Before the answer, or in the middle of it. */
async function leavingClient(asking) {
  const { random } = asking;
  const leaving = new AbortController();
  const timer = setTimeout(() => leaving.abort(), random.exponential(300));
  const outcome = await streamedChat(asking, { model: random.pick(ids.talkers), limit: 2_000, leaving });
  clearTimeout(timer);
  return outcome;
}

/** Reads as much as it wants, and leaves. */
async function endlessStream(asking) {
  const { random } = asking;
  const leaving = new AbortController();
  const enough = random.whole(5, 400);
  return streamedChat(asking, {
    model: ids.endless,
    limit: undefined,
    leaving,
    onWords: (count) => {
      if (count >= enough) leaving.abort();
    },
  });
}

async function streamedChat(
  { client, models, random },
  { model, limit, leaving, onWords = () => undefined },
) {
  const check = checkOf(models, model, limit);
  const read = (chunk) => {
    check.push(chunk);
    onWords(check.pieces);
  };
  const question = { ...chatQuestion(model, { limit, stream: true }), leaving, read };
  return judgeStream(await client.ask(question, someConnection(random)), check, { model });
}

/** Leaves in the middle of an answer, comes back sooner or later, and reads it on from there to its end. */
async function resumedStream({ client, models, random }) {
  const model = random.pick(ids.counters);
  const { first, check, bytes, id } = await leaveConversation({ client, models, random }, model);
  const facts = { model, resumable: true };
  if (first.end !== 'left') return judgeStream(first, check, facts);
  await delay(random.exponential(500));
  const path = `/v1/stream?conv_id=${id}&from=${bytes}`;
  const second = await client.ask({ path, read: (chunk) => check.push(chunk) });
  const outcome = judgeStream({ ...second, startedAt: first.startedAt }, check, facts);
  // Once the answer has ended its model may be evicted, and nobody knows of it then.
  return outcome.reason === 'stream_unknown' ? { ...outcome, result: 'left' } : outcome;
}

/** The same with an answer that goes on and on: so its model must be there still. Reads some of it, and stops it. */
async function resumedEndless({ client, models, random }) {
  const model = ids.endless;
  const { first, check, bytes, id } = await leaveConversation({ client, models, random }, model);
  const facts = { model, resumable: true };
  if (first.end !== 'left') return judgeStream(first, check, facts);
  await delay(random.between(0, 300));
  const leaving = new AbortController();
  const enough = check.pieces + random.whole(1, 400);
  const read = (chunk) => {
    check.push(chunk);
    if (check.pieces >= enough) leaving.abort();
  };
  const path = `/v1/stream?conv_id=${id}`;
  const second = await client.ask({ path: `${path}&from=${bytes}`, read, leaving });
  await client.ask({ method: 'DELETE', path });
  return judgeStream({ ...second, startedAt: first.startedAt }, check, facts);
}

/** Begins an answer that can be resumed, and leaves after some bytes of it. */
async function leaveConversation({ client, models, random }, model) {
  const id = randomUUID();
  const enough = random.whole(1, 8_000);
  const check = checkOf(models, model, undefined);
  const leaving = new AbortController();
  let bytes = 0;
  const read = (chunk) => {
    if (leaving.signal.aborted) return;
    bytes += chunk.length;
    check.push(chunk);
    if (bytes >= enough) leaving.abort();
  };
  const first = await client.ask({ ...chatQuestion(model, { stream: true, id }), leaving, read });
  return { first, check, bytes, id };
}

/** Stops an answer that would go on for long. */
async function stoppedStream({ client, models, random }) {
  const model = ids.endless;
  const id = randomUUID();
  const check = checkOf(models, model, undefined);
  let stopping;
  const enough = random.whole(1, 300);
  const read = (chunk) => {
    check.push(chunk);
    if (check.pieces < enough || stopping) return;
    stopping = client.ask({ method: 'DELETE', path: `/v1/stream?conv_id=${id}` });
  };
  const exchange = await client.ask({ ...chatQuestion(model, { stream: true, id }), read });
  const stopped = await stopping;
  if (stopped === undefined) return judgeStream(exchange, check, { model, resumable: true });
  if (stopped.end === 'complete' && stopped.status !== 204) {
    return outcomeOf(
      exchange,
      { model },
      { result: 'wrong', detail: `DELETE /v1/stream gave ${stopped.status}` },
    );
  }
  const facts = { isStream: true, pieces: check.pieces, model, resumable: true };
  if (check.fault !== undefined) return outcomeOf(exchange, facts, { result: 'wrong', detail: check.fault });
  if (exchange.end === 'late') return outcomeOf(exchange, facts, lost(exchange));
  return outcomeOf(exchange, facts, { result: 'right' });
}

async function embeddings({ client, random }) {
  const model = ids.embedding;
  const input = String(random.whole(0, 999_999));
  const exchange = await client.ask(post('/v1/embeddings', { model, input }), someConnection(random));
  return judge(exchange, { model }, ({ data }) => {
    const [{ embedding }] = data;
    const wanted = histogram(input, embedding.length);
    const isRight = embedding.every((value, at) => Math.abs(value - wanted[at]) < 1e-3);
    return isRight ? undefined : `another embedding of ${input}: ${excerpt(JSON.stringify(embedding))}`;
  });
}

/** The number of times that each token is in the text, of length 1: what `mean` gives of one-hot embeddings. */
function histogram(text, width) {
  const beginId = 1;
  const counts = new Float64Array(width);
  for (const id of [beginId, ...tokensOf(text)]) counts[id] += 1;
  const norm = Math.hypot(...counts);
  return counts.map((count) => count / norm);
}

/** Each byte is a token, and three special tokens come before them. */
function tokensOf(text) {
  return Array.from(Buffer.from(text), (byte) => byte + 3);
}

async function tokenize({ client, random }, model = random.pick(loadable)) {
  const content = String(random.whole(0, 999_999));
  const exchange = await client.ask(post('/tokenize', { model, content }), someConnection(random));
  return judge(exchange, { model }, ({ tokens }) =>
    JSON.stringify(tokens) === JSON.stringify(tokensOf(content)) ? undefined : `tokens ${excerpt(tokens)}`,
  );
}

async function list({ client, random }) {
  const exchange = await client.ask({ path: random.pick(['/models', '/v1/models']) }, someConnection(random));
  return judge(exchange, {}, ({ data }) => {
    const known = [...loadable, ids.broken];
    const listed = data.map(({ id }) => id);
    const missing = known.filter((id) => id !== ids.guest && !listed.includes(id));
    const unknown = listed.filter((id) => !known.includes(id));
    if (missing.length + unknown.length > 0) return `missing: ${missing}; unknown: ${unknown}`;
    const running = data.filter(({ status }) => status.value !== 'unloaded').map(({ id }) => id);
    return running.length > modelsMax ? `more than ${modelsMax} models run: ${running}` : undefined;
  });
}

async function health({ client, random }) {
  const exchange = await client.ask({ path: random.pick(['/health', '/readyz']) }, someConnection(random));
  return judge(exchange, {}, ({ status }) => (status === 'ok' ? undefined : `status ${status}`));
}

/** The router's, or those of a model, which are not to load it. */
async function props({ client, models, random }) {
  if (random.chance(0.3)) {
    const exchange = await client.ask({ path: '/props' }, someConnection(random));
    return judge(exchange, {}, (answer) =>
      typeof answer === 'object' && 'role' in answer ? undefined : `props ${excerpt(JSON.stringify(answer))}`,
    );
  }
  const model = random.chance(0.5) ? ids.preset : random.pick(loadable);
  const exchange = await client.ask({ path: `/props?model=${model}` }, someConnection(random));
  if (isRefusal(exchange, 'model_not_loaded')) return outcomeOf(exchange, { model }, { result: 'right' });
  return judge(exchange, { model }, ({ default_generation_settings: settings }) => {
    if (model !== ids.preset) return undefined;
    const sizes = models.contextSizesOf(model, exchange.startedAt, exchange.endedAt);
    return sizes.includes(settings.n_ctx)
      ? undefined
      : `n_ctx is ${settings.n_ctx} instead of ${sizes.join(' or ')}`;
  });
}

/** Requests that are wrong themselves: each has its refusal. */
async function mistake({ client, random }) {
  const [question, ...reasons] = random.pick([
    [chatQuestion('soak-nobody', {}), 'model_unknown'],
    [chatQuestion(ids.broken, {}), 'model_invalid'],
    [post('/v1/chat/completions', '{"model": "soak-ada", "messages": ['), 'body_malformed'],
    [post('/v1/chat/completions', { messages: [] }), 'model_missing'],
    [{ path: '/v1/stream?conv_id=nobody' }, 'stream_unknown'],
    [{ path: '/no/such/route', method: 'POST' }, 'not_found'],
  ]);
  const exchange = await client.ask(question, someConnection(random));
  if (reasons.some((reason) => isRefusal(exchange, reason)))
    return outcomeOf(exchange, {}, { result: 'right' });
  return judge(exchange, {}, () => `an answer instead of ${reasons}`);
}

/** For an answer that is asked for now. */
function checkOf(models, model, limit) {
  const startedAt = performance.now();
  return new AnswerCheck(() => models.answersOf(model, startedAt, performance.now()), limit);
}

function chatQuestion(model, { limit, stream = false, id }) {
  const messages = [{ role: 'user', content: 'Say it.' }];
  const json = { model, messages, stream, ...(limit === undefined ? {} : { max_tokens: limit }) };
  const headers = id === undefined ? {} : { 'X-Conversation-Id': id };
  return { ...post('/v1/chat/completions', json), headers };
}

function post(path, json) {
  return { method: 'POST', path, json };
}

/** Half of the clients keep their connections. */
function someConnection(random) {
  return { kept: random.chance(0.5) };
}

/** @param {(answer: any) => string | undefined} check says what is wrong with an answer of status 200 */
export function judge(exchange, facts, check) {
  if (exchange.end === 'left') return outcomeOf(exchange, facts, { result: 'left' });
  if (exchange.end !== 'complete') return outcomeOf(exchange, facts, lost(exchange));
  if (exchange.status !== 200) return outcomeOf(exchange, facts, refusal(exchange));
  let detail;
  try {
    detail = check(JSON.parse(exchange.text));
  } catch (error) {
    detail = `not such an answer (${error.message}): ${excerpt(exchange.text)}`;
  }
  return outcomeOf(exchange, facts, detail === undefined ? { result: 'right' } : { result: 'wrong', detail });
}

function judgeStream(exchange, check, facts) {
  const all = { ...facts, isStream: exchange.status === 200, pieces: check.pieces };
  const of = (verdict) => outcomeOf(exchange, all, verdict);
  if (exchange.end === 'complete' && exchange.status !== 200) return of(refusal(exchange));
  if (exchange.end === 'complete') check.end();
  if (check.fault !== undefined) return of({ result: 'wrong', detail: check.fault });
  if (exchange.end === 'left') return of({ result: 'left' });
  if (check.error) return of({ result: 'error', ...check.error });
  // All of it is there: what became of its connection then is nobody's loss.
  if (exchange.end === 'complete' || check.isWhole) return of({ result: 'right' });
  return of(lost(exchange));
}

function outcomeOf({ startedAt, firstByteAt, endedAt }, facts, verdict) {
  return {
    isStream: false,
    pieces: 0,
    resumable: false,
    startedAt,
    firstByteAt,
    endedAt,
    ...facts,
    ...verdict,
  };
}

function lost({ end, cause }) {
  return { result: 'error', reason: end, message: cause };
}

function isRefusal({ end, status, text }, reason) {
  return end === 'complete' && status >= 400 && reasonIn(text)?.reason === reason;
}

/** Refusals that another try may not meet say when that is. */
const finalReasons = ['model_invalid'];

/** An error has to say in the same form what it is, and a refusal for now when to come back. */
function refusal({ status, headers, text }) {
  const error = reasonIn(text);
  if (error?.message === undefined || error.code !== status) {
    return { result: 'wrong', detail: `status ${status} without an error: ${excerpt(text)}` };
  }
  // The supervisor's own have a reason.
  if (error.reason === undefined)
    return { result: 'error', reason: ofTheChild(status), message: error.message };
  const isForNow = status === 429 || (status === 503 && !finalReasons.includes(error.reason));
  if (isForNow && !(Number(headers['retry-after']) >= 1)) {
    return { result: 'wrong', detail: `status ${status} ${error.reason} without Retry-After` };
  }
  return { result: 'error', reason: error.reason, message: error.message };
}

function ofTheChild(status) {
  return `status ${status} of the child`;
}

function reasonIn(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return undefined;
  }
}
