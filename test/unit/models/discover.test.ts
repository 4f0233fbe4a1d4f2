import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, truncateSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import type { Catalog } from '../../../src/models/catalog.js';
import { scanModelsDir } from '../../../src/models/disk/models-dir.js';
import { discoverCatalog, Discovery, type DiscoveryOptions } from '../../../src/models/discover.js';
import { withDeadline } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { ggufHeader } from './gguf-header.js';
import { byKey, table } from './help-table.js';
import { writeFile, writeLink, writeRepo } from './tree.js';

// As it is, unless a test has one scan fail: a superuser can read every directory.
vi.mock(import('../../../src/models/disk/models-dir.js'), async (importOriginal) => {
  const original = await importOriginal();
  return { ...original, scanModelsDir: vi.fn(original.scanModelsDir) };
});

const nowhere: DiscoveryOptions = {
  env: { LLAMA_CACHE: '/nonexistent' },
  modelsDirs: [],
  presetFiles: [],
  base: new Map(),
  table,
};

const discover = (options: Partial<DiscoveryOptions>): Promise<Catalog> =>
  discoverCatalog({ ...nowhere, ...options });

/** A discovery of which only the catalogs count. */
interface Scanner {
  scan(): Promise<Catalog>;
}

const discovery = (options: Partial<DiscoveryOptions>): Scanner => {
  const found = new Discovery({ ...nowhere, ...options });
  return { scan: async () => (await found.scan()).catalog };
};

/** What is wrong with each model, by its id. */
function problemsIn({ models }: Catalog): Record<string, string | undefined> {
  return Object.fromEntries(models.map(({ id, problem }) => [id, problem]));
}

it('every source is found, and each broken model is listed with its reason beside the good ones', async () => {
  const root = tempDir();
  const cache = join(root, 'hub');
  const models = join(root, 'models');
  writeRepo(cache, 'org/good', ['g-Q4_0.gguf']);
  const gone = writeRepo(cache, 'org/gone', ['x-Q4_0.gguf']);
  rmSync(join(cache, 'models--org--gone/blobs'), { recursive: true });
  writeFile(join(models, 'good.gguf'));
  const empty = writeFile(join(models, 'empty.gguf'), '');
  const html = writeFile(join(models, 'folder/page.gguf'), '<html></html>');
  const half = writeFile(join(models, 'half-00001-of-00002.gguf'));
  const link = writeLink(join(models, 'link.gguf'), join(root, 'nowhere'));
  const presetFile = writeFile(
    join(root, 'presets.ini'),
    [
      ...['[named]', `model = ${join(models, 'good.gguf')}`],
      ...['[missing]', `model = ${join(root, 'missing.gguf')}`],
      ...['[bad-line]', 'model = missing.gguf', 'oops'],
      ...['[nothing]', '[to-download]', 'hf-repo = org/other:Q4_0'],
    ].join('\n'),
  );

  const catalog = await discover({
    env: { HF_HUB_CACHE: cache },
    modelsDirs: [models],
    presetFiles: [presetFile],
  });
  expect(catalog.models.map(({ id, problem }) => [id, problem])).toEqual([
    ['bad-line', `${presetFile}:7: is neither 'key = value' nor '[section]' nor a comment: 'oops'`],
    ['empty', `'${empty}' is empty`],
    ['folder', `'${html}' is not a GGUF file (starts with "<htm")`],
    ['good', undefined],
    ['half', `'${half.replace('-00001-', '-00002-')}' (shard 2 of 2) does not exist`],
    ['link', `'${link}' is a link to a file that does not exist`],
    ['missing', `'${join(root, 'missing.gguf')}' does not exist`],
    ['named', undefined],
    ['nothing', expect.stringMatching(/^names no model: /)],
    ['org/gone:Q4_0', `'${join(gone, 'x-Q4_0.gguf')}' is a link to a file that does not exist`],
    ['org/good:Q4_0', undefined],
    ['to-download', undefined],
  ]);
  expect(catalog.resolve('named')?.problem).toBeUndefined();
  expect(catalog.resolve('empty')?.problem).toBe(`'${empty}' is empty`);
});

it('nothing configured and nothing in the cache is an empty catalog', async () => {
  expect(await discover({})).toMatchObject({ models: [], warnings: [] });
});

it('a models directory or a presets file that is missing is an error', async () => {
  await expect(discover({ modelsDirs: ['/nonexistent/models'] })).rejects.toThrow(
    "--models-dir '/nonexistent/models' does not exist",
  );
  await expect(discover({ presetFiles: ['/nonexistent/p.ini'] })).rejects.toThrow(
    "--models-preset '/nonexistent/p.ini' does not exist",
  );
});

describe('a models directory', () => {
  it('that vanishes has no models, and a warning; when it is back, so are they', async () => {
    const directory = join(tempDir(), 'models');
    const aside = join(tempDir(), 'aside');
    writeFile(join(directory, 'a.gguf'));
    const found = discovery({ modelsDirs: [directory] });
    const before = await found.scan();
    renameSync(directory, aside);
    for (let scan = 0; scan < 2; scan++) {
      const gone = await found.scan();
      expect(gone.models).toEqual([]);
      expect(gone.warnings).toEqual([
        `--models-dir '${directory}' does not exist; create it or give another`,
      ]);
    }
    renameSync(aside, directory);
    expect(await found.scan()).toMatchObject({ models: before.models, warnings: [] });
  });

  it('that cannot be read for a moment keeps its models', async () => {
    const directory = tempDir();
    writeFile(join(directory, 'a.gguf'));
    const found = discovery({ modelsDirs: [directory] });
    const before = await found.scan();
    writeFile(join(directory, 'b.gguf'));
    const cause = Object.assign(new Error('EACCES: permission denied'), { code: 'EACCES' });
    vi.mocked(scanModelsDir).mockRejectedValueOnce(new Error('cannot be read: EACCES', { cause }));
    expect(await found.scan()).toMatchObject({
      models: before.models,
      warnings: ['cannot be read: EACCES'],
    });
    const after = await found.scan();
    expect([problemsIn(after), after.warnings]).toEqual([{ a: undefined, b: undefined }, []]);
  });

  it('in whose place a file is found has no models, and a warning', async () => {
    const directory = join(tempDir(), 'models');
    writeFile(join(directory, 'a.gguf'));
    const found = discovery({ modelsDirs: [directory] });
    await found.scan();
    rmSync(directory, { recursive: true });
    writeFile(directory, 'a file');
    const { models, warnings } = await found.scan();
    expect(models).toEqual([]);
    expect(warnings).toEqual([`--models-dir '${directory}' is not a directory; create it or give another`]);
  });

  it('that fails takes nothing from another', async () => {
    const [one, two] = [join(tempDir(), 'one'), join(tempDir(), 'two')];
    writeFile(join(one, 'a.gguf'));
    writeFile(join(two, 'b.gguf'));
    const found = discovery({ modelsDirs: [one, two] });
    await found.scan();
    rmSync(one, { recursive: true });
    expect(problemsIn(await found.scan())).toEqual({ b: undefined });
  });
});

describe('a presets file', () => {
  const good = ['[*]', 'threads = 1', '[a]', 'model = /nonexistent/a.gguf', 'c = 1', '[b]', 'hf-repo = o/b'];

  /** A scanner of one presets file, and a way to write that. */
  function follow(...lines: string[]): {
    file: string;
    write: (...lines: string[]) => void;
    found: Scanner;
  } {
    const file = join(tempDir(), 'p.ini');
    const write = (...next: string[]): void => void writeFile(file, next.join('\n'));
    write(...lines);
    return { file, write, found: discovery({ presetFiles: [file] }) };
  }

  /** The options and the mark of each model. */
  function shown({ models }: Catalog): Record<string, unknown> {
    return Object.fromEntries(models.map(({ id, options, stale }) => [id, { ...byKey(options), stale }]));
  }

  const served = {
    a: { model: '/nonexistent/a.gguf', 'ctx-size': '1', threads: '1', stale: undefined },
    b: { 'hf-repo': 'o/b', threads: '1', stale: undefined },
  };

  it('that vanishes leaves everything as it was, marked and told, until it is back', async () => {
    const { file, write, found } = follow(...good);
    expect(shown(await found.scan())).toEqual(served);
    rmSync(file);
    const stale = `--models-preset '${file}' does not exist`;
    for (let scan = 0; scan < 2; scan++) {
      const without = await found.scan();
      expect(shown(without)).toEqual({ a: { ...served.a, stale }, b: { ...served.b, stale } });
      expect(without.warnings).toEqual([stale]);
    }
    write(...good);
    const back = await found.scan();
    expect([shown(back), back.warnings]).toEqual([served, []]);
  });

  it('that was changed just now is left to a later scan, unless somebody asked for this one', async () => {
    const file = writeFile(join(tempDir(), 'p.ini'), '[a]\nhf-repo = o/a\nc = 512');
    const found = new Discovery({ ...nowhere, presetFiles: [file] });
    const contextOf = async (patient: boolean): Promise<[string | undefined, boolean]> => {
      const { catalog, againMs } = await found.scan({ patient });
      return [byKey(catalog.resolve('a')?.options ?? new Map())['ctx-size'], againMs !== undefined];
    };
    expect(await contextOf(false)).toEqual(['512', false]);
    writeFile(file, '[a]\nhf-repo = o/a\nc = 5');
    expect(await contextOf(true)).toEqual(['512', true]);
    expect(await contextOf(false)).toEqual(['5', false]);
    writeFile(file, '[a]\nhf-repo = o/a\nc = 256');
    utimesSync(file, 1_000, 1_000);
    expect(await contextOf(true)).toEqual(['256', false]);
  });

  it('that is a pipe is read once', async () => {
    const file = join(tempDir(), 'p.ini');
    execFileSync('mkfifo', [file]);
    const found = discovery({ presetFiles: [file] });
    // By another process: nothing else goes on in this one while it reads.
    const writer = spawn('sh', ['-c', 'printf "[a]\\nhf-repo = o/a" >"$0"', file]);
    const written = new Promise((resolve) => writer.once('exit', resolve));
    expect(Object.keys(problemsIn(await found.scan()))).toEqual(['a']);
    expect(await withDeadline('all of it is written', written, 10_000)).toBe(0);
    expect(Object.keys(problemsIn(await found.scan()))).toEqual(['a']);
  });

  it('that is a directory for a while is no other case', async () => {
    const { file, found } = follow(...good);
    await found.scan();
    rmSync(file);
    mkdirSync(file);
    const stale = `--models-preset '${file}' cannot be read: EISDIR`;
    expect(shown(await found.scan())).toEqual({ a: { ...served.a, stale }, b: { ...served.b, stale } });
  });

  it('with a fault in one section keeps that in its last good form and follows the rest', async () => {
    const { file, write, found } = follow(...good);
    await found.scan();
    write(...good.slice(0, 4), 'ctxsize = 5', '[b]', 'hf-repo = o/b', 'c = 7', '[new]', 'words');
    const catalog = await found.scan();
    expect(shown(catalog)).toEqual({
      a: { ...served.a, stale: `${file}:5: unknown option 'ctxsize', did you mean 'ctx-size'?` },
      b: { ...served.b, 'ctx-size': '7' },
      new: { threads: '1', stale: undefined },
    });
    expect(problemsIn(catalog)['new']).toContain(`${file}:10: `);
    write(...good);
    expect(shown(await found.scan())).toEqual(served);
  });

  it('with a fault in [*] keeps that in its last good form for every model, and says what is wrong', async () => {
    const { file, write, found } = follow(...good);
    await found.scan();
    write('[*]', 'threads = 8', 'words', ...good.slice(2));
    const { warnings, ...catalog } = await found.scan();
    expect(shown({ warnings, ...catalog })).toEqual(served);
    const fault = `${file}:3: is neither 'key = value' nor '[section]' nor a comment: 'words'`;
    expect(warnings).toEqual([fault, `the last good form of [*] is used: ${fault}`]);
    write('[*]', 'threads = 8', ...good.slice(2));
    const mended = await found.scan();
    expect(mended.resolve('a')?.options).not.toEqual(catalog.resolve('a')?.options);
    expect(shown(mended)['b']).toEqual({ ...served.b, threads: '8' });
  });

  it('that was cut in the middle of a line keeps the section that is cut, and has lost those behind it', async () => {
    const { file, write, found } = follow(...good, '[c]', 'hf-repo = o/c');
    await found.scan();
    truncateSync(file, good.join('\n').indexOf('c = 1') + 1);
    expect(shown(await found.scan())).toEqual({
      a: { ...served.a, stale: expect.stringContaining(`${file}:5: `) as string },
    });
    write(...good);
    expect(shown(await found.scan())).toEqual(served);
  });

  it('without a byte is being written, and costs no model; one with a comment alone has none any more', async () => {
    const { file, write, found } = follow(...good);
    await found.scan();
    write();
    const stale = `'${file}' is empty`;
    const emptied = await found.scan();
    expect(shown(emptied)).toEqual({ a: { ...served.a, stale }, b: { ...served.b, stale } });
    expect(emptied.warnings).toEqual([stale]);
    write('; nothing');
    expect((await found.scan()).models).toEqual([]);
  });

  it('that cannot be read takes nothing from another, and what that says goes on', async () => {
    const [one, two] = [join(tempDir(), 'one.ini'), join(tempDir(), 'two.ini')];
    writeFile(one, '[*]\nthreads = 1\n[a]\nhf-repo = o/a\n[both]\nhf-repo = o/one');
    writeFile(two, '[both]\nhf-repo = o/two');
    const found = discovery({ presetFiles: [one, two] });
    const stale = `--models-preset '${one}' does not exist`;
    await found.scan();
    rmSync(one);
    expect(shown(await found.scan())).toEqual({
      a: { 'hf-repo': 'o/a', threads: '1', stale },
      both: { 'hf-repo': 'o/two', threads: '1', stale: undefined },
    });
  });
});

describe('the version of a model', () => {
  const at = (path: string, seconds: number): void => utimesSync(path, seconds, seconds);

  /** Versions by id, after each change. */
  async function versions(found: Scanner): Promise<Record<string, string | undefined>> {
    const { models } = await found.scan();
    return Object.fromEntries(models.map(({ id, version }) => [id, version]));
  }

  it('changes with the size or the time of any file that its child loads, and only then', async () => {
    const directory = tempDir();
    const own = writeFile(join(directory, 'folder/m.gguf'));
    const files = [
      own,
      writeFile(join(directory, 'folder/mmproj.gguf')),
      writeFile(join(directory, 'folder/mtp-m.gguf')),
    ];
    const shard = writeFile(join(directory, 'x-00001-of-00002.gguf'));
    const second = writeFile(shard.replace('-00001-', '-00002-'));
    for (const file of [...files, shard, second]) at(file, 1_000);
    const found = discovery({ modelsDirs: [directory] });
    const first = await versions(found);
    expect(Object.keys(first)).toEqual(['folder', 'x']);
    expect(await versions(found)).toEqual(first);

    for (const file of files) {
      const before = await versions(found);
      at(file, 2_000);
      const after = await versions(found);
      expect(after['folder'], file).not.toBe(before['folder']);
      expect(after['x']).toBe(first['x']);
    }
    writeFile(second, Buffer.concat([ggufHeader(), ggufHeader()]));
    at(second, 1_000);
    expect((await versions(found))['x']).not.toBe(first['x']);
  });

  it('is not known of a file that is not there, nor of what is to be downloaded', async () => {
    const file = join(tempDir(), 'p.ini');
    writeFile(file, '[gone]\nmodel = /nonexistent/m.gguf\n[remote]\nhf-repo = o/r');
    expect(await versions(discovery({ presetFiles: [file] }))).toEqual({
      gone: undefined,
      remote: undefined,
    });
  });
});

describe('what a child loads besides its model', () => {
  async function problemOf(...lines: string[]): Promise<string | undefined> {
    const model = writeFile(join(tempDir(), 'm.gguf'));
    const file = writeFile(join(tempDir(), 'p.ini'), ['[m]', `model = ${model}`, ...lines].join('\n'));
    return (await discover({ presetFiles: [file] })).resolve('m')?.problem;
  }

  it.each(['mmproj', 'model-draft'])('must be there, too: %s', async (key) => {
    expect(await problemOf(`${key} = /nonexistent/x.gguf`)).toBe("'/nonexistent/x.gguf' does not exist");
    expect(await problemOf(`${key} = ${writeFile(join(tempDir(), 'x.gguf'), '')}`)).toMatch(/is empty$/);
    expect(await problemOf(`${key} = ${writeFile(join(tempDir(), 'x.gguf'))}`)).toBeUndefined();
  });

  it('must be whole, too, where it is a draft of a repository in the cache', async () => {
    const cache = tempDir();
    writeRepo(cache, 'o/d', ['d-Q8_0.gguf']);
    const model = writeFile(join(tempDir(), 'm.gguf'));
    const presetFiles = [
      writeFile(join(tempDir(), 'p.ini'), `[m]\nmodel = ${model}\nhf-repo-draft = o/d:Q8_0`),
    ];
    const look = () => discover({ env: { LLAMA_CACHE: cache }, presetFiles });
    expect(problemsIn(await look())).toEqual({ m: undefined, 'o/d:Q8_0': undefined });
    writeFile(join(cache, 'models--o--d/blobs/d-Q8_0.gguf'), '');
    expect((await look()).resolve('m')?.problem).toMatch(/d-Q8_0\.gguf' is empty$/);
  });

  it.each([
    ['a projector that is downloaded to there', 'mmproj', 'mmproj-url = http://localhost/x.gguf'],
    ['a draft of a repository, in which it is named', 'model-draft', 'hf-repo-draft = o/d'],
  ])('is not looked for where it is %s', async (_what, key, line) => {
    expect(await problemOf(`${key} = /nonexistent/x.gguf`, line)).toBeUndefined();
  });
});

it('a model that both caches hold is listed once, and one that only the flat cache holds is not downloaded', async () => {
  const cache = tempDir();
  const snapshot = writeRepo(cache, 'org/both', ['b-Q4_0.gguf']);
  writeFile(join(cache, 'org_both_b-Q4_0.gguf'));
  const flat = writeFile(join(cache, 'org_flat_f-Q4_0.gguf'));
  const presetFile = writeFile(join(tempDir(), 'p.ini'), '[mine]\nhf-repo = org/flat:Q4_0');
  const { models } = await discover({ env: { LLAMA_CACHE: cache }, presetFiles: [presetFile] });
  expect(models.map(({ id, file, problem }) => [id, file, problem])).toEqual([
    ['mine', flat, undefined],
    ['org/both:Q4_0', join(snapshot, 'b-Q4_0.gguf'), undefined],
    ['org/flat:Q4_0', flat, undefined],
  ]);
});
