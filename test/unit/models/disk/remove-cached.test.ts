import {
  copyFileSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Catalog } from '../../../../src/models/catalog.js';
import { discoverCatalog } from '../../../../src/models/discover.js';
import { Removal } from '../../../../src/models/disk/removal.js';
import { planRemoval } from '../../../../src/models/disk/remove-cached.js';
import { removeFromCache } from '../../../helpers/remove-from-cache.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { aModel } from '../a-model.js';
import { ggufHeader } from '../gguf-header.js';
import { table } from '../help-table.js';
import { COMMIT, writeFile, writeLink, writeOddFile, writeRepo } from '../tree.js';
import { goneFrom, listing } from './disk-listing.js';
import { failAt, mend, silenceAt } from './failing-fs.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('./failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

const OTHER_COMMIT = 'f'.repeat(40);
const SIZE = ggufHeader().length;

async function catalogOf(cache: string, ...preset: string[]): Promise<Catalog> {
  const presetFiles = preset.length === 0 ? [] : [writeFile(join(tempDir(), 'p.ini'), preset.join('\n'))];
  const env = { LLAMA_CACHE: cache };
  return await discoverCatalog({ env, modelsDirs: [], presetFiles, base: new Map(), table });
}

/** Removes the model `id` of the catalog of `cache`. */
async function remove(cache: string, id: string, ...preset: string[]) {
  const catalog = await catalogOf(cache, ...preset);
  const model = catalog.resolve(id);
  if (model === undefined) throw new Error(`the catalog has no '${id}'`);
  return await removeFromCache(model, { hub: cache, flat: [cache] }, catalog.models);
}

/** The paths that are gone after that, relative to the cache. Nothing else has changed. */
async function goneAfter(cache: string, id: string, ...preset: string[]): Promise<string[]> {
  const before = listing(cache);
  await remove(cache, id, ...preset);
  return goneFrom(before, listing(cache));
}

/** Expects that it is refused with a message that matches, and that nothing has changed below `root`. */
async function expectRefusal(root: string, removal: () => Promise<unknown>, message: RegExp): Promise<void> {
  const before = listing(root);
  await expect(removal()).rejects.toMatchObject({
    code: 'model_not_removable',
    message: expect.stringMatching(message) as string,
  });
  expect(listing(root)).toEqual(before);
}

/** A file and a directory that nothing may touch, outside of the cache. */
function sentinel(): { readonly directory: string; readonly file: string; readonly assertWhole: () => void } {
  const directory = tempDir();
  const file = writeFile(join(directory, 'snapshot-Q4_0.gguf'));
  const before = listing(directory);
  return { directory, file, assertWhole: () => expect(listing(directory)).toEqual(before) };
}

const A = 'models--org--a';
/** Paths in the repository `org/a`, sorted. */
const inA = (...paths: string[]): string[] => paths.map((path) => `${A}/${path}`).sort();
const links = (...files: string[]): string[] => files.map((file) => `snapshots/${COMMIT}/${file}`);
const blobs = (...files: string[]): string[] => files.map((file) => `blobs/${file}`);

describe('of the hub cache', () => {
  it('all shards and their blobs go, and nothing of the other models', async () => {
    const cache = tempDir();
    const shards = ['F16/a-F16-00001-of-00002.gguf', 'F16/a-F16-00002-of-00002.gguf'];
    writeRepo(cache, 'org/a', [...shards, 'a-Q8_0.gguf', 'a-imatrix.gguf']);
    writeRepo(cache, 'org/b', ['b-F16.gguf']);
    const names = shards.map((file) => file.replace('/', '_'));
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(inA(...links('F16', ...shards), ...blobs(...names)));
    expect((await catalogOf(cache)).models.map(({ id }) => id)).toEqual(['org/a:Q8_0', 'org/b:F16']);
  });

  it('what went and how much room that made is told', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'README.md']);
    expect(await remove(cache, 'org/a:Q4_0')).toEqual({
      removed: [join(snapshot, 'a-Q4_0.gguf'), join(cache, A, 'blobs/a-Q4_0.gguf')],
      freedBytes: SIZE,
    });
  });

  it('the repository goes with its last file', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'mmproj-F16.gguf']);
    writeFile(join(cache, A, 'refs/pr/1'), OTHER_COMMIT);
    mkdirSync(join(cache, A, 'snapshots', OTHER_COMMIT));
    await remove(cache, 'org/a:Q4_0');
    expect([...listing(cache)]).toEqual([]);
  });

  it.each(['README.md', 'preset.ini', 'model.safetensors'])(
    'the repository stays for %s, which others may use',
    async (other) => {
      const cache = tempDir();
      writeRepo(cache, 'org/a', ['a-Q4_0.gguf', other]);
      expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
        inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
      );
    },
  );

  it('the repository stays for a download that goes on', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    writeFile(join(cache, A, 'blobs/0123.downloadInProgress'), 'half of it');
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
  });

  it('what broken downloads left of its blobs goes, and that of others stays', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    const left = ['a-Q4_0.gguf.downloadInProgress', 'a-Q4_0.gguf.incomplete', 'a-Q4_0.gguf.etag'];
    for (const name of [...left, 'a-Q8_0.gguf.downloadInProgress', 'a-Q4_0.gguf.other']) {
      writeFile(join(cache, A, 'blobs', name), 'x');
    }
    // One of them is in truth a file of the repository.
    writeLink(join(snapshot, 'x.etag'), '../../blobs/a-Q4_0.gguf.etag');
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf', ...left.slice(0, 2))),
    );
  });

  it('it goes from every snapshot, and a blob only when none names it any more', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf'], OTHER_COMMIT);
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    // Under another name and for another tag it is the same file.
    symlinkSync('../../blobs/a-Q4_0.gguf', join(snapshot, 'b-F16.gguf'));
    writeFile(join(cache, A, 'blobs/a-Q4_0.gguf.incomplete'), 'of the blob that stays');
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), `snapshots/${OTHER_COMMIT}/a-Q4_0.gguf`),
    );
    rmSync(join(cache, A, 'blobs/a-Q4_0.gguf.incomplete'));
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(inA(...links('b-F16.gguf'), ...blobs('a-Q4_0.gguf')));
  });

  it('a blob stays that a link leads to by way of another', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    writeLink(join(snapshot, 'keep.bin'), '../through');
    writeLink(join(cache, A, 'snapshots/through'), '../blobs/a-Q4_0.gguf');
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(inA(...links('a-Q4_0.gguf')));
  });

  it('a snapshot that becomes empty goes, unless it is checked out while another stays', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['sub/a-Q4_0.gguf'], OTHER_COMMIT);
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(
        ...links('a-Q4_0.gguf'),
        ...['', '/sub', '/sub/a-Q4_0.gguf'].map((path) => `snapshots/${OTHER_COMMIT}${path}`),
        ...blobs('a-Q4_0.gguf', 'sub_a-Q4_0.gguf'),
      ),
    );
    writeRepo(cache, 'org/a', ['README.md'], OTHER_COMMIT);
    writeFile(join(cache, A, 'refs/main'), COMMIT);
    expect(await goneAfter(cache, 'org/a:Q8_0')).toEqual(
      inA(...links('a-Q8_0.gguf'), ...blobs('a-Q8_0.gguf')),
    );
  });

  it('files that are no links, as where none can be made, go as well', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    for (const name of ['a-Q4_0.gguf', 'a-Q8_0.gguf']) {
      unlinkSync(join(snapshot, name));
      renameSync(join(cache, A, 'blobs', name), join(snapshot, name));
    }
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(inA(...links('a-Q4_0.gguf')));
  });

  it('a copy goes without the blob it was made from, and a hard link with it', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['copy-Q4_0.gguf', 'hard-Q8_0.gguf', 'a-F16.gguf']);
    for (const [name, make] of [
      ['copy-Q4_0.gguf', copyFileSync],
      ['hard-Q8_0.gguf', linkSync],
    ] as const) {
      unlinkSync(join(snapshot, name));
      make(join(cache, A, 'blobs', name), join(snapshot, name));
    }
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(inA(...links('copy-Q4_0.gguf')));
    expect(await remove(cache, 'org/a:Q8_0')).toEqual({
      removed: [join(snapshot, 'hard-Q8_0.gguf'), join(cache, A, 'blobs/hard-Q8_0.gguf')],
      freedBytes: SIZE,
    });
  });

  it('names may be of any bytes', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['new\nline-Q4_0.gguf', '🦙 %E9-Q4_0.gguf', 'a-Q8_0.gguf']);
    for (const name of ['caf\xe9-Q4_0.gguf', 'caf\xe8-Q8_0.gguf', '\xff/sub-Q4_0.gguf']) {
      writeOddFile(`${snapshot}/${name}`);
    }
    symlinkSync(
      Buffer.from('../../blobs/odd\xe9', 'latin1'),
      Buffer.from(`${snapshot}/link\xe9-Q4_0.gguf`, 'latin1'),
    );
    writeOddFile(join(cache, A, 'blobs/odd\xe9'));
    const inBytes = (text: string): string => Buffer.from(text).toString('latin1');
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      [
        ...links('caf\xe9-Q4_0.gguf', '\xff', '\xff/sub-Q4_0.gguf', 'link\xe9-Q4_0.gguf'),
        ...links('new\nline-Q4_0.gguf', '🦙 %E9-Q4_0.gguf').map(inBytes),
        ...blobs('new\nline-Q4_0.gguf', '🦙 %E9-Q4_0.gguf').map(inBytes),
        'blobs/odd\xe9',
      ]
        .map((path) => `${A}/${path}`)
        .sort(),
    );
  });

  it('files that vanish meanwhile are no error', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    const model = (await catalogOf(cache)).resolve('org/a:Q4_0') ?? aModel('');
    failAt(join(snapshot, 'a-Q4_0.gguf'), 'ENOENT', 'unlink');
    const caches = { hub: cache, flat: [] };
    expect((await removeFromCache(model, caches, [])).removed).toEqual([]);
    mend();
    rmSync(join(cache, A), { recursive: true });
    expect(await removeFromCache(model, caches, [])).toEqual({ removed: [], freedBytes: 0 });
    rmSync(cache, { recursive: true });
    expect(await removeFromCache(model, caches, [])).toEqual({ removed: [], freedBytes: 0 });
  });
});

describe('a companion', () => {
  it('goes with the model that alone takes it, and stays while another does', async () => {
    const cache = tempDir();
    const files = ['mmproj-F16.gguf', 'mmproj-Q8_0.gguf', 'mtp-a-Q8_0.gguf'];
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q6_K.gguf', 'a-F16.gguf', ...files]);
    // Nearest in bits to Q4_0 and Q6_K is the projector Q8_0, to F16 its own.
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(
      inA(...links('a-F16.gguf', 'mmproj-F16.gguf'), ...blobs('a-F16.gguf', 'mmproj-F16.gguf')),
    );
  });

  it('is not taken for the model because its name has the same tag', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-F16.gguf', 'a-Q4_0.gguf', 'mmproj-F16.gguf', 'mtp-a-F16.gguf']);
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(inA(...links('a-F16.gguf'), ...blobs('a-F16.gguf')));
  });

  it('goes with the last model of its snapshot, whichever it is, and a model without a tag counts', async () => {
    const cache = tempDir();
    const companions = ['mmproj-F16.gguf', 'mmproj-F32.gguf', 'eagle3-a-Q8_0.gguf'];
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'untagged.gguf', ...companions, 'README.md']);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
    writeRepo(cache, 'org/b', ['b-Q4_0.gguf', ...companions, 'README.md']);
    await remove(cache, 'org/b:Q4_0');
    expect([...listing(join(cache, 'models--org--b/blobs')).keys()]).toEqual(['README.md']);
  });

  it('of another snapshot goes with the last model of the repository', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['mmproj-F16.gguf'], OTHER_COMMIT);
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
    await remove(cache, 'org/a:Q8_0');
    expect([...listing(cache)]).toEqual([]);
  });

  it('stays while a section takes it, and the model goes', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'mmproj-F16.gguf', 'mtp-a-Q8_0.gguf']);
    const own = writeFile(join(tempDir(), 'own.gguf'));
    const preset = [
      ...['[eyes]', `model = ${own}`, `mmproj = ${join(cache, A, 'blobs/mmproj-F16.gguf')}`],
      ...['[fast]', `model = ${own}`, `model-draft = ${join(snapshot, 'mtp-a-Q8_0.gguf')}`],
    ];
    expect(await goneAfter(cache, 'org/a:Q4_0', ...preset)).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
  });
});

describe('a model whose file another entry loads is refused, with the name of that', () => {
  const root = tempDir();
  const snapshot = writeRepo(root, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
  const own = writeFile(join(tempDir(), 'own.gguf'));
  const elsewhere = writeLink(join(tempDir(), 'link.gguf'), join(snapshot, 'a-Q4_0.gguf'));
  writeRepo(root, 'org/a', ['a-Q4_0.gguf'], OTHER_COMMIT);
  writeFile(join(root, A, 'refs/main'), COMMIT);

  it.each([
    ['by its repository', ['hf-repo = org/a:Q4_0']],
    ['by its repository and file', ['hf-repo = org/a', 'hf-file = a-Q4_0.gguf']],
    ['by its path', [`model = ${join(snapshot, 'a-Q4_0.gguf')}`]],
    ['by the path of its blob', [`model = ${join(root, A, 'blobs/a-Q4_0.gguf')}`]],
    ['in an older snapshot', [`model = ${join(root, A, 'snapshots', OTHER_COMMIT, 'a-Q4_0.gguf')}`]],
    ['by a link elsewhere', [`model = ${elsewhere}`]],
    ['as its draft, by the path', [`model = ${own}`, `model-draft = ${join(snapshot, 'a-Q4_0.gguf')}`]],
    ['as its draft, by the repository', [`model = ${own}`, 'hf-repo-draft = org/a:Q4_0']],
  ])('%s', async (_how, lines) => {
    await expectRefusal(
      root,
      () => remove(root, 'org/a:Q4_0', '[mine]', ...lines),
      /^model name=org\/a:Q4_0 is not removable: 'mine' loads '.+a-Q4_0\.gguf', too$/,
    );
  });

  it('but not for a model of the repository that its tag alone has led to that file', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-BF16.gguf', 'a-F16.gguf']);
    for (const id of ['org/a:BF16', 'org/a:F16']) await remove(cache, id);
    expect([...listing(cache)]).toEqual([]);
  });

  it.each([
    ['an adapter', 'lora = /none.gguf,BLOB'],
    ['an adapter with its weight', 'lora-scaled = BLOB:0.5,/none.gguf:1'],
    ['a control vector', 'control-vector = FILE'],
    ['a control vector with its weight', 'control-vector-scaled = FILE:-1.5'],
  ])('as %s', async (_what, line) => {
    const named = line
      .replace('BLOB', join(root, A, 'blobs/a-Q4_0.gguf'))
      .replace('FILE', join(snapshot, 'a-Q4_0.gguf'));
    await expectRefusal(
      root,
      () => remove(root, 'org/a:Q4_0', '[mine]', `model = ${own}`, named),
      /is not removable: 'mine' loads '.+a-Q4_0\.gguf', too$/,
    );
  });

  it('and while the disk of another does not answer, it is refused, too', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const model = (await catalogOf(root)).resolve('org/a:Q4_0') ?? aModel('');
      silenceAt('/silent/b.gguf');
      const before = listing(root);
      const removal = removeFromCache(model, { hub: root, flat: [] }, [
        aModel('b', { file: '/silent/b.gguf' }),
      ]);
      const refused = expect(removal).rejects.toThrow(
        'model name=org/a:Q4_0 is not removable: a disk does not answer',
      );
      await vi.waitFor(async () => {
        // One for the whole plan, one for that disk.
        expect(vi.getTimerCount()).toBe(2);
        await Promise.resolve();
      });
      vi.advanceTimersByTime(10_000);
      await refused;
      expect(listing(root)).toEqual(before);
    } finally {
      vi.useRealTimers();
    }
  });
});

it('a plan changes nothing, and one of a cache that does not answer is given up', async () => {
  const cache = tempDir();
  const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
  const { models } = await catalogOf(cache);
  const [model = aModel('')] = models;
  const caches = { hub: cache, flat: [cache] };
  const before = listing(cache);
  const carryOut = await planRemoval(model, caches, models);
  expect(listing(cache)).toEqual(before);

  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  try {
    silenceAt(snapshot);
    const givenUp = expect(planRemoval(model, caches, models)).rejects.toMatchObject({
      code: 'remove_failed',
      message:
        'model name=org/a:Q4_0 cannot be removed: the cache does not answer; try again later; nothing was removed',
    });
    expect(vi.getTimerCount()).toBe(1);
    vi.runAllTimers();
    await givenUp;
  } finally {
    vi.useRealTimers();
  }
  mend();
  expect(listing(cache)).toEqual(before);
  await carryOut();
  expect([...listing(cache)]).toEqual([]);
});

it.each([
  ['models_dir', {}],
  ['preset', { source: 'preset' as const }],
])('a model of %s is refused in the words of the native router', async (_source, fields) => {
  const cache = tempDir();
  writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
  const model = aModel('org/a:Q4_0', fields);
  await expectRefusal(
    cache,
    () => removeFromCache(model, { hub: cache, flat: [cache] }, []),
    /^model name=org\/a:Q4_0 is not removable \(not from cache\)$/,
  );
});

describe('outside of the cache nothing is touched', () => {
  it.each(['absolute', 'relative'])('a link of a snapshot that leads out goes alone: %s', async (form) => {
    const cache = tempDir();
    const outside = sentinel();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q8_0.gguf']);
    const way = '../'.repeat(snapshot.split('/').length - 1);
    const target = form === 'absolute' ? outside.file : way + outside.file.slice(1);
    const link = writeLink(join(snapshot, 'a-Q4_0.gguf'), target);
    expect(readFileSync(link).length).toBe(SIZE);
    expect(await remove(cache, 'org/a:Q4_0')).toEqual({ removed: [link], freedBytes: 0 });
    outside.assertWhole();
  });

  it('a link to a blob of another repository goes alone', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/b', ['b-Q8_0.gguf']);
    const snapshot = writeRepo(cache, 'org/a', ['README.md']);
    writeLink(join(snapshot, 'a-Q4_0.gguf'), '../../../models--org--b/blobs/b-Q8_0.gguf');
    const catalog = await catalogOf(cache);
    const before = listing(cache);
    await removeFromCache(catalog.resolve('org/a:Q4_0') ?? aModel(''), { hub: cache, flat: [] }, []);
    expect(goneFrom(before, listing(cache))).toEqual(inA(...links('a-Q4_0.gguf')));
  });

  it.each(['..', '.', '../../..', '../blobs/../..'])(
    'a link to %s in the place of a blob goes alone',
    async (name) => {
      const cache = tempDir();
      const snapshot = writeRepo(cache, 'org/a', ['a-Q8_0.gguf']);
      writeLink(join(snapshot, 'a-Q4_0.gguf'), `../../blobs/${name}`);
      expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(inA(...links('a-Q4_0.gguf')));
    },
  );

  it('a blob that is a link goes alone', async () => {
    const cache = tempDir();
    const outside = sentinel();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    rmSync(join(cache, A, 'blobs/a-Q4_0.gguf'));
    writeLink(join(cache, A, 'blobs/a-Q4_0.gguf'), outside.file);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
    outside.assertWhole();
  });

  it.each(['', '/snapshots', '/blobs', `/snapshots/${COMMIT}`])(
    'a repository of which “%s” is a link to elsewhere is refused',
    async (part) => {
      const cache = tempDir();
      const outside = tempDir();
      writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
      const path = join(cache, A + part);
      renameSync(path, join(outside, 'moved'));
      // Its links are to lead to the blobs wherever it is.
      symlinkSync(join(outside, 'moved'), path);
      const blobsDirectory = join(cache, A, 'blobs');
      if (part.startsWith('/snapshots')) symlinkSync(blobsDirectory, join(outside, 'blobs'));
      const before = listing(outside);
      await expectRefusal(
        cache,
        () => remove(cache, 'org/a:Q4_0'),
        /^model name=org\/a:Q4_0 is not removable: '.+' is a link; remove the model where it leads, then the link$/,
      );
      expect(listing(outside)).toEqual(before);
    },
  );

  it('directories of a snapshot, and refs, that are links are not entered', async () => {
    const cache = tempDir();
    const outside = sentinel();
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    writeLink(join(snapshot, 'linked'), outside.directory);
    writeLink(join(cache, A, 'refs/linked'), outside.directory);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
    outside.assertWhole();
  });

  it('a snapshot that is a link to another of the same repository is no way out', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'README.md']);
    writeLink(join(cache, A, 'snapshots/latest'), COMMIT);
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')),
    );
  });

  it('a cache that is itself reached by a link is the cache', async () => {
    const cache = tempDir();
    const way = writeLink(join(tempDir(), 'way'), cache);
    const snapshot = writeRepo(cache, 'org/a', ['a-Q4_0.gguf', 'a-Q8_0.gguf']);
    unlinkSync(join(snapshot, 'a-Q4_0.gguf'));
    symlinkSync(join(way, A, 'blobs/a-Q4_0.gguf'), join(snapshot, 'a-Q4_0.gguf'));
    const before = listing(cache);
    await remove(way, 'org/a:Q4_0');
    expect(goneFrom(before, listing(cache))).toEqual(inA(...links('a-Q4_0.gguf'), ...blobs('a-Q4_0.gguf')));
  });

  it.each(['../outside:Q4_0', 'org/..:Q4_0', '../..:Q4_0', '..:Q4_0', '/etc:Q4_0', 'a:..', ''])(
    'an id like “%s” leads nowhere',
    async (id) => {
      const root = tempDir();
      writeRepo(root, 'outside', ['a-Q4_0.gguf']);
      writeRepo(join(root, 'cache'), 'org/a', ['a-Q4_0.gguf']);
      const cache = join(root, 'cache');
      const before = listing(root);
      const model = aModel(id, { canRemove: true, file: undefined });
      expect((await removeFromCache(model, { hub: cache, flat: [cache] }, [])).removed).toEqual([]);
      expect(listing(root)).toEqual(before);
    },
  );

  it('a directory that is replaced by a link after it was read is seen', async () => {
    const outside = sentinel();
    const root = tempDir();
    writeLink(join(root, 'sub'), outside.directory);
    const removal = new Removal(Buffer.from(root));
    await expect(removal.files([Buffer.from(join(root, 'sub/snapshot-Q4_0.gguf'))])).rejects.toThrow(
      'it lies outside the cache',
    );
    mkdirSync(join(outside.directory, 'empty'));
    await removal.emptyDirectories([Buffer.from(join(root, 'sub/empty'))]);
    rmSync(join(outside.directory, 'empty'), { recursive: true });
    outside.assertWhole();
    expect(removal.outcome.removed).toEqual([]);
  });
});

describe('what cannot be removed', () => {
  it('is told with what was removed before, and leaves no half of a model in the list', async () => {
    const cache = tempDir();
    const shards = ['a-Q4_0-00001-of-00002.gguf', 'a-Q4_0-00002-of-00002.gguf'];
    const snapshot = writeRepo(cache, 'org/a', [...shards, 'a-Q8_0.gguf']);
    const [first = '', second = ''] = shards.map((shard) => join(snapshot, shard));
    failAt(second, 'EPERM', 'unlink');
    await expect(remove(cache, 'org/a:Q4_0')).rejects.toMatchObject({
      code: 'remove_failed',
      message: `model name=org/a:Q4_0 cannot be removed: '${second}': EPERM; already removed: '${first}'`,
      cause: { cause: { code: 'EPERM' } },
    });
    expect((await catalogOf(cache)).models.map(({ id }) => id)).toEqual(['org/a:Q8_0']);
  });

  it('holds up nothing before the first file has gone', async () => {
    const cache = tempDir();
    const shards = ['a-Q4_0-00001-of-00002.gguf', 'a-Q4_0-00002-of-00002.gguf'];
    const snapshot = writeRepo(cache, 'org/a', [...shards, 'a-Q8_0.gguf']);
    const before = listing(cache);
    for (const [path, code, operation, message] of [
      [join(snapshot, 'a-Q4_0-00001-of-00002.gguf'), 'EBUSY', 'unlink', 'a-Q4_0-00001-of-00002.gguf.: EBUSY'],
      [join(cache, A, 'blobs'), 'EACCES', 'access', "nothing may be removed from '.+/blobs': EACCES"],
      [snapshot, 'EACCES', 'readdir', 'EACCES'],
      [join(snapshot, 'a-Q8_0.gguf'), 'EIO', 'readlink', 'EIO'],
    ] as const) {
      failAt(path, code, operation);
      await expect(remove(cache, 'org/a:Q4_0')).rejects.toMatchObject({
        code: 'remove_failed',
        message: expect.stringMatching(new RegExp(`${message}.*; nothing was removed$`)) as string,
      });
      mend();
      expect(listing(cache)).toEqual(before);
    }
  });

  it('is one blob of several: the others go', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0-00001-of-00002.gguf', 'a-Q4_0-00002-of-00002.gguf']);
    const blob = join(cache, A, 'blobs/a-Q4_0-00001-of-00002.gguf');
    failAt(blob, 'EBUSY', 'unlink');
    await expect(remove(cache, 'org/a:Q4_0')).rejects.toThrow(`cannot be removed: '${blob}': EBUSY; already`);
    expect([...listing(join(cache, A, 'blobs')).keys()]).toEqual(['a-Q4_0-00001-of-00002.gguf']);
  });
});

describe('of a flat cache', () => {
  const manifest = (model: string, mmproj?: string): string =>
    JSON.stringify({
      ggufFile: { rfilename: model },
      ...(mmproj !== undefined && { mmprojFile: { rfilename: mmproj } }),
    });

  /** Writes files as a download left them, with what is kept beside them. */
  function download(cache: string, ...names: string[]): string[] {
    return names.flatMap((name) => [
      writeFile(join(cache, name)),
      writeFile(join(cache, `${name}.json`), '{}'),
      writeFile(join(cache, `${name}.etag`), '"0"'),
    ]);
  }
  const withTraces = (...names: string[]): string[] =>
    names.flatMap((name) => [name, `${name}.etag`, `${name}.json`]);

  it('file, shards and what is kept beside them go, and nothing of the others', async () => {
    const cache = tempDir();
    const shards = ['org_a_a-F16-00001-of-00002.gguf', 'org_a_a-F16-00002-of-00002.gguf'];
    download(cache, ...shards, 'org_a_a-Q8_0.gguf', 'org_a_a-F16.gguf.gguf');
    writeFile(join(cache, `${shards[1] ?? ''}.downloadInProgress`), 'half');
    writeFile(join(cache, 'org_a_a-Q8_0.gguf.downloadInProgress'), 'half');
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(
      [...withTraces(...shards), `${shards[1] ?? ''}.downloadInProgress`].sort(),
    );
  });

  it('a projector goes with the last model that takes it', async () => {
    const cache = tempDir();
    download(cache, 'org_a_a-Q4_0.gguf', 'org_a_a-F16.gguf', 'org_a_mmproj-F16.gguf');
    expect(await goneAfter(cache, 'org/a:F16')).toEqual(withTraces('org_a_a-F16.gguf'));
    expect(await goneAfter(cache, 'org/a:Q4_0')).toEqual(
      withTraces('org_a_a-Q4_0.gguf', 'org_a_mmproj-F16.gguf').sort(),
    );
  });

  it('the manifests of a repository go with its last file: they tell of which one the others are', async () => {
    const cache = tempDir();
    const manifests = ['manifest=org=a_b=latest.json', 'manifest=org=a_b=Q8_0.json'];
    download(cache, 'org_a_b_x-Q4_0.gguf', 'org_a_b_x-Q8_0.gguf');
    writeFile(join(cache, manifests[0] ?? ''), manifest('x-Q4_0.gguf'));
    writeFile(join(cache, manifests[1] ?? ''), manifest('x-Q8_0.gguf'));
    writeFile(join(cache, 'manifest=org=other=latest.json'), manifest('y-Q4_0.gguf'));
    expect(await goneAfter(cache, 'org/a_b:Q4_0')).toEqual(withTraces('org_a_b_x-Q4_0.gguf'));
    expect((await catalogOf(cache)).models.map(({ id }) => id)).toEqual(['org/a_b:Q8_0']);
    expect(await goneAfter(cache, 'org/a_b:Q8_0')).toEqual(
      [...withTraces('org_a_b_x-Q8_0.gguf'), ...manifests].sort(),
    );
  });

  it('a model that both layouts hold goes from both, so that its id is gone', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    download(cache, 'org_a_a-Q4_0.gguf', 'org_a_a-Q8_0.gguf');
    await remove(cache, 'org/a:Q4_0');
    expect([...listing(cache).keys()].sort()).toEqual(withTraces('org_a_a-Q8_0.gguf').sort());
    expect((await catalogOf(cache)).models.map(({ id }) => id)).toEqual(['org/a:Q8_0']);
  });

  it('a model of the hub cache that lies there by hand, too, is refused: it would keep its id', async () => {
    const cache = tempDir();
    writeRepo(cache, 'org/a', ['a-Q4_0.gguf']);
    const file = writeFile(join(cache, 'org_a_a-Q4_0.gguf'));
    await expectRefusal(
      cache,
      () => remove(cache, 'org/a:Q4_0'),
      /^model name=org\/a:Q4_0 is not removable: no download left '.+org_a_a-Q4_0\.gguf' in the cache; remove it yourself$/,
    );
    rmSync(file);
    await remove(cache, 'org/a:Q4_0');
    expect((await catalogOf(cache)).models).toEqual([]);
  });

  it('a file that no download left is refused, also one whose name only a link can hold', async () => {
    const cache = tempDir();
    const linksDirectory = tempDir();
    writeFile(join(cache, 'own-Q4_0.gguf'));
    writeOddFile(`${cache}/org_caf\xe9_x-Q4_0.gguf`);
    const env = { LLAMA_CACHE: cache };
    const options = { env, modelsDirs: [], presetFiles: [], base: new Map(), table, linksDirectory };
    const { models } = await discoverCatalog(options);
    expect(models.map(({ canRemove }) => canRemove)).toEqual([false, false]);
    const linked = listing(linksDirectory);
    for (const model of models) {
      await expectRefusal(
        cache,
        () => removeFromCache({ ...model, canRemove: true }, { hub: cache, flat: [cache] }, models),
        /is not removable: no download left '.+' in the cache; remove it yourself$/,
      );
    }
    expect(listing(linksDirectory)).toEqual(linked);
  });

  it('a link to a file elsewhere goes alone', async () => {
    const cache = tempDir();
    const outside = sentinel();
    writeLink(join(cache, 'a-Q4_0.gguf'), outside.file);
    writeFile(join(cache, 'a-Q4_0.gguf.json'), '{}');
    expect(await goneAfter(cache, 'a-Q4_0')).toEqual(['a-Q4_0.gguf', 'a-Q4_0.gguf.json']);
    outside.assertWhole();
  });

  it('one that a section loads is refused, and one that cannot be removed is told', async () => {
    const cache = tempDir();
    const [file = ''] = download(cache, 'org_a_a-Q4_0.gguf');
    await expectRefusal(
      cache,
      () => remove(cache, 'org/a:Q4_0', '[mine]', 'hf-repo = org/a:Q4_0'),
      /'mine' loads/,
    );
    failAt(file, 'EPERM', 'unlink');
    const before = listing(cache);
    await expect(remove(cache, 'org/a:Q4_0')).rejects.toThrow(
      `model name=org/a:Q4_0 cannot be removed: '${file}': EPERM; nothing was removed`,
    );
    expect(listing(cache)).toEqual(before);
  });
});
