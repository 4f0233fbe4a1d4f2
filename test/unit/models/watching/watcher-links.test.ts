import { appendFileSync, mkdirSync, renameSync, rmSync, symlinkSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../../../helpers/temp-dir.js';
import { COMMIT, writeFile, writeLink, writeRepo } from '../tree.js';
import { inotifyWatches, watchInTest } from './watcher-rig.js';

describe('links in a models directory', () => {
  it('to directories are entered: what happens behind them is told, also after another takes its place', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    mkdirSync(join(far, 'sub'));
    symlinkSync(join(far, 'sub'), join(dir, 'sub'));
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    const file = join(far, 'sub', 'a.gguf');
    await tellsOfCatalog('a model', () => writeFile(file));
    await tellsOfCatalog('growth', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('another directory', () => {
      renameSync(join(far, 'sub'), join(far, 'old'));
      writeFile(file);
    });
    await tellsOfCatalog('growth in it', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('the end of the link', () => unlinkSync(join(dir, 'sub')));
  });

  it('tell when they come, when their end comes, and of what is there then', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    const { tellsOfCatalog, tellsNothing } = await watchInTest({ modelsDirs: [dir] });
    const end = join(far, 'sub');
    await tellsNothing('a link to nothing', () => symlinkSync(end, join(dir, 'sub')));
    await tellsOfCatalog('another link', () => symlinkSync(far, join(dir, 'far')));
    await tellsOfCatalog('the end of the first', () => mkdirSync(end));
    await tellsOfCatalog('a model in it', () => writeFile(join(end, 'a.gguf')));
  });

  it('to files are looked at: growth, another file in their place and their end are told', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    const file = writeFile(join(far, 'y.gguf'));
    symlinkSync(file, join(dir, 'y.gguf'));
    const { tellsOfCatalog, tellsNothing } = await watchInTest({ modelsDirs: [dir] });
    await tellsOfCatalog('growth', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('another file', () => {
      writeFile(join(far, 'new'), 'another');
      renameSync(join(far, 'new'), file);
    });
    await tellsOfCatalog('the end', () => unlinkSync(file));
    await tellsOfCatalog('the return', () => writeFile(file));
    await tellsNothing('a neighbour', () => writeFile(join(far, 'z.gguf')));
  });

  it('in circles come to an end', async () => {
    const dir = tempDir();
    mkdirSync(join(dir, 'sub'));
    symlinkSync(dir, join(dir, 'self'));
    symlinkSync(join(dir, 'sub'), join(dir, 'again'));
    symlinkSync(dir, join(dir, 'sub', 'up'));
    symlinkSync('around', join(dir, 'around'));
    const before = inotifyWatches();
    const { tellsOfCatalog, notices } = await watchInTest({ modelsDirs: [dir] });
    expect(inotifyWatches() - before).toBe(2);
    await tellsOfCatalog('a model', () => writeFile(join(dir, 'sub', 'a.gguf')));
    expect(notices).toEqual([]);
  });

  it('beyond their end are entered as deep as directories are', async () => {
    const [dir, far] = [tempDir(), tempDir()];
    mkdirSync(join(far, 'deeper'));
    symlinkSync(far, join(dir, 'sub'));
    const { tellsNothing } = await watchInTest({ modelsDirs: [dir] });
    await tellsNothing('a file at the third level', () => writeFile(join(far, 'deeper', 'x.gguf')));
  });
});

describe('links in a hub cache', () => {
  it('to repositories on another disk are entered', async () => {
    const [cache, disk] = [tempDir(), tempDir()];
    const snapshot = writeRepo(disk, 'user/repo', ['m-Q4_0.gguf']);
    const folder = 'models--user--repo';
    symlinkSync(join(disk, folder), join(cache, folder));
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    const blobs = join(disk, folder, 'blobs');
    await tellsOfCatalog('growth of a blob', () => appendFileSync(join(blobs, 'm-Q4_0.gguf'), 'more'));
    await tellsOfCatalog('a blob', () => writeFile(join(blobs, 'abc')));
    await tellsOfCatalog('a link', () => writeLink(join(snapshot, 'sub', 'n.gguf'), '../../../blobs/abc'));
    await tellsOfCatalog('the ref', () => writeFile(join(disk, folder, 'refs', 'main'), COMMIT));
    await tellsOfCatalog('the end', () => rmSync(join(disk, folder), { recursive: true }));
  });

  it('to blobs that were moved away are looked at', async () => {
    const [cache, disk] = [tempDir(), tempDir()];
    const snapshot = writeRepo(cache, 'user/repo', ['m-Q4_0.gguf']);
    const moved = join(disk, 'blob');
    const blob = join(cache, 'models--user--repo', 'blobs', 'm-Q4_0.gguf');
    renameSync(blob, moved);
    symlinkSync(moved, blob);
    const direct = writeFile(join(disk, 'direct'));
    writeLink(join(snapshot, 'n-Q4_0.gguf'), direct);
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    await tellsOfCatalog('the end of a blob', () => unlinkSync(moved));
    await tellsOfCatalog('its return', () => writeFile(moved));
    await tellsOfCatalog('growth of a file that a snapshot links to', () => appendFileSync(direct, 'more'));
  });
});
