import { execFile } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { NOT_INHERITED_KEYS, parseCommandLine } from '../../src/config/command-line.js';
import { isQuery } from '../../src/config/direct-options.js';
import { helpEntries } from '../../src/config/help-entries.js';
import { negatedEnv, type Option } from '../../src/config/option-table.js';
import { renderArgs } from '../../src/config/render-options.js';
import { intended } from './intended-differences.js';
import { binary, expectTheSame, help, nativeModels, OracleHome, ourCatalog, table } from './native-oracle.js';

/** Values for the options that do not take a plain `1`; the first of a list in braces or brackets is always one. */
const VALUES: Readonly<Record<string, string>> = {
  'api-prefix': '/prefix',
  'cache-type-k': 'f16',
  'cache-type-k-draft': 'f16',
  'cache-type-v': 'f16',
  'cache-type-v-draft': 'f16',
  'chat-template': 'chatml',
  'cpu-range': '0-1',
  'cpu-range-batch': '0-1',
  'cpu-range-draft': '0-1',
  device: 'none',
  'device-draft': 'none',
  'json-schema': '{}',
  'lazy-mode': 'auto',
  'load-mode': 'auto',
  // Emptied when it is opened, so it must not be the file that others read.
  'log-file': 'log',
  'logit-bias': '1+1',
  'mmproj-device': 'none',
  numa: 'distribute',
  'override-kv': 'a=int:1',
  'override-tensor': 'a=CPU',
  'override-tensor-draft': 'a=CPU',
  'reasoning-format': 'none',
  'spec-type': 'none',
};

const isRemoved = ({ description }: Option): boolean =>
  description.startsWith('the argument has been removed');
const namesOf = ({ positive, negative }: Option): readonly string[] => [...positive, ...negative];
/** Everything that can be passed on: what only asks, and what is listed only to be refused, cannot. */
const usable = table.options.filter((option) => !isQuery(option) && !isRemoved(option));

let home: OracleHome;
let valuesOf: (option: Option) => string[];

beforeAll(async () => {
  home = new OracleHome();
  await mkdir(home.path('directory'));
  // Fits each option that reads a file: a schema, keys, a template.
  const file = await home.write('file', '{}\n');
  const placeholders = new Map(helpEntries(help).map(({ names, placeholder }) => [names[0], placeholder]));
  valuesOf = (option) => {
    const placeholder = placeholders.get(option.firstName) ?? '';
    const [listed] = /(?<=^[{[])\w+/.exec(placeholder) ?? [];
    if (option.valueCount === 0) return [];
    if (option.valueCount === 2) return ['1', '2'];
    const value = VALUES[option.key] ?? listed;
    if (value !== undefined) return [value];
    const isFile = /^(?:FNAME|FILE)|_FILE$/.test(placeholder) || /-(?:file|config)$/.test(option.key);
    if (isFile && placeholder !== 'JSON') return [placeholder.includes('SCALE') ? `${file}:1` : file];
    if (/^(?:PATH|DIR)$/.test(placeholder)) return [home.path('directory')];
    return ['1'];
  };
});

/** Whether the parser of the binary takes the arguments: it prints its help only when it has understood all others. */
function accepts(args: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    const options = { cwd: home.directory, env: home.environment(), timeout: 20_000, maxBuffer: 2 ** 22 };
    execFile(binary, [...args, '--help'], options, (error, stdout, stderr) => {
      resolve(error === null && stdout.startsWith('-----') ? 'yes' : `no: ${stderr}`);
    });
  });
}

describe('every option of the installed llama-server', () => {
  const rounds = Math.max(...usable.map((option) => namesOf(option).length));

  it('is refused, next to the help, where it is misspelled', async () => {
    expect(await accepts([])).toBe('yes');
    expect(await accepts(['--ctx-sise', '1'])).toMatch(/^no: .*invalid argument: --ctx-sise/s);
  });

  it.each(Array.from({ length: rounds }, (_, round) => round))(
    'is understood and passed on by its spelling %i as the binary reads it',
    async (round) => {
      const spelled = usable.flatMap((option) => {
        const name = namesOf(option)[round];
        return name === undefined ? [] : [{ option, name, values: valuesOf(option) }];
      });
      const typed = spelled.flatMap(({ name, values }) => [name, ...values]);
      expect(await accepts(typed)).toBe('yes');

      const { childOptions, nativeArgs } = parseCommandLine(typed, table, {});
      expect(nativeArgs).toEqual(typed);
      const expected = spelled
        .filter(({ option }) => !NOT_INHERITED_KEYS.has(option.key))
        .map(({ option, name, values }): [string, string] => [
          option.key,
          option.valueCount === 0 ? (option.negative.includes(name) ? '0' : '1') : values.join(' '),
        ]);
      expect(Object.fromEntries([...childOptions].map(([{ key }, text]) => [key, text]))).toEqual(
        Object.fromEntries(expected),
      );

      const rendered = renderArgs(childOptions);
      expect(rendered).toHaveLength(
        spelled
          .filter(({ option }) => !NOT_INHERITED_KEYS.has(option.key))
          .reduce((count, { values }) => count + 1 + values.length, 0),
      );
      expect(await accepts(rendered)).toBe('yes');
    },
  );

  it.each(['1', 'off'])(
    'is a key of presets by each of its names, rendered as the native router does: %s',
    async (text) => {
      const named = usable
        // The native router renders no two values, lets children share their ports, and loses those with a prefix.
        .filter(({ key, valueCount }) => valueCount !== 2 && !['reuse-port', 'api-prefix'].includes(key))
        .flatMap((option) => [
          ...namesOf(option).map((name) => name.replace(/^-+/, '')),
          ...[option.env, negatedEnv(option)].filter((name) => name !== undefined),
        ]);
      const keys = [...new Set(named)].sort();
      const isAlias = (key: string): boolean => table.findKey(key)?.option.key === 'alias';
      // An alias belongs to one model.
      const sections = keys.map((key) => `[key ${key}]\n${key} = ${isAlias(key) ? `alias ${key}` : text}\n`);
      const args = ['--models-preset', await home.write('presets.ini', sections.join(''))];
      await expectTheSame(
        home,
        { args },
        keys.map((key) => `key ${key}`),
      );
    },
  );
});

describe(intended('removed-option'), () => {
  it.each(table.options.filter(isRemoved).flatMap(({ positive }) => [...positive]))('%s', async (name) => {
    expect(await accepts([name, '1'])).toMatch(/^no: .*has been removed/s);
    const key = name.replace(/^-+/, '');
    const args = ['--models-preset', await home.write('presets.ini', `[m]\nmodel = m\n${key} = 1\n`)];
    expect((await nativeModels(home, { args })).map(({ id }) => id)).toEqual(['m']);
    const { models } = await ourCatalog(home, { args });
    expect(models.map(({ problem }) => problem)).toEqual([
      expect.stringContaining(`'${key}' has been removed`),
    ]);
  });
});
