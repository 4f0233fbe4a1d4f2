import { readFile } from 'node:fs/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { intended } from './intended-differences.js';
import {
  expectTheSame,
  nativeModels,
  nativeRefusal,
  OracleHome,
  ourCatalog,
  ourModels,
} from './native-oracle.js';

let home: OracleHome;

beforeEach(() => {
  home = new OracleHome();
});

/** Lines, or text where the line ends are the subject. */
type Text = readonly string[] | string;

/** The arguments for a presets file of this text. */
async function presetArgs(text: Text, ...more: readonly string[]): Promise<string[]> {
  const content = typeof text === 'string' ? text : `${text.join('\n')}\n`;
  return ['--models-preset', await home.write('presets.ini', content), ...more];
}

/** What both make of a presets file: its text, and the ids that both must list. */
type Row = readonly [title: string, text: Text, ids: readonly string[]];

/** One section `m` with these lines. */
const section = (title: string, ...lines: readonly string[]): Row => [title, ['[m]', ...lines], ['m']];

async function expectRow(text: Text, ids: readonly string[]): Promise<void> {
  await expectTheSame(home, { args: await presetArgs(text) }, ids);
}

describe('the grammar of presets is the same', () => {
  it.each<Row>([
    ['an empty file', '', []],
    ['lines that end in \\n, \\r\\n and \\r', '[a]\nc = 1\r\n[b]\rc = 2\r\n\r\n[c]\n\nc=3', ['a', 'b', 'c']],
    ['a last line without an end', '[m]\nc = 1', ['m']],
    [
      'blank lines and comments, indented too',
      ['# one', '[m]', '', '  ; two', '\t', 'c = 1', '\t# three'],
      ['m'],
    ],
    [
      'blanks in a header, and a comment behind it',
      ['[ \ta]', '[b] \t', '[c];x', '[d]  # x'],
      ['a', 'b', 'c', 'd'],
    ],
    ['blanks before the end of a name, which belong to it', ['[a ]', 'c = 1', '[a]', 'c = 2'], ['a', 'a ']],
    [
      'names of any characters',
      ['[a.b/c d]', '[*x]', '[ü–漢]', '[x[y]', '[#z]', '[;]', '["q"]'],
      ['"q"', '#z', '*x', ';', 'a.b/c d', 'x[y', 'ü–漢'],
    ],
    ['sections without a key', ['[a]', '[b]', '# nothing'], ['a', 'b']],
    [
      'a repeated header, which starts its section over',
      ['[m]', 'c = 1', 'temp = 1', '[n]', '[m]', 'c = 2'],
      ['m', 'n'],
    ],
    ['keys before the first header, which make a model', ['c = 1', '[m]'], ['default', 'm']],
    ['a version before the first header, which makes none', ['version = 1', '[m]'], ['m']],
    ['[default], which makes a model', ['[default]', 'c = 1', '[m]'], ['default', 'm']],
    ['[default] without an option, which makes none', ['[default]', 'version = 1', '[m]'], ['m']],
    ['[default], which starts over what stands before', ['c = 1', '[default]', 'temp = 1'], ['default']],
    [
      'a version in any section, which means nothing',
      ['[*]', 'version = 1', '[m]', 'version = 2', 'c = 1'],
      ['m'],
    ],
    section('blanks around = and in front of a value', 'c=1', 'temp \t= \t 0.5', 'top-k =2'),
    section('blanks behind a value, which go', 'grammar = a b  \t', 'tags=\t'),
    section(
      'values cut at ; and #',
      'grammar = a;b',
      'json-schema = {"c":"#fff"}',
      'tags = a #b',
      'c = 1# x',
    ),
    section(
      'quotes, = and [ in values, which stay',
      'grammar = "a = [b]"',
      "tags = 'x'",
      'json-schema = a=b==c',
    ),
    section('letters beyond ASCII', 'grammar = grün 漢字', 'tags = ä, 漢'),
    section('empty values', 'c =', 'grammar=', 'slots =', 'metrics ='),
    section('a repeated key, of which the last counts', 'c = 1', 'c = 2', 'c = 3'),
    section(
      'spellings of one option, of which the last by its bytes counts',
      'n-gpu-layers = 1',
      'ngl = 2',
      'gpu-layers = 3',
      'LLAMA_ARG_N_GPU_LAYERS = 4',
    ),
    section(
      'a switch and its negation, in whatever order',
      'slots = on',
      'no-slots = on',
      'no-jinja = off',
      'jinja = off',
    ),
  ])('%s', async (_, text, ids) => {
    await expectRow(text, ids);
  });

  it.each([
    'on',
    'enabled',
    'true',
    '1',
    'off',
    'disabled',
    'false',
    '0',
    'yes',
    'no',
    'True',
    'OFF',
    '2',
    '',
    'a b',
  ])('switches with the word %j, with a negation and without one', async (word) => {
    await expectRow(
      [
        '[positive]',
        `slots = ${word}`,
        `kvo = ${word}`,
        '[negative]',
        `no-slots = ${word}`,
        `nkvo = ${word}`,
        `no-mmproj = ${word}`,
        '[without]',
        `metrics = ${word}`,
        `no-host = ${word}`,
        '[environment]',
        `LLAMA_ARG_ENDPOINT_SLOTS = ${word}`,
        `LLAMA_ARG_NO_KV_OFFLOAD = ${word}`,
        '[router]',
        'model = m',
        `dedup-cache-models = ${word}`,
        'load-on-startup = off',
        `stop-timeout = ${word}`,
      ],
      ['environment', 'negative', 'positive', 'router', 'without'],
    );
  });

  it.each<[string, string]>([
    ['u/r:ud-q4_k_xl', 'u/r:Q4_K_XL'],
    ['u/r:Q4_K_M', 'u/r:Q4_K_M'],
    ['u/r:q8_0', 'u/r:Q8_0'],
    ['foo:bar', 'foo:BAR'],
    ['a:b:c-d', 'a:b:D'],
    ['a:b.c.d', 'a:D'],
    ['a:', 'a:'],
    ['a:b-', 'a:B-'],
    ['a:b c-d', 'a:D'],
    ['a:ü-x', 'a:X'],
    ['a-b.c', 'a-b.c'],
  ])('the id of [%s] is %s', async (written, id) => {
    await expectRow([`[${written}]`, 'c = 1'], [id]);
  });

  it('of two names that become one id the last by its bytes counts', async () => {
    await expectRow(
      ['[u/r:x-q4_0]', 'c = 1', '[u/r:Q4_0]', 'temp = 1', '[u/r:q4_0]', 'top-k = 1'],
      ['u/r:Q4_0'],
    );
  });

  it('the file may be empty of models and hold [*] alone', async () => {
    await home.write('models/alpha.gguf');
    const args = await presetArgs(
      ['[*]', 'c = 1', 'tags = all', 'stop-timeout = 2'],
      '--models-dir',
      home.path('models'),
    );
    await expectTheSame(home, { args }, ['alpha']);
  });
});

describe('what a section cannot set is the same', () => {
  it.each([
    'api-key = k',
    'LLAMA_API_KEY = k',
    'api-key-file = f',
    'log-file = f',
    'ssl-key-file = f',
    'ssl-cert-file = f',
    'models-dir = d',
    'models-max = 1',
    'models-preset = p',
    'models-autoload = off',
    'no-models-autoload = on',
    'host = 0.0.0.0',
    'port = 1',
  ])('%s, for one model or for all', async (line) => {
    await expectRow(['[m]', 'c = 1', line], ['m']);
    await expectRow(['[*]', line, '[m]', 'c = 1'], ['m']);
  });
});

describe('the merge of what is said of a model is the same', () => {
  beforeEach(async () => {
    for (const file of [
      'plain.gguf',
      'named.gguf',
      'eyes/model.gguf',
      'eyes/mmproj.gguf',
      'eyes/mtp-draft.gguf',
    ]) {
      await home.write(`models/${file}`);
    }
    await home.writeHub('org/cached', 'm-Q4_K_M.gguf');
    await home.writeHub('org/other', 'm-Q8_0.gguf');
  });

  const IDS = ['eyes', 'named', 'org/cached:Q4_K_M', 'org/other:Q8_0', 'plain'];

  it.each<[title: string, lines: string[], args?: string[], ids?: string[]]>([
    ['of no presets', []],
    ['of a section that names one found in the directory', ['[named]', 'c = 1', 'alias = other']],
    [
      'of a section that names one found in the cache, which is no longer removable',
      ['[org/cached:ud-q4_k_m]', 'c = 1'],
    ],
    [
      'of a section of its own',
      ['[own]', 'hf-repo = org/other:Q8_0'],
      [],
      ['eyes', 'named', 'org/cached:Q4_K_M', 'org/other:Q8_0', 'own', 'plain'],
    ],
    ['of [*], without a section and with one', ['[*]', 'c = 1', 'temp = 1', '[named]', 'c = 2']],
    [
      'of [*] with what a scan finds: the scan counts without a section, [*] with one',
      [
        '[*]',
        'model = /x',
        'mmproj = /y',
        'md = /z',
        'hf-repo = u/r',
        '[eyes]',
        '[org/cached:Q4_K_M]',
        'c = 1',
      ],
    ],
    ['of a section with what a scan finds', ['[eyes]', 'mmproj = /y', 'no-mmproj = 1', 'model = /x']],
    [
      'of the command line with everything',
      ['[*]', 'c = 1', 'tags = all', 'slots = on', '[named]', 'ctx-size = 2', 'metrics = off', 'tags = one'],
      ['-c', '3', '--tags', 'cli', '--no-slots', '--metrics', '-md', '/cli', '--offline'],
    ],
    [
      'of names: those of the command line are for none',
      ['[*]', 'jinja = off', '[named]', 'alias = x, y', 'model = /m'],
      ['--alias', 'cli', '--mmproj', '/cli'],
    ],
    [
      'of a negation on the command line with a switch of a section',
      ['[*]', 'no-warmup = on', '[named]', 'warmup = off'],
      ['--warmup'],
    ],
  ])('%s', async (_, lines, more = [], ids = IDS) => {
    const args = await presetArgs(lines, '--models-dir', home.path('models'), ...more);
    await expectTheSame(home, { args }, ids);
  });

  it('of a section that hides the cached model it duplicates', async () => {
    const args = await presetArgs(['[own]', 'hf-repo = org/cached:Q4_K_M', 'dedup-cache-models = on']);
    await expectTheSame(home, { args }, ['org/other:Q8_0', 'own']);
  });
});

it('presets.example.ini is read the same', async () => {
  const example = await readFile(new URL('../../presets.example.ini', import.meta.url), 'utf8');
  // A load that begins at once would show its port in the arguments.
  const args = await presetArgs(example.replaceAll('load-on-startup = true', 'load-on-startup = false'));
  const native = await nativeModels(home, { args });
  expect(native.length).toBeGreaterThan(3);
  expect(await ourModels(home, { args })).toEqual(native);
});

describe('what keeps the native router from starting costs one model here', () => {
  /** What is listed here, with what is wrong with it. */
  async function ourProblems(args: readonly string[]) {
    const { models, warnings } = await ourCatalog(home, { args });
    return { problems: new Map(models.map(({ id, problem }) => [id, problem])), warnings };
  }

  it.each<[string, string, RegExp]>([
    [
      'an unknown option',
      'ctx-sise = 1',
      /presets\.ini:4: unknown option 'ctx-sise', did you mean 'ctx-size'/,
    ],
    [
      'an option with _ for -',
      'ctx_size = 1',
      /presets\.ini:4: unknown option 'ctx_size', did you mean 'ctx-size'/,
    ],
    ['an indented key', ' c = 1', /presets\.ini:4: 'c = 1' is indented/],
    ['dashes before a key', '--ctx-size = 1', /presets\.ini:4: .*leading dashes/],
    ['a line without =', 'ctx-size', /presets\.ini:4: .*'ctx-size'/],
    ['a key of other characters', 'c? = 1', /presets\.ini:4: 'c\?' is no key/],
  ])(`${intended('one-bad-section')}: %s`, async (_, line, problem) => {
    const args = await presetArgs(['[good]', 'model = m', '[bad]', line, 'model = m']);
    expect(await nativeRefusal(home, { args })).toContain('failed to initialize router models');
    const { problems } = await ourProblems(args);
    expect(problems.get('bad')).toMatch(problem);
    expect(problems.get('good')).not.toMatch(/presets\.ini/);
  });

  it(`${intended('one-bad-section')}: bytes that are no UTF-8`, async () => {
    const text = Buffer.from('[good]\nmodel = m\n[bad]\ntags = \xff\n', 'latin1');
    const args = ['--models-preset', await home.write('presets.ini', text)];
    expect(await nativeRefusal(home, { args })).toContain('failed to parse server config file');
    const { problems } = await ourProblems(args);
    expect(problems.get('bad')).toMatch(/presets\.ini:4: is not valid UTF-8/);
    expect([...problems.keys()]).toEqual(['bad', 'good']);
  });

  it(`${intended('one-bad-section')}: in [*]`, async () => {
    const args = await presetArgs(['[*]', 'nonsense = 1', 'c = 1', '[good]', 'model = m']);
    expect(await nativeRefusal(home, { args })).toContain("option 'nonsense' not recognized in preset '*'");
    const { problems, warnings } = await ourProblems(args);
    expect(warnings).toContainEqual(expect.stringMatching(/presets\.ini:2: unknown option 'nonsense'/));
    expect(problems.get('good')).not.toMatch(/presets\.ini/);
  });

  it(intended('byte-order-mark'), async () => {
    const args = await presetArgs('\u{FEFF}[m]\nmodel = m\n');
    expect(await nativeRefusal(home, { args })).toContain('failed to parse server config file');
    const { problems, warnings } = await ourProblems(args);
    expect([...problems.keys()]).toEqual(['m']);
    expect(warnings).toContainEqual(expect.stringMatching(/presets\.ini:1: .*byte order mark/));
  });

  it.each([
    ['an id', ['[a]', 'model = m', '[b]', 'model = m', 'alias = a, c'], [[], ['c']]],
    [
      'an alias',
      ['[a]', 'model = m', 'alias = x, y', '[b]', 'model = m', 'alias = x, z'],
      [['x', 'y'], ['z']],
    ],
  ])(`${intended('alias-conflict')}: %s`, async (_, lines, aliases) => {
    const args = await presetArgs(lines);
    expect(await nativeRefusal(home, { args })).toContain('conflicts with');
    expect((await ourModels(home, { args })).map((model) => model.aliases)).toEqual(aliases);
    expect((await ourProblems(args)).warnings).not.toEqual([]);
  });

  it(intended('two-values'), async () => {
    const args = await presetArgs(['[m]', 'model = m', 'control-vector-layer-range = 1 20']);
    expect(await nativeRefusal(home, { args })).toContain('has two values, which is not supported yet');
    const [model] = await ourModels(home, { args });
    expect(model?.status.args.join(' ')).toContain(' --control-vector-layer-range 1 20 ');
  });

  it(intended('missing-model'), async () => {
    const args = await presetArgs(['[m]', 'c = 1']);
    expect((await nativeModels(home, { args })).map(({ id }) => id)).toEqual(['m']);
    const { problems } = await ourProblems(args);
    expect(problems.get('m')).toMatch(/model/);
  });
});
