import { mkdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeEach, describe, expect, it } from 'vitest';
import { checkPreset, renderReport, type PresetReport } from '../../../../src/models/presets/check-preset.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { table } from '../help-table.js';
import { writeFile, writeLink, writeRepo } from '../tree.js';

let directory: string;

beforeEach(() => {
  directory = tempDir();
});

/** Checks a file of these lines; models are looked for in a cache and a models directory of the test's own. */
function check(...lines: string[]): Promise<PresetReport> {
  return checkFile(writeFile(join(directory, 'p.ini'), lines.join('\n')));
}

function checkFile(file: string): Promise<PresetReport> {
  const models = join(directory, 'models');
  mkdirSync(models, { recursive: true });
  const env = { HOME: directory, LLAMA_CACHE: join(directory, 'cache') };
  return checkPreset({ file, modelsDirs: [models], env, table });
}

const path = (name: string): string => join(directory, name);
const gguf = (name: string): string => writeFile(path(name));

describe('a file in which nothing is wrong', () => {
  it('is ok, whatever its sections name: files, models of the cache and of the directory, repositories', async () => {
    writeRepo(path('cache'), 'org/cached', ['m-Q4_K_M.gguf']);
    gguf('models/local.gguf');
    const report = await check(
      'version = 1',
      '[*]',
      'ctx-size = 4096 ; tokens',
      `chat-template-file = ${writeFile(path('chat.jinja'), '{{ messages }}')}`,
      '[one]',
      `model = ${gguf('one.gguf')}`,
      'alias = uno, one',
      `lora = ${gguf('a.gguf')},"${gguf('b,c.gguf')}"`,
      `lora-scaled = ${gguf('a.gguf')}:0.5`,
      `slot-save-path = ${directory}`,
      '[one-again]',
      `model = ${path('one.gguf')}`,
      '[big]',
      `model = ${gguf('big-00001-of-00002.gguf')}`,
      `mmproj = ${writeLink(path('mmproj.gguf'), gguf('big-00002-of-00002.gguf'))}`,
      '[org/cached:Q4_K_M]',
      'offline = true',
      '[local]',
      'temp = 0',
      '[to-download]',
      'hf-repo = org/elsewhere:Q8_0',
      'hf-repo-draft = org/draft',
    );
    expect(report).toEqual({ file: path('p.ini'), ok: true, errors: [], warnings: [] });
  });
});

describe('errors', () => {
  it('are all the faults of the text, also where they cost no model, in the order of the lines', async () => {
    const model = gguf('m.gguf');
    const { ok, errors, warnings } = await check(
      'words',
      '[*]',
      'tmep = 1',
      '[m]',
      `model = ${model}`,
      'ctxsize = 1',
      '--top-k = 1',
      '[]',
      '[good]',
      `model = ${model}`,
    );
    expect(ok).toBe(false);
    expect(warnings).toEqual([]);
    expect(errors.map(({ line, section }) => [line, section])).toEqual([
      [1, null],
      [3, '*'],
      [6, 'm'],
      [7, 'm'],
      [8, null],
    ]);
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining("'words'"),
      "unknown option 'tmep', did you mean 'temp'?",
      "unknown option 'ctxsize', did you mean 'ctx-size'?",
      "'--top-k' has leading dashes; write 'top-k = value'",
      expect.stringContaining('is no section header'),
    ]);
  });

  it('include the faults of a section that a later one replaces', async () => {
    const { errors, warnings } = await check('[m]', 'bogus', '[m]', `model = ${gguf('m.gguf')}`);
    expect(errors).toMatchObject([{ line: 2, section: 'm' }]);
    expect(warnings).toMatchObject([{ line: 3, section: 'm' }]);
  });

  it('are sections that name no model, where none of that name was found either', async () => {
    gguf('models/local.gguf');
    const { errors } = await check('[local]', 'temp = 0', '[lcoal]', 'temp = 0');
    expect(errors).toEqual([
      {
        line: 3,
        section: 'lcoal',
        message: expect.stringMatching(/^names no model: give it 'model'/) as string,
      },
    ]);
  });

  it('do not say that a section names no model when the line that does is misspelt', async () => {
    const { errors } = await check('[m]', `modle = ${gguf('m.gguf')}`);
    expect(errors.map(({ message }) => message)).toEqual(["unknown option 'modle', did you mean 'model'?"]);
  });

  it.each([
    ['model', 'is not a GGUF file (starts with "text")'],
    ['mmproj', 'is not a GGUF file (starts with "text")'],
    ['md', 'is not a GGUF file (starts with "text")'],
    ['lora', 'is not a GGUF file (starts with "text")'],
    ['control-vector', 'is not a GGUF file (starts with "text")'],
    ['slot-save-path', 'is no directory'],
    ['media-path', 'is no directory'],
  ])('are files of another kind, once, at the line that names them: %s', async (key, problem) => {
    const file = writeFile(path('text'), 'text');
    const good = key === 'model' ? [] : [`model = ${gguf('m.gguf')}`];
    const { errors } = await check('[m]', ...good, 'temp = 0', `${key} = ${file}`);
    expect(errors).toHaveLength(1);
    expect(errors[0]).toMatchObject({ line: good.length + 3, section: 'm' });
    expect(errors[0]?.message).toContain(`: '${file}' ${problem}; `);
  });

  it.each([
    'model',
    'mmproj',
    'model-draft',
    'LLAMA_ARG_SPEC_DRAFT_MODEL',
    'lora',
    'control-vector',
    'chat-template-file',
    'grammar-file',
    'json-schema-file',
    'slot-save-path',
    'mcp-servers-config',
  ])('are files that are not there: %s', async (key) => {
    const good = key === 'model' ? 'temp = 0' : `model = ${gguf('m.gguf')}`;
    const { errors } = await check('[m]', good, `${key} = ${path('missing')}`);
    expect(errors).toHaveLength(1);
    expect(errors[0]?.message).toMatch(/^[a-z-]+: '.*\/missing' does not exist; (create it, or )?name a/);
    expect(errors[0]?.line).toBe(3);
  });

  it('are each of the files of a list, and a scale that is missing', async () => {
    const { errors } = await check(
      '[m]',
      `model = ${gguf('m.gguf')}`,
      `lora-scaled = ${gguf('a.gguf')}:1,${path('b.gguf')}:0.5,c.gguf`,
    );
    expect(errors.map(({ message }) => message)).toEqual([
      expect.stringContaining(`lora-scaled: '${path('b.gguf')}' does not exist`),
      "lora-scaled: 'c.gguf' is not of the form FILE:SCALE",
    ]);
  });

  it('are missing shards, and shards that are not the first', async () => {
    const { errors } = await check(
      '[a]',
      `model = ${gguf('a-00001-of-00002.gguf')}`,
      '[b]',
      `model = ${gguf('b-00002-of-00002.gguf')}`,
    );
    expect(errors.map(({ line, message }) => [line, message])).toEqual([
      [2, expect.stringContaining("a-00002-of-00002.gguf' (shard 2 of 2) does not exist")],
      [4, expect.stringContaining("b-00002-of-00002.gguf' is shard 2 of 2; name the first one")],
    ]);
  });

  it('say of a relative path where it leads, and of a ~ that it leads nowhere', async () => {
    const { errors } = await check('[a]', 'model = no/such.gguf', '[b]', 'model = ~/such.gguf');
    expect(errors.map(({ message }) => message)).toEqual([
      "model: 'no/such.gguf' does not exist; a relative path starts at the working directory, so that this one is " +
        `'${join(process.cwd(), 'no/such.gguf')}'`,
      "model: '~/such.gguf' does not exist; '~' means nothing here, write the path out",
    ]);
  });

  it('are files that [*] names, once and where it does', async () => {
    const { errors } = await check(
      '[*]',
      `model = ${path('missing.gguf')}`,
      `grammar-file = ${path('missing.gbnf')}`,
      '[a]',
      '[b]',
      'temp = 0',
    );
    expect(errors.map(({ line, section }) => [line, section])).toEqual([
      [2, '*'],
      [3, '*'],
    ]);
  });

  it('are broken files of models that were found, for the sections about them', async () => {
    writeFile(path('models/local.gguf'), 'text');
    const { errors } = await check('[local]', 'temp = 0');
    expect(errors).toEqual([
      {
        line: 1,
        section: 'local',
        message: `'${path('models/local.gguf')}' is not a GGUF file (starts with "text")`,
      },
    ]);
  });

  it('are repositories that are not in the cache and may not be downloaded', async () => {
    const { errors } = await check(
      '[m]',
      'offline = true',
      'hf-repo = org/none:Q8_0',
      '[n]',
      'hf-repo = org/none',
    );
    expect(errors).toEqual([
      {
        line: 3,
        section: 'm',
        message: expect.stringContaining("'org/none:Q8_0' is not in the cache") as string,
      },
    ]);
  });
});

describe('warnings', () => {
  it('are what the parser finds lost', async () => {
    const { ok, errors, warnings } = await check(
      '[u/r:q8_0]',
      `model = ${gguf('m.gguf')}`,
      'chat-template = {"c": "#fff"}',
      'host = 0.0.0.0',
    );
    expect(ok).toBe(false);
    expect(errors).toEqual([]);
    expect(warnings.map(({ line, section }) => [line, section])).toEqual([
      [1, 'u/r:Q8_0'],
      [3, 'u/r:Q8_0'],
      [4, 'u/r:Q8_0'],
    ]);
  });

  it('are aliases that are taken: by an id, by a model of the cache, by another section', async () => {
    const model = gguf('m.gguf');
    writeRepo(path('cache'), 'org/cached', ['m-Q4_K_M.gguf']);
    const { errors, warnings } = await check(
      '[a]',
      `model = ${model}`,
      'alias = fast, own',
      '[b]',
      `model = ${model}`,
      'alias = a, fast, org/cached:Q4_K_M, b, new',
    );
    expect(errors).toEqual([]);
    expect(warnings).toEqual([
      {
        line: 6,
        section: 'b',
        message: "alias 'a' is the id of a model and is ignored for 'b'; choose another",
      },
      {
        line: 6,
        section: 'b',
        message: "alias 'fast' belongs to 'a' and is ignored for 'b'; choose another",
      },
      {
        line: 6,
        section: 'b',
        message: "alias 'org/cached:Q4_K_M' is the id of a model and is ignored for 'b'; choose another",
      },
    ]);
  });

  it('are aliases in [*], which only one model can have', async () => {
    const one = ['[*]', 'alias = all', '[a]', `model = ${gguf('m.gguf')}`];
    expect((await check(...one)).warnings).toEqual([]);
    expect((await check(...one, '[b]', `model = ${gguf('m.gguf')}`)).warnings).toEqual([
      {
        line: 2,
        section: '*',
        message: "alias 'all' belongs to 'a' and is ignored for all others; choose another",
      },
    ]);
  });
});

describe('what cannot be checked', () => {
  it.each([
    ['is not there', 'missing.ini', /missing\.ini' does not exist$/],
    ['is a directory', '', /cannot be read: EISDIR$/],
  ])('is a file that %s', async (_, name, message) => {
    await expect(checkFile(path(name))).rejects.toThrow(message);
  });

  it('is a directory of models that is not there', async () => {
    const file = writeFile(path('p.ini'), '');
    const modelsDirs = [path('none')];
    const env = { HOME: directory };
    await expect(checkPreset({ file, modelsDirs, env, table })).rejects.toThrow("none' does not exist");
  });
});

describe('the report as text', () => {
  const finding = (line: number, message: string) => ({ line, section: 'm', message });

  it('has a line for each finding, in order, errors and warnings told apart, and a summary', () => {
    const report = {
      file: 'p.ini',
      ok: false,
      errors: [finding(2, 'two'), finding(9, 'nine')],
      warnings: [finding(4, 'four')],
    };
    expect(renderReport(report)).toBe(
      'p.ini:2: error: [m] two\np.ini:4: warning: [m] four\np.ini:9: error: [m] nine\np.ini: 2 errors, 1 warning\n',
    );
  });

  it('of a good file is one line', () => {
    expect(renderReport({ file: 'p.ini', ok: true, errors: [], warnings: [] })).toBe(
      'p.ini: nothing is wrong\n',
    );
  });

  it('shows what could control a terminal as text', () => {
    const report = { file: 'p.ini', ok: false, errors: [finding(1, '\x1b[2J\x07')], warnings: [] };
    expect(renderReport(report)).toBe('p.ini:1: error: [m] \\x1b[2J\\x07\np.ini: 1 error, 0 warnings\n');
  });
});

it('presets.example.ini has nothing wrong but that its models are not on this machine', async () => {
  const example = fileURLToPath(new URL('../../../../presets.example.ini', import.meta.url));
  const { file, errors, warnings } = await checkFile(relative(process.cwd(), example));
  expect(file).toBe('presets.example.ini');
  expect(warnings).toEqual([]);
  const others = errors.filter(
    ({ message }) => !/^[a-z-]+: '\/srv\/[^']+' (\(shard \d of \d\) )?does not exist; /.test(message),
  );
  expect(others).toEqual([]);
});
