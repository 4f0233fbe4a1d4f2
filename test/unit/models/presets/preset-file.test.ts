import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PRESET_ONLY_KEYS } from '../../../../src/config/option-table.js';
import { parsePreset, readPreset, type Preset } from '../../../../src/models/presets/preset-file.js';
import { readPresetLines } from '../../../../src/models/presets/preset-lines.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { byKey, table } from '../help-table.js';

function parse(...lines: (string | Uint8Array)[]): Preset {
  const bytes = lines.flatMap((line) => [Buffer.from(line), Buffer.from('\n')]);
  return parsePreset(Buffer.concat(bytes), 'p.ini', table);
}

/** The values of the only section, which must be without problems. */
function valuesOf(...body: string[]): Record<string, string> {
  const [section, ...others] = parse('[m]', ...body).sections;
  expect(section?.problems).toEqual([]);
  expect(others).toEqual([]);
  return byKey(section?.values ?? new Map());
}

function problemsOf(...body: (string | Uint8Array)[]): readonly string[] | undefined {
  return parse('[m]', 'model = a.gguf', ...body).sections.find(({ name }) => name === 'm')?.problems;
}

describe('sections', () => {
  it('keep names with dots, slashes, blanks, quotes and trailing blanks as one name', () => {
    const names = ['Qwen3.5-8B.Q4', 'org/repo.name', 'a b', '"q"', 'trailing ', '__proto__', 'constructor'];
    const { sections } = parse(...names.flatMap((name) => [`[ ${name}]`, 'c = 1']));
    expect(sections.map(({ name }) => name)).toEqual(names);
    expect(sections.every(({ values }) => byKey(values)['ctx-size'] === '1')).toBe(true);
  });

  it.each([
    ['u/r:ud-q4_k_xl', 'u/r:Q4_K_XL'],
    ['u/r:q8_0', 'u/r:Q8_0'],
    ['foo:bar', 'foo:BAR'],
    ['a:b:c.d', 'a:b:D'],
    ['no-colon', 'no-colon'],
    ['ends:', 'ends:'],
  ])('named %s are the model %s: what follows the last colon is a quantisation tag', (written, id) => {
    expect(parse(`[${written}]`, 'c = 1').sections.map(({ name }) => name)).toEqual([id]);
  });

  it.each([
    ['u/r:q8_0', 'u/r:Q8_0'],
    ['llama3:8b', 'llama3:8B'],
  ])('named %s become %s, and how to keep the name is told', (written, id) => {
    expect(parse(`[${written}]`).warnings).toEqual([
      `p.ini:1: section '${written}' is the model '${id}', because what follows the last colon is a quantisation tag; ` +
        `write '[${id}]', and 'alias = ${written}' if requests name it so`,
    ]);
    expect(parse(`[${id}]`).warnings).toEqual([]);
  });

  it.each([
    ['[m ]', 'm ', '[m]'],
    ['[ m\t]', 'm\t', '[m]'],
    ['[* ]', '* ', '[*]'],
  ])('written %j have a blank in their name %j, which is told', (header, name, meant) => {
    const { sections, warnings } = parse(header, 'c = 1');
    expect(sections.map((section) => section.name)).toEqual([name]);
    expect(warnings).toEqual([`p.ini:1: the name of section '${name}' ends in a blank; write '${meant}'`]);
  });

  it('that spell one id differently: the one whose name sorts last counts, and the other is told', () => {
    const { sections, warnings } = parse('[u/r:q8_0]', 'c = 1', '[u/r:Q8_0]', 'temp = 0');
    expect(sections.map(({ name, line, values }) => [name, line, byKey(values)])).toEqual([
      ['u/r:Q8_0', 1, { 'ctx-size': '1' }],
    ]);
    expect(warnings).toEqual([
      expect.stringContaining("p.ini:1: section 'u/r:q8_0' is the model 'u/r:Q8_0'"),
      "p.ini:3: section 'u/r:Q8_0' has no effect: 'u/r:q8_0' in line 1 is the same model, and of several spellings " +
        'the one that sorts last counts',
    ]);
  });

  it('end at \\n, \\r\\n and \\r alike, and the last line needs no end', () => {
    const text = '[a]\r\nc = 1\r[b]\n\rc = 2';
    const { sections } = parsePreset(Buffer.from(text), 'p.ini', table);
    expect(sections.map(({ name, line, values }) => [name, line, byKey(values)])).toEqual([
      ['a', 1, { 'ctx-size': '1' }],
      ['b', 3, { 'ctx-size': '2' }],
    ]);
  });

  it('without a key are models still', () => {
    expect(parse('[bare]').sections).toEqual([
      { name: 'bare', line: 1, values: new Map(), problems: [], stale: undefined },
    ]);
  });

  it('that are repeated discard the earlier one, with a warning', () => {
    const { sections, warnings } = parse('[m]', 'c = 1', 'temp = 0', '[m]', 'c = 2');
    expect(sections.map(({ values }) => byKey(values))).toEqual([{ 'ctx-size': '2' }]);
    expect(warnings).toEqual(["p.ini:4: section 'm' is repeated and replaces the one in line 1"]);
  });

  it('that are repeated do not fail by the faults of the earlier one, which are told', () => {
    const { sections, warnings } = parse('[m]', 'nonsense', '[m]', 'c = 2');
    expect(sections.map(({ problems }) => problems)).toEqual([[]]);
    expect(warnings).toEqual([
      "p.ini:2: is neither 'key = value' nor '[section]' nor a comment: 'nonsense'",
      "p.ini:3: section 'm' is repeated and replaces the one in line 1",
    ]);
  });
});

describe('keys before the first header', () => {
  it('make a model called default, which is told', () => {
    const { sections, warnings } = parse('', 'c = 1');
    expect(sections).toMatchObject([{ name: 'default', line: 1 }]);
    expect(warnings).toEqual([
      "p.ini:1: what stands before the first section makes a model called 'default'; move what all models share " +
        "below '[*]', and the rest below its model",
    ]);
  });

  it('make no model if only the version is there, and that needs no word', () => {
    const { sections, warnings } = parse('version = 1', '[default]', 'version = 2');
    expect({ sections, warnings }).toEqual({ sections: [], warnings: [] });
  });

  it('are replaced by a section called default, even by one without a key', () => {
    expect(parse('c = 1', '[default]', 'temp = 0').sections.map(({ values }) => byKey(values))).toEqual([
      { temperature: '0' },
    ]);
    const { sections, warnings } = parse('c = 1', '[default]');
    expect(sections).toEqual([]);
    expect(warnings).toEqual(["p.ini:2: section 'default' replaces what stands before the first section"]);
  });

  it('that are faults are told, and make no model of their own', () => {
    const { sections, warnings } = parse('hello', '[m]', 'c = 1');
    expect(sections.map(({ name }) => name)).toEqual(['m']);
    expect(warnings).toEqual(["p.ini:1: is neither 'key = value' nor '[section]' nor a comment: 'hello'"]);
  });
});

it('[default] is a model, which is told, because it looks like what all models share', () => {
  const { sections, global, warnings } = parse('[default]', 'c = 1', '[m]');
  expect(sections.map(({ name }) => name)).toEqual(['default', 'm']);
  expect(global.size).toBe(0);
  expect(warnings).toEqual([
    "p.ini:1: section 'default' is a model, and gives nothing to the others; what all models share stands below " +
      "'[*]', and a model gets this name without a warning by 'alias = default'",
  ]);
});

describe('[*]', () => {
  it('is the layer below all models and no model itself', () => {
    const { sections, global } = parse('[*]', 'c = 1', '[m]');
    expect(byKey(global)).toEqual({ 'ctx-size': '1' });
    expect(sections.map(({ name }) => name)).toEqual(['m']);
  });

  it('loses its faulty lines, with a warning each, and keeps the rest', () => {
    const { global, globalProblems, warnings } = parse('[*]', 'ctx-szie = 1', '--temp = 1', 'batch-size = 2');
    expect(byKey(global)).toEqual({ 'batch-size': '2' });
    expect(warnings).toEqual([
      "p.ini:2: unknown option 'ctx-szie', did you mean 'ctx-size'?",
      "p.ini:3: '--temp' has leading dashes; write 'temp = value'",
    ]);
    expect(globalProblems).toEqual(warnings);
  });

  it('that is repeated discards the earlier one, as any section does', () => {
    const { global, globalProblems, warnings } = parse('[*]', 'c = 1', 'bogus', '[*]', 'temp = 0');
    expect(byKey(global)).toEqual({ temperature: '0' });
    expect(globalProblems).toEqual([]);
    expect(warnings).toHaveLength(2);
  });
});

describe('keys', () => {
  it('are any name of an option: long, short, negative, environment', () => {
    expect(
      valuesOf('c = 1', 'parallel=2', 'LLAMA_ARG_THREADS =3', 'nkvo = true', 'stop-timeout = 4'),
    ).toEqual({
      'ctx-size': '1',
      parallel: '2',
      threads: '3',
      'kv-offload': 'false',
      'stop-timeout': '4',
    });
  });

  it('that repeat one option: the spelling that sorts last counts, and the others are told', () => {
    const lines = ['ctx-size = 1', 'c = 2', 'LLAMA_ARG_CTX_SIZE = 3'];
    expect(valuesOf(...lines)).toEqual({ 'ctx-size': '1' });
    expect(parse('[m]', ...lines).warnings).toEqual([
      "p.ini:3: 'c' has no effect: 'ctx-size' in line 2 sets the same option, and of several spellings the one " +
        'that sorts last counts',
      "p.ini:4: 'LLAMA_ARG_CTX_SIZE' has no effect: 'ctx-size' in line 2 sets the same option, and of several " +
        'spellings the one that sorts last counts',
    ]);
  });

  it('that repeat one option in the order in which they sort: only that they do is told', () => {
    expect(parse('[m]', 'c = 1', 'ctx-size = 2').warnings).toEqual([
      "p.ini:2: 'c' has no effect: 'ctx-size' in line 3 sets the same option",
    ]);
  });

  it('that are written twice: the last line counts, and the first is told', () => {
    expect(valuesOf('c = 1', 'c = 2')).toEqual({ 'ctx-size': '2' });
    expect(parse('[m]', 'c = 1', 'c = 2').warnings).toEqual([
      "p.ini:2: 'c' has no effect: 'c' in line 3 sets the same option",
    ]);
  });

  it.each([
    ['true', 'false'],
    ['on', 'false'],
    ['1', 'false'],
    ['false', 'true'],
    ['0', 'true'],
  ])('that are negative, with %s, mean %s', (written, meant) => {
    expect(valuesOf(`no-slots = ${written}`)).toEqual({ slots: meant });
  });

  it.each([
    ['LLAMA_ARG_NO_ENDPOINT_SLOTS = true', 'true', 'on', 'slots = false'],
    ['LLAMA_ARG_NO_ENDPOINT_SLOTS = 0', '0', 'off', 'slots = true'],
  ])(
    'that are the negated name of a variable do not negate, which is told: %s',
    (line, value, meaning, remedy) => {
      expect(valuesOf(line)).toEqual({ slots: value });
      expect(parse('[m]', line).warnings).toEqual([
        `p.ini:2: 'LLAMA_ARG_NO_ENDPOINT_SLOTS' does not negate in a presets file: it turns 'slots' ${meaning}; ` +
          `write '${remedy}' for the opposite`,
      ]);
    },
  );

  it('called no-... that are no negation mean what they say', () => {
    expect(valuesOf('no-host = true', 'LLAMA_ARG_NO_HOST = false')).toEqual({ 'no-host': 'true' });
    expect(parse('[m]', 'LLAMA_ARG_NO_HOST = true').warnings).toEqual([]);
  });

  it('called version mean nothing in a section, which is told', () => {
    expect(valuesOf('version = 2', 'c = 1')).toEqual({ 'ctx-size': '1' });
    expect(parse('[m]', 'version = 2').warnings).toEqual([
      "p.ini:2: 'version' means nothing in a section; write it before the first one",
    ]);
  });

  it('of options that llama-server has no more fail their model, and what to use instead is told', () => {
    expect(problemsOf('draft-max = 16')).toEqual([
      "p.ini:3: 'draft-max' has been removed from llama-server: use spec-draft-n-max or spec-ngram-mod-n-max",
    ]);
  });

  it.each(['ctx_size', 'CTX-SIZE', 'llama_arg_ctx_size'])(
    'match exactly: %s is unknown, and the right one is suggested',
    (key) => {
      expect(problemsOf(`${key} = 1`)?.[0]).toMatch(
        new RegExp(`^p.ini:3: unknown option '${key}', did you mean '(ctx-size|LLAMA_ARG_CTX_SIZE)'\\?$`),
      );
    },
  );

  it('that nothing knows fail their model and no other, and suggest what is near', () => {
    const { sections } = parse('[bad]', 'ctxsize = 1', 'c = 2', '[good]', 'c = 1');
    expect(sections.map(({ name, problems }) => [name, problems])).toEqual([
      ['bad', ["p.ini:2: unknown option 'ctxsize', did you mean 'ctx-size'?"]],
      ['good', []],
    ]);
  });

  it('that nothing knows are told in each line that has them', () => {
    expect(problemsOf('xyzzy = 1', 'c = 1', 'xyzzy = 2')).toEqual([
      "p.ini:3: unknown option 'xyzzy'",
      "p.ini:5: unknown option 'xyzzy'",
    ]);
  });

  it.each(['__proto__', 'constructor', 'toString'])('named %s are unknown like any other', (key) => {
    expect(problemsOf(`${key} = 1`)).toEqual([expect.stringContaining(`p.ini:3: unknown option '${key}'`)]);
  });

  it.each([
    'api-key',
    'LLAMA_API_KEY',
    'api-key-file',
    'log-file',
    'models-dir',
    'models-max',
    'models-preset',
    'no-models-autoload',
    'host',
    'port',
    'ssl-key-file',
    'ssl-cert-file',
  ])('of the router (%s) are ignored, with a warning', (key) => {
    const { sections, warnings } = parse('[m]', `${key} = x`);
    expect(sections[0]).toMatchObject({ values: new Map(), problems: [] });
    expect(warnings).toEqual([`p.ini:2: '${key}' is the router's own and is ignored here`]);
  });

  it('that take two values need both', () => {
    expect(valuesOf('control-vector-layer-range = 1 4')).toEqual({ 'control-vector-layer-range': '1 4' });
    expect(problemsOf('control-vector-layer-range = 1')).toEqual([
      "p.ini:3: 'control-vector-layer-range' takes two values with a blank between them, not '1'",
    ]);
  });
});

describe('values', () => {
  it.each([
    '"quoted"',
    "'single'",
    '"open',
    'true',
    'null',
    '007',
    'C:\\models\\new',
    '\\"',
    'a=b',
    '[x]',
    '{"enable_thinking": false, "n": [1, 2]}',
    'line\u2028separator',
    'non-breaking\u00a0blank\u00a0',
    'grüße 🦙',
    '',
  ])('are literal: %j', (value) => {
    expect(valuesOf(`chat-template = ${value}`)).toEqual({ 'chat-template': value });
  });

  it('of any text without comment marks come through as they are', () => {
    const text = fc
      .string({ unit: 'grapheme' })
      .filter((value) => !/[;#\r\n]/.test(value) && !/^[ \t]|[ \t]$/.test(value));
    fc.assert(
      fc.property(text, (value) => {
        expect(valuesOf(`chat-template = ${value}`)).toEqual({ 'chat-template': value });
      }),
    );
  });

  it('lose blanks around them, and a comment after them, without a word', () => {
    const { sections, warnings } = parse(
      '[m] ; one',
      'c =\t512 \t# two',
      '  ; three',
      'temp=1 ; {"',
      '# [four]',
    );
    expect(sections.map(({ values }) => byKey(values))).toEqual([{ 'ctx-size': '512', temperature: '1' }]);
    expect(warnings).toEqual([]);
  });

  it.each([
    ['{"color": "#fff"}', '{"color": "', '#fff"}'],
    ['#fff', '', '#fff'],
    ['a;b', 'a', ';b'],
    ['{"a": 1} {"b": 2 ; 3}', '{"a": 1} {"b": 2', '; 3}'],
    ['"one # two"', '"one', '# two"'],
  ])(
    'that a comment mark cuts in the middle are cut, and what is lost is told: %s',
    (written, kept, lost) => {
      const { sections, warnings } = parse('[m]', `chat-template = ${written}`);
      expect(sections.map(({ values }) => byKey(values))).toEqual([{ 'chat-template': kept }]);
      expect(warnings).toEqual([
        `p.ini:2: 'chat-template' is cut to '${kept}': '${lost}' is lost, because ';' and '#' begin a comment ` +
          'wherever they stand',
      ]);
    },
  );

  it.each([
    ['jinja = yes', "'yes' is neither true nor false; 'jinja' is taken to be on"],
    ['jinja =', "'' is neither true nor false; 'jinja' is taken to be on"],
    ['no-slots = yes', "'yes' is neither true nor false; 'slots' is taken to be on"],
    ['load-on-startup = yes', "'yes' is neither true nor false; 'load-on-startup' is taken to be off"],
    ['dedup-cache-models = yes', "'yes' is neither true nor false; 'dedup-cache-models' is taken to be off"],
    ['stop-timeout = soon', "'stop-timeout = soon' is no number of seconds; 10 are used"],
    ['stop-timeout =', "'stop-timeout = ' is no number of seconds; 10 are used"],
    ['stop-timeout = -1', "'stop-timeout = -1' is no number of seconds; 10 are used"],
    ['stop-timeout = 30s', "'stop-timeout = 30s' is taken to be 30 whole seconds"],
    ['stop-timeout = 2.5', "'stop-timeout = 2.5' is taken to be 2 whole seconds"],
    [
      'stop-timeout = 9999999',
      "'stop-timeout = 9999999' is longer than a timer can wait; 2147483 seconds are used",
    ],
  ])('that do not mean what they seem to are told: %s', (line, warning) => {
    expect(parse('[m]', line).warnings).toEqual([`p.ini:2: ${warning}`]);
  });

  it.each(['jinja = off', 'load-on-startup = 1', 'dedup-cache-models = true', 'stop-timeout = 0'])(
    'that mean what they say need no word: %s',
    (line) => {
      expect(parse('[m]', line).warnings).toEqual([]);
    },
  );

  it('of a switch are kept as they are: what is not false turns it on', () => {
    expect(valuesOf('jinja = no', 'cpu-moe =', 'swa-full = false')).toEqual({
      jinja: 'no',
      'cpu-moe': '',
      'swa-full': 'false',
    });
  });
});

describe('a line at fault fails the section it stands in, with line and remedy', () => {
  it.each([
    ['  c = 1', "'c = 1' is indented; begin the key in the first column"],
    ['--ctx-size = 1', "'--ctx-size' has leading dashes; write 'ctx-size = value'"],
    ['-c 1', "'-c' has leading dashes; write 'c = value'"],
    ['just words', "is neither 'key = value' nor '[section]' nor a comment: 'just words'"],
    ['ctx size = 1', "'ctx size' is no key; keys are letters, digits, '_', '.' and '-'"],
    ['1c = 1', "'1c' is no key; keys are letters, digits, '_', '.' and '-'"],
    [' = 1', "'= 1' is indented; begin the key in the first column"],
  ])('%j', (line, problem) => {
    const { sections } = parse('[m]', 'c = 8', line, '[other]', 'c = 1');
    expect(sections.map(({ problems }) => problems)).toEqual([[`p.ini:3: ${problem}`], []]);
  });

  it.each(['chat-template = a\0b', '\0'])('a NUL byte, which no argument can hold: %j', (line) => {
    expect(problemsOf(line)).toEqual(['p.ini:3: holds a NUL byte; save the file as plain text']);
  });

  it('a byte that is not UTF-8', () => {
    const line = Buffer.from([...Buffer.from('chat-template = '), 0xff]);
    expect(problemsOf(line)).toEqual(['p.ini:3: is not valid UTF-8; save the file as UTF-8']);
  });

  it.each([
    ['[next', 'next', "is no section header: '[next'; write '[next]' and nothing after it"],
    ['[next] junk', 'next', "is no section header: '[next] junk'; write '[next]' and nothing after it"],
    [' [next]', 'next', 'the section header is indented; begin it in the first column'],
  ])('a bad header %j: its own section fails, and the one above keeps its keys', (header, name, problem) => {
    const { sections } = parse('[m]', 'c = 8', header, 'c = 1');
    expect(sections.map((section) => [section.name, byKey(section.values), section.problems])).toEqual([
      ['m', { 'ctx-size': '8' }, []],
      [name, { 'ctx-size': '1' }, [`p.ini:3: ${problem}`]],
    ]);
  });

  it.each(['[]', '[ ]', '[\t', ' []'])(
    'a header without a name %j: nothing can be listed, so it is a warning, and its keys are nobody’s',
    (header) => {
      const { sections, warnings } = parse('[m]', 'c = 8', header, 'c = 1');
      expect(sections.map(({ name, values }) => [name, byKey(values)])).toEqual([['m', { 'ctx-size': '8' }]]);
      expect(warnings).toEqual([expect.stringMatching(/^p\.ini:3: (is no|the) section header/)]);
    },
  );

  it('several of them, all told in the order of the lines', () => {
    expect(problemsOf('zzzzzz = 1', 'words', 'yyyyyy = 1')?.map((problem) => problem.split(': ')[0])).toEqual(
      ['p.ini:3', 'p.ini:4', 'p.ini:5'],
    );
  });
});

describe('a file', () => {
  it('with a byte order mark is read, with a warning', () => {
    const { sections, warnings } = parse('\u{FEFF}[m]', 'c = 1');
    expect(sections.map(({ name }) => name)).toEqual(['m']);
    expect(warnings).toEqual([
      'p.ini:1: starts with a byte order mark, which llama-server refuses; save the file without it',
    ]);
  });

  it('of any bytes is read without throwing', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(parsePreset(bytes, 'p.ini', table).sections.length).toBeLessThanOrEqual(bytes.length);
      }),
    );
  });

  it('that is missing is an error that names option and path', async () => {
    const path = join(tempDir(), 'missing.ini');
    await expect(readPreset(path, table)).rejects.toThrow(`--models-preset '${path}' does not exist`);
  });

  it('is read from disk', async () => {
    const path = join(tempDir(), 'presets.ini');
    await writeFile(path, '[m]\nbogus\n');
    const { sections } = await readPreset(path, table);
    expect(sections[0]?.problems[0]).toMatch(`${path}:2: `);
  });
});

describe('presets.example.ini', () => {
  const bytes = readFileSync(new URL('../../../../presets.example.ini', import.meta.url));
  const entries = readPresetLines(bytes).blocks.flatMap((block) => block.entries);
  const shown = new Set(entries.map(({ key }) => table.findKey(key)?.option.key ?? key));

  it('is without a fault and without a warning', () => {
    const { sections, globalProblems, warnings } = parsePreset(bytes, 'presets.example.ini', table);
    expect(sections.length).toBeGreaterThan(10);
    expect(sections.flatMap(({ problems }) => problems)).toEqual([]);
    expect(globalProblems).toEqual([]);
    expect(warnings).toEqual([]);
  });

  it('has only keys that are options of llama-server', () => {
    const unknown = entries.map(({ key }) => key).filter((key) => table.findKey(key) === undefined);
    expect(unknown).toEqual([]);
  });

  it('shows every key that only a presets file has', () => {
    expect(PRESET_ONLY_KEYS.map(({ key }) => key).filter((key) => !shown.has(key))).toEqual([]);
  });

  it.each([
    ['model', 'hf-repo', 'hf-file', 'mmproj', 'model-draft', 'hf-repo-draft', 'lora', 'lora-scaled'],
    ['alias', 'tags', 'offline', 'sleep-idle-seconds', 'ctx-size', 'parallel', 'n-predict'],
    ['n-gpu-layers', 'tensor-split', 'split-mode', 'n-cpu-moe', 'cache-type-k', 'cache-type-v', 'flash-attn'],
    [
      'embeddings',
      'reranking',
      'pooling',
      'chat-template-file',
      'chat-template-kwargs',
      'reasoning',
      'jinja',
    ],
    ['slot-save-path', 'cache-ram', 'json-schema', 'grammar-file', 'spec-type', 'temperature', 'top-p'],
  ])('shows what people set per model: %s, %s, %s, %s, %s, %s …', (...keys) => {
    expect(keys.filter((key) => table.findKey(key) === undefined)).toEqual([]);
    expect(keys.filter((key) => !shown.has(key))).toEqual([]);
  });
});
