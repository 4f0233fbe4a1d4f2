/** What a client sees of the answers of a model: the same from the native router and from ours, event by event. */
import { beforeAll, describe, expect, it } from 'vitest';
import { counting, sayingItsName } from '../helpers/known-answer-models.js';
import { callingTool } from '../helpers/tool-calling-model.js';
import { startPair, title, type OracleAnswer, type OracleRequest, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

const messages = [{ role: 'user', content: 'Who are you?' }];
const weather = {
  name: 'get_weather',
  description: 'The weather of a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
};

let pair: Pair;

beforeAll(async () => {
  pair = await startPair({
    models: {
      alpha: sayingItsName('alpha'),
      caller: callingTool({ name: 'get_weather', argument: 'city', value: 'Oslo' }),
      counter: counting(20),
      embedder: { words: ['embed'], pooling: 'mean' },
      ranker: { words: ['rank'], pooling: 'rank' },
    },
    args: ['--models-max', '5', '--parallel', '1', '--metrics'],
    presets: '[embedder]\nembeddings = true\n[ranker]\nreranking = true\n',
  });
  for (const model of ['alpha', 'caller', 'counter', 'embedder', 'ranker']) {
    await pair.play({ method: 'POST', path: '/models/load', body: { model } });
    await pair.untilBoth(model, 'loaded');
  }
});

function post(path: string, body: object): OracleRequest {
  return { method: 'POST', path, body };
}

function named(requests: readonly OracleRequest[]): (readonly [string, OracleRequest])[] {
  return requests.map((request) => [title(request), request]);
}

describe('streams', () => {
  const stream = true;

  it.each(
    named([
      post('/v1/chat/completions', { model: 'alpha', messages, stream }),
      post('/chat/completions', { model: 'counter', messages, stream }),
      post('/v1/chat/completions', { model: 'counter', messages, stream, max_tokens: 4 }),
      post('/v1/chat/completions', { model: 'counter', messages, stream, stop: ['7'] }),
      post('/v1/chat/completions', { model: 'counter', messages, stream, logprobs: true, top_logprobs: 2 }),
      post('/v1/chat/completions', {
        model: 'alpha',
        messages,
        stream,
        stream_options: { include_usage: true },
      }),
      post('/v1/chat/completions', { model: 'alpha', messages, stream, return_progress: true }),
      post('/v1/chat/completions', { model: 'alpha', messages, stream, timings_per_token: true }),
      post('/v1/completions', { model: 'alpha', prompt: 'Who?', stream }),
      post('/v1/completions', { model: 'counter', prompt: 'Count', stream, max_tokens: 5, logprobs: 2 }),
      post('/completion', { model: 'alpha', prompt: 'Who?', stream }),
      post('/completions', { model: 'counter', prompt: 'Count', stream, n_predict: 5, n_probs: 2 }),
      post('/v1/responses', { model: 'alpha', input: 'Who?', stream }),
      post('/responses', { model: 'counter', input: 'Count', stream, max_output_tokens: 5 }),
      post('/v1/messages', { model: 'alpha', messages, max_tokens: 50, stream }),
      post('/v1/messages', { model: 'counter', messages, max_tokens: 5, stream, system: 'Count.' }),
    ]),
  )('%s', async (_title, request) => {
    const { status, headers, body } = await pair.expectSame(request);
    expect(status).toBe(200);
    expect(headers).toMatchObject({ 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' });
    expect((body as unknown[]).length).toBeGreaterThan(3);
  });

  it.each(
    named([
      post('/v1/chat/completions', { stream, tools: [{ type: 'function', function: weather }] }),
      post('/v1/messages', {
        stream,
        max_tokens: 99,
        tools: [{ name: weather.name, input_schema: weather.parameters }],
      }),
      post('/v1/responses', { stream, input: 'Weather?', tools: [{ type: 'function', ...weather }] }),
    ]),
  )('with a call of a tool: %s', async (_title, { path, body }) => {
    const request = post(path, { model: 'caller', messages, ...(body as object) });
    expect(said(await pair.expectSame(request))).toContain('get_weather');
    const whole = post(path, { ...(request.body as object), stream: false });
    expect(said(await pair.expectSame(whole))).toContain('get_weather');
  });

  it.each(
    named([
      post('/v1/chat/completions', { model: 'alpha', stream }),
      post('/v1/chat/completions', { model: 'alpha', stream, messages: 'x' }),
      post('/v1/chat/completions', { model: 'alpha', stream, messages, max_tokens: 'many' }),
      post('/v1/chat/completions', { model: 'embedder', stream, messages }),
      post('/v1/chat/completions', { model: 'counter', stream, messages, n: 2 }),
      post('/infill', { model: 'counter', stream, input_prefix: 'a', input_suffix: 'b' }),
      post('/v1/completions', { model: 'alpha', stream }),
      post('/completion', { model: 'alpha', stream, prompt: 'x '.repeat(5_000) }),
      post('/v1/messages', { model: 'alpha', stream, messages: [] }),
      post('/v1/responses', { model: 'alpha', stream }),
    ]),
  )('that are refused by the model: %s', async (_title, request) => {
    await pair.expectSame(request);
  });

  it('of one page are as readable as those of another', async () => {
    for (const headers of [
      { Origin: 'http://page.example' },
      { Accept: 'text/event-stream' },
      { Accept: '*/*' },
    ]) {
      const request = post('/v1/chat/completions', { model: 'alpha', messages, stream });
      expect((await pair.expectSame({ ...request, headers })).status).toBe(200);
    }
  });
});

describe('answers in one piece', () => {
  it.each(
    named([
      post('/v1/chat/completions', { model: 'alpha', messages }),
      post('/v1/chat/completions', { model: 'alpha', messages, logprobs: true }),
      post('/v1/chat/completions', { model: 'counter', messages, max_tokens: 3, stop: '9' }),
      post('/v1/chat/completions', { model: 'counter', messages, temperature: 0, seed: 7 }),
      post('/v1/chat/completions/input_tokens', { model: 'alpha', messages }),
      post('/v1/chat/completions/control', { model: 'alpha', id: 'x', action: 'stop' }),
      post('/v1/completions', { model: 'alpha', prompt: ['Who?', 'Who?'] }),
      post('/v1/completions', { model: 'counter', prompt: 'x', max_tokens: 3, echo: true }),
      post('/completion', { model: 'counter', prompt: [1, 2, 3], n_predict: 3, return_tokens: true }),
      post('/infill', { model: 'counter', input_prefix: 'a', input_suffix: 'b', n_predict: 3 }),
      post('/v1/responses', { model: 'alpha', input: 'Who?', instructions: 'Answer.' }),
      post('/v1/responses/input_tokens', { model: 'alpha', input: 'Who?' }),
      post('/v1/messages', { model: 'alpha', messages, max_tokens: 50 }),
      post('/v1/messages/count_tokens', { model: 'alpha', messages }),
      post('/v1/embeddings', { model: 'embedder', input: ['one', 'two'] }),
      post('/v1/embeddings', { model: 'embedder', input: 'one', encoding_format: 'base64' }),
      post('/embedding', { model: 'embedder', content: 'one' }),
      post('/embeddings', { model: 'embedder', input: 'one' }),
      post('/v1/rerank', { model: 'ranker', query: 'which?', documents: ['a', 'b'], top_n: 1 }),
      post('/rerank', { model: 'ranker', query: 'which?', documents: ['a', 'b'] }),
      post('/reranking', { model: 'ranker', query: 'which?', texts: ['a', 'b'] }),
      post('/tokenize', { model: 'alpha', content: 'Größe 🦙', with_pieces: true, add_special: true }),
      post('/detokenize', { model: 'alpha', tokens: [259, 260] }),
      post('/apply-template', { model: 'alpha', messages }),
      post('/lora-adapters', { model: 'alpha' }),
      post('/props', { model: 'alpha' }),
      { path: '/props?model=alpha' },
      { path: '/metrics?model=alpha' },
      { path: '/lora-adapters?model=alpha' },
      { path: '/slots?model=embedder' },
    ]),
  )('%s', async (_title, request) => {
    expect((await pair.expectSame(request)).headers).toHaveProperty('content-type');
  });

  it(intended('metrics-of-children'), async () => {
    const without = await startPair({ models: { alpha: sayingItsName('alpha') } });
    await without.play({ method: 'POST', path: '/models/load', body: { model: 'alpha' } });
    await without.untilBoth('alpha', 'loaded');
    const { native, ours } = await without.play({ path: '/metrics?model=alpha' });
    expect(native.status).toBe(501);
    expect(ours).toMatchObject({ status: 200, headers: { 'content-type': 'text/plain; version=0.0.4' } });
    expect(ours.body).toContain('llamacpp:prompt_tokens_total');
  });
});

describe('the shape of an answer on its connection', () => {
  const end = 'Host: x\r\nConnection: close\r\n\r\n';

  function withBody(path: string, value: object): string {
    const body = JSON.stringify(value);
    return `POST ${path} HTTP/1.1\r\nContent-Length: ${body.length}\r\n${end}${body}`;
  }

  it.each([
    ['200', `GET /health HTTP/1.1\r\n${end}`],
    ['200', withBody('/tokenize', { model: 'alpha', content: 'x' })],
    ['200', withBody('/v1/completions', { model: 'alpha', prompt: 'x', stream: true })],
    ['204', `DELETE /v1/stream?conv_id=x HTTP/1.1\r\n${end}`],
    ['400', withBody('/tokenize', { model: 'nobody' })],
    ['400', withBody('/v1/chat/completions', { model: 'alpha' })],
    ['403', `GET /tools HTTP/1.1\r\n${end}`],
    ['404', `GET /nowhere HTTP/1.1\r\n${end}`],
    ['501', withBody('/slots/0?action=save', { model: 'alpha' })],
  ])('begins with the same status line: %s', async (status, request) => {
    const { native, ours } = await pair.playText(request);
    const firstLine = native.split('\r\n')[0] ?? '';
    expect(firstLine).toMatch(new RegExp(`^HTTP/1\\.1 ${status} \\w`));
    expect(ours.split('\r\n')[0]).toBe(firstLine);
  });

  it(intended('no-buffering'), async () => {
    const whole = withBody('/tokenize', { model: 'alpha', content: 'x' });
    const stream = withBody('/v1/completions', { model: 'alpha', prompt: 'x', stream: true });
    const [one, many] = [await pair.playText(whole), await pair.playText(stream)];
    const marked = [one.native, many.native, many.ours, one.ours].map((text) =>
      /^x-accel-buffering: no\r$/im.test(text),
    );
    expect(marked).toEqual([true, true, true, false]);
  });

  it(intended('response-framing'), async () => {
    const { native, ours } = await pair.playText(withBody('/tokenize', { model: 'alpha', content: 'x' }));
    expect(native).toMatch(/^transfer-encoding: chunked\r$/im);
    expect(native).not.toMatch(/^content-length:/im);
    expect(ours).toMatch(/^content-length: \d+\r$/im);
    expect(ours).not.toMatch(/^transfer-encoding:/im);
  });
});

function said({ body }: OracleAnswer): string {
  return JSON.stringify(body);
}
