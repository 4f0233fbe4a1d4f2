/**
 * What llama.cpp's own tests ask of a router (tools/server/tests/unit/test_router.py and test_stream.py), told anew with
 * models whose answers are known. Those of remote presets, downloads and removals are in files of their own:
 * remote-preset-start.test.ts, downloads.test.ts, test/http/download-routes.test.ts; those of a stop and of a client
 * that leaves during a load in resumable-streams.test.ts.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeHubModel, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseData } from '../helpers/sse.js';
import {
  chat,
  errorIn,
  get,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';
import { atBoth, bringBack, load, loadAndWait } from './model-states.js';
import { startPair, type Pair } from './http-oracle.js';

/** Each load and each request takes two seconds longer: the queue can be looked at. */
const fakeTiming = { LLAMA_SERVER_DEBUG_FAKE_TIMING: '1' };
const fakeMs = 2_000;

const abc = { a: sayingItsName('a'), b: sayingItsName('b'), c: sayingItsName('c') };

interface Served {
  readonly status: number;
  readonly model: string;
  /** Milliseconds, monotonic. */
  readonly doneAt: number;
}

async function tokenize(url: string, model: string): Promise<Served> {
  const { status } = await post(url, '/tokenize', { model, content: 'hello world' });
  return { status, model, doneAt: performance.now() };
}

async function wordOf(url: string, model: string): Promise<string> {
  return (await modelEntry(url, model)).status.value;
}

async function loadByHand(url: string, model: string): Promise<void> {
  await load(url, model);
  await untilStatus(url, model, 'loaded');
}

/** Settles when the model's child has a request, or one is held up for it. */
async function untilBusy(url: string, model: string): Promise<void> {
  await eventually(`${model} is busy`, async () => (await modelEntry(url, model)).in_flight > 0);
}

async function untilWaiting(url: string, model: string, count: number): Promise<void> {
  const waiting = async () => (await modelEntry(url, model)).waiting === count;
  await eventually(`${count} wait for ${model}`, waiting);
}

describe.concurrent('the queue, with every load and request slowed down', () => {
  const roomFor = { oneBusy: 1, coalesce: 2, leaver: 1, fifo: 1, shared: 1 };
  const urls = {} as Record<keyof typeof roomFor, string>;
  let pair: Pair;

  // Together, as they do nothing but wait; and here, where what is started is ended with the file.
  beforeAll(async () => {
    pair = await startPair({ models: abc, args: ['--models-max', '1'], env: fakeTiming });
    const dir = await writeModels(abc);
    for (const [name, max] of Object.entries(roomFor)) {
      const args = ['--models-dir', dir, '--models-max', String(max)];
      urls[name as keyof typeof roomFor] = (await startRealSupervisor({ args, env: fakeTiming })).url;
    }
  });

  it('delays are those of the native router, and so is who is served when and by which loads', async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const before = performance.now();
      await load(url, 'a');
      const spawned = performance.now() - before;
      await untilStatus(url, 'a', 'loaded');

      const asked = performance.now();
      const requests = [tokenize(url, 'a')];
      for (const model of ['b', 'c', 'b']) {
        // The native router does not tell who waits: long enough for each to arrive, and all while `a` is busy.
        await delay(300);
        requests.push(tokenize(url, model));
      }
      const served = await Promise.all(requests);
      expect(served.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
      const inOrder = served.map(({ model, doneAt }) => ({ model, ms: doneAt - asked }));
      inOrder.sort((one, other) => one.ms - other.ms);
      return {
        spawned: Math.floor(spawned / fakeMs),
        served: inOrder.map(({ model, ms }) => [model, Math.floor(ms / fakeMs)]),
      };
    });
    // Whole delays: one for a load, and one for a request. Both requests for `b` share one load.
    expect(native).toEqual({
      spawned: 1,
      served: [
        ['a', 1],
        ['b', 3],
        ['b', 3],
        ['c', 5],
      ],
    });
    expect(ours).toEqual(native);
  });

  it('a request that finds no room waits, and the model that is serving one survives it', async () => {
    const url = urls.oneBusy;
    await loadByHand(url, 'a');
    const busy = tokenize(url, 'a');
    await untilBusy(url, 'a');
    const queued = tokenize(url, 'b');
    expect((await busy).status).toBe(200);
    expect((await queued).status).toBe(200);
    expect(await wordOf(url, 'b')).toBe('loaded');
    expect(await wordOf(url, 'a')).toBe('unloaded');
  });

  it('many requests for one model that is not there take one slot, and cost one model', async () => {
    const url = urls.coalesce;
    await loadByHand(url, 'a');
    await loadByHand(url, 'b');
    const busy = tokenize(url, 'a');
    await untilBusy(url, 'a');
    const waiters = [1, 2, 3].map(() => tokenize(url, 'c'));
    expect((await busy).status).toBe(200);
    for (const waiter of waiters) expect((await waiter).status).toBe(200);
    expect(await Promise.all(['a', 'b', 'c'].map((model) => wordOf(url, model)))).toEqual([
      'loaded',
      'unloaded',
      'loaded',
    ]);
  });

  it('a client that leaves while it waits costs no model its slot', async () => {
    const url = urls.leaver;
    await loadByHand(url, 'a');
    const busy = tokenize(url, 'a');
    await untilBusy(url, 'a');
    const { headers, ...request } = jsonPost({ model: 'b', content: 'hello world' });
    const leaver = rawExchange(`${url}/tokenize`, { ...request, headers });
    leaver.head.catch(() => undefined);
    await untilWaiting(url, 'b', 1);
    leaver.abort();
    await untilWaiting(url, 'b', 0);
    expect((await busy).status).toBe(200);
    // Longer than a load that had begun would take to be seen.
    await delay(fakeMs + 500);
    expect(await wordOf(url, 'a')).toBe('loaded');
    expect(await wordOf(url, 'b')).toBe('unloaded');
  });

  it('models are served in the order in which they were asked for', async () => {
    const url = urls.fifo;
    await loadByHand(url, 'a');
    const busy = tokenize(url, 'a');
    await untilBusy(url, 'a');
    const first = tokenize(url, 'b');
    await untilWaiting(url, 'b', 1);
    const second = tokenize(url, 'c');
    await untilWaiting(url, 'c', 1);
    const served = await Promise.all([busy, first, second]);
    expect(served.map(({ status }) => status)).toEqual([200, 200, 200]);
    const inOrder = [...served].sort((one, other) => one.doneAt - other.doneAt);
    expect(inOrder.map(({ model }) => model)).toEqual(['a', 'b', 'c']);
  });

  it('two requests that find the same idle model are both served in the end', async () => {
    const url = urls.shared;
    await loadByHand(url, 'a');
    const served = await Promise.all([tokenize(url, 'b'), tokenize(url, 'c')]);
    expect(served.map(({ status }) => status)).toEqual([200, 200]);
    expect(await wordOf(url, 'a')).toBe('unloaded');
  });
});

describe('a router', () => {
  const slashed = 'some/tiny-GGUF:Q8_0';
  let pair: Pair;

  beforeAll(async () => {
    const cache = tempDir();
    await writeHubModel(cache, 'some/tiny-GGUF', 'tiny-Q8_0.gguf', sayingItsName('tiny'));
    pair = await startPair({
      models: abc,
      args: ['--offline', '--models-max', '2'],
      env: { LLAMA_CACHE: cache },
    });
  });

  it('says in /props that it is one, with its limits', async () => {
    const { body } = await pair.expectSame({ path: '/props' });
    expect(body).toMatchObject({
      role: 'router',
      max_instances: 2,
      models_autoload: true,
      build_info: expect.stringMatching(/^b/) as string,
    });
  });

  it('streams the chat of a model, and refuses one that does not exist without a word of an answer', async () => {
    for (const url of [pair.native, pair.ours]) {
      const { status, body } = await rawRequest(`${url}/chat/completions`, {
        ...jsonPost({ ...question(slashed), stream: true, max_tokens: 16 }),
      });
      expect(status).toBe(200);
      const deltas = sseData(body).flatMap((data) => {
        if (data === '[DONE]') return [];
        const { choices } = JSON.parse(data) as {
          choices: { finish_reason: string | null; delta: { content?: string | null } }[];
        };
        return choices;
      });
      expect(deltas.map(({ delta }) => delta.content ?? '').join('')).toBe(nameAnswer('tiny'));
      const last = deltas.at(-1);
      expect(last?.finish_reason).toBe('stop');
      expect(last?.delta).not.toHaveProperty('content');

      const refused = streamChat(url, 'non-existent/model');
      expect((await refused.ended()).status).toBe(400);
      expect(refused.pieces()).toEqual([]);
    }
  });

  it('loads and unloads a model, as seen by polling', async () => {
    for (const url of [pair.native, pair.ours]) {
      await bringBack(url, slashed);
      await loadAndWait(url, slashed);
      expect((await post(url, '/models/unload', { model: slashed })).json).toEqual({ success: true });
      await untilStatus(url, slashed, 'unloaded');
    }
  });

  it('unloads the model that was used longest ago when a third one is loaded', async () => {
    for (const url of [pair.native, pair.ours]) {
      for (const model of ['a', 'b']) await loadAndWait(url, model);
      expect([await wordOf(url, 'a'), await wordOf(url, 'b')]).toEqual(['loaded', 'loaded']);
      await loadAndWait(url, 'c');
      expect([await wordOf(url, 'a'), await wordOf(url, 'c')]).toEqual(['unloaded', 'loaded']);
    }
  });

  it('replays an answer of a model with a slash in its name, until it is stopped', async () => {
    const id = `conv-stream-test::${slashed}`;
    const path = `/v1/stream?conv_id=${encodeURIComponent(id)}`;
    for (const url of [pair.native, pair.ours]) {
      const { headers, ...request } = jsonPost({ ...question(slashed), stream: true, max_tokens: 16 });
      const first = await rawRequest(`${url}/chat/completions`, {
        ...request,
        headers: { ...headers, 'X-Conversation-Id': id },
      });
      expect(first.status).toBe(200);
      const replayed = await get(url, `${path}&from=0`);
      expect(replayed).toMatchObject({ status: 200, text: first.body.toString() });
      expect((await rawRequest(url + path, { method: 'DELETE' })).status).toBe(204);
      expect((await get(url, `${path}&from=0`)).status).toBe(404);
    }
  });
});

it('without autoload a model is refused until it is loaded by hand', async () => {
  const dir = await writeModels(abc);
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--no-models-autoload'] });
  expect((await get(url, '/props')).json).toMatchObject({ models_autoload: false });
  const refused = await post(url, '/v1/chat/completions', { ...question('a'), max_tokens: 4 });
  expect(refused.status).toBe(400);
  expect(errorIn(refused.text).message).toBe('model is not loaded');
  await loadAndWait(url, 'a');
  expect(await chat(url, 'a', { max_tokens: 4 })).toBe(nameAnswer('a'));
});

it('with an API key nothing but health is told without it', async () => {
  const dir = await writeModels(abc);
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--api-key', 'sk-router-secret'] });
  const key = { Authorization: 'Bearer sk-router-secret' };
  const refused = await post(url, '/v1/chat/completions', question('a'));
  expect(refused.status).toBe(401);
  expect(errorIn(refused.text).type).toBe('authentication_error');
  expect((await post(url, '/models/load', { model: 'a' }, key)).json).toEqual({ success: true });
  const served = await withDeadline(
    'the answer',
    post(url, '/v1/chat/completions', question('a'), key),
    20_000,
  );
  expect(served.status).toBe(200);
});

describe('a presets file that is read again', () => {
  const small = 'hf-repo = some/small:F32';
  const cached = 'some/small:F32';
  const draft = 'some/draft:F32';
  let url: string;
  let presets: string;

  const write = (...lines: string[]) => writeFile(presets, `${lines.join('\n')}\n`);
  const ids = async (query: string) => {
    const { json } = await get(url, `/models${query}`);
    return (json as { data: { id: string }[] }).data.map(({ id }) => id);
  };

  beforeAll(async () => {
    const cache = tempDir();
    for (const name of ['small', 'draft', 'other']) {
      await writeHubModel(cache, `some/${name}`, `${name}-F32.gguf`, sayingItsName(name));
    }
    presets = join(tempDir(), 'presets.ini');
    await write('[one]', small, '[two]', 'hf-repo = some/other:F32');
    const args = ['--offline', '--no-watch', '--models-preset', presets];
    url = (await startRealSupervisor({ args, env: { LLAMA_CACHE: cache } })).url;
  });

  it('takes models away and brings others', async () => {
    expect(await ids('')).toEqual(['one', draft, 'some/other:F32', cached, 'two']);
    await write('[two]', 'hf-repo = some/other:F32', '[three]', small);
    expect(await ids('?reload=1')).toEqual([draft, 'some/other:F32', cached, 'three', 'two']);
  });

  it('hides what its sections duplicate, as long as it says so: such a model is still served', async () => {
    const section = ['[dedup]', small, 'spec-draft-hf = some/draft:F32'];
    await write(...section, 'dedup-cache-models = 1');
    expect(await ids('?reload=1')).toEqual(['dedup', 'some/other:F32']);
    expect((await tokenize(url, cached)).status).toBe(200);

    await write(...section);
    expect(await ids('?reload=1')).toEqual(['dedup', draft, 'some/other:F32', cached]);

    await write('[*]', 'dedup-cache-models = 1', ...section);
    expect(await ids('?reload=1')).toEqual(['dedup', 'some/other:F32']);
  });
});
