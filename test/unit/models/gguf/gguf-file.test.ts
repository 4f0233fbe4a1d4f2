import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { endianness } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { GgufChecks } from '../../../../src/models/gguf/gguf-file.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { failAt, mend } from '../disk/failing-fs.js';
import { ggufHeader, LONG_AGO, writeSparse } from '../gguf-header.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('../disk/failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

const directory = tempDir();

function write(name: string, content: string | Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

async function problemOf(path: string): Promise<string | undefined> {
  return (await new GgufChecks().check(path)).problem;
}

describe('one file', () => {
  it.each([2, 3])('of version %d is without a problem', async (version) => {
    expect(await problemOf(write('good.gguf', ggufHeader({ version })))).toBeUndefined();
  });

  it.each<[string, string | Uint8Array, string]>([
    ['an empty one', '', 'is empty'],
    ['text', '<!DOCTYPE html>', 'is not a GGUF file (starts with "<!DO")'],
    ['bytes', Uint8Array.of(0x50, 0x4b, 3, 4, 5), 'is not a GGUF file (starts with 0x504b0304)'],
    ['one in small letters', 'gguf'.padEnd(64), 'is not a GGUF file (starts with "gguf")'],
    ['a short one', 'GG', 'has a truncated header; it may still be being written'],
    ['a cut header', ggufHeader().subarray(0, 23), 'has a truncated header; it may still be being written'],
    ['version 1', ggufHeader({ version: 1 }), 'is of GGUF version 1; versions 2 and 3 can be read'],
    ['version 4', ggufHeader({ version: 4 }), 'is of GGUF version 4; versions 2 and 3 can be read'],
    ['zeros', new Uint8Array(64), 'is not a GGUF file (starts with 0x00000000)'],
    [
      'a Git LFS pointer',
      'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
      'is a Git LFS pointer, not a GGUF file; fetch the file itself with "git lfs pull"',
    ],
    [
      'the other byte order',
      ggufHeader({ byteOrder: endianness() === 'LE' ? 'BE' : 'LE' }),
      'is a GGUF file of the other byte order than this machine has',
    ],
  ])('%s is refused with the reason', async (_what, content, reason) => {
    const path = write('bad.gguf', content);
    expect(await problemOf(path)).toBe(`'${path}' ${reason}`);
  });

  it('that is missing, a dangling link or a directory is refused with the reason', async () => {
    const [missing, dangling, folder] = ['missing', 'dangling', 'directory'].map((name) =>
      join(directory, `${name}.gguf`),
    ) as [string, string, string];
    symlinkSync(join(directory, 'gone'), dangling);
    mkdirSync(folder);
    expect(await problemOf(missing)).toBe(`'${missing}' does not exist`);
    expect(await problemOf(dangling)).toBe(`'${dangling}' is a link to a file that does not exist`);
    expect(await problemOf(folder)).toBe(`'${folder}' is a directory, not a GGUF file`);
  });

  it('that may not be read is refused with the code of the system', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every file');
    const path = write('secret.gguf', ggufHeader());
    chmodSync(path, 0);
    expect(await problemOf(path)).toBe(`'${path}' cannot be read: EACCES`);
  });

  it('that goes round in links is refused with the code of the system', async () => {
    const path = join(directory, 'loop.gguf');
    symlinkSync(path, path);
    expect(await problemOf(path)).toBe(`'${path}' cannot be read: ELOOP`);
  });

  it('that is a pipe is refused without waiting for a writer', { timeout: 5_000 }, async (context) => {
    if (process.platform === 'win32') context.skip('there is no mkfifo');
    const path = join(directory, 'pipe.gguf');
    execFileSync('mkfifo', [path]);
    expect(await problemOf(path)).toBe(`'${path}' is not a regular file`);
  });
});

describe('a model', () => {
  it('in shards is without a problem if every shard is', async () => {
    const first = write('whole-00001-of-00002.gguf', ggufHeader());
    write('whole-00002-of-00002.gguf', ggufHeader());
    expect(await problemOf(first)).toBeUndefined();
  });

  it('in shards names the first shard at fault', async () => {
    const first = write('torn-00001-of-00003.gguf', ggufHeader());
    const second = write('torn-00002-of-00003.gguf', '');
    expect(await problemOf(first)).toBe(`'${second}' (shard 2 of 3) is empty`);
  });

  it('that is named by another shard than the first says which one to name', async () => {
    expect(await problemOf('/m/x-00002-of-00003.gguf')).toBe(
      "'/m/x-00002-of-00003.gguf' is shard 2 of 3; name the first one, '/m/x-00001-of-00003.gguf'",
    );
  });

  it('and many others are checked with a few of them open at a time', async (context) => {
    if (process.platform !== 'linux') context.skip('open descriptors are counted in /proc');
    const path = write('many.gguf', ggufHeader());
    const paths = Array.from({ length: 300 }, (_, index) => {
      const link = join(directory, `many-${index}.gguf`);
      symlinkSync(path, link);
      return link;
    });
    const missing = join(directory, 'absent.gguf');
    const openFiles = (): number => readdirSync('/proc/self/fd').length;
    const before = openFiles();
    let most = before;

    const progress: { done: boolean } = { done: false };
    const checking = new GgufChecks().checkAll([...paths, missing]).finally(() => (progress.done = true));
    while (!progress.done) {
      most = Math.max(most, openFiles());
      await turn();
    }
    const checked = await checking;
    expect([...checked.keys()]).toEqual([...paths, missing]);
    expect(paths.filter((link) => checked.get(link)?.problem !== undefined)).toEqual([]);
    expect(checked.get(missing)).toEqual({ problem: `'${missing}' does not exist`, version: undefined });
    // 16 files, and the one that the counting itself opens.
    expect(most - before).toBeLessThanOrEqual(17);
    expect(most).toBeGreaterThan(before);
  });
});

describe('a version', () => {
  it('stays while no shard changes, and changes with the size or time of any', async () => {
    const first = writeSparse(join(directory, 'v-00001-of-00002.gguf'), ggufHeader());
    const second = writeSparse(join(directory, 'v-00002-of-00002.gguf'), ggufHeader());
    const checks = new GgufChecks();
    const { version } = await checks.check(first);
    expect(version).toMatch(/./);
    expect((await checks.check(first)).version).toBe(version);

    writeSparse(second, ggufHeader(), { sizeBytes: 25 });
    const larger = (await checks.check(first)).version;
    expect(larger).not.toBe(version);
    writeSparse(second, ggufHeader(), { time: new Date(LONG_AGO.getTime() + 5) });
    const later = (await checks.check(first)).version;
    expect(new Set([version, larger, later])).toHaveProperty('size', 3);
    writeSparse(second, ggufHeader());
    expect((await checks.check(first)).version).toBe(version);
  });

  it('is that of the file that a link leads to', async () => {
    const link = join(directory, 'link.gguf');
    symlinkSync(writeSparse(join(directory, 'blob-1'), ggufHeader()), link);
    const checks = new GgufChecks();
    const { version } = await checks.check(link);
    rmSync(link);
    symlinkSync(writeSparse(join(directory, 'blob-2'), ggufHeader(), { sizeBytes: 99 }), link);
    expect((await checks.check(link)).version).not.toBe(version);
  });

  it('is there for what is at fault, too, so that its replacement shows', async () => {
    const path = writeSparse(join(directory, 'broken.gguf'), '<!DOCTYPE html>');
    const checks = new GgufChecks();
    const { problem, version } = await checks.check(path);
    expect(problem).toContain('is not a GGUF file');
    writeSparse(path, '<!doctype  html>');
    const next = await checks.check(path);
    expect(next.version).not.toBe(version);
    expect(version).toMatch(/./);
  });
});

describe('what was found before', () => {
  /** Changes what is in a file but neither its size nor its time, so that only who opens it can tell. */
  function replaceUnseen(path: string, content: Uint8Array): void {
    writeFileSync(path, content);
    utimesSync(path, LONG_AGO, LONG_AGO);
  }
  const bad = Buffer.alloc(24, 'x');

  it('holds while size and time stay, without opening the file', async () => {
    const good = writeSparse(join(directory, 'kept-good.gguf'), ggufHeader());
    const broken = writeSparse(join(directory, 'kept-broken.gguf'), bad);
    const checks = new GgufChecks();
    const first = await checks.checkAll([good, broken]);
    expect([first.get(good)?.problem, first.get(broken)?.problem]).toEqual([
      undefined,
      `'${broken}' is not a GGUF file (starts with "xxxx")`,
    ]);
    replaceUnseen(good, bad);
    replaceUnseen(broken, ggufHeader());
    expect(await checks.checkAll([good, broken])).toEqual(first);
    expect(await checks.check(good)).toEqual(first.get(good));
  });

  it('is forgotten for files that are not asked for any more', async () => {
    const path = writeSparse(join(directory, 'forgotten.gguf'), ggufHeader());
    const checks = new GgufChecks();
    await checks.checkAll([path]);
    await checks.checkAll([]);
    replaceUnseen(path, bad);
    expect((await checks.check(path)).problem).toContain('is not a GGUF file');
  });

  it('does not hold for a fault of a file that was written just now', async () => {
    const now = new Date();
    const path = writeSparse(join(directory, 'fresh.gguf'), bad, { time: now });
    const checks = new GgufChecks();
    expect((await checks.check(path)).problem).toContain('is not a GGUF file');
    writeSparse(path, ggufHeader(), { time: now });
    expect((await checks.check(path)).problem).toBeUndefined();
  });

  it('does not hold for a file that could not be opened', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every file');
    const path = writeSparse(join(directory, 'locked.gguf'), ggufHeader());
    const checks = new GgufChecks();
    chmodSync(path, 0);
    expect((await checks.check(path)).problem).toContain('EACCES');
    chmodSync(path, 0o644);
    expect((await checks.check(path)).problem).toBeUndefined();
  });
});

describe('a failure that is not about the file', () => {
  const codes = ['EMFILE', 'ENFILE', 'EIO', 'EAGAIN', 'ETIMEDOUT', 'ESTALE', 'ENOMEM', 'EBUSY'];

  it.each(codes)('%s leaves what was found before, good or bad, settled or not', async (code) => {
    const good = writeSparse(join(directory, `${code}-00001-of-00002.gguf`), ggufHeader());
    const second = writeSparse(join(directory, `${code}-00002-of-00002.gguf`), ggufHeader());
    const broken = writeSparse(join(directory, `${code}-broken.gguf`), 'text');
    const fresh = writeSparse(join(directory, `${code}-fresh.gguf`), 'text', { time: new Date() });
    const missing = join(directory, `${code}-missing.gguf`);
    const paths = [good, broken, fresh, missing];
    const checks = new GgufChecks();
    const before = await checks.checkAll(paths);
    expect(paths.map((path) => before.get(path)?.problem === undefined)).toEqual([true, false, false, false]);
    for (const path of [...paths, second]) failAt(path, code);
    expect(await checks.checkAll(paths)).toEqual(before);
    expect(await checks.checkAll(paths)).toEqual(before);
    mend();
    writeSparse(good, 'text');
    expect((await checks.checkAll(paths)).get(good)?.problem).toContain('is not a GGUF file');
  });

  it('is nothing against a file of which nothing is known, and the next look tells', async () => {
    const path = writeSparse(join(directory, 'unlucky.gguf'), 'text');
    const checks = new GgufChecks();
    failAt(path, 'EMFILE');
    expect(await checks.checkAll([path])).toEqual(
      new Map([[path, { problem: undefined, version: undefined }]]),
    );
    mend();
    expect((await checks.checkAll([path])).get(path)?.problem).toContain('is not a GGUF file');
  });

  it('is not EACCES, which is', async () => {
    const path = writeSparse(join(directory, 'forbidden.gguf'), ggufHeader());
    const checks = new GgufChecks();
    await checks.check(path);
    failAt(path, 'EACCES');
    expect((await checks.check(path)).problem).toBe(`'${path}' cannot be read: EACCES`);
  });
});
