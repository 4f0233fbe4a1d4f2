import { chmodSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  flatCacheDirectories,
  scanFlatCache,
  type FlatCache,
} from '../../../../src/models/disk/flat-cache.js';
import { flatModels } from '../../../../src/models/disk/flat-models.js';
import { scanHubCache } from '../../../../src/models/disk/hub-cache.js';
import { LastReadings } from '../../../../src/models/disk/last-readings.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile, writeLink, writeOddFile, writeRepo } from '../tree.js';
import { failAt, mend } from './failing-fs.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('./failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

describe('the place of the cache', () => {
  const others = {
    XDG_CACHE_HOME: '/xdg',
    HOME: '/home/me',
    LOCALAPPDATA: 'C:\\Users\\me\\AppData\\Local',
  };
  const env = { ...others, LLAMA_CACHE: '/llama' };

  it.each([
    [env, 'linux', ['/llama']],
    [env, 'darwin', ['/llama']],
    [{ LLAMA_CACHE: './tmp' }, 'linux', ['./tmp']],
    [{ ...env, LLAMA_CACHE: '' }, 'linux', ['/xdg/llama.cpp']],
    [others, 'linux', ['/xdg/llama.cpp']],
    [{ ...others, XDG_CACHE_HOME: '' }, 'freebsd', ['/home/me/.cache/llama.cpp']],
    [others, 'darwin', ['/home/me/Library/Caches/llama.cpp']],
    [others, 'win32', ['C:\\Users\\me\\AppData\\Local/llama.cpp']],
    [{}, 'linux', ['/passwd/.cache/llama.cpp']],
    [{}, 'darwin', ['/passwd/Library/Caches/llama.cpp']],
    [{}, 'win32', []],
  ] as const)('by %o on %s', (variables, platform, expected) => {
    expect(flatCacheDirectories(variables, '/passwd', platform)).toEqual(expected);
  });

  it('is unknown when nothing tells', () => {
    expect(flatCacheDirectories({}, undefined, 'linux')).toEqual([]);
  });
});

/** A manifest like those the hub gives, besides what is of no matter. */
function manifest(model: string, mmproj?: string): string {
  const file = (rfilename: string): object => ({ rfilename, size: 24, lfs: { sha256: '0'.repeat(64) } });
  return JSON.stringify({
    ggufFile: file(model),
    ...(mmproj !== undefined && { mmprojFile: file(mmproj) }),
    metrics: {},
  });
}

/** What a scan finds in a directory `C` that holds those files, given with their contents where they matter. */
async function scan(files: readonly string[], contents: Record<string, string> = {}): Promise<FlatCache> {
  const directory = tempDir();
  for (const file of files) writeFile(join(directory, file));
  for (const [file, content] of Object.entries(contents)) writeFile(join(directory, file), content);
  const { models, warnings } = await scanFlatCache(directory);
  const relative = (text: string): string => text.replaceAll(directory, 'C');
  return {
    models: models.map(({ file, mmproj, draft, ...rest }) => ({
      ...rest,
      file: relative(file),
      mmproj: mmproj && relative(mmproj),
      draft: draft && relative(draft),
    })),
    warnings: warnings.map(relative),
  };
}

async function idsOf(files: readonly string[], contents?: Record<string, string>): Promise<string[]> {
  return (await scan(files, contents)).models.map(({ id }) => id);
}

describe('ids without a manifest', () => {
  it.each([
    // The repository ends with `gguf`.
    ['bartowski_Qwen_Qwen3-8B-GGUF_Qwen_Qwen3-8B-Q4_K_M.gguf', 'bartowski/Qwen_Qwen3-8B-GGUF:Q4_K_M'],
    ['TheBloke_Llama-2-7B-GGUF_llama-2-7b.Q4_K_S.gguf', 'TheBloke/Llama-2-7B-GGUF:Q4_K_S'],
    ['microsoft_Phi-3-mini-4k-instruct-gguf_Phi-3-q4.gguf', 'microsoft/Phi-3-mini-4k-instruct-gguf:Q4'],
    ['unsloth_X-GGUF_UD-Q4_K_XL_Y-UD-Q4_K_XL-00001-of-00002.gguf', 'unsloth/X-GGUF:Q4_K_XL'],
    // The file repeats the repository's name.
    ['a_b_c_b_c-Q4_0.gguf', 'a/b_c:Q4_0'],
    ['a_b_c_B_C-Q4_0.gguf', 'a/b_c:Q4_0'],
    ['a_b_c_sub_b_c-Q4_0.gguf', 'a/b_c:Q4_0'],
    // Neither.
    ['ggml-org_models_tinyllamas_stories15M-q4_0.gguf', 'ggml-org/models:Q4_0'],
    ['ai_smollm2_135M-Q4_K_M.gguf', 'ai/smollm2:Q4_K_M'],
  ])('of %s is %s', async (file, id) => {
    expect(await idsOf([file])).toEqual([id]);
  });

  it.each([
    ['a file of no repository', 'stories15M-q4_0.gguf', 'stories15M-q4_0'],
    ['a tag that holds the only _', 'Qwen3-8B-Q4_K_M.gguf', 'Qwen3-8B-Q4_K_M'],
    ['no tag', 'org_repo-GGUF_model.gguf', 'org_repo-GGUF_model'],
    ['a docker image without one', 'ai_smollm2_latest.gguf', 'ai_smollm2_latest'],
    ['what is no user', '_repo_a-Q4_0.gguf', '_repo_a-Q4_0'],
    ['what is no repository', 'a b_repo_a-Q4_0.gguf', 'a b_repo_a-Q4_0'],
    ['shards of no repository', 'big-00001-of-00002.gguf', 'big'],
  ])('are the name of the file: %s', async (_, file, id) => {
    expect(await idsOf([file])).toEqual([id]);
  });

  it('that two files share go to the first; the other has its name', async () => {
    const files = ['a_b_b-Q4_K_XL.gguf', 'a_b_b-UD-Q4_K_XL.gguf', 'x-00001-of-00002.gguf', 'x.gguf'];
    const { models, warnings } = await scan(files);
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['a/b:Q4_K_XL', 'C/a_b_b-Q4_K_XL.gguf'],
      ['a_b_b-UD-Q4_K_XL', 'C/a_b_b-UD-Q4_K_XL.gguf'],
      ['x', 'C/x.gguf'],
      ['x-00001-of-00002', 'C/x-00001-of-00002.gguf'],
    ]);
    expect(warnings).toEqual([]);
  });
});

it.each([
  ['its manifest', 'manifest=a=b=latest.json', manifest('x-Q4_0.gguf')],
  ['where it came from, written beside it', 'a_b_x-Q4_0.gguf.json', '{}'],
  ['the tag of the answer that brought it, written beside it', 'a_b_x-Q4_0.gguf.etag', '"0"'],
])('a model was downloaded if there is %s', async (_what, name, content) => {
  const files = ['a_b_x-Q4_0.gguf', 'a_b_x-Q8_0.gguf'];
  const { models } = await scan(files, { [name]: content });
  expect(models.map(({ id, isDownload }) => [id, isDownload])).toEqual([
    ['a/b:Q4_0', true],
    ['a/b:Q8_0', false],
  ]);
});

describe('ids with a manifest', () => {
  it('have its user and repository, and its latest gives the alias of the repository alone', async () => {
    const { models, warnings } = await scan(
      ['a_b_x_y-Q4_K_M.gguf', 'a_b_x_y-Q8_0.gguf', 'a_b_x_sub_y-F16.gguf'],
      {
        'manifest=a=b_x=latest.json': manifest('y-Q4_K_M.gguf'),
        'manifest=a=b_x=f16.json': manifest('sub/y-F16.gguf'),
      },
    );
    expect(models.map(({ id, file, aliases }) => [id, file, aliases])).toEqual([
      ['a/b_x:F16', 'C/a_b_x_sub_y-F16.gguf', []],
      ['a/b_x:Q4_K_M', 'C/a_b_x_y-Q4_K_M.gguf', ['a/b_x']],
      // No manifest names this one; the repository is known by those of the others.
      ['a/b_x:Q8_0', 'C/a_b_x_y-Q8_0.gguf', []],
    ]);
    expect(warnings).toEqual([]);
  });

  it('of several repositories that fit have the longest, unless a manifest names the file', async () => {
    const files = ['a_b_c_x-Q4_0.gguf', 'a_b_c_x-Q8_0.gguf'];
    const contents = {
      'manifest=a=b=latest.json': manifest('c_x-Q8_0.gguf'),
      'manifest=a=b_c=latest.json': manifest('x-Q4_0.gguf'),
    };
    expect(await idsOf(files, contents)).toEqual(['a/b:Q8_0', 'a/b_c:Q4_0']);
  });

  it('have the tag of the file, or else that which was asked for', async () => {
    const contents = {
      'manifest=a=b=q4_k_m.json': manifest('UD-Q4_K_XL/x-UD-Q4_K_XL.gguf'),
      'manifest=a=c=q4_k_m.json': manifest('sub-q5/model.gguf'),
      'manifest=a=d=latest.json': manifest('model.gguf'),
    };
    const files = ['a_b_UD-Q4_K_XL_x-UD-Q4_K_XL.gguf', 'a_c_sub-q5_model.gguf', 'a_d_model.gguf'];
    const { models } = await scan(files, contents);
    expect(models.map(({ id, aliases }) => [id, aliases])).toEqual([
      ['a/b:Q4_K_XL', []],
      ['a/c:Q4_K_M', []],
      ['a_d_model', ['a/d']],
    ]);
  });

  it('are one for all shards', async () => {
    const shards = [1, 2, 3].map((index) => `a_b_F16_x-F16-0000${index}-of-00003.gguf`);
    const contents = { 'manifest=a=b=latest.json': manifest('F16/x-F16-00001-of-00003.gguf') };
    const { models } = await scan(shards, contents);
    expect(models).toEqual([
      {
        id: 'a/b:F16',
        file: 'C/a_b_F16_x-F16-00001-of-00003.gguf',
        mmproj: undefined,
        draft: undefined,
        aliases: ['a/b'],
        isDownload: true,
      },
    ]);
  });

  it.each([
    ['no JSON', '{"ggufFile":'],
    ['empty', ''],
    ['no object', '[]'],
    ['null', 'null'],
    ['an error of the hub', '{"error":"Invalid username or password."}'],
    ['of another shape', '{"ggufFile":{"rfilename":7}}'],
  ])('that is %s have its user and repository still, with a warning', async (_, content) => {
    const { models, warnings } = await scan(['a_b_c_x-Q4_0.gguf'], { 'manifest=a=b_c=latest.json': content });
    expect(models.map(({ id, aliases }) => [id, aliases])).toEqual([['a/b_c:Q4_0', []]]);
    expect(warnings).toEqual([
      expect.stringMatching(/^the manifest 'C\/manifest=a=b_c=latest.json' is not used: /),
    ]);
  });

  it('that is far too large are as with a broken one', async () => {
    const content = `${manifest('x-Q4_0.gguf')}${' '.repeat(4 * 1024 * 1024)}`;
    const { models, warnings } = await scan(['a_b_x-Q4_0.gguf'], { 'manifest=a=b=latest.json': content });
    expect(models.map(({ id }) => id)).toEqual(['a/b:Q4_0']);
    expect(warnings).toEqual([expect.stringContaining('bytes, more than 4194304')]);
  });

  it('of which the file is gone are none', async () => {
    expect(await scan([], { 'manifest=a=b=latest.json': manifest('x-Q4_0.gguf') })).toEqual({
      models: [],
      warnings: [],
    });
  });
});

describe('companions', () => {
  it('are those that the manifest names, else the nearest in bits of the repository', async () => {
    const { models } = await scan(
      [
        ...['a_b_x-Q8_0.gguf', 'a_b_x-F16.gguf', 'a_b_mmproj-x-f16.gguf', 'a_b_mmproj-x-Q8_0.gguf'],
        ...['c_d_x-Q8_0.gguf', 'c_d_mtp-x-Q8_0.gguf', 'e_f_x-Q8_0.gguf'],
      ],
      { 'manifest=a=b=latest.json': manifest('x-Q8_0.gguf', 'mmproj-x-f16.gguf') },
    );
    expect(models.map(({ id, mmproj, draft }) => [id, mmproj, draft])).toEqual([
      ['a/b:F16', 'C/a_b_mmproj-x-f16.gguf', undefined],
      ['a/b:Q8_0', 'C/a_b_mmproj-x-f16.gguf', undefined],
      ['c/d:Q8_0', undefined, 'C/c_d_mtp-x-Q8_0.gguf'],
      ['e/f:Q8_0', undefined, undefined],
    ]);
  });

  it('that the manifest names and that are gone are made up for by another', async () => {
    const { models } = await scan(['a_b_x-Q8_0.gguf', 'a_b_mmproj-x-Q8_0.gguf'], {
      'manifest=a=b=latest.json': manifest('x-Q8_0.gguf', 'mmproj-x-f16.gguf'),
    });
    expect(models.map(({ mmproj }) => mmproj)).toEqual(['C/a_b_mmproj-x-Q8_0.gguf']);
  });

  it('are found by the repository of the models where their own names say too little', async () => {
    const { models } = await scan(['a_b_c_b_c-Q4_0.gguf', 'a_b_c_mmproj-F16.gguf', 'a_b_mmproj-F16.gguf']);
    expect(models.map(({ id, mmproj }) => [id, mmproj])).toEqual([['a/b_c:Q4_0', 'C/a_b_c_mmproj-F16.gguf']]);
  });

  it('and importance matrices are no models', async () => {
    const names = ['mmproj-F16', 'mtp-x-Q8_0', 'eagle3-x-Q8_0', 'dflash-x-F16', 'imatrix_x', 'x-imatrix'];
    expect(await idsOf([...names.map((name) => `a_b-GGUF_${name}.gguf`), 'mmproj-F16.gguf'])).toEqual([]);
  });

  it('that lead nowhere are none', async () => {
    const directory = tempDir();
    writeFile(join(directory, 'a_b_x-Q8_0.gguf'));
    writeLink(join(directory, 'a_b_mmproj-F16.gguf'), '/nonexistent');
    expect((await scanFlatCache(directory)).models.map(({ mmproj }) => mmproj)).toEqual([undefined]);
  });
});

it('files that are no models, and directories, are passed over', async () => {
  const { models, warnings } = await scan([
    'a_b_x-Q4_0.gguf.etag',
    'a_b_x-Q4_0.gguf.json',
    'a_b_x-Q4_0.gguf.downloadInProgress',
    'a_b_x-Q4_0.GGUF',
    'a_b_tokenizer.json',
    'manifest=a=b.json',
    'sub/a_b_x-Q4_0.gguf',
    'folder.gguf/x.gguf',
    'manifest=a=b=folder.json/x',
  ]);
  expect([models, warnings]).toEqual([[], []]);
});

it('one directory is read for both layouts, each passing over the other', async () => {
  const directory = tempDir();
  writeRepo(directory, 'org/hub', ['h-Q4_0.gguf']);
  writeFile(join(directory, 'org_flat_f-Q4_0.gguf'));
  writeFile(join(directory, 'manifest=org=flat=latest.json'), manifest('f-Q4_0.gguf'));
  const [hub, flat] = await Promise.all([scanHubCache(directory), scanFlatCache(directory)]);
  expect(hub.models.map(({ id }) => id)).toEqual(['org/hub:Q4_0']);
  expect(flat.models.map(({ id }) => id)).toEqual(['org/flat:Q4_0']);
  expect([...hub.warnings, ...flat.warnings]).toEqual([]);
});

it('links are followed, and one that leads nowhere is a model still, so that it can be listed with the reason', async () => {
  const directory = tempDir();
  writeLink(join(directory, 'a_b_x-Q4_0.gguf'), writeFile(join(tempDir(), 'x.gguf')));
  writeLink(join(directory, 'a_b_x-Q8_0.gguf'), '/nonexistent');
  const { models } = await scanFlatCache(directory);
  expect(models.map(({ id }) => id)).toEqual(['a/b:Q4_0', 'a/b:Q8_0']);
});

it('names that are not UTF-8 are ids with the odd bytes escaped, or told where no links can be made', async (context) => {
  if (process.platform !== 'linux') context.skip('other systems do not let such a name be written');
  const directory = tempDir();
  writeOddFile(`${directory}/a_b_caf\xe9-Q4_0.gguf`);
  writeOddFile(`${directory}/caf\xe9.gguf`);
  const readable = writeFile(join(directory, 'caf%E9.gguf'));
  const { models, warnings } = await scanFlatCache(directory, { linksDirectory: join(tempDir(), 'links') });
  expect(models.map(({ id }) => id)).toEqual(['a/b:Q4_0', 'caf%E9']);
  expect(readFileSync(models[0]?.file ?? '', 'latin1')).toMatch(/^GGUF/);
  expect(models[1]?.file).toBe(readable);
  expect(warnings).toEqual([expect.stringContaining(`'${readable}' has the id 'caf%E9' already`)]);

  const without = await scanFlatCache(directory);
  expect(without.models.map(({ id }) => id)).toEqual(['caf%E9']);
  expect(without.warnings).toHaveLength(2);
});

describe('what is broken', () => {
  it('a cache that does not exist is an empty one', async () => {
    expect(await scanFlatCache(join(tempDir(), 'missing'))).toEqual({ models: [], warnings: [] });
  });

  it('a file in the place of the cache is a warning', async () => {
    const path = writeFile(join(tempDir(), 'file'));
    expect(await scanFlatCache(path)).toEqual({
      models: [],
      warnings: [`'${path}' cannot be read: ENOTDIR`],
    });
  });

  it('a name without anything before its ending is told', async () => {
    expect(await scan(['.gguf'])).toEqual({
      models: [],
      warnings: ["'C/.gguf' is not listed: its name leaves no model id"],
    });
  });

  it('what may not be read is a warning, and the file is served', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every file');
    const directory = tempDir();
    writeFile(join(directory, 'a_b_x-Q4_0.gguf'));
    chmodSync(writeFile(join(directory, 'manifest=a=b=latest.json'), manifest('x-Q4_0.gguf')), 0);
    const { models, warnings } = await scanFlatCache(directory);
    expect(models.map(({ id }) => id)).toEqual(['a/b:Q4_0']);
    expect(warnings).toEqual([`the manifest '${directory}/manifest=a=b=latest.json' is not used: EACCES`]);
    const closed = join(directory, 'closed');
    mkdirSync(closed, { mode: 0 });
    expect((await scanFlatCache(closed)).warnings).toEqual([`'${closed}' cannot be read: EACCES`]);
    chmodSync(closed, 0o700);
  });
});

describe('a moment in which the system fails', () => {
  it.each([
    ['EMFILE', 'the cache', ''],
    ['EIO', 'a manifest', 'manifest=a=b_c=latest.json'],
  ])('with %s at %s leaves what was there, with a warning', async (code, _what, below) => {
    const directory = tempDir();
    const readings = new LastReadings();
    const file = writeFile(join(directory, 'a_b_c_x-Q4_0.gguf'));
    writeFile(join(directory, 'manifest=a=b_c=latest.json'), manifest('x-Q4_0.gguf'));
    const before = await scanFlatCache(directory, { readings });
    expect(before.models.map(({ id, aliases }) => [id, aliases])).toEqual([['a/b_c:Q4_0', ['a/b_c']]]);
    const path = below === '' ? directory : join(directory, below);
    failAt(path, code);
    const during = await scanFlatCache(directory, { readings });
    expect(during.models).toEqual(before.models);
    expect(during.warnings).toEqual([`'${path}' cannot be read: ${code}; what it held last is used`]);
    mend();
    rmSync(file);
    expect(await scanFlatCache(directory, { readings })).toEqual({ models: [], warnings: [] });
  });

  it('at a link leaves it what it led to', async () => {
    const directory = tempDir();
    const readings = new LastReadings();
    writeFile(join(directory, 'a_b_x-Q8_0.gguf'));
    const link = writeLink(join(directory, 'a_b_mmproj-F16.gguf'), writeFile(join(tempDir(), 'm.gguf')));
    await scanFlatCache(directory, { readings });
    failAt(link, 'ESTALE');
    expect((await scanFlatCache(directory, { readings })).models.map(({ mmproj }) => mmproj)).toEqual([link]);
  });
});

it('tens of thousands of companions in one repository, and of manifests of one file, are sorted at once', () => {
  const names = Array.from({ length: 60_000 }, (_, index) => `a_b-GGUF_mmproj-x-T${index}.gguf`);
  const entries = ['a_b-GGUF_x-Q4_0.gguf', ...names].map((name) => {
    return { name, path: `/flat/${name}`, kind: 'file', isLink: false } as const;
  });
  const manifests = names.map((_, index) => {
    return {
      repo: 'a/b-GGUF',
      tag: `t${index}`,
      model: { repo: 'a/b-GGUF', path: 'x-Q4_0.gguf' },
      mmproj: undefined,
    };
  });
  const started = performance.now();
  expect(flatModels(entries, manifests)).toHaveLength(1);
  expect(performance.now() - started).toBeLessThan(2_000);
});

it('ten thousand files of as many repositories are read in seconds', async () => {
  const directory = tempDir();
  for (let index = 0; index < 10_000; index++) {
    writeFile(join(directory, `org_repo-${index}-GGUF_repo-${index}-Q4_K_M.gguf`), '');
  }
  const started = performance.now();
  const { models } = await scanFlatCache(directory);
  expect(models).toHaveLength(10_000);
  expect(performance.now() - started).toBeLessThan(5_000);
});
