import { describe, expect, it } from 'vitest';
import { modelArgs, modelPreset } from '../../../src/models/argv.js';
import { buildCatalog, type Catalog } from '../../../src/models/catalog.js';
import type { FlatModel } from '../../../src/models/disk/flat-models.js';
import { HubCache } from '../../../src/models/disk/hub-cache.js';
import type { LocalModel } from '../../../src/models/disk/models-dir.js';
import { keepLastGood } from '../../../src/models/presets/last-good-preset.js';
import { parsePreset } from '../../../src/models/presets/preset-file.js';
import { byKey, table, values } from './help-table.js';

interface Sources {
  /** Repository to the files in its snapshot. */
  readonly cache?: Readonly<Record<string, readonly string[]>>;
  readonly flatCaches?: readonly (readonly Partial<FlatModel>[])[];
  readonly modelsDirs?: readonly (readonly Partial<LocalModel>[])[];
  readonly preset?: readonly string[];
  readonly base?: Readonly<Record<string, string>>;
}

function build({ cache = {}, flatCaches = [], modelsDirs = [], preset = [], base = {} }: Sources): Catalog {
  const repos = Object.entries(cache).map(([id, files]) => ({
    id,
    files: files.map((path) => ({ path, localPath: `/cache/${id}/${path}` })),
  }));
  return buildCatalog({
    cache: new HubCache(repos, []),
    flatCaches: flatCaches.map((models) => ({
      models: models.map(
        ({ id = '', file = `/flat/${id}.gguf`, mmproj, draft, aliases = [], isDownload = true }) => ({
          id,
          file,
          mmproj,
          draft,
          aliases,
          isDownload,
        }),
      ),
      warnings: [],
    })),
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

describe('the projector that a child will load', () => {
  const cache = { 'org/a': ['a-Q4_0.gguf', 'mmproj-a-Q8_0.gguf'] };
  const beside = '/cache/org/a/mmproj-a-Q8_0.gguf';
  const mmprojOf = (...lines: string[]): string | undefined =>
    get(build({ cache, preset: ['[m]', 'hf-repo = org/a:Q4_0', ...lines] }), 'm').mmproj;

  it('is the one beside the model in the cache', () => {
    expect(get(build({ cache }), 'org/a:Q4_0').mmproj).toBe(beside);
    expect(mmprojOf()).toBe(beside);
  });

  it.each([
    ['that is given', ['mmproj = /p/mmproj.gguf'], '/p/mmproj.gguf'],
    [
      'that is given, although the one beside is not wanted',
      ['no-mmproj = 1', 'mmproj = /p.gguf'],
      '/p.gguf',
    ],
    ['that is given for an empty name: the one beside', ['mmproj ='], beside],
    ['none, where that is not wanted', ['no-mmproj = 1'], undefined],
    ['none, by the positive name', ['mmproj-auto = false'], undefined],
    ['none that is here, where it is on the network', ['mmproj-url = http://localhost/x.gguf'], undefined],
  ])('is the one %s', (_which, lines, expected) => {
    expect(mmprojOf(...lines)).toBe(expected);
  });

  it('is that of its directory, and none of a path without one', () => {
    const catalog = build({
      modelsDirs: [[{ id: 'seeing', mmproj: 'M/mmproj.gguf' }]],
      preset: ['[blind]', 'model = M/blind.gguf', '[far]', 'model-url = http://localhost/m.gguf'],
    });
    const projectors = catalog.models.map(({ id, mmproj }) => [id, mmproj]);
    expect(projectors).toEqual([
      ['blind', undefined],
      ['far', undefined],
      ['seeing', 'M/mmproj.gguf'],
    ]);
  });
});

describe('the draft that a child will load', () => {
  const draftOf = (...lines: string[]): string | undefined =>
    get(
      build({ cache: { 'org/d': ['d-Q8_0.gguf', 'd-F16.gguf'] }, preset: ['[m]', 'model = m', ...lines] }),
      'm',
    ).draft;

  it.each([
    ['none, where none is named', [], undefined],
    ['that of its path', ['model-draft = d.gguf'], 'd.gguf'],
    ['that of its repository', ['hf-repo-draft = org/d'], '/cache/org/d/d-Q8_0.gguf'],
    [
      'that of its repository and file',
      ['hf-repo-draft = org/d', 'model-draft = d-F16.gguf'],
      '/cache/org/d/d-F16.gguf',
    ],
    ['none that is here, where it is still to be downloaded', ['hf-repo-draft = org/other'], undefined],
  ])('is %s', (_which, lines, expected) => {
    expect(draftOf(...lines)).toBe(expected);
  });
});

describe('a model of a flat cache', () => {
  const flatCaches = [
    [{ id: 'org/a:Q4_0', mmproj: '/flat/mmproj.gguf', draft: '/flat/draft.gguf', aliases: ['org/a'] }],
  ];
  const file = '/flat/org/a:Q4_0.gguf';
  const flatOptions = { model: file, mmproj: '/flat/mmproj.gguf', 'model-draft': '/flat/draft.gguf' };

  it('is started by its file, has its alias, and can be removed', () => {
    const model = get(build({ flatCaches }), 'org/a');
    expect(byKey(model.options)).toEqual(flatOptions);
    expect(model).toMatchObject({
      id: 'org/a:Q4_0',
      aliases: ['org/a'],
      source: 'cache',
      file,
      mmproj: '/flat/mmproj.gguf',
      canRemove: true,
      offline: false,
    });
  });

  it('that no download left there cannot be removed: it may be the only copy', () => {
    const catalog = build({ flatCaches: [[{ id: 'own', isDownload: false }]] });
    expect(get(catalog, 'own').canRemove).toBe(false);
  });

  it('cannot be removed while a section speaks of it', () => {
    expect(get(build({ flatCaches, preset: ['[org/a:Q4_0]', 'c = 1'] }), 'org/a:Q4_0').canRemove).toBe(false);
  });

  it('is listed once when the hub cache holds it too, as that has it, and keeps its alias', () => {
    const catalog = build({ flatCaches, cache: { 'org/a': ['a-Q4_0.gguf', 'a-Q8_0.gguf'] } });
    expect(catalog.models.map(({ id }) => id)).toEqual(['org/a:Q4_0', 'org/a:Q8_0']);
    expect(catalog.resolve('org/a')).toMatchObject({
      id: 'org/a:Q4_0',
      file: '/cache/org/a/a-Q4_0.gguf',
      canRemove: true,
    });
  });

  it('is the earlier directory’s, and gives way to one of a models directory', () => {
    const twice = [[{ id: 'x', file: '/one/x.gguf' }], [{ id: 'x', file: '/two/x.gguf' }, { id: 'y' }]];
    const catalog = build({ flatCaches: twice, modelsDirs: [[{ id: 'y' }]] });
    expect(catalog.models.map(({ id, file: path, source }) => [id, path, source])).toEqual([
      ['x', '/one/x.gguf', 'cache'],
      ['y', 'M/y.gguf', 'models_dir'],
    ]);
  });

  describe('named by its repository', () => {
    const named = (...lines: string[]): Record<string, string> =>
      optionsOf(build({ flatCaches, preset: ['[m]', ...lines] }), 'm');

    it.each(['org/a:Q4_0', 'org/a', 'org/a:q4_0', 'org/a:UD-Q4_0'])(
      'is started by its file: hf-repo = %s',
      (repo) => {
        expect(named(`hf-repo = ${repo}`)).toEqual(flatOptions);
      },
    );

    it.each([
      ['of another tag', 'hf-repo = org/a:Q8_0'],
      ['of a repository that it does not hold', 'hf-repo = org/b'],
    ])('is downloaded when it is %s', (_which, line) => {
      expect(named(line)).toEqual({ 'hf-repo': line.slice('hf-repo = '.length) });
    });

    it('is downloaded when a file of the repository is named', () => {
      expect(named('hf-repo = org/a', 'hf-file = a-Q4_0.gguf')).toEqual({
        'hf-repo': 'org/a',
        'hf-file': 'a-Q4_0.gguf',
      });
    });

    it('is the hub’s where that holds it, too', () => {
      const cache = { 'org/a': ['a-Q4_0.gguf'] };
      const preset = ['[m]', 'hf-repo = org/a:Q4_0'];
      expect(optionsOf(build({ flatCaches, cache, preset }), 'm')).toEqual({ 'hf-repo': 'org/a:Q4_0' });
    });

    it.each(['model = other.gguf', 'model-url = http://localhost/m.gguf', 'docker-repo = gemma3'])(
      'goes before what else says where the model is: %s',
      (line) => {
        expect(named('hf-repo = org/a', line)).toEqual(flatOptions);
      },
    );

    it.each([
      [['mmproj = /own.gguf'], { mmproj: '/own.gguf' }],
      [['model-draft = /own.gguf'], { 'model-draft': '/own.gguf' }],
      [['c = 1'], { 'ctx-size': '1' }],
    ])('keeps what else the section gives: %j', (lines, expected) => {
      expect(named('hf-repo = org/a', ...lines)).toEqual({ ...flatOptions, ...expected });
    });

    it('gets no projector where none is wanted, or another, and no draft beside the repository of one', () => {
      const { mmproj, 'model-draft': draft, ...bare } = flatOptions;
      expect(named('hf-repo = org/a', 'no-mmproj = 1')).toEqual({
        ...bare,
        'model-draft': draft,
        'mmproj-auto': 'false',
      });
      expect(named('hf-repo = org/a', 'mmproj-url = http://localhost/x')).toEqual({
        ...bare,
        'model-draft': draft,
        'mmproj-url': 'http://localhost/x',
      });
      expect(named('hf-repo = org/a', 'hf-repo-draft = org/d')).toEqual({
        ...bare,
        mmproj,
        'hf-repo-draft': 'org/d',
      });
    });
  });
});

describe('dedup-cache-models', () => {
  const cache = {
    'org/a': ['a-Q4_0.gguf', 'a-Q8_0.gguf'],
    'org/d': ['d-Q8_0.gguf'],
    'org/other': ['o-Q4_0.gguf'],
  };
  const listed = (preset: readonly string[], flatCaches: Sources['flatCaches'] = []): string[] =>
    build({ cache, flatCaches, preset }).listed.map(({ id }) => id);
  const all = ['m', 'org/a:Q4_0', 'org/a:Q8_0', 'org/d:Q8_0', 'org/other:Q4_0'];
  const without = (...ids: string[]): string[] => all.filter((id) => !ids.includes(id));
  const dedup = 'dedup-cache-models = 1';

  it.each([
    ['its repository', ['hf-repo = org/a:Q8_0'], ['org/a:Q8_0']],
    ['its repository, of which it takes the default', ['hf-repo = org/a'], ['org/a:Q8_0']],
    ['its file', ['hf-repo = org/a', 'hf-file = a-Q4_0.gguf'], ['org/a:Q4_0']],
    ['its draft', ['hf-repo = org/a:Q4_0', 'hf-repo-draft = org/d'], ['org/a:Q4_0', 'org/d:Q8_0']],
    [
      'its draft, by the file',
      ['model = m.gguf', 'hf-repo-draft = org/d', 'model-draft = d-Q8_0.gguf'],
      ['org/d:Q8_0'],
    ],
    ['nothing that is there', ['hf-repo = org/b:Q4_0'], []],
    ['a path', ['model = /cache/org/a/a-Q4_0.gguf'], []],
  ])('hides the models of the cache that its section loads by %s', (_what, lines, hidden) => {
    expect(listed(['[m]', dedup, ...lines])).toEqual(without(...hidden));
    expect(listed(['[m]', ...lines])).toEqual(all);
    expect(listed(['[m]', 'dedup-cache-models = 0', ...lines])).toEqual(all);
  });

  it('leaves a hidden model to requests that name it', () => {
    const catalog = build({ cache, preset: ['[m]', dedup, 'hf-repo = org/a:Q4_0'] });
    expect(get(catalog, 'org/a:Q4_0')).toMatchObject({ hidden: true, problem: undefined });
    expect(catalog.models.map(({ id }) => id)).toEqual(all);
  });

  it('hides no model that has a section of its own', () => {
    const preset = ['[m]', dedup, 'hf-repo = org/a:Q4_0', '[org/a:Q4_0]', 'c = 1'];
    expect(listed(preset)).toEqual(all);
  });

  it('in [*] speaks for all sections, and lets no model of the cache hide itself', () => {
    expect(listed(['[*]', dedup, '[m]', 'hf-repo = org/a:Q4_0'])).toEqual(without('org/a:Q4_0'));
  });

  it('hides what is only in a flat cache, too', () => {
    const flatCaches = [[{ id: 'org/flat:Q4_0' }, { id: 'org/flat:Q8_0' }]];
    expect(listed(['[m]', dedup, 'hf-repo = org/flat:Q4_0'], flatCaches)).toEqual([
      ...all.slice(0, 4),
      'org/flat:Q8_0',
      'org/other:Q4_0',
    ]);
  });
});

it('a section that is served in its last good form says so of its model, and no other', () => {
  const good = parsePreset(Buffer.from('[m]\nmodel = m.gguf\n[n]\nmodel = n.gguf'), 'p.ini', table);
  const broken = parsePreset(Buffer.from('[m]\nwords\n[n]\nmodel = n.gguf'), 'p.ini', table);
  const catalog = buildCatalog({
    cache: new HubCache([], []),
    flatCaches: [],
    modelsDirs: [],
    preset: keepLastGood(good, broken),
    base: new Map(),
    table,
  });
  expect(get(catalog, 'm')).toMatchObject({
    file: 'm.gguf',
    problem: undefined,
    stale: "p.ini:2: is neither 'key = value' nor '[section]' nor a comment: 'words'",
  });
  expect(get(catalog, 'n').stale).toBeUndefined();
});

it('what several scans say alike is said once', () => {
  const directory = { models: [], warnings: ['the cache cannot be read', 'a manifest is broken'] };
  const { warnings } = buildCatalog({
    cache: new HubCache([], ['the cache cannot be read']),
    flatCaches: [directory],
    modelsDirs: [directory],
    preset: parsePreset(Buffer.from(''), 'p.ini', table),
    base: new Map(),
    table,
  });
  expect(warnings).toEqual(['the cache cannot be read', 'a manifest is broken']);
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
