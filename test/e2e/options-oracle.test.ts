import { mkdir } from 'node:fs/promises';
import { freePort } from '../helpers/free-port.js';
import { beforeEach, describe, expect, it } from 'vitest';
import { CommandLineError } from '../../src/config/command-line.js';
import type { Settings } from '../../src/config/settings.js';
import { intended } from './intended-differences.js';
import {
  expectTheSame,
  nativeModels,
  nativeRefusal,
  OracleHome,
  ourCommandLine,
  ourModels,
  spawnNative,
  startNative,
  type Start,
} from './native-oracle.js';

let home: OracleHome;
let modelsDir: string;

/** Both see one model, `alpha`, unless the arguments of a case name another directory. */
beforeEach(async () => {
  home = new OracleHome();
  await home.write('models/alpha.gguf');
  modelsDir = home.path('models');
});

const withModels = (...args: readonly string[]): string[] => ['--models-dir', modelsDir, ...args];

async function problemsOf(start: Start): Promise<readonly string[]> {
  const error: unknown = await ourCommandLine(home, start).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return error instanceof CommandLineError ? error.problems : [];
}

describe('what the models get from the command line', () => {
  it.each<[string, string[]]>([
    ['nothing', []],
    ['a short, a long and a first spelling', ['-c', '512', '--n-gpu-layers', '0', '--temp', '0.5']],
    ['_ for - in long spellings', ['--ctx_size', '512', '--no_slots', '--n_gpu_layers', '1']],
    [
      'the last of a repeated option, in any spelling',
      ['-c', '1', '--ctx-size', '2', '-c', '3', '--slots', '--no-slots'],
    ],
    ['the last of an option that adds up in one process', ['--lora', 'a.gguf', '--lora', 'b.gguf']],
    ['switches', ['--metrics', '--no-host', '--swa-full', '-cmoe']],
    ['negated switches, short and long', ['-nkvo', '--no-warmup', '-nocb', '--no-mmproj', '--no-ui']],
    ['positive spellings of switches', ['-kvo', '--warmup', '--webui', '--ui-mcp-proxy']],
    [
      'values that look like options, numbers below zero, blanks',
      ['-ngl', '-1', '--grammar', '--jinja', '--reasoning-budget-message', ' a b '],
    ],
    ['empty values', ['--tags', '', '--grammar', '', '--chat-template-kwargs', '{}']],
    ['quotes, commas, = and marks of comments as they are', ['--json-schema', '{"a": "#;=,\'"}']],
    ['tags, as tags too', ['--tags', 'b, a ,,b']],
    [
      'what names one part of a model: only some of it is for one model',
      ['--hf-file', 'f.gguf', '-md', 'd.gguf', '--mmproj', 'm.gguf'],
    ],
    [
      'nothing of what is the router’s own',
      [
        '--models-max',
        '2',
        '--no-models-autoload',
        '--models-preset',
        '',
        '--log-file',
        'log',
        '--alias',
        'x',
      ],
    ],
    ['nothing of where the router listens', ['--host', '127.0.0.1']],
    [
      'all that concerns HTTP besides',
      ['-to', '9', '--threads-http', '3', '--cors-origins', '*', '--sse-ping-interval', '5'],
    ],
    ['--offline', ['--offline']],
    ['a model URL, which names no model to serve', ['-mu', 'http://127.0.0.1:9/m.gguf']],
  ])('is the same: %s', async (_, args) => {
    await expectTheSame(home, { args: withModels(...args) }, ['alpha']);
  });

  it('is the same with keys, which stay with the router', async () => {
    const keyFile = await home.write('keys', 'third\n');
    const args = withModels('--api-key', 'first,second', '--api-key-file', keyFile, '--api-prefix', '');
    await expectTheSame(home, { args }, ['alpha'], { Authorization: 'Bearer third' });
  });

  it('is the same with the subcommand of the unified program before everything', async () => {
    const start = { args: withModels('-c', '1'), env: { LLAMA_APP_CMD: 'serve' } };
    await expectTheSame(home, start, ['alpha']);
    expect((await ourModels(home, start))[0]?.status.args[1]).toBe('serve');
    await expectTheSame(home, { args: withModels(), env: { LLAMA_APP_CMD: '' } }, ['alpha']);
  });

  it('is nothing of the environment and the config file, which each child reads by itself', async () => {
    await home.writeConfig(
      '[*]',
      'temp = 0.1',
      'parallel = 2',
      '[default]',
      'top-k = 3',
      'no-such-option = 1',
    );
    const env = {
      LLAMA_ARG_CTX_SIZE: '512',
      LLAMA_ARG_NO_WARMUP: '1',
      LLAMA_ARG_NO_KV_OFFLOAD: '1',
      LLAMA_ARG_MODELS_DIR: modelsDir,
      LLAMA_ARG_LOG_FILE: home.path('log'),
      LLAMA_ARG_ALIAS: 'other',
      LLAMA_API_KEY: 'secret',
    };
    await expectTheSame(home, { env }, ['alpha'], { 'X-Api-Key': 'secret' });
    const { settings, childOptions } = await ourCommandLine(home, { env });
    expect([...childOptions]).toEqual([]);
    expect(settings).toMatchObject({ modelsDir, apiKeys: ['secret'] });
  });

  it(intended('two-values'), async () => {
    const args = withModels('--control-vector-layer-range', '1', '20');
    expect(await nativeRefusal(home, { args })).toContain('argument with 2 values is not yet supported');
    const [model] = await ourModels(home, { args });
    expect(model?.status.args.slice(-6)).toEqual([
      '--port',
      '0',
      '--alias',
      'alpha',
      '--model',
      home.path('models/alpha.gguf'),
    ]);
    expect(model?.status.args.join(' ')).toContain(' --control-vector-layer-range 1 20 ');
  });

  it(intended('tools-of-the-helper'), async () => {
    const tools = ['--tools', 'get_info', '--mcp-servers-json', '{}', '--agent'];
    const [native] = await nativeModels(home, { args: withModels(...tools) });
    expect(native?.status.args).toEqual(expect.arrayContaining(tools));
    expect(await ourModels(home, { args: withModels(...tools) })).toEqual(
      await nativeModels(home, { args: withModels() }),
    );
  });

  it(intended('shared-ports'), async () => {
    const [native] = await nativeModels(home, { args: withModels('--reuse-port') });
    expect(native?.status.args).toContain('--reuse-port');
    expect(await ourModels(home, { args: withModels('--reuse-port') })).toEqual(
      await nativeModels(home, { args: withModels() }),
    );
  });

  it(intended('inline-values'), async () => {
    const args = withModels('--ctx-size=512', '--slots=off', '--metrics=on');
    expect(await nativeRefusal(home, { args })).toContain('error: invalid argument: --ctx-size=512');
    const separate = withModels('--ctx-size', '512', '--no-slots', '--metrics');
    expect(await ourModels(home, { args })).toEqual(await nativeModels(home, { args: separate }));
  });
});

describe('the settings of the router', () => {
  interface Row {
    readonly args?: readonly string[];
    readonly env?: NodeJS.ProcessEnv;
    readonly config?: readonly string[];
  }

  /** What `GET /props` of the router says of its settings. */
  async function nativeProps(start: Start): Promise<Partial<Settings>> {
    const { get } = await startNative(home, start);
    const props = (await (await get('/props')).json()) as { max_instances: number; models_autoload: boolean };
    return { modelsMax: props.max_instances, modelsAutoload: props.models_autoload };
  }

  it.each<[string, Row]>([
    ['without a word', {}],
    ['on the command line', { args: ['--models-max', '7', '--no-models-autoload'] }],
    [
      'repeated on the command line',
      { args: ['--models-max', '7', '--models_max', '8', '--no-models-autoload', '--models-autoload'] },
    ],
    ['in the environment', { env: { LLAMA_ARG_MODELS_MAX: '7', LLAMA_ARG_MODELS_AUTOLOAD: '0' } }],
    [
      'in the environment by the negated name, whatever it holds',
      { env: { LLAMA_ARG_NO_MODELS_AUTOLOAD: '0' } },
    ],
    [
      'in the environment by the negated name, empty',
      { env: { LLAMA_ARG_NO_MODELS_AUTOLOAD: '', LLAMA_ARG_MODELS_AUTOLOAD: '1' } },
    ],
    ['in the config file', { config: ['[*]', 'models-max = 7', 'models-autoload = false'] }],
    [
      'in the config file before the first header',
      { config: ['models-max = 7', '[other]', 'models-max = 8'] },
    ],
    ['in the config file by the environment’s names', { config: ['[*]', 'LLAMA_ARG_MODELS_MAX = 7'] }],
    ['in the config file by a negation', { config: ['[*]', 'no-models-autoload = true'] }],
    ['in the config file by a negation denied', { config: ['[*]', 'no-models-autoload = off'] }],
    [
      'in the config file by the environment’s negated name, which does not negate there',
      { config: ['[*]', 'LLAMA_ARG_NO_MODELS_AUTOLOAD = 0'] },
    ],
    ['in the config file by words that are neither', { config: ['[*]', 'models-autoload = yes'] }],
    [
      'in the config file twice: default goes before *',
      { config: ['[default]', 'models-max = 7', '[*]', 'models-max = 8'] },
    ],
    [
      'in a repeated section, which starts over',
      { config: ['[*]', 'models-max = 7', '[*]', 'no-models-autoload = 1'] },
    ],
    ['in a section of another name', { config: ['[alpha]', 'models-max = 7'] }],
    ['beside what no option has', { config: ['[*]', 'nonsense = 7', 'models-max = 9 ; nine'] }],
    [
      'everywhere: the command line counts',
      { args: ['--models-max', '1'], env: { LLAMA_ARG_MODELS_MAX: '2' }, config: ['models-max = 3'] },
    ],
    [
      'above the config file: the environment counts',
      {
        env: { LLAMA_ARG_MODELS_MAX: '2', LLAMA_ARG_MODELS_AUTOLOAD: 'off' },
        config: ['models-max = 3', 'models-autoload = on'],
      },
    ],
    [
      'above the environment: the command line turns on what a negated name turns off',
      { args: ['--models-autoload'], env: { LLAMA_ARG_NO_MODELS_AUTOLOAD: '1' } },
    ],
    ...['on', 'enabled', 'true', '1', 'off', 'disabled', 'false', '0'].map((word): [string, Row] => [
      `in the environment by the word '${word}'`,
      { env: { LLAMA_ARG_MODELS_AUTOLOAD: word } },
    ]),
  ])('are the same %s', async (_, { args = [], env = {}, config }) => {
    if (config !== undefined) await home.writeConfig(...config);
    const { settings } = await ourCommandLine(home, { args, env });
    expect(settings).toMatchObject(await nativeProps({ args, env }));
  });

  it('listen where the environment says, or the config file', async () => {
    const [first, second] = [await freePort(), await freePort()];
    await home.writeConfig('[*]', `port = ${first}`);
    for (const [port, start] of [
      [first, {}],
      [second, { env: { LLAMA_ARG_PORT: String(second) } }],
    ] as const) {
      const { get } = await startNative(home, start, port);
      expect((await get('/health')).status).toBe(200);
      expect((await ourCommandLine(home, start)).settings.port).toBe(port);
    }
  });

  it('take keys from repeated options and files, in quotes too', async () => {
    const file = await home.write('keys', '# comment\nfive\n\nsix');
    const args = ['--api-key', 'one,"two,three"', '--api-key', 'four', '--api-key-file', file];
    const { get } = await startNative(home, { args });
    const { settings } = await ourCommandLine(home, { args });
    expect(settings.apiKeys).toEqual(['one', 'two,three', 'four', 'five', 'six']);
    const status = async (key: string) => (await get('/props', { 'X-Api-Key': key })).status;
    for (const key of settings.apiKeys) expect([key, await status(key)]).toEqual([key, 200]);
    for (const key of ['two', '# comment', '']) expect([key, await status(key)]).toEqual([key, 401]);
  });

  it(intended('api-keys-of-one-source'), async () => {
    const start = { args: ['--api-key', 'new'], env: { LLAMA_API_KEY: 'old' } };
    const { get } = await startNative(home, start);
    expect((await get('/props', { 'X-Api-Key': 'old' })).status).toBe(200);
    expect((await ourCommandLine(home, start)).settings.apiKeys).toEqual(['new']);
  });

  it(intended('key-file-blanks'), async () => {
    const args = ['--api-key-file', await home.write('keys', 'key\r\n')];
    const { get } = await startNative(home, { args });
    expect((await get('/props', { 'X-Api-Key': 'key' })).status).toBe(401);
    expect((await ourCommandLine(home, { args })).settings.apiKeys).toEqual(['key']);
  });

  it(intended('empty-api-key'), async () => {
    const args = ['--api-key', ''];
    const { get } = await startNative(home, { args });
    expect((await get('/props')).status).toBe(200);
    expect(await problemsOf({ args })).toEqual([expect.stringContaining('holds no key')]);
  });

  it(intended('strict-numbers'), async () => {
    const args = ['--models-max', '3b'];
    expect(await nativeProps({ args })).toMatchObject({ modelsMax: 3 });
    expect(await problemsOf({ args })).toEqual([expect.stringMatching(/^--models-max: .*'3b'/)]);
  });

  it.each([{ LLAMA_ARG_MODELS_MAX: '' }, { LLAMA_ARG_MODELS_AUTOLOAD: '' }])(
    `${intended('empty-variable')}: %j`,
    async (env) => {
      expect(await nativeRefusal(home, { env })).toContain('error while handling environment variable');
      expect((await ourCommandLine(home, { env })).settings).toMatchObject({
        modelsMax: 4,
        modelsAutoload: true,
      });
    },
  );

  it('are unset by an empty variable that holds text, whatever the config file says', async () => {
    await home.writeConfig('[*]', `models-dir = ${modelsDir}`);
    await expectTheSame(home, {}, ['alpha']);
    await expectTheSame(home, { env: { LLAMA_ARG_MODELS_DIR: '' } }, []);
  });
});

describe('what both refuse', () => {
  it.each<[string, Start, RegExp]>([
    ['an unknown option', { args: ['--ctx-sise', '1'] }, /^unknown option --ctx-sise/],
    ['_ for - in a short spelling', { args: ['-no_kvu'] }, /^unknown option -no_kvu/],
    ['a stray argument', { args: ['models'] }, /^unexpected argument 'models'/],
    ['a number that is none', { args: ['--models-max', 'many'] }, /^--models-max/],
    ['a number of models below zero', { args: ['--models-max', '-1'] }, /^--models-max/],
    ['a number in the environment that is none', { env: { LLAMA_ARG_PORT: 'http' } }, /^LLAMA_ARG_PORT/],
    [
      'a word in the environment that is neither',
      { env: { LLAMA_ARG_MODELS_AUTOLOAD: 'yes' } },
      /^LLAMA_ARG_MODELS_AUTOLOAD/,
    ],
    ['a word in capitals', { env: { LLAMA_ARG_MODELS_AUTOLOAD: 'True' } }, /^LLAMA_ARG_MODELS_AUTOLOAD/],
    ['a key file that is not there', { args: ['--api-key-file', 'gone'] }, /^--api-key-file: cannot read/],
  ])('is %s', async (_, start, problem) => {
    expect(await nativeRefusal(home, start)).not.toBe('');
    expect(await problemsOf(start)).toEqual([expect.stringMatching(problem)]);
  });

  it('is an option at the end that lacks its value', async () => {
    const args = ['--models-max'];
    // The harness puts the port behind the arguments, which would be the value.
    const { child } = spawnNative(home, { args });
    await new Promise((resolve) => child.once('close', resolve));
    expect(child.exitCode).toBe(1);
    expect(await problemsOf({ args })).toEqual(['--models-max needs a value after it']);
  });

  it.each<[string, string[]]>([
    ['a line without =', ['[*]', 'models-max']],
    ['an indented line in a section of others', ['[other]', ' a = 1']],
    ['a number that is none', ['models-max = many']],
  ])('is a config file with %s', async (_, lines) => {
    await home.writeConfig(...lines);
    expect(await nativeRefusal(home, {})).not.toBe('');
    await expect(ourCommandLine(home, {})).rejects.toThrow(/config\.ini:[12]: /);
  });

  it('is a models directory that is not there, and one that is a file', async () => {
    for (const path of [home.path('gone'), await home.write('file')]) {
      const args = ['--models-dir', path];
      expect(await nativeRefusal(home, { args })).toContain(path);
      await expect(ourModels(home, { args })).rejects.toThrow(path);
    }
  });

  it('is a presets file that is not there', async () => {
    const args = ['--models-preset', home.path('gone.ini')];
    expect(await nativeRefusal(home, { args })).toContain('preset file does not exist');
    await expect(ourModels(home, { args })).rejects.toThrow(/gone\.ini' does not exist/);
  });
});

describe('whether there is anything to route', () => {
  it.each<[string, Start, string[]?]>([
    ['nothing', {}],
    ['a model that is taken back', { args: ['-m', 'gone.gguf', '--model', ''] }],
    ['an empty variable', { env: { LLAMA_ARG_MODEL: '' } }],
    ['a variable that the command line empties', { args: ['-m', ''], env: { LLAMA_ARG_MODEL: 'gone.gguf' } }],
    ['a config file that an empty variable overrules', { env: { LLAMA_ARG_HF_REPO: '' } }, ['hf-repo = u/r']],
    ['a model URL', { args: ['-mu', 'http://127.0.0.1:9/m.gguf'] }],
    ['a file of a repository that is not named', { args: ['--hf-file', 'm.gguf'] }],
    ['defaults for speculation', { args: ['--spec-default'] }],
    ['a section of a model in the config file', {}, ['[alpha]', 'model = gone.gguf']],
  ])('is asked alike: yes for %s', async (_, start, config) => {
    if (config !== undefined) await home.writeConfig(...config);
    const { get } = await startNative(home, start);
    expect(await (await get('/props')).json()).toMatchObject({ role: 'router' });
    expect((await ourCommandLine(home, start)).directModel).toBe(false);
  });

  it.each<[string, Start, string[]?]>([
    ['a model', { args: ['-m', 'gone.gguf'] }],
    ['a model in the environment', { env: { LLAMA_ARG_MODEL: 'gone.gguf' } }],
    ['a model in the config file', {}, ['[*]', 'model = gone.gguf']],
    ['a model in the config file’s default section', {}, ['[default]', 'm = gone.gguf']],
    ['a repository', { args: ['--offline', '-hf', 'u/r:Q4_0'] }],
    ['a repository in the environment', { args: ['--offline'], env: { LLAMA_ARG_HF_REPO: 'u/r' } }],
    ['a shortcut', { args: ['--offline', '--embd-gemma-default'] }],
    ['a shortcut in the config file, even denied', {}, ['offline = 1', 'embd-gemma-default = off']],
  ])('is asked alike: no for %s', async (_, start, config) => {
    if (config !== undefined) await home.writeConfig(...config);
    const said = await nativeRefusal(home, start);
    expect(said).not.toContain('router mode');
    expect((await ourCommandLine(home, start)).directModel).toBe(true);
  });

  it('is asked alike: the models-dir does not matter to it', async () => {
    await mkdir(home.path('empty'));
    await expectTheSame(home, { args: ['--models-dir', home.path('empty')] }, []);
  });
});
