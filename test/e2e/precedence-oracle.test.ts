import { beforeAll, expect, it } from 'vitest';
import { sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses, descendants, processesWithEnv } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { get as getFrom } from '../helpers/supervisor-client.js';
import { intended } from './intended-differences.js';
import { OracleHome, startNative } from './native-oracle.js';

/** The context that a model is to have by the word of each source, the lowest source first. */
const LAYERS = [
  ['config.ini', 512],
  ['the environment', 768],
  ['[*]', 1024],
  ['its section', 1280],
  ['the command line', 1536],
] as const;

/** The context length that the running child of `model` has; loads it. */
async function contextOf(get: (path: string) => Promise<unknown>): Promise<number> {
  const props = (await get('/props?model=model&autoload=true')) as {
    default_generation_settings: { n_ctx: number };
  };
  return props.default_generation_settings.n_ctx;
}

let models: string;

beforeAll(async () => {
  models = await writeModels({ model: sayingItsName('model') });
});

it.each(LAYERS.map(([name, tokens], at) => ({ name, tokens, at })))(
  '$name goes before all below it, in the running child and in that of the native router',
  async ({ tokens, at }) => {
    const tokensOf = (layer: number): number | undefined => (layer <= at ? LAYERS[layer]?.[1] : undefined);
    const [config, env, global, section, commandLine] = [0, 1, 2, 3, 4].map(tokensOf);
    const home = new OracleHome();
    await home.writeConfig('[*]', 'parallel = 1', 'threads = 1', `ctx-size = ${config}`);
    const presets = await home.write(
      'presets.ini',
      [
        '[*]',
        ...(global === undefined ? [] : [`LLAMA_ARG_CTX_SIZE = ${global}`]),
        '[model]',
        ...(section === undefined ? [] : [`c = ${section}`]),
      ].join('\n'),
    );
    const args = [
      ...['--models-dir', models, '--models-preset', presets],
      ...(commandLine === undefined ? [] : ['--ctx-size', String(commandLine)]),
    ];
    const start = { args, env: env === undefined ? {} : { LLAMA_ARG_CTX_SIZE: String(env) } };

    const native = await startNative(home, start);
    expect(await contextOf(async (path) => (await native.get(path)).json())).toBe(tokens);
    const { url } = await startRealSupervisor({ args, env: home.environment(start) });
    expect(await contextOf(async (path) => (await getFrom(url, path)).json)).toBe(tokens);
  },
);

// Elsewhere the environment of a child cannot be read.
it.skipIf(!canListProcesses)(intended('reserved-variables'), async () => {
  const home = new OracleHome();
  const variables = {
    LLAMA_API_KEY: 'secret',
    LLAMA_ARG_MODELS_MAX: '3',
    LLAMA_ARG_LOG_FILE: home.path('log'),
  };
  const start = { args: ['--models-dir', models], env: { ...variables, LLAMA_ARG_THREADS: '1' } };
  const reaching = (pid: number, name: string, value: string): number => {
    const withIt = new Set(processesWithEnv(name, value).map((found) => found.pid));
    return descendants(pid).filter((child) => withIt.has(child.pid) && child.command.includes('--model '))
      .length;
  };

  const native = await startNative(home, start);
  const key = { 'x-api-key': 'secret' };
  await native.get('/props?model=model&autoload=true', key);
  const { url, pid } = await startRealSupervisor({ args: start.args, env: home.environment(start) });
  await getFrom(url, '/props?model=model&autoload=true', key);
  for (const [name, value] of Object.entries(variables)) {
    expect([name, reaching(native.pid, name, value)]).toEqual([name, 1]);
    expect([name, reaching(pid, name, value)]).toEqual([name, 0]);
  }
  // The way of looking finds what does reach it.
  expect(reaching(pid, 'LLAMA_ARG_THREADS', '1')).toBe(1);
});
