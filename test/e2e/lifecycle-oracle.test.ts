/** Loads, unloads, states, and who makes room for whom: the same is done to the native router and to ours. */
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { listenToModels } from '../helpers/model-events.js';
import { canListProcesses } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  errorIn,
  get,
  listModels,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { startPair, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';
import {
  atBoth,
  bringBack,
  bringInto,
  load,
  untilSettled,
  wordsUntil,
  type ModelState,
} from './model-states.js';
import { nativeRefusal, OracleHome, ourCommandLine } from './native-oracle.js';

const slowToLoad = { extraBytes: 300e6 };

async function loadedAt(url: string): Promise<string[]> {
  return (await listModels(url)).filter(({ status }) => status.value !== 'unloaded').map(({ id }) => id);
}

/** What a client is told, without what we add. */
async function answerTo(url: string, path: string, body: object): Promise<{ status: number; said: unknown }> {
  const { status, text, json } = await post(url, path, body);
  if (status === 200) return { status, said: json };
  const { code, message, type } = errorIn(text);
  return { status, said: { code, message, type } };
}

describe.skipIf(!canListProcesses)('in each state', () => {
  const modelIn: Record<ModelState, string> = {
    unloaded: 'alpha',
    loading: 'heavy',
    loaded: 'alpha',
    sleeping: 'sleepy',
    stopping: 'alpha',
    failed: 'broken',
  };
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({
      models: {
        alpha: sayingItsName('alpha'),
        broken: sayingItsName('broken'),
        heavy: { ...sayingItsName('heavy'), ...slowToLoad },
        sleepy: sayingItsName('sleepy'),
      },
      args: ['--metrics'],
      presets: '[sleepy]\nsleep-idle-seconds = 1\n[broken]\ndevice = nowhere\n',
    });
  });

  it.each<[action: string, state: ModelState, status: number, then: string]>([
    ['/models/load', 'unloaded', 200, 'loaded'],
    ['/models/load', 'loading', 400, 'loaded'],
    ['/models/load', 'loaded', 400, 'loaded'],
    ['/models/load', 'sleeping', 400, 'sleeping'],
    ['/models/load', 'failed', 200, 'unloaded'],
    ['/models/unload', 'unloaded', 400, 'unloaded'],
    ['/models/unload', 'loading', 200, 'unloaded'],
    ['/models/unload', 'loaded', 200, 'unloaded'],
    ['/models/unload', 'sleeping', 200, 'unloaded'],
    ['/models/unload', 'stopping', 200, 'unloaded'],
    ['/models/unload', 'failed', 400, 'unloaded'],
    ['/tokenize', 'unloaded', 200, 'loaded'],
    ['/tokenize', 'loading', 200, 'loaded'],
    ['/tokenize', 'loaded', 200, 'loaded'],
    ['/tokenize', 'sleeping', 200, 'loaded'],
    ['/tokenize', 'stopping', 200, 'loaded'],
  ])(
    '%s of a model that is %s is answered with %i, and the model is then %s',
    async (path, state, status, then) => {
      const model = modelIn[state];
      const { native, ours } = await atBoth(pair, async (url) => {
        const goOn = await bringInto(state, url, model);
        const answer = answerTo(url, path, { model, content: 'I am' });
        // A request waits for what is held up here, and an order does not.
        if (path !== '/tokenize') await answer;
        goOn();
        const answered = await answer;
        await untilStatus(url, model, then);
        await bringBack(url, model);
        return answered;
      });
      expect(native.status).toBe(status);
      expect(ours).toEqual(native);
    },
  );

  it('the list has the same words while a model is loaded and unloaded', async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const before = await wordsUntil(url, 'heavy', 'unloaded');
      await load(url, 'heavy');
      const coming = await wordsUntil(url, 'heavy', 'loaded');
      await untilSettled(url, 'heavy');
      await post(url, '/models/unload', { model: 'heavy' });
      const going = await wordsUntil(url, 'heavy', 'unloaded');
      // Whether its last moments are seen is chance.
      return [...before, ...coming, ...going.filter((word) => word !== 'loaded')];
    });
    expect(native).toEqual(['unloaded', 'loading', 'loaded', 'unloaded']);
    expect(ours).toEqual(native);
  });

  it('the list calls a model loaded until its process is gone, however often it is unloaded', async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const goOn = await bringInto('stopping', url, 'alpha');
      const said: unknown[] = [];
      for (let time = 0; time < 3; time += 1) {
        said.push(await answerTo(url, '/models/unload', { model: 'alpha' }));
        said.push((await modelEntry(url, 'alpha')).status.value);
      }
      goOn();
      await untilStatus(url, 'alpha', 'unloaded');
      return said;
    });
    const once = [{ status: 200, said: { success: true } }, 'loaded'];
    expect(native).toEqual([...once, ...once, ...once]);
    expect(ours).toEqual(native);
  });

  it(intended('given-up-wait'), async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const answer = answerTo(url, '/tokenize', { model: 'heavy', content: 'x' });
      await untilStatus(url, 'heavy', 'loading');
      await bringBack(url, 'heavy');
      return answer;
    });
    expect(native).toEqual({
      status: 500,
      said: { code: 500, message: 'model name=heavy failed to load', type: 'server_error' },
    });
    expect(ours).toEqual({
      status: 400,
      said: { code: 400, message: 'model name=heavy is not running', type: 'invalid_request_error' },
    });
  });

  it('a sleeping model is woken by the same requests but for those that look, and listed the same', async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      await bringInto('sleeping', url, 'sleepy');
      const heard = await listenToModels(url);
      const said: unknown[] = [];
      for (const path of [
        '/props?model=sleepy',
        '/metrics?model=sleepy',
        '/health',
        '/models',
        '/v1/models',
      ]) {
        said.push([path, (await get(url, path)).status]);
      }
      said.push(heard.story());
      said.push((await answerTo(url, '/tokenize?autoload=false', { model: 'sleepy', content: 'x' })).status);
      said.push(await heard.until('sleepy status_change sleeping'));
      await bringBack(url, 'sleepy');
      return said;
    });
    expect(native.slice(5)).toEqual([
      [],
      200,
      ['sleepy status_change loading', 'sleepy status_change loaded', 'sleepy status_change sleeping'],
    ]);
    expect(ours).toEqual(native);
  });

  it(intended('load-while-stopping'), async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const goOn = await bringInto('stopping', url, 'alpha');
      const answer = answerTo(url, '/models/load', { model: 'alpha' });
      if (url === pair.native) await answer;
      goOn();
      return answer;
    });
    expect(native).toMatchObject({ status: 400, said: { message: 'model is already running' } });
    expect(ours).toEqual({ status: 200, said: { success: true } });
    await untilStatus(pair.ours, 'alpha', 'loaded');
    await untilStatus(pair.native, 'alpha', 'unloaded');
    await bringBack(pair.ours, 'alpha');
  });

  it(intended('sleeping-looks'), async () => {
    for (const path of ['/slots?model=sleepy', '/lora-adapters?model=sleepy']) {
      const { native, ours } = await atBoth(pair, async (url) => {
        await bringInto('sleeping', url, 'sleepy');
        const heard = await listenToModels(url);
        const { status } = await get(url, path);
        if (status === 200) await heard.until('sleepy status_change loaded');
        const word = (await modelEntry(url, 'sleepy')).status.value;
        await bringBack(url, 'sleepy');
        return [status, word];
      });
      expect({ path, native, ours }).toEqual({ path, native: [200, 'loaded'], ours: [400, 'sleeping'] });
    }
  });
});

describe('room for two', () => {
  let pair: Pair;

  beforeAll(async () => {
    const models = ['a', 'b', 'c', 'd'].map((name) => [name, sayingItsName(name)] as const);
    pair = await startPair({
      models: { ...Object.fromEntries(models), long: endless() },
      args: ['--models-max', '2', '--slots', '--metrics'],
    });
  });

  /** Each of these, and what is loaded after it. */
  async function loadedAfterEach(steps: readonly ((url: string) => Promise<unknown>)[]): Promise<string[][]> {
    const { native, ours } = await atBoth(pair, async (url) => {
      for (const model of await loadedAt(url)) await bringBack(url, model);
      const after: string[][] = [];
      for (const step of steps) {
        await step(url);
        after.push(await loadedAt(url));
      }
      return after;
    });
    expect(ours).toEqual(native);
    return native;
  }

  const use = (model: string) => async (url: string) => {
    expect(await chat(url, model)).toBe(nameAnswer(model));
  };
  const look = (path: string) => async (url: string) => expect((await get(url, path)).status).toBe(200);
  const order = (model: string) => async (url: string) => {
    await load(url, model);
    await untilStatus(url, model, 'loaded');
  };
  const fail = (model: string) => async (url: string) => {
    expect((await post(url, '/v1/chat/completions', { model })).status).toBe(400);
  };

  it('is made by the model whose last request is the oldest', async () => {
    const after = await loadedAfterEach([
      use('a'),
      use('b'),
      use('c'),
      use('b'),
      use('a'),
      use('b'),
      use('d'),
    ]);
    expect(after.slice(1)).toEqual([
      ['a', 'b'],
      ['b', 'c'],
      ['b', 'c'],
      ['a', 'b'],
      ['a', 'b'],
      ['b', 'd'],
    ]);
  });

  it('is made for models that are loaded by hand, too, in the order of their loads', async () => {
    const after = await loadedAfterEach([order('a'), order('b'), order('c'), order('d'), order('a')]);
    expect(after.slice(1)).toEqual([
      ['a', 'b'],
      ['b', 'c'],
      ['c', 'd'],
      ['a', 'd'],
    ]);
  });

  it('is not kept by looking at a model', async () => {
    const looks = ['/props?model=a', '/slots?model=a', '/metrics?model=a', '/lora-adapters?model=a'].map(
      look,
    );
    const after = await loadedAfterEach([use('a'), use('b'), ...looks, look('/models'), use('c')]);
    expect(after.at(-1)).toEqual(['b', 'c']);
  });

  it('is kept also by a request that the model refuses', async () => {
    const after = await loadedAfterEach([use('a'), use('b'), fail('a'), use('c')]);
    expect(after.at(-1)).toEqual(['a', 'c']);
  });

  it('is free again after an unload: nobody has to go', async () => {
    const away = (url: string) => bringBack(url, 'a');
    const after = await loadedAfterEach([use('a'), use('b'), away, use('c')]);
    expect(after.at(-1)).toEqual(['b', 'c']);
  });

  it(intended('recency'), async () => {
    const count = 5000;
    const { native, ours } = await atBoth(pair, async (url) => {
      for (const model of await loadedAt(url)) await bringBack(url, model);
      const answer = streamChat(url, 'long', { max_tokens: count });
      await answer.untilPieces(1);
      await use('a')(url);
      expect(answer.pieces().length).toBeLessThan(count);
      await answer.ended();
      await use('b')(url);
      return loadedAt(url);
    });
    expect({ native, ours }).toEqual({ native: ['a', 'b'], ours: ['b', 'long'] });
  });
});

describe('a model that is answering', () => {
  const talker = endless();
  // How long the native router leaves the clients of a model that is unloaded without a word.
  const stopTimeoutMs = 2_000;
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({
      models: { talker, other: sayingItsName('other') },
      args: ['--models-max', '1'],
      presets: `[talker]\nstop-timeout = ${stopTimeoutMs / 1000}\n`,
    });
  });

  it.each<[string, string, object]>([
    ['in the body', '/models/unload', { force: true }],
    ['in the query', '/models/unload?force=true', {}],
  ])(
    'is cut at once by an unload with force %s, which the native router takes no note of',
    async (_, path, more) => {
      const { native, ours } = await atBoth(pair, async (url) => {
        const answer = streamChat(url, 'talker', { max_tokens: -1 });
        await answer.untilPieces(10);
        const began = performance.now();
        const unloaded = await post(url, path, { model: 'talker', ...more });
        const { complete } = await answer.ended();
        const tookMs = performance.now() - began;
        await untilStatus(url, 'talker', 'unloaded');
        return { unloaded: unloaded.json, complete, tookMs, last: answer.events().at(-1) };
      });
      expect(ours.unloaded).toEqual(native.unloaded);
      expect(ours.tookMs).toBeLessThan(stopTimeoutMs);
      // What was cut is seen to be cut.
      expect(ours.complete).toBe(false);
      expect(errorIn(ours.last ?? '')).toMatchObject({ model: 'talker' });
    },
  );

  it(intended('draining-unload'), async () => {
    const count = 3000;
    const { native, ours } = await atBoth(pair, async (url) => {
      const answer = streamChat(url, 'talker', { max_tokens: count });
      await answer.untilPieces(10);
      expect((await post(url, '/models/unload', { model: 'talker' })).json).toEqual({ success: true });
      const word = (await modelEntry(url, 'talker')).status.value;
      await answer.ended();
      await untilStatus(url, 'talker', 'unloaded');
      return { word, pieces: answer.pieces() };
    });
    expect([native.word, ours.word]).toEqual(['loaded', 'loaded']);
    expect(native.pieces.length).toBeLessThan(count);
    expect(ours.pieces).toEqual(piecesOf(talker, count));
  });

  it(intended('full-load'), async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      const answer = streamChat(url, 'talker', { max_tokens: -1 });
      await answer.untilPieces(10);
      const loaded = answerTo(url, '/models/load', { model: 'other' });
      if (url === pair.native) await loaded;
      else await eventually('the load waits', async () => (await modelEntry(url, 'other')).waiting === 1);
      answer.abort();
      return loaded;
    });
    expect(native).toEqual({
      status: 500,
      said: { code: 500, message: 'model limit reached, try again later', type: 'server_error' },
    });
    expect(ours).toEqual({ status: 200, said: { success: true } });
    await untilStatus(pair.ours, 'other', 'loaded');
  });
});

it(intended('parallel-loads'), async () => {
  const pair = await startPair({
    models: {
      first: { ...sayingItsName('first'), ...slowToLoad },
      second: { ...sayingItsName('second'), ...slowToLoad },
    },
  });
  const { native, ours } = await atBoth(pair, async (url) => {
    const heard = await listenToModels(url);
    expect(await Promise.all([chat(url, 'first'), chat(url, 'second')])).toEqual([
      nameAnswer('first'),
      nameAnswer('second'),
    ]);
    const kinds = heard.story().map((event) => event.split(' ').slice(1).join(' '));
    return kinds.filter((kind) => kind !== 'status_change loading');
  });
  const [begun, done] = ['model_status loading', 'status_change loaded'];
  expect(native).toEqual([begun, done, begun, done]);
  expect(ours).toEqual([begun, begun, done, done]);
});

describe('models that are loaded at the start', () => {
  const models = { one: sayingItsName('one'), two: sayingItsName('two'), lazy: sayingItsName('lazy') };
  const presets =
    '[one]\nload-on-startup = true\n[two]\nload-on-startup = on\n[lazy]\nload-on-startup = no\n';

  it.each(['2', '3'])('are the same with --models-max %s', async (max) => {
    const pair = await startPair({ models, presets, args: ['--models-max', max] });
    await pair.untilBoth('one', 'loaded');
    await pair.untilBoth('two', 'loaded');
    const { native, ours } = await atBoth(pair, loadedAt);
    expect(native).toEqual(['one', 'two']);
    expect(ours).toEqual(native);
  });

  it('are the same with --no-models-autoload', async () => {
    const pair = await startPair({ models, presets, args: ['--no-models-autoload'] });
    await pair.untilBoth('one', 'loaded');
    await pair.untilBoth('two', 'loaded');
    await pair.expectSame({ method: 'POST', path: '/v1/chat/completions', body: question('lazy') });
    expect(await loadedAt(pair.ours)).toEqual(['one', 'two']);
  });

  /** The same start, which the native router refuses in these words, with ours. */
  async function startWhereNativeDoesNot(max: string, words: string): Promise<string> {
    const home = new OracleHome();
    const args = [
      ...['--models-dir', await writeModels(models), '--models-max', max],
      ...['--models-preset', await home.write('presets.ini', presets)],
    ];
    expect(await nativeRefusal(home, { args })).toContain(words);
    return (await startRealSupervisor({ args })).url;
  }

  it(intended('startup-over-limit'), async () => {
    const url = await startWhereNativeDoesNot('1', 'number of models to load on startup (2) exceeds');
    await untilStatus(url, 'one', 'loaded');
    expect(await loadedAt(url)).toEqual(['one']);
    expect(await chat(url, 'two')).toBe(nameAnswer('two'));
  });

  it(intended('startup-without-limit'), async () => {
    const url = await startWhereNativeDoesNot('0', 'number of models to load on startup (2) exceeds');
    for (const model of ['one', 'two']) await untilStatus(url, model, 'loaded');
    expect(await loadedAt(url)).toEqual(['one', 'two']);
  });

  it('a negative --models-max starts neither, and ours says how no limit is written', async () => {
    const home = new OracleHome();
    const args = ['--models-max', '-1'];
    expect(await nativeRefusal(home, { args })).toContain('number of models to load on startup (0) exceeds');
    await expect(ourCommandLine(home, { args })).rejects.toThrow(/--models-max.*0 = unlimited/);
  });
});
