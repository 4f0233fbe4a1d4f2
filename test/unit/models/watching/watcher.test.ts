import {
  appendFileSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../../../helpers/temp-dir.js';
import { COMMIT, writeFile, writeLink, writeRepo } from '../tree.js';
import { inotifyWatches, watchInTest } from './watcher-rig.js';

describe('a models directory', () => {
  it('tells of files that appear, grow, are rewritten in place, are renamed and go', async () => {
    const dir = tempDir();
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    const file = join(dir, 'a.gguf');
    await tellsOfCatalog('a new file', () => writeFile(file));
    await tellsOfCatalog('growth', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('more growth', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('a cut', () => truncateSync(file, 10));
    await tellsOfCatalog('a rewrite', () => writeFileSync(file, 'x'.repeat(10)));
    await tellsOfCatalog('a renaming', () => renameSync(file, join(dir, 'b.gguf')));
    await tellsOfCatalog('a removal', () => unlinkSync(join(dir, 'b.gguf')));
  });

  it('tells of a directory that appears with a model, of what happens in it, and of its end', async () => {
    const dir = tempDir();
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    const file = join(dir, 'model', 'weights.gguf');
    await tellsOfCatalog('a directory', () => writeFile(file));
    await tellsOfCatalog('growth in it', () => appendFileSync(file, 'more'));
    await tellsOfCatalog('a file in it', () => writeFile(join(dir, 'model', 'mmproj.gguf')));
    await tellsOfCatalog('its removal', () => rmSync(join(dir, 'model'), { recursive: true }));
  });

  it('is watched two levels deep and no deeper', async () => {
    const dir = tempDir();
    const deep = writeFile(join(dir, 'model', 'deep', 'deeper', 'x.gguf'));
    const before = inotifyWatches();
    const { tellsNothing } = await watchInTest({ modelsDirs: [dir] });
    expect(inotifyWatches() - before).toBe(2);
    await tellsNothing('growth at the fourth level', () => appendFileSync(deep, 'more'));
    await tellsNothing('a file at the third level', () => writeFile(join(dir, 'model', 'deep', 'y.gguf')));
  });
});

describe('a flat cache', () => {
  it('tells of models and manifests, and not of what is in its directories', async () => {
    const dir = tempDir();
    mkdirSync(join(dir, 'sub'));
    const { tellsOfCatalog, tellsNothing } = await watchInTest({ flatCaches: [dir] });
    const part = join(dir, 'user_repo_x.gguf.downloadInProgress');
    await tellsNothing('the begin of a download', () => writeFile(part));
    await tellsNothing('its progress', () => appendFileSync(part, 'more'));
    await tellsOfCatalog('its end', () => renameSync(part, join(dir, 'user_repo_x.gguf')));
    await tellsOfCatalog('a manifest', () => writeFile(join(dir, 'manifest=user=repo=latest.json'), '{}'));
    await tellsNothing('a file below', () => writeFile(join(dir, 'sub', 'x.gguf')));
  });
});

describe('a hub cache', () => {
  it('tells of every step of a download into a new repository', async () => {
    const cache = tempDir();
    const { tellsOfCatalog, tellsNothing } = await watchInTest({ hubCaches: [cache] });
    const repo = join(cache, 'models--user--repo');
    const part = join(repo, 'blobs', 'abc.incomplete');
    await tellsOfCatalog('the repository', () => mkdirSync(repo));
    await tellsOfCatalog('the ref', () => writeFile(join(repo, 'refs', 'main'), COMMIT));
    await tellsOfCatalog('the place of the blobs', () => mkdirSync(join(repo, 'blobs')));
    await tellsNothing('the begin of a download', () => writeFile(part));
    await tellsNothing('its progress', () => appendFileSync(part, 'more'));
    await tellsOfCatalog('its end', () => renameSync(part, join(repo, 'blobs', 'abc')));
    const snapshot = join(repo, 'snapshots', COMMIT);
    await tellsOfCatalog('the link', () => writeLink(join(snapshot, 'm-Q4_0.gguf'), '../../blobs/abc'));
    await tellsOfCatalog('a nested link', () =>
      writeLink(join(snapshot, 'BF16', 'part', 'm.gguf'), '../../../../blobs/abc'),
    );
    await tellsOfCatalog('another nested link', () =>
      writeLink(join(snapshot, 'BF16', 'part', 'n.gguf'), '../../../../blobs/abc'),
    );
    await tellsOfCatalog('the removal of a link', () => unlinkSync(join(snapshot, 'm-Q4_0.gguf')));
    await tellsOfCatalog('the removal of the repository', () => rmSync(repo, { recursive: true }));
  });

  it('tells of a repository that is moved in whole, and of what happens in it then', async () => {
    const [cache, elsewhere] = [tempDir(), tempDir()];
    writeRepo(elsewhere, 'user/repo', ['m-Q4_0.gguf']);
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    const repo = join(cache, 'models--user--repo');
    await tellsOfCatalog('its arrival', () => renameSync(join(elsewhere, 'models--user--repo'), repo));
    await tellsOfCatalog('growth of a blob', () =>
      appendFileSync(join(repo, 'blobs', 'm-Q4_0.gguf'), 'more'),
    );
  });

  it('tells when refs/main is rewritten, in place or by a rename', async () => {
    const cache = tempDir();
    writeRepo(cache, 'user/repo', ['m-Q4_0.gguf']);
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    const ref = join(cache, 'models--user--repo', 'refs', 'main');
    await tellsOfCatalog('a rewrite', () => writeFileSync(ref, COMMIT.replace('0', 'f')));
    await tellsOfCatalog('a replacement', () => {
      writeFileSync(`${ref}.new`, COMMIT);
      renameSync(`${ref}.new`, ref);
    });
  });

  it('tells when the blob of a dangling link appears', async () => {
    const cache = tempDir();
    const snapshot = writeRepo(cache, 'user/repo', ['other-Q4_0.gguf']);
    writeLink(join(snapshot, 'm-Q8_0.gguf'), '../../blobs/late');
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    await tellsOfCatalog('the blob', () => writeFile(join(cache, 'models--user--repo', 'blobs', 'late')));
  });

  it('says nothing of what is not a model, nor of what links lead to elsewhere', async () => {
    const [cache, elsewhere] = [tempDir(), tempDir()];
    const snapshot = writeRepo(cache, 'user/repo', ['m-Q4_0.gguf']);
    const repo = join(cache, 'models--user--repo');
    mkdirSync(join(cache, '.locks', 'models--user--repo'), { recursive: true });
    mkdirSync(join(cache, 'datasets--user--data', 'blobs'), { recursive: true });
    mkdirSync(join(repo, '.no_exist', COMMIT), { recursive: true });
    writeLink(join(snapshot, 'elsewhere'), elsewhere);
    const { tellsNothing } = await watchInTest({ hubCaches: [cache] });
    await tellsNothing('locks, data sets, and files elsewhere', () => {
      writeFile(join(cache, '.locks', 'models--user--repo', 'x.lock'));
      writeFile(join(cache, 'datasets--user--data', 'blobs', 'x'));
      writeFile(join(repo, '.no_exist', COMMIT, 'x'));
      writeFile(join(elsewhere, 'x.gguf'));
    });
  });
});

describe('directories that come and go', () => {
  it('are watched when they appear, with parents that did not exist, and after each disappearance', async () => {
    const parent = tempDir();
    const dir = join(parent, 'not', 'there', 'yet');
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir], hubCaches: [join(dir, 'hub')] });
    for (const round of ['first', 'second']) {
      await tellsOfCatalog(`the ${round} appearance`, () => mkdirSync(dir, { recursive: true }));
      await tellsOfCatalog(`a file after the ${round}`, () => writeFile(join(dir, 'a.gguf')));
      await tellsOfCatalog(`growth after the ${round}`, () => appendFileSync(join(dir, 'a.gguf'), 'more'));
      await tellsOfCatalog(`the ${round} end`, () => rmSync(join(parent, 'not'), { recursive: true }));
    }
  });

  it('are watched anew when one of the same name takes their place at once', async () => {
    const dir = tempDir();
    const model = join(dir, 'model');
    writeFile(join(model, 'a.gguf'));
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    for (const round of ['first', 'second']) {
      await tellsOfCatalog(`the ${round} removal and return`, () => {
        rmSync(model, { recursive: true });
        writeFile(join(model, 'a.gguf'));
      });
      await tellsOfCatalog('growth in it', () => appendFileSync(join(model, 'a.gguf'), 'more'));
      await tellsOfCatalog(`the ${round} replacement by a rename`, () => {
        writeFile(join(dir, 'new', 'a.gguf'));
        renameSync(model, join(dir, `old-${round}`));
        renameSync(join(dir, 'new'), model);
      });
      await tellsOfCatalog('growth in the new one', () => appendFileSync(join(model, 'a.gguf'), 'more'));
    }
  });

  it('are watched anew when the directory that was given, or one above it, is replaced', async () => {
    const top = tempDir();
    const dir = join(top, 'above', 'models');
    mkdirSync(dir, { recursive: true });
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    await tellsOfCatalog('another directory above', () => {
      writeFile(join(top, 'new', 'models', 'a.gguf'));
      renameSync(join(top, 'above'), join(top, 'old'));
      renameSync(join(top, 'new'), join(top, 'above'));
    });
    await tellsOfCatalog('growth in it', () => appendFileSync(join(dir, 'a.gguf'), 'more'));
    await tellsOfCatalog('another directory', () => {
      renameSync(dir, join(top, 'aside'));
      writeFile(join(dir, 'b.gguf'));
    });
    await tellsOfCatalog('growth in that', () => appendFileSync(join(dir, 'b.gguf'), 'more'));
  });

  it('may be given by a symbolic link, which may come to point elsewhere', async () => {
    const [one, two, link] = [tempDir(), tempDir(), join(tempDir(), 'link')];
    symlinkSync(one, link);
    const { tellsOfCatalog, tellsNothing } = await watchInTest({ modelsDirs: [link] });
    await tellsOfCatalog('a file behind it', () => writeFile(join(one, 'a.gguf')));
    await tellsOfCatalog('its new target', () => {
      symlinkSync(two, `${link}.new`);
      renameSync(`${link}.new`, link);
    });
    await tellsOfCatalog('a file in the new target', () => writeFile(join(two, 'a.gguf')));
    await tellsNothing('a file in the old one', () => writeFile(join(one, 'b.gguf')));
  });

  it('are all watched, however fast they appear', async () => {
    const cache = tempDir();
    const before = inotifyWatches();
    const { tellsOfCatalog } = await watchInTest({ hubCaches: [cache] });
    const repos = Array.from({ length: 60 }, (_, number) => `user/repo-${number}`);
    await tellsOfCatalog('many repositories', () => {
      for (const repo of repos) writeRepo(cache, repo, ['m-Q4_0.gguf', 'sub/n-Q4_0.gguf']);
    });
    // The cache; of each repository itself, blobs, refs, snapshots, the snapshot and its sub-directory.
    expect(inotifyWatches() - before).toBe(1 + 60 * 6);
  });
});

describe('what is given', () => {
  it('may be one directory in two roles, directories in each other, and relative', async () => {
    const dir = tempDir();
    const inner = join(dir, 'models--user--repo', 'blobs');
    writeRepo(dir, 'user/repo', ['m-Q4_0.gguf']);
    const { tellsOfCatalog } = await watchInTest({
      hubCaches: [dir],
      flatCaches: [relative(process.cwd(), dir)],
      modelsDirs: [`${dir}/`, inner, inner],
    });
    await tellsOfCatalog('a file of the flat cache', () => writeFile(join(dir, 'user_repo_x.gguf')));
    await tellsOfCatalog('a blob', () => writeFile(join(inner, 'abc')));
    await tellsOfCatalog('a model below it', () => writeFile(join(inner, 'sub', 'x.gguf')));
    await tellsOfCatalog('growth of that', () => appendFileSync(join(inner, 'sub', 'x.gguf'), 'more'));
  });

  it('may have any name', async () => {
    const names = ['two words', 'new\nline', 'a*b?[c]{d,e}!(f)', '.x.swp', 'tilde~', '"quotes\'', 'ü–模型'];
    const top = tempDir();
    for (const name of names) {
      mkdirSync(join(top, name, name), { recursive: true });
      writeFile(join(top, `file ${name}`));
    }
    const { tellsOfCatalog, tellsOfFile, notices } = await watchInTest({
      modelsDirs: names.map((name) => join(top, name)),
      files: names.map((name) => join(top, `file ${name}`)),
    });
    for (const name of names) {
      await tellsOfCatalog(`a file below ${name}`, () => writeFile(join(top, name, name, `${name}.gguf`)));
      const file = join(top, `file ${name}`);
      await tellsOfFile(`an edit of ${name}`, file, () => appendFileSync(file, 'more'));
    }
    expect(notices).toEqual([]);
  });

  it('is refused with a notice when its path has a backslash, which chokidar cannot watch', async () => {
    const dir = join(tempDir(), 'back\\slash');
    mkdirSync(dir);
    const { notices } = await watchInTest({ modelsDirs: [dir] });
    expect(notices).toEqual([expect.stringContaining("back\\slash' are not noticed: there is a backslash")]);
  });

  it('may hold names that are not UTF-8', async () => {
    const dir = tempDir();
    const odd = Buffer.concat([Buffer.from(`${dir}/caf`), Buffer.from([0xe9])]);
    const { tellsOfCatalog, notices } = await watchInTest({ modelsDirs: [dir], flatCaches: [dir] });
    await tellsOfCatalog('such a file', () => writeFileSync(Buffer.concat([odd, Buffer.from('.gguf')]), 'x'));
    await tellsOfCatalog('such a directory', () => mkdirSync(odd));
    await tellsOfCatalog('a file beside them', () => writeFile(join(dir, 'a.gguf')));
    expect(notices).toEqual([]);
  });
});
