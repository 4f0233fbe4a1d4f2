/** Everything under a path, with the native router as the oracle of what it does better here. */
import { beforeAll, describe, expect, it } from 'vitest';
import {
  counting,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeModels,
} from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  get,
  listModels,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { startPair } from './http-oracle.js';
import { intended } from './intended-differences.js';
import { OracleHome, startNative } from './native-oracle.js';

const prefix = '/llama/v2';
const key = { authorization: 'Bearer sesame' };

async function writeBoth(): Promise<string> {
  return writeModels({ alpha: sayingItsName('alpha'), counter: counting(200) });
}

describe.each([
  ['on the command line', { args: ['--api-prefix', prefix], env: {} }],
  ['in the environment', { args: [], env: { LLAMA_ARG_API_PREFIX: prefix } }],
  [
    'on the command line, against the environment',
    { args: ['--api-prefix', prefix], env: { LLAMA_ARG_API_PREFIX: '/other' } },
  ],
])('with a prefix %s', (_where, { args, env }) => {
  let url: string;
  let origin: string;

  beforeAll(async () => {
    const supervisor = await startRealSupervisor({ args: ['--models-dir', await writeBoth(), ...args], env });
    url = supervisor.url;
    origin = `http://127.0.0.1:${supervisor.port}`;
  });

  it('it is part of the address that is announced', () => {
    expect(url).toBe(origin + prefix);
  });

  it('models are listed, loaded and unloaded', async () => {
    expect((await listModels(url)).map(({ id }) => id)).toEqual(['alpha', 'counter']);
    expect((await post(url, '/models/load', { model: 'alpha' })).json).toEqual({ success: true });
    await untilStatus(url, 'alpha', 'loaded');
    expect((await post(url, '/models/unload', { model: 'alpha' })).json).toEqual({ success: true });
    await untilStatus(url, 'alpha', 'unloaded');
  });

  it('a chat and a stream are answered by the child', async () => {
    expect(await chat(url, 'alpha')).toBe(nameAnswer('alpha'));
    const stream = streamChat(url, 'counter');
    expect(await stream.ended()).toMatchObject({ status: 200, complete: true });
    expect(stream.pieces()).toEqual(piecesOf(counting(200)));
    expect(stream.events().at(-1)).toBe('[DONE]');
  });

  it('what is asked by query reaches the child of a loaded model, and loads none', async () => {
    await chat(url, 'alpha');
    const props = await get(url, '/props?model=alpha');
    expect(props.status).toBe(200);
    expect(props.json).toMatchObject({ model_alias: 'alpha' });
    for (const path of ['/slots', '/lora-adapters']) {
      expect((await get(url, `${path}?model=alpha`)).json, path).toBeInstanceOf(Array);
    }
    expect((await get(url, '/metrics?model=alpha')).text).toContain('llamacpp:');
    await post(url, '/models/unload', { model: 'alpha' });
    await untilStatus(url, 'alpha', 'unloaded');
    expect((await get(url, '/props?model=alpha')).status).toBe(400);
    expect((await modelEntry(url, 'alpha')).status.value).toBe('unloaded');
  });

  it('nothing is served outside it', async () => {
    const outside = ['', '/llama', '/llama/v', '/llama/v2x', '/x/llama/v2', '/other', '/LLAMA/v2'];
    for (const path of outside) {
      for (const route of ['/health', '/v1/health', '/models', '/v1/models', '/props', '/']) {
        expect((await get(origin, path + route)).status, path + route).toBe(404);
      }
      expect((await post(origin, `${path}/v1/chat/completions`, question('alpha'))).status, path).toBe(404);
      expect((await post(origin, `${path}/models/load`, { model: 'alpha' })).status, path).toBe(404);
    }
  });
});

it('an empty prefix on the command line takes that of the environment away, from the children, too', async () => {
  const supervisor = await startRealSupervisor({
    args: ['--models-dir', await writeBoth(), '--api-prefix', ''],
    env: { LLAMA_ARG_API_PREFIX: '/other' },
  });
  expect(supervisor.url).toBe(`http://127.0.0.1:${supervisor.port}`);
  expect(await chat(supervisor.url, 'alpha')).toBe(nameAnswer('alpha'));
});

describe('with a key', () => {
  it('health is public under the prefix, where the native router asks for the key; all else wants it', async () => {
    const args = ['--models-dir', await writeBoth(), '--api-prefix', prefix, '--api-key', 'sesame'];
    const { url } = await startRealSupervisor({ args });
    const native = await startNative(new OracleHome(), { args });
    const nativeStatus = async (path: string, headers = {}) =>
      (await native.get(prefix + path, headers)).status;

    for (const path of ['/health', '/v1/health']) {
      expect((await get(url, path)).status, path).toBe(200);
      expect(await nativeStatus(path), path).toBe(401);
    }
    for (const path of ['/models', '/v1/models', '/props']) {
      expect((await get(url, path)).status, path).toBe(401);
      expect(await nativeStatus(path), path).toBe(401);
      expect((await get(url, path, key)).status, path).toBe(200);
      expect(await nativeStatus(path, key), path).toBe(200);
    }
    expect((await post(url, '/v1/chat/completions', question('alpha'))).status).toBe(401);
    expect((await post(url, '/models/load', { model: 'alpha' })).status).toBe(401);
    const answer = await post(url, '/v1/chat/completions', question('alpha'), key);
    expect(answer.json).toMatchObject({ choices: [{ message: { content: nameAnswer('alpha') } }] });
    expect((await get(url, '/props?model=alpha')).status).toBe(401);
    expect((await get(url, '/props?model=alpha', key)).json).toMatchObject({ model_alias: 'alpha' });
  });
});

it(intended('section-prefix'), async () => {
  const pair = await startPair({
    models: { alpha: sayingItsName('alpha') },
    presets: '[alpha]\napi-prefix = /x\n',
  });
  const body = { model: 'alpha', messages: [{ role: 'user', content: 'Who are you?' }] };
  const { native, ours } = await pair.play({ method: 'POST', path: '/v1/chat/completions', body });
  expect([native.status, ours.status]).toEqual([404, 200]);
});
