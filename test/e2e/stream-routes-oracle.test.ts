/** Answers that are read on, looked up and stopped by their conversation: of the native router and of ours. */
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { counting, endless, sayingItsName } from '../helpers/known-answer-models.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { streamChat } from '../helpers/supervisor-client.js';
import { ask, startPair, type OracleRequest, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

const messages = [{ role: 'user', content: 'Who are you?' }];

function chat(model: string, id: string, more: object = {}, query = ''): OracleRequest {
  return {
    method: 'POST',
    path: `/v1/chat/completions${query}`,
    headers: { 'X-Conversation-Id': id },
    body: { model, messages, stream: true, ...more },
  };
}

function readOn(id: string, query = ''): OracleRequest {
  return { path: `/v1/stream?conv_id=${encodeURIComponent(id)}${query}` };
}

function stop(id: string): OracleRequest {
  return { ...readOn(id), method: 'DELETE' };
}

function lookUp(ids: unknown): OracleRequest {
  return { method: 'POST', path: '/v1/streams/lookup', body: { conversation_ids: ids } };
}

/** The lengths of what both have, which have ids of each answer's own in them. */
const byLength = { total_bytes: expect.any(Number) as number };

let pair: Pair;

beforeAll(async () => {
  pair = await startPair({
    models: { alpha: sayingItsName('alpha'), counter: counting(300), beta: sayingItsName('beta') },
    args: ['--metrics'],
  });
  for (const model of ['alpha', 'counter']) {
    await pair.play({ method: 'POST', path: '/models/load', body: { model } });
    await pair.untilBoth(model, 'loaded');
  }
});

describe('an answer that has ended', () => {
  const id = 'conversation-1::counter';

  beforeAll(async () => {
    expect((await pair.expectSame(chat('counter', id))).status).toBe(200);
  });

  it('is read again as the same events', async () => {
    const answer = await pair.expectSame(readOn(id));
    expect(answer.headers).toMatchObject({ 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' });
    expect((answer.body as unknown[]).length).toBeGreaterThan(300);
    expect((answer.body as unknown[]).at(-1)).toEqual({ data: '[DONE]' });
    for (const query of ['&from=0', '&from=', '&from', '&x=1', '&from=00']) {
      expect((await pair.expectSame(readOn(id, query))).body, query).toEqual(answer.body);
    }
  });

  it('is read from any byte, byte for byte', async () => {
    for (const url of [pair.native, pair.ours]) {
      const read = async (query: string): Promise<Buffer> =>
        (await rawRequest(url + readOn(id, query).path)).body;
      const whole = await read('');
      for (const from of [1, 7, 1_000, whole.length - 1, whole.length]) {
        expect((await read(`&from=${from}`)).equals(whole.subarray(from)), `${url} from ${from}`).toBe(true);
      }
    }
  });

  it.each(['-1', 'x', '1.5', '1e3', '0x10', '999999999', '99999999999999999999'])(
    'is refused from byte %s in the same words',
    async (from) => {
      await pair.expectSame(readOn(id, `&from=${from}`));
    },
  );

  it('is told of to HEAD, and stays for GET', async () => {
    await pair.expectSame({ ...readOn(id), method: 'HEAD' });
    expect((await pair.expectSame(readOn(id))).status).toBe(200);
  });

  it('is looked up', async () => {
    const { native, ours } = await pair.play(lookUp([id]));
    const [entry] = native.body as object[];
    expect(entry).toMatchObject({ conversation_id: id, is_done: true, ...byLength });
    expect(ours.body).toEqual([{ ...entry, ...byLength }]);
  });

  it.each([
    ['nothing', []],
    ['an unknown one', ['unknown']],
    ['none', ['', ' ']],
    ['no texts', [1, null, {}, ['x']]],
    ['no list', 'conversation-1::counter'],
    ['nothing at all', null],
  ])('is not looked up by %s', async (_what, ids) => {
    expect((await pair.expectSame(lookUp(ids))).body).toEqual([]);
  });

  it.each(['', '{', '[]', 'null', '"x"', '7', '{"conversation_ids":', '{"conversation_ids":["x"]'])(
    'is not looked up by the body %j',
    async (body) => {
      expect((await pair.expectSame({ ...lookUp([]), body })).body).toEqual([]);
    },
  );

  it('is replaced by the next one of its conversation', async () => {
    const again = 'conversation-2';
    await pair.expectSame(chat('counter', again));
    await pair.expectSame(chat('counter', again, { max_tokens: 3 }));
    const { body } = await pair.expectSame(readOn(again));
    expect(JSON.stringify(body)).not.toContain('300');
    await pair.expectSame(chat('alpha', again));
    expect(JSON.stringify((await pair.expectSame(readOn(again))).body)).toContain('alpha.');
  });

  it('is gone once it was stopped', async () => {
    await pair.expectSame(chat('alpha', 'to be stopped'));
    for (let time = 1; time <= 2; time += 1) {
      expect(await pair.expectSame(stop('to be stopped'))).toMatchObject({ status: 204, body: '' });
      const { native, ours } = await pair.play(readOn('to be stopped'));
      expect([native.status, ours.status]).toEqual([404, 404]);
      expect((await pair.expectSame(lookUp(['to be stopped']))).body).toEqual([]);
    }
  });

  it('in one piece is none that could be read on', async () => {
    expect((await pair.expectSame(chat('alpha', 'whole', { stream: false }))).status).toBe(200);
    const { native, ours } = await pair.play(readOn('whole'));
    expect(ours.status).toBe(native.status);
    expect((await pair.play(lookUp(['whole']))).ours.body).toEqual(
      (await pair.play(lookUp(['whole']))).native.body,
    );
  });
});

it.each([
  'a b',
  'a/b?c&d=e#f',
  'x::counter',
  '100%',
  '%41',
  '"quoted"',
  'ünïcödé-🦙',
  "'; drop",
  'x'.repeat(1000),
])('a conversation may be called %j', async (id) => {
  // As the bytes of UTF-8, which is what the web UI's browsers and the native router make of it.
  const header = Buffer.from(id).toString('latin1');
  const request = { ...chat('alpha', id), headers: { 'X-Conversation-Id': header } };
  expect((await pair.expectSame(request)).status).toBe(200);
  expect((await pair.expectSame(readOn(id))).status).toBe(200);
  const { native, ours } = await pair.play(lookUp([id]));
  for (const { body } of [native, ours]) expect(body).toMatchObject([{ conversation_id: id, is_done: true }]);
  expect((await pair.expectSame(stop(id))).status).toBe(204);
});

it('a conversation without a name is none', async () => {
  expect((await pair.expectSame(chat('alpha', ''))).status).toBe(200);
  for (const request of [
    { path: '/v1/stream' },
    { path: '/v1/stream?conv_id=' },
    { path: '/v1/stream?from=0' },
    { path: '/v1/stream?conv_id=x&conv_id=' },
    { method: 'DELETE', path: '/v1/stream' },
    { method: 'DELETE', path: '/v1/stream?conv_id=' },
  ]) {
    expect(await pair.expectSame(request)).toMatchObject({
      status: 400,
      body: { error: { message: 'Missing conversation id in path', type: 'invalid_request_error' } },
    });
  }
});

it(intended('unknown-stream'), async () => {
  for (const request of [readOn('unknown'), readOn('unknown', '&from=7')]) {
    const { native, ours } = await pair.play(request);
    const error = { code: 404, type: 'not_found_error' };
    expect(native).toMatchObject({ status: 404, body: { error: { ...error, message: 'File Not Found' } } });
    expect(ours).toMatchObject({
      status: 404,
      body: { error: { ...error, message: 'Stream not found or expired' } },
    });
  }
  expect((await pair.expectSame(stop('unknown'))).status).toBe(204);
});

it('a request that is refused before its model is asked leaves nothing to be read on', async () => {
  const requests = [
    chat('beta', 'refused', {}, '?autoload=false'),
    chat('nobody', 'refused'),
    chat('', 'refused'),
  ];
  for (const request of requests) {
    expect((await pair.expectSame(request)).status).toBe(400);
    const { native, ours } = await pair.play(readOn('refused'));
    expect([native.status, ours.status]).toEqual([404, 404]);
    expect((await pair.expectSame(lookUp(['refused']))).body).toEqual([]);
    expect((await pair.expectSame(stop('refused'))).status).toBe(204);
  }
  await pair.untilBoth('beta', 'unloaded');
});

it('a request that its model refuses is read on as by the native router', async () => {
  expect((await pair.expectSame(chat('alpha', 'wrong', { messages: 'x' }))).status).toBe(400);
  const { native, ours } = await pair.play(readOn('wrong'));
  expect(ours.status).toBe(native.status);
});

describe('while its model is waited for', () => {
  let full: Pair;

  beforeAll(async () => {
    full = await startPair({
      models: { talker: endless(), alpha: sayingItsName('alpha') },
      args: ['--models-max', '1'],
    });
  });

  it(intended('queued-stream'), async () => {
    const answers: Record<string, number> = {};
    for (const who of ['native', 'ours'] as const) {
      const url = full[who];
      const busy = streamChat(url, 'talker', { max_tokens: -1 });
      await busy.untilPieces(3);
      const { headers, body } = chat('alpha', 'waiting');
      const request = jsonPost(body);
      const waiting = rawRequest(`${url}/v1/chat/completions`, {
        ...request,
        headers: { ...request.headers, ...headers },
      });
      if (who === 'ours') {
        await eventually(
          'the conversation is known',
          async () => (await ask(url, readOn('waiting'))).status === 503,
        );
      }
      answers[who] = (await ask(url, readOn('waiting'))).status;
      // The request may still be on its way to the native router, which tells nobody of those that wait.
      busy.abort();
      let stopped: number | undefined;
      void waiting.then(({ status }) => (stopped = status));
      await eventually(
        'the request is given up',
        async () => {
          expect((await ask(url, stop('waiting'))).status).toBe(204);
          return stopped !== undefined;
        },
        // The native router gives it up when its model is there, for which the other one has to stop.
        { deadlineMs: 40_000 },
      );
      const { status, body: refusal } = await waiting;
      expect(status, who).toBe(400);
      expect(refusal.toString()).toContain('request cancelled by a stop while the model was loading');
    }
    expect(answers).toEqual({ native: 404, ours: 503 });
  });
});
