import { describe, expect, it } from 'vitest';
import { modelArgs, modelPreset } from '../../../src/models/argv.js';
import { buildCatalog, type Catalog } from '../../../src/models/catalog.js';
import { HubCache } from '../../../src/models/disk/hub-cache.js';
import type { LocalModel } from '../../../src/models/disk/models-dir.js';
import { parsePreset } from '../../../src/models/presets/preset-file.js';
import { byKey, table, values } from './help-table.js';

interface Sources {
  /** Repository to the files in its snapshot. */
  readonly cache?: Readonly<Record<string, readonly string[]>>;
  readonly modelsDirs?: readonly (readonly Partial<LocalModel>[])[];
  readonly preset?: readonly string[];
  readonly base?: Readonly<Record<string, string>>;
}

function build({ cache = {}, modelsDirs = [], preset = [], base = {} }: Sources): Catalog {
  const repos = Object.entries(cache).map(([id, files]) => ({
    id,
    files: files.map((path) => ({ path, localPath: `/cache/${id}/${path}` })),
  }));
  return buildCatalog({
    cache: new HubCache(repos, []),
    flatCaches: [],
    modelsDirs: modelsDirs.map((models) => ({
      models: models.map(({ id = '', file = `M/${id}.gguf`, mmproj, draft }) => ({
        id,
        file,
        mmproj,
        draft,
      })),
      warnings: [],
    })),
    preset: parsePreset(Buffer.from(preset.join('\n')), 'p.ini', table),
    base: values(base),
    table,
  });
}

function get(catalog: Catalog, name: string): Catalog['models'][number] {
  const model = catalog.resolve(name);
  if (model === undefined) throw new Error(`the catalog has no '${name}'`);
  return model;
}

const optionsOf = (catalog: Catalog, name: string): Record<string, string> =>
  byKey(get(catalog, name).options);

describe('precedence, option by option', () => {
  it('is command line over section over what a scan found over [*]', () => {
    const catalog = build({
      modelsDirs: [[{ id: 'm' }]],
      preset: ['[*]', 'c = 1', 'temp = 1', 'top-k = 1', 'threads = 1', '[m]', 'c = 2', 'LLAMA_ARG_TOP_K = 2'],
      base: { 'ctx-size': '3' },
    });
    expect(optionsOf(catalog, 'm')).toEqual({
      'ctx-size': '3',
      temperature: '1',
      'top-k': '2',
      threads: '1',
      model: 'M/m.gguf',
    });
  });

  it('holds [*] below a path that a scan found, and above it through the section of the model', () => {
    const preset = ['[*]', 'model = global.gguf', '[sectioned]', 'c = 1'];
    const catalog = build({ modelsDirs: [[{ id: 'plain' }, { id: 'sectioned' }]], preset });
    expect(get(catalog, 'plain').file).toBe('M/plain.gguf');
    expect(get(catalog, 'sectioned').file).toBe('global.gguf');
  });

  it('keeps projector and draft of a directory', () => {
    const catalog = build({ modelsDirs: [[{ id: 'm', mmproj: 'M/mmproj.gguf', draft: 'M/mtp-m.gguf' }]] });
    expect(optionsOf(catalog, 'm')).toEqual({
      model: 'M/m.gguf',
      mmproj: 'M/mmproj.gguf',
      'model-draft': 'M/mtp-m.gguf',
    });
  });
});

describe('sources', () => {
  it('are told, and only a model of the cache can be removed', () => {
    const catalog = build({
      cache: { 'org/a': ['a-Q4_0.gguf'], 'org/b': ['b-Q4_0.gguf'] },
      modelsDirs: [[{ id: 'local' }]],
      preset: ['[org/b:q4_0]', 'c = 1', '[own]', 'model = own.gguf'],
    });
    expect(catalog.models.map(({ id, source, canRemove }) => [id, source, canRemove])).toEqual([
      ['local', 'models_dir', false],
      ['org/a:Q4_0', 'cache', true],
      ['org/b:Q4_0', 'preset', false],
      ['own', 'preset', false],
    ]);
  });

  it('give the models in bytewise order of their ids, not in that of a language or of UTF-16', () => {
    const ids = ['b', 'B', 'a/b', 'a', 'é', '\u{1F999}', '\uFF5E'];
    const catalog = build({ modelsDirs: [ids.map((id) => ({ id }))] });
    expect(catalog.models.map(({ id }) => id)).toEqual(['B', 'a', 'a/b', 'b', 'é', '\uFF5E', '\u{1F999}']);
  });

  it('of several directories: the earlier one keeps an id that both have, and the other is told', () => {
    const catalog = build({ modelsDirs: [[{ id: 'x', file: 'A/x.gguf' }], [{ id: 'x', file: 'B/x.gguf' }]] });
    expect(catalog.models.map(({ file }) => file)).toEqual(['A/x.gguf']);
    expect(catalog.warnings).toEqual([
      "'B/x.gguf' is not listed: 'A/x.gguf' has the id 'x' already; rename one of them",
    ]);
  });
});

describe('a model of the cache', () => {
  const cache = { 'org/a': ['a-Q4_0.gguf'], 'org/draft': ['d-Q8_0.gguf'] };

  it('is started offline, by its repository', () => {
    const model = get(build({ cache }), 'org/a:Q4_0');
    expect(byKey(model.options)).toEqual({ 'hf-repo': 'org/a:Q4_0' });
    expect(model).toMatchObject({ offline: true, file: '/cache/org/a/a-Q4_0.gguf', problem: undefined });
    expect(modelArgs(model, '/bin/llama-server', table, 7)).toEqual(
      '/bin/llama-server --host 127.0.0.1 --port 7 --alias org/a:Q4_0 --hf-repo org/a:Q4_0 --offline'.split(
        ' ',
      ),
    );
  });

  it('is started offline under another name, too, and only there where the cache holds all it needs', () => {
    const catalog = build({
      cache,
      preset: [
        ...['[same]', 'hf-repo = org/a:Q4_0'],
        ...['[to-download]', 'hf-repo = org/other:Q4_0'],
        ...['[draft-here]', 'hf-repo = org/a:Q4_0', 'hf-repo-draft = org/draft:Q8_0'],
        ...['[draft-to-download]', 'hf-repo = org/a:Q4_0', 'hf-repo-draft = org/other'],
        ...['[projector-to-download]', 'hf-repo = org/a:Q4_0', 'mmproj-url = http://localhost/mmproj.gguf'],
      ],
    });
    const offline = catalog.models.filter((model) => model.offline).map(({ id }) => id);
    expect(offline).toEqual(['draft-here', 'org/a:Q4_0', 'org/draft:Q8_0', 'same']);
    expect(catalog.models.filter(({ problem }) => problem !== undefined)).toEqual([]);
  });

  it.each([
    ['true', ['--offline']],
    ['false', []],
  ])('takes an explicit offline = %s as it is', (written, expected) => {
    const catalog = build({ cache, preset: ['[*]', `offline = ${written}`] });
    const args = modelArgs(get(catalog, 'org/a:Q4_0'), 'bin', table, 1);
    expect(args.filter((arg) => arg === '--offline')).toEqual(expected);
  });

  it('that a child can not load has the reason', () => {
    const catalog = build({ cache: { 'org/a': ['a-Q4_0.gguf', 'preset.ini'] } });
    expect(get(catalog, 'org/a:Q4_0').problem).toContain('preset.ini');
  });
});

describe('a section', () => {
  it.each([
    'model = a.gguf',
    'hf-repo = o/r',
    'mu = http://localhost/m.gguf',
    'docker-repo = gemma3',
    'gpt-oss-20b-default = 1',
  ])('that says where its model is can be served: %s', (line) => {
    expect(get(build({ preset: ['[m]', line] }), 'm').problem).toBeUndefined();
  });

  it.each(['c = 1', 'model =', 'spec-default = 1', 'jinja = true'])(
    'that names no model fails with that reason: %s',
    (line) => {
      expect(get(build({ preset: ['[m]', line] }), 'm').problem).toBe(
        "names no model: give it 'model', 'hf-repo', 'model-url', 'docker-repo', " +
          'or name it exactly as a model of the cache or of --models-dir',
      );
    },
  );

  it('with a faulty line fails with file and line, also where a scan found the model, and no other does', () => {
    const catalog = build({ modelsDirs: [[{ id: 'm' }, { id: 'n' }]], preset: ['[m]', 'ctxsize = 1'] });
    expect(get(catalog, 'm')).toMatchObject({
      problem: "p.ini:2: unknown option 'ctxsize', did you mean 'ctx-size'?",
      file: 'M/m.gguf',
    });
    expect(get(catalog, 'n').problem).toBeUndefined();
  });

  it('gives stop-timeout in seconds and load-on-startup as a truth', () => {
    const catalog = build({
      modelsDirs: [[{ id: 'a' }, { id: 'b' }, { id: 'c' }, { id: 'd' }]],
      preset: [
        ...['[b]', 'stop-timeout = 3', 'load-on-startup = on'],
        ...['[c]', 'stop-timeout = soon', 'load-on-startup = yes'],
        ...['[d]', 'stop-timeout = 0', 'load-on-startup = false'],
      ],
    });
    expect(
      catalog.models.map(({ id, stopTimeoutMs, loadOnStartup }) => [id, stopTimeoutMs, loadOnStartup]),
    ).toEqual([
      ['a', 10_000, false],
      ['b', 3_000, true],
      ['c', 10_000, false],
      ['d', 0, false],
    ]);
  });
});

describe('names', () => {
  it('are the id, then an alias, and case matters', () => {
    const catalog = build({ modelsDirs: [[{ id: 'm' }]], preset: ['[m]', 'alias = z, a ,,a', 'tags = y,x'] });
    expect(get(catalog, 'm')).toMatchObject({ aliases: ['a', 'z'], tags: ['x', 'y'] });
    expect(catalog.resolve('a')?.id).toBe('m');
    expect(catalog.resolve('M')).toBeUndefined();
    expect(catalog.resolve('A')).toBeUndefined();
    expect(catalog.resolve('')).toBeUndefined();
  });

  it('that are an id and an alias mean the id, whatever the order', () => {
    const models = [[{ id: 'a' }, { id: 'b' }, { id: 'c' }]];
    const catalog = build({ modelsDirs: models, preset: ['[a]', 'alias = b', '[c]', 'alias = b, free'] });
    expect(catalog.resolve('b')?.id).toBe('b');
    expect(catalog.models.map(({ aliases }) => aliases)).toEqual([[], [], ['free']]);
    expect(catalog.warnings).toEqual(["alias 'b' is the id of a model; it is ignored for 'a', 'c'"]);
  });

  it('that are the alias of two models mean the one whose id sorts first', () => {
    const models = [[{ id: 'b' }, { id: 'a' }]];
    const catalog = build({ modelsDirs: models, preset: ['[b]', 'alias = x', '[a]', 'alias = x'] });
    expect(catalog.resolve('x')?.id).toBe('a');
    expect(catalog.warnings).toEqual(["alias 'x' belongs to 'a'; it is ignored for 'b'"]);
  });

  it('that [*] gives to all models make one warning', () => {
    const models = [Array.from({ length: 9 }, (_, index) => ({ id: `m${index}` }))];
    const catalog = build({ modelsDirs: models, preset: ['[*]', 'alias = x'] });
    expect(catalog.warnings).toEqual([
      "alias 'x' belongs to 'm0'; it is ignored for 'm1', 'm2', 'm3' and 5 more",
    ]);
  });
});

describe('the arguments of a child', () => {
  it('are the native ones: sorted by first name, spelled by the last, with host, port and id of its own', () => {
    const catalog = build({
      modelsDirs: [[{ id: 'alpha' }]],
      base: { c: '512', temp: '0.5', ngl: '0', 'no-slots': '0', np: '1', metrics: '1' },
    });
    // The example of the native router's contract, section 1.3.
    expect(modelArgs(get(catalog, 'alpha'), '/b/llama-server', table, 48985).join(' ')).toBe(
      '/b/llama-server --host 127.0.0.1 --metrics --port 48985 --no-slots --temperature 0.5 --alias alpha ' +
        '--ctx-size 512 --model M/alpha.gguf --n-gpu-layers 0 --parallel 1',
    );
  });

  it('hold neither aliases nor what only a presets file knows, but tags', () => {
    const preset = [
      '[m]',
      'model = m.gguf',
      'alias = x',
      'tags = t',
      'stop-timeout = 1',
      'load-on-startup = 1',
    ];
    expect(modelArgs(get(build({ preset }), 'm'), 'bin', table, 1)).toEqual(
      'bin --host 127.0.0.1 --port 1 --tags t --alias m --model m.gguf'.split(' '),
    );
  });

  it('cannot be made the router’s own by a base that holds them', () => {
    const catalog = build({
      modelsDirs: [[{ id: 'm' }]],
      base: { 'api-key': 'secret', host: '0.0.0.0', port: '80' },
    });
    expect(modelArgs(get(catalog, 'm'), 'bin', table, 1)).toEqual(
      'bin --host 127.0.0.1 --port 1 --alias m --model M/m.gguf'.split(' '),
    );
  });
});

it('status.preset is the merged section, with the keys of presets and without what is listed apart', () => {
  const preset = [
    '[*]',
    'c = 1',
    '[m]',
    'model = m.gguf',
    'alias = x',
    'tags = t',
    'stop-timeout = 1',
    'no-slots = 1',
  ];
  const model = get(build({ preset, base: { temp: '0' } }), 'm');
  expect(modelPreset(model, table)).toBe(
    '[m]\nslots = false\ntemperature = 0\nctx-size = 1\nmodel = m.gguf\nstop-timeout = 1\n\n',
  );
});
