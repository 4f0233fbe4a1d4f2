/** What both routers say of themselves, when no model is named. */
import { join } from 'node:path';
import { writeFile } from 'node:fs/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { tempDir } from '../helpers/temp-dir.js';
import { startPair, type Pair, type PairOptions } from './http-oracle.js';

const models = { alpha: sayingItsName('alpha') };
const uiConfig = '{"theme":"dark","größe":[1,2.5,null,{"a":true}]}';

function propsOf(pair: Pair, path = '/props'): Promise<unknown> {
  return pair.expectSame({ path }).then(({ body }) => body);
}

it('by default they have the same', async () => {
  const pair = await startPair({ models });
  expect(await propsOf(pair)).toMatchObject({
    role: 'router',
    max_instances: 4,
    models_autoload: true,
    model_alias: 'llama-server',
    model_path: 'none',
    default_generation_settings: { params: null, n_ctx: 0 },
    cors_proxy_enabled: false,
  });
  for (const path of ['/props?model=', '/props?autoload=false', '/props?autoload=true', '/props?x=alpha']) {
    expect(await propsOf(pair, path)).toEqual(await propsOf(pair));
  }
  await pair.expectSame({ method: 'HEAD', path: '/props' });
});

describe.each<[string, Omit<PairOptions, 'models'>, object]>([
  ['--models-max', { args: ['--models-max', '7'] }, { max_instances: 7 }],
  ['--models-max 0', { args: ['--models-max', '0'] }, { max_instances: 0 }],
  ['--models-max in the environment', { env: { LLAMA_ARG_MODELS_MAX: '2' } }, { max_instances: 2 }],
  ['--no-models-autoload', { args: ['--no-models-autoload'] }, { models_autoload: false }],
  [
    'autoload off in the environment',
    { env: { LLAMA_ARG_MODELS_AUTOLOAD: '0' } },
    { models_autoload: false },
  ],
  ['--ui-config', { args: ['--ui-config', uiConfig] }, { ui_settings: JSON.parse(uiConfig) as unknown }],
  ['--ui-config in the environment', { env: { LLAMA_ARG_UI_CONFIG: '{"a":1}' } }, { ui_settings: { a: 1 } }],
  ['--ui-mcp-proxy', { args: ['--ui-mcp-proxy'] }, { cors_proxy_enabled: true }],
  ['--agent', { args: ['--agent'] }, { cors_proxy_enabled: true }],
  ['--tools', { args: ['--tools', 'get_info'] }, { cors_proxy_enabled: false }],
  ['--no-ui', { args: ['--no-ui'] }, { role: 'router' }],
  [
    'options of the models',
    { args: ['-c', '512', '--alias', 'x', '--temp', '0.5'] },
    { model_alias: 'llama-server' },
  ],
])('with %s', (_what, options, expected) => {
  it('they have the same', async () => {
    const pair = await startPair({ models, ...options });
    expect(await propsOf(pair)).toMatchObject(expected);
  });
});

it('with --ui-config-file they have the same', async () => {
  const file = join(tempDir(), 'ui.json');
  await writeFile(file, uiConfig);
  const pair = await startPair({ models, args: ['--ui-config-file', file] });
  expect(await propsOf(pair)).toMatchObject({ ui_settings: JSON.parse(uiConfig) as unknown });
});

describe('without a model', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models });
  });

  it.each(['/metrics', '/slots', '/lora-adapters'])('%s says that it is missing', async (path) => {
    for (const query of ['', '?', '?model=', '?x=1', '?autoload=true', '?model&autoload=1']) {
      const { status, body } = await pair.expectSame({ path: path + query });
      expect({ status, body }).toMatchObject({
        status: 400,
        body: { error: { message: 'model name is missing from the request', type: 'invalid_request_error' } },
      });
    }
  });

  it.each(['/health', '/v1/health'])('%s speaks of no model, loaded or not', async (path) => {
    expect((await pair.expectSame({ path: `${path}?model=alpha` })).body).toEqual({ status: 'ok' });
    await pair.untilBoth('alpha', 'unloaded');
  });
});
