import { chmodSync, rmSync, utimesSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  HubCache,
  hubCacheDirectory,
  passwdHome,
  scanHubCache,
} from '../../../../src/models/disk/hub-cache.js';
import { LastReadings } from '../../../../src/models/disk/last-readings.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { COMMIT, writeFile, writeLink, writeRepo } from '../tree.js';
import { failAt, mend } from './failing-fs.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('./failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

vi.mock(import('node:os'), async (importOriginal) => {
  const original = await importOriginal();
  return { ...original, userInfo: vi.fn(original.userInfo) as typeof userInfo };
});

describe('the place of the cache', () => {
  const env = {
    LLAMA_CACHE: '/llama',
    HF_HUB_CACHE: '/hub',
    HUGGINGFACE_HUB_CACHE: '/hugging',
    HF_HOME: '/hf',
    XDG_CACHE_HOME: '/xdg',
    HOME: '/home/me',
  };

  it.each([
    ['LLAMA_CACHE', '/llama'],
    ['HF_HUB_CACHE', '/hub'],
    ['HUGGINGFACE_HUB_CACHE', '/hugging'],
    ['HF_HOME', '/hf/hub'],
    ['XDG_CACHE_HOME', '/xdg/huggingface/hub'],
    ['HOME', '/home/me/.cache/huggingface/hub'],
  ])('is told by %s if nothing before it is set', (name, expected) => {
    const names = Object.keys(env);
    const rest = Object.entries(env).filter(([other]) => names.indexOf(other) >= names.indexOf(name));
    expect(hubCacheDirectory(Object.fromEntries(rest), '/passwd', 'linux')).toBe(expected);
  });

  it('is not told by a variable that is empty', () => {
    expect(hubCacheDirectory({ ...env, LLAMA_CACHE: '', HF_HUB_CACHE: '' }, '/passwd', 'linux')).toBe(
      '/hugging',
    );
  });

  it('is below the home of the user database when no variable is set, and else unknown', () => {
    expect(hubCacheDirectory({}, '/passwd', 'linux')).toBe('/passwd/.cache/huggingface/hub');
    expect(hubCacheDirectory({}, undefined, 'linux')).toBeUndefined();
  });

  it('asks the user database once, however often it is told', () => {
    vi.mocked(userInfo).mockClear();
    const first = passwdHome();
    expect(passwdHome()).toBe(first);
    expect(userInfo).toHaveBeenCalledTimes(1);
  });

  it('stays relative if the variable is', () => {
    expect(hubCacheDirectory({ LLAMA_CACHE: './tmp' }, undefined, 'linux')).toBe('./tmp');
  });

  it('is below USERPROFILE on Windows', () => {
    const windows = { HOME: '/home/me', USERPROFILE: 'C:\\Users\\me' };
    expect(hubCacheDirectory(windows, undefined, 'win32')).toBe('C:\\Users\\me/.cache/huggingface/hub');
  });
});

async function idsOf(cache: string): Promise<string[]> {
  return (await scanHubCache(cache)).models.map(({ id }) => id);
}

describe('ids', () => {
  it('are repository and tag, one for all shards, sorted by repository', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/b', ['b-UD-Q4_K_XL.gguf', 'b-q8_0.gguf']);
    writeRepo(cache, 'org/a', ['F16/a-F16-00001-of-00002.gguf', 'F16/a-F16-00002-of-00002.gguf']);
    expect((await idsOf(cache)).sort()).toEqual(['org/a:F16', 'org/b:Q4_K_XL', 'org/b:Q8_0']);
  });

  it('are not made from companions, importance matrices, files without tag and later shards', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', [
      'mmproj-F16.gguf',
      'mmproj/vision-F16.gguf',
      'mtp-a-Q8_0.gguf',
      'eagle3-a-Q8_0.gguf',
      'dflash-a-Q8_0.gguf',
      'dspark-a-Q8_0.gguf',
      'a-imatrix.gguf',
      'imatrix-Q4_0.gguf',
      'model.gguf',
      'a-Q2_K-00002-of-00002.gguf',
      'a-Q6_K.GGUF',
      'README.md',
      'a-Q4_0.gguf',
    ]);
    expect(await idsOf(cache)).toEqual(['org/a:Q4_0']);
  });

  it.each([
    'models--org',
    'models--org--a--b',
    'models--org--.a',
    'models--org--a.',
    'models--org--a..b',
    'models--org--a b',
    'models---org--a',
    'datasets--org--a',
  ])('are not made from the folder %s, which is no model repository', async (folder) => {
    const cache = tempDir();
    writeFile(join(cache, folder, 'refs/main'), COMMIT);
    writeFile(join(cache, folder, 'snapshots', COMMIT, 'a-Q4_0.gguf'));
    expect(await idsOf(cache)).toEqual([]);
  });
});

describe('the snapshot', () => {
  it('is the one that refs/main names, whatever others there are', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['old-Q4_0.gguf'], 'a'.repeat(40));
    writeFile(join(cache, 'models--org--a/refs/aaa'), 'a'.repeat(40));
    writeRepo(cache, 'org/a', ['new-Q8_0.gguf'], 'b'.repeat(40));
    expect(await idsOf(cache)).toEqual(['org/a:Q8_0']);
  });

  it('is the one of another ref where main is missing or names no commit, with a warning then', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    rmSync(join(cache, 'models--org--a/refs/main'));
    writeFile(join(cache, 'models--org--a/refs/v1'), `${COMMIT}\nmore`);
    writeRepo(cache, 'org/b', ['b-Q4_0.gguf']);
    const broken = writeFile(join(cache, 'models--org--b/refs/main'), 'HEAD');
    writeFile(join(cache, 'models--org--b/refs/v1'), COMMIT);
    const { models, warnings } = await scanHubCache(cache);
    expect(models.map(({ id }) => id)).toEqual(['org/a:Q4_0', 'org/b:Q4_0']);
    expect(warnings).toEqual([`'${broken}' is skipped: it holds no commit`]);
  });

  it('of a repository without refs is not guessed', async () => {
    const cache = tempDir();
    writeFile(join(cache, 'models--org--a/snapshots', COMMIT, 'a-Q4_0.gguf'));
    expect(await idsOf(cache)).toEqual([]);
  });

  it('is the newest older one with a model while that of the ref has none, and says so', async () => {
    const cache = tempDir();
    const oldest = writeRepo(cache, 'org/a', ['a-Q2_K.gguf'], 'a'.repeat(40));
    const older = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'mmproj-F16.gguf'], '9'.repeat(40));
    const modelless = writeRepo(cache, 'org/a', ['README.md'], 'f'.repeat(40));
    for (const [index, snapshot] of [oldest, older, modelless].entries()) {
      utimesSync(snapshot, 1_000 + index, 1_000 + index);
    }
    const head = 'b'.repeat(40);
    writeRepo(cache, 'org/a', ['README.md'], head);
    const hub = await scanHubCache(cache);
    expect(hub.models).toEqual([{ id: 'org/a:Q4_0' }]);
    expect(hub.resolve('org/a:Q4_0')).toEqual({
      kind: 'file',
      file: join(older, 'a-Q4_0.gguf'),
      mmproj: join(older, 'mmproj-F16.gguf'),
      isOutdated: true,
    });
    expect(hub.warnings).toEqual([
      `'org/a' is served from '${older}': its ref names the commit ${head}, of which no model is in the cache; ` +
        'unless it is being downloaded, download it again',
    ]);

    writeRepo(cache, 'org/a', ['a-Q8_0.gguf'], head);
    const updated = await scanHubCache(cache);
    expect(updated.models).toEqual([{ id: 'org/a:Q8_0' }]);
    expect(updated.resolve('org/a')).toMatchObject({ isOutdated: false });
    expect(updated.warnings).toEqual([]);
  });

  it('is that of the ref if it has presets, or if no other has a model', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/presets', ['a-Q4_0.gguf'], 'a'.repeat(40));
    writeRepo(cache, 'org/presets', ['preset.ini'], 'b'.repeat(40));
    writeRepo(cache, 'org/tensors', ['model.safetensors'], 'a'.repeat(40));
    writeFile(join(cache, 'models--org--tensors/refs/main'), 'b'.repeat(40));
    const hub = await scanHubCache(cache);
    expect([hub.models, hub.warnings]).toEqual([[], []]);
    expect(hub.resolve('org/presets').kind).toBe('unusable');
  });

  it('is walked to its depth, but not through links to directories', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['one/two/three/a-Q4_0.gguf']);
    const elsewhere = tempDir();
    writeFile(join(elsewhere, 'b-Q8_0.gguf'));
    writeLink(join(snapshot, 'linked'), elsewhere);
    writeLink(join(snapshot, 'loop'), snapshot);
    expect(await idsOf(cache)).toEqual(['org/a:Q4_0']);
  });
});

describe('what is broken', () => {
  it('a cache that does not exist is an empty one', async () => {
    const { models, warnings } = await scanHubCache(join(tempDir(), 'missing'));
    expect([models, warnings]).toEqual([[], []]);
  });

  it('a file in the place of the cache is a warning', async () => {
    const path = writeFile(join(tempDir(), 'file'));
    const { models, warnings } = await scanHubCache(path);
    expect([models, warnings]).toEqual([[], [`'${path}' cannot be read: ENOTDIR`]]);
  });

  it('a directory that may not be read is a warning, and the other repositories stay', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every directory');
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    const closed = writeRepo(cache, 'org/b', ['b-Q4_0.gguf']);
    chmodSync(closed, 0);
    const { models, warnings } = await scanHubCache(cache);
    chmodSync(closed, 0o700);
    expect(models.map(({ id }) => id)).toEqual(['org/a:Q4_0']);
    expect(warnings).toEqual([`'${closed}' cannot be read: EACCES`]);
  });

  it('a link whose blob is gone keeps its id, so that its model can be listed with the reason', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    rmSync(join(cache, 'models--org--a/blobs'), { recursive: true });
    const hub = await scanHubCache(cache);
    expect(hub.models).toEqual([{ id: 'org/a:Q4_0' }]);
    expect(hub.resolve('org/a:Q4_0')).toEqual({
      kind: 'file',
      file: join(snapshot, 'a-Q4_0.gguf'),
      mmproj: undefined,
      isOutdated: false,
    });
  });
});

describe('the file that a child takes', () => {
  const cache = tempDir();
  const mixed = writeRepo(cache, 'org/mixed', [
    'a-Q8_0.gguf',
    'sub/a-Q4_K_M-00001-of-00002.gguf',
    'sub/a-Q4_K_M-00002-of-00002.gguf',
    'mmproj-Q4_K_M.gguf',
    'a-f16.gguf',
  ]);
  const plain = writeRepo(cache, 'org/plain', ['only.gguf']);

  it.each([
    ['org/mixed:Q8_0', undefined, join(mixed, 'a-Q8_0.gguf')],
    ['org/mixed:q8_0', undefined, join(mixed, 'a-Q8_0.gguf')],
    ['org/mixed:F16', undefined, join(mixed, 'a-f16.gguf')],
    ['org/mixed:Q4_K_M', undefined, join(mixed, 'sub/a-Q4_K_M-00001-of-00002.gguf')],
    ['org/mixed', undefined, join(mixed, 'sub/a-Q4_K_M-00001-of-00002.gguf')],
    ['org/plain', undefined, join(plain, 'only.gguf')],
    ['org/mixed:Q8_0', 'a-f16.gguf', join(mixed, 'a-f16.gguf')],
  ])('for --hf-repo %s and --hf-file %s', async (repo, file, expected) => {
    expect((await scanHubCache(cache)).resolve(repo, file)).toMatchObject({ kind: 'file', file: expected });
  });

  it.each([
    ['org/mixed:Q2_K', undefined],
    ['org/missing:Q8_0', undefined],
    ['org/mixed', 'missing.gguf'],
    ['nonsense', undefined],
    ['org/mixed:.*', undefined],
  ])('is none for --hf-repo %s and --hf-file %s, which the cache does not hold', async (repo, file) => {
    expect((await scanHubCache(cache)).resolve(repo, file)).toEqual({ kind: 'absent' });
  });

  it('is none if the repository has a preset.ini, which makes a child forget its model', async () => {
    const other = tempDir();
    writeRepo(other, 'org/a', ['a-Q4_0.gguf', 'preset.ini']);
    const found = (await scanHubCache(other)).resolve('org/a:Q4_0');
    expect(found).toEqual({
      kind: 'unusable',
      problem: expect.stringContaining("'org/a' has a preset.ini") as string,
    });
  });
});

describe('the projector that a child takes', () => {
  async function mmprojOf(files: readonly string[], hfRepo = 'org/a'): Promise<string | undefined> {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', files);
    const found = (await scanHubCache(cache)).resolve(hfRepo);
    if (found.kind !== 'file') throw new Error(`'${hfRepo}' is ${found.kind}`);
    return found.mmproj?.slice(snapshot.length + 1);
  }

  it('is none if the repository has none', async () => {
    expect(await mmprojOf(['a-Q4_0.gguf', 'mmproj.bin'])).toBeUndefined();
  });

  it.each([
    ['org/a:F16', 'mmproj-BF16.gguf'],
    ['org/a:Q4_K_M', 'mmproj-Q8_0.gguf'],
    ['org/a:F32', 'mmproj-F32.gguf'],
    ['org/a:Q8_0', 'mmproj-Q8_0.gguf'],
  ])('is for %s the nearest in bits', async (hfRepo, expected) => {
    const models = ['a-F16.gguf', 'a-Q4_K_M.gguf', 'a-F32.gguf', 'a-Q8_0.gguf'];
    const projectors = ['mmproj-BF16.gguf', 'mmproj-F32.gguf', 'mmproj-Q8_0.gguf'];
    expect(await mmprojOf([...models, ...projectors], hfRepo)).toBe(expected);
  });

  it('is one beside the model before one above it, however many bits they have', async () => {
    const files = ['mmproj-Q4_0.gguf', 'sub/mmproj-F32.gguf', 'sub/a-Q4_0.gguf'];
    expect(await mmprojOf(files)).toBe('sub/mmproj-F32.gguf');
  });

  it('is never one of another directory', async () => {
    expect(await mmprojOf(['a-Q4_0.gguf', 'sub/mmproj-Q4_0.gguf'])).toBeUndefined();
    expect(await mmprojOf(['sub2/a-Q4_0.gguf', 'sub/mmproj-Q4_0.gguf'])).toBeUndefined();
  });

  it('is known for a file that --hf-file names, too', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['plain.gguf', 'mmproj-F16.gguf']);
    expect((await scanHubCache(cache)).resolve('org/a', 'plain.gguf')).toEqual({
      kind: 'file',
      file: join(snapshot, 'plain.gguf'),
      mmproj: join(snapshot, 'mmproj-F16.gguf'),
      isOutdated: false,
    });
  });
});

describe('a moment in which the system fails', () => {
  const repo = 'models--org--a';
  it.each([
    ['EMFILE', 'the cache', ''],
    ['EIO', 'the refs', `${repo}/refs`],
    ['ESTALE', 'the ref itself', `${repo}/refs/main`],
    ['ENFILE', 'the snapshot', `${repo}/snapshots/${COMMIT}`],
    ['EACCES', 'a directory in it', `${repo}/snapshots/${COMMIT}/sub`],
  ])('with %s at %s leaves what was there, with a warning', async (code, _what, below) => {
    const cache = tempDir();
    const readings = new LastReadings();
    // Were the ref taken for gone, the other one would count.
    writeRepo(cache, 'org/a', ['other-Q2_K.gguf'], 'a'.repeat(40));
    writeFile(join(cache, repo, 'refs/zzz'), 'a'.repeat(40));
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'sub/a-Q8_0.gguf']);
    writeRepo(cache, 'org/b', ['b-Q4_0.gguf']);
    const before = await scanHubCache(cache, { readings });
    expect(before.models).toHaveLength(3);
    const path = below === '' ? cache : join(cache, below);
    failAt(path, code);
    const told = [`'${path}' cannot be read: ${code}; what it held last is used`];
    // However long it lasts.
    for (const hub of [await scanHubCache(cache, { readings }), await scanHubCache(cache, { readings })]) {
      expect(hub.models).toEqual(before.models);
      expect(hub.resolve('org/a:Q8_0')).toEqual(before.resolve('org/a:Q8_0'));
      expect(hub.warnings).toEqual(told);
    }
    mend();
    rmSync(join(cache, 'models--org--b'), { recursive: true });
    const after = await scanHubCache(cache, { readings });
    expect(after.models.map(({ id }) => id).sort()).toEqual(['org/a:Q4_0', 'org/a:Q8_0']);
    expect(after.warnings).toEqual([]);
  });

  it('hides what changed elsewhere in the meantime no more than need be', async () => {
    const cache = tempDir();
    const readings = new LastReadings();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    writeRepo(cache, 'org/b', ['b-Q4_0.gguf']);
    await scanHubCache(cache, { readings });
    failAt(snapshot, 'EMFILE');
    rmSync(join(cache, 'models--org--b'), { recursive: true });
    writeRepo(cache, 'org/c', ['c-Q4_0.gguf']);
    const { models } = await scanHubCache(cache, { readings });
    expect(models.map(({ id }) => id)).toEqual(['org/a:Q4_0', 'org/c:Q4_0']);
  });

  it('is told once for each code, wherever and how often it happens', async () => {
    const cache = tempDir();
    const readings = new LastReadings();
    const snapshots = ['a', 'b', 'c'].map((name) => writeRepo(cache, `org/${name}`, [`${name}-Q4_0.gguf`]));
    const before = await scanHubCache(cache, { readings });
    const [a = '', b = '', c = ''] = snapshots;
    const told = [
      `'${c}' cannot be read: EIO; what it held last is used`,
      `parts of '${cache}' cannot be read: EMFILE; what they held last is used`,
    ];
    for (const path of [a, b]) failAt(path, 'EMFILE');
    failAt(c, 'EIO');
    const during = await scanHubCache(cache, { readings });
    expect([during.models, during.warnings]).toEqual([before.models, told]);
    failAt(cache, 'EMFILE');
    expect((await scanHubCache(cache, { readings })).warnings).toEqual(told);
  });

  it('at the first scan is a warning, and at a repository that is gone by now it is nothing', async () => {
    const cache = tempDir();
    const readings = new LastReadings();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    failAt(snapshot, 'EMFILE');
    const { models, warnings } = await scanHubCache(cache, { readings });
    expect([models, warnings]).toEqual([[], [`'${snapshot}' cannot be read: EMFILE`]]);
    mend();
    expect((await scanHubCache(cache, { readings })).models).toHaveLength(1);
    rmSync(join(cache, 'models--org--a'), { recursive: true });
    expect((await scanHubCache(cache, { readings })).models).toEqual([]);
    failAt(cache, 'EMFILE');
    expect((await scanHubCache(cache, { readings })).models).toEqual([]);
  });
});

it('a repository of thousands of models is resolved in a fraction of a second', () => {
  const files = Array.from({ length: 3_000 }, (_, index) => {
    const path = `directory-${index}/some-model-of-a-usual-name-T${index}.gguf`;
    return { path, localPath: `/hub/${path}` };
  });
  const started = performance.now();
  const hub = new HubCache([{ id: 'org/a', files }], []);
  const kinds = new Set(hub.models.map(({ id }) => hub.resolve(id).kind));
  expect(performance.now() - started).toBeLessThan(1_500);
  expect(hub.models).toHaveLength(3_000);
  expect([...kinds]).toEqual(['file']);
});
