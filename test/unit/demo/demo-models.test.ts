import { mkdir, mkdtemp, open, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { demoModels, ensureDemoModels } from '../../../src/demo/demo-models.js';
import { parseGguf } from './parse-gguf.js';

const fileNames = demoModels.map(({ id }) => `${id}.gguf`).toSorted();

describe('the demo models', () => {
  let parent: string;
  let dir: string;
  beforeEach(async () => {
    parent = await mkdtemp(join(tmpdir(), 'demo-models-'));
    dir = join(parent, 'cache', 'demo');
  });
  afterEach(() => rm(parent, { recursive: true }));

  it('are made in a directory that did not exist, each under its id and with its id as its name', async () => {
    const presetFile = join(dir, 'presets.ini');
    expect(await ensureDemoModels(dir)).toEqual({ directory: dir, presetFile });
    expect((await readdir(dir)).toSorted()).toEqual([...fileNames, 'presets.ini']);
    expect(await readFile(presetFile, 'utf8')).toBe('[demo-embeddings]\nembeddings = true\n');
    for (const { id } of demoModels) {
      const { metadata } = parseGguf(await readFile(join(dir, `${id}.gguf`)));
      expect(metadata.get('general.name')).toBe(id);
    }
  });

  it('are not written again when they are as they should be', async () => {
    await ensureDemoModels(dir);
    const inodes = async (): Promise<number[]> =>
      Promise.all(fileNames.map(async (name) => (await stat(join(dir, name))).ino));
    const before = await inodes();
    await ensureDemoModels(dir);
    expect(await inodes()).toEqual(before);
  });

  it('are made anew when one is missing, cut short or from another version, and other files stay', async () => {
    await ensureDemoModels(dir);
    const [first = '', second = '', third = ''] = fileNames.map((name) => join(dir, name));
    const wanted = await Promise.all([first, second, third].map((file) => readFile(file)));
    await rm(first);
    await truncate(second, 1000);
    await writeFile(third, 'GGUF as an earlier version made it');
    await writeFile(join(dir, 'mine.gguf'), 'mine');

    await ensureDemoModels(dir);

    const found = await Promise.all([first, second, third].map((file) => readFile(file)));
    expect(found.map((bytes, index) => bytes.equals(wanted[index] ?? Buffer.alloc(0)))).toEqual([
      true,
      true,
      true,
    ]);
    expect(await readFile(join(dir, 'mine.gguf'), 'utf8')).toBe('mine');
  });

  it('are replaced by new files, so that a server that has mapped the old ones keeps them', async () => {
    const file = join(dir, fileNames[0] ?? '');
    await mkdir(dir, { recursive: true });
    await writeFile(file, 'what the running server has mapped');
    const handle = await open(file);
    try {
      await ensureDemoModels(dir);
      expect(await handle.readFile('utf8')).toBe('what the running server has mapped');
      expect((await stat(file)).size).toBeGreaterThan(100_000);
    } finally {
      await handle.close();
    }
  });

  it('come out whole and without leftovers when several make them at once', async () => {
    await Promise.all(Array.from({ length: 6 }, () => ensureDemoModels(dir)));
    expect((await readdir(dir)).toSorted()).toEqual([...fileNames, 'presets.ini']);
    for (const name of fileNames) expect(parseGguf(await readFile(join(dir, name))).tensors.size).toBe(12);
  });

  it('are refused with the error of the file system where they cannot be', async () => {
    await mkdir(join(dir, fileNames[0] ?? ''), { recursive: true });
    await expect(ensureDemoModels(dir)).rejects.toMatchObject({ code: 'EISDIR' });
  });
});
