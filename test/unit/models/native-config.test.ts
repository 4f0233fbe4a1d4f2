import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseCommandLine, type CommandLine } from '../../../src/config/command-line.js';
import { NO_CONFIG } from '../../../src/config/setting-source.js';
import { readNativeConfig } from '../../../src/models/native-config.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { option, table } from './help-table.js';

/** A home of config files with one that holds `lines`, and the path of that one. */
function writeConfig(lines: readonly string[] | Buffer, home = tempDir(), below = ''): NodeJS.ProcessEnv {
  const directory = join(home, below, 'llama.cpp');
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'config.ini'), Buffer.isBuffer(lines) ? lines : `${lines.join('\n')}\n`);
  return below === '' ? { XDG_CONFIG_HOME: home } : { HOME: home };
}

const fileOf = (env: NodeJS.ProcessEnv): string =>
  join(env['XDG_CONFIG_HOME'] ?? '', 'llama.cpp', 'config.ini');

/** What the config file gives, by canonical key. */
async function given(...lines: readonly string[]): Promise<Record<string, string>> {
  const config = await readNativeConfig(writeConfig(lines), table);
  return Object.fromEntries([...config.given].map(([{ key }, { text }]) => [key, text]));
}

describe('the config files of llama.cpp', () => {
  it.each<[string, string[], Record<string, string>]>([
    ['give what [*] says', ['[*]', 'port = 1'], { port: '1' }],
    ['give what stands before the first header', ['port = 1', '[other]', 'host = x'], { port: '1' }],
    [
      'give what [default] says instead of [*], in any order',
      ['[default]', 'port = 1', '[*]', 'port = 2', 'host = h'],
      { port: '1', host: 'h' },
    ],
    [
      'start a section over when its header is repeated',
      ['[*]', 'port = 1', '[*]', 'host = h'],
      { host: 'h' },
    ],
    [
      'start over what stands before the first header by [default]',
      ['port = 1', '[default]', 'host = h'],
      { host: 'h' },
    ],
    [
      'take of several spellings the one that sorts last',
      ['[*]', 'ctx-size = 1', 'c = 2', 'LLAMA_ARG_CTX_SIZE = 3'],
      { 'ctx-size': '1' },
    ],
    ['take of one spelling the last line', ['[*]', 'c = 1', 'c = 2'], { 'ctx-size': '2' }],
    ['cut a value at a comment', ['[*]', 'host = h # all'], { host: 'h' }],
    [
      'read a switch as on by the four words alone',
      ['[*]', 'slots = yes', 'jinja = on'],
      { slots: '0', jinja: '1' },
    ],
    [
      'invert a switch by its negation',
      ['[*]', 'no-slots = true', 'no-jinja = off'],
      { slots: '0', jinja: '1' },
    ],
    [
      'turn a switch that has no negation on by its mere presence',
      ['[*]', 'metrics = off'],
      { metrics: '1' },
    ],
    ['may be empty of value', ['[*]', 'models-dir ='], { 'models-dir': '' }],
    ['skip the version', ['version = 1', '[*]', 'version = 2'], {}],
  ])('%s', async (_, lines, expected) => {
    expect(await given(...lines)).toEqual(expected);
  });

  it('are looked for in the home directory when XDG_CONFIG_HOME is unset or empty', async () => {
    const env = writeConfig(['[*]', 'port = 1'], tempDir(), '.config');
    const { given: inHome } = await readNativeConfig({ ...env, XDG_CONFIG_HOME: '' }, table);
    expect(inHome.get(option('port'))?.text).toBe('1');
  });

  it('say nothing where there is none', async () => {
    expect(await readNativeConfig({ XDG_CONFIG_HOME: tempDir() }, table)).toBe(NO_CONFIG);
  });

  it('warn of keys that this binary does not have, since other programs share them, and of what is cut', async () => {
    const env = writeConfig(['[*]', 'nonsense = 1', 'host = a;b', '[elsewhere]', 'more-nonsense = 1']);
    const { warnings } = await readNativeConfig(env, table);
    expect(warnings).toHaveLength(2);
    expect(warnings).toContainEqual(
      expect.stringMatching(`^${fileOf(env)}:2: this llama-server has no option 'nonsense'`),
    );
    expect(warnings).toContainEqual(expect.stringMatching(`^${fileOf(env)}:3: 'host' is cut to 'a'`));
  });

  it.each<[string, string[] | Buffer, RegExp]>([
    ['a line without =', ['[*]', 'port'], /:2: .*'port'/],
    ['a fault in a section of others', ['[elsewhere]', ' indented = 1'], /:2: .*indented/],
    ['a byte order mark', Buffer.from('\u{FEFF}[*]\n'), /:1: starts with a byte order mark/],
  ])(
    'are refused with the place because of %s, as every llama-server refuses them',
    async (_, content, message) => {
      const env = writeConfig(content);
      await expect(readNativeConfig(env, table)).rejects.toThrow(message);
      await expect(readNativeConfig(env, table)).rejects.toThrow(
        /^no llama-server starts with this config file/,
      );
    },
  );

  it('are refused when they are there and cannot be read', async () => {
    const home = tempDir();
    mkdirSync(join(home, 'llama.cpp', 'config.ini'), { recursive: true });
    await expect(readNativeConfig({ XDG_CONFIG_HOME: home }, table)).rejects.toThrow(
      /cannot be read \(EISDIR\)/,
    );
  });
});

describe('as the lowest source', () => {
  async function parse(
    lines: readonly string[],
    args: readonly string[] = [],
    env: NodeJS.ProcessEnv = {},
  ): Promise<CommandLine> {
    return parseCommandLine(args, table, env, await readNativeConfig(writeConfig(lines), table));
  }

  it('they give way to the environment, and that to the command line', async () => {
    const lines = ['[*]', 'api-key = secret', 'port = 1', 'models-max = 7'];
    const { settings } = await parse(lines, ['--port', '3'], { LLAMA_ARG_MODELS_MAX: '5' });
    expect(settings).toMatchObject({ apiKeys: ['secret'], port: 3, modelsMax: 5 });
  });

  it('they give way to an empty variable and to the presence of a negated one', async () => {
    const { settings } = await parse(['[*]', 'models-dir = d', 'models-autoload = on'], [], {
      LLAMA_ARG_MODELS_DIR: '',
      LLAMA_ARG_NO_MODELS_AUTOLOAD: '',
    });
    expect(settings).toMatchObject({ modelsDir: undefined, modelsAutoload: false });
  });

  it('they do not reach the models through us, which read them by themselves', async () => {
    const { childOptions } = await parse(['[*]', 'ctx-size = 512']);
    expect([...childOptions]).toEqual([]);
  });

  it('a wrong value in them is named by its line', async () => {
    await expect(parse(['[*]', 'port = http'])).rejects.toThrow(/config\.ini:2: expected a whole number/);
  });

  it.each([
    ['model = m.gguf', true],
    ['hf-repo = u/r', true],
    ['LLAMA_ARG_DOCKER_REPO = gemma3', true],
    ['gpt-oss-20b-default =', true],
    ['model =', false],
    ['model-url = http://localhost/m.gguf', false],
  ])('with %j in them a model is named: %s', async (line, directModel) => {
    expect((await parse(['[*]', line])).directModel).toBe(directModel);
    expect((await parse(['[*]', line], ['--model', ''])).directModel).toBe(
      directModel && !line.startsWith('model'),
    );
  });

  it('their warnings are those of the command line', async () => {
    expect((await parse(['[*]', 'nonsense = 1'])).warnings).toEqual([expect.stringContaining("'nonsense'")]);
  });
});
