import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { endianness } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { ggufFileProblem, modelFileProblem, modelFileProblems } from '../../../src/models/gguf-file.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { ggufHeader } from './gguf-header.js';

const directory = tempDir();

function write(name: string, content: string | Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

describe('one file', () => {
  it.each([2, 3])('of version %d is without a problem', async (version) => {
    expect(await ggufFileProblem(write('good.gguf', ggufHeader({ version })))).toBeUndefined();
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
    expect(await ggufFileProblem(write('bad.gguf', content))).toBe(reason);
  });

  it('that is missing, a dangling link or a directory is refused with the reason', async () => {
    symlinkSync(join(directory, 'gone'), join(directory, 'dangling.gguf'));
    mkdirSync(join(directory, 'directory.gguf'));
    expect(await ggufFileProblem(join(directory, 'missing.gguf'))).toBe('does not exist');
    expect(await ggufFileProblem(join(directory, 'dangling.gguf'))).toBe(
      'is a link to a file that does not exist',
    );
    expect(await ggufFileProblem(join(directory, 'directory.gguf'))).toBe('is a directory, not a GGUF file');
  });

  it('that may not be read is refused with the code of the system', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every file');
    const path = write('secret.gguf', ggufHeader());
    chmodSync(path, 0);
    expect(await ggufFileProblem(path)).toBe('cannot be read: EACCES');
  });

  it('that goes round in links is refused with the code of the system', async () => {
    const path = join(directory, 'loop.gguf');
    symlinkSync(path, path);
    expect(await ggufFileProblem(path)).toBe('cannot be read: ELOOP');
  });

  it('that is a pipe is refused without waiting for a writer', { timeout: 5_000 }, async (context) => {
    if (process.platform === 'win32') context.skip('there is no mkfifo');
    const path = join(directory, 'pipe.gguf');
    execFileSync('mkfifo', [path]);
    expect(await ggufFileProblem(path)).toBe('is not a regular file');
  });
});

describe('a model', () => {
  it('in shards is without a problem if every shard is', async () => {
    const first = write('whole-00001-of-00002.gguf', ggufHeader());
    write('whole-00002-of-00002.gguf', ggufHeader());
    expect(await modelFileProblem(first)).toBeUndefined();
  });

  it('in shards names the first shard at fault', async () => {
    const first = write('torn-00001-of-00003.gguf', ggufHeader());
    write('torn-00002-of-00003.gguf', '');
    expect(await modelFileProblem(first)).toBe(
      `'${join(directory, 'torn-00002-of-00003.gguf')}' (shard 2 of 3) is empty`,
    );
  });

  it('that is named by another shard than the first says which one to name', async () => {
    expect(await modelFileProblem('/m/x-00002-of-00003.gguf')).toBe(
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
    const missing = join(directory, 'missing.gguf');
    const openFiles = (): number => readdirSync('/proc/self/fd').length;
    const before = openFiles();
    let most = before;

    const progress: { done: boolean } = { done: false };
    const checked = modelFileProblems([...paths, missing]).finally(() => (progress.done = true));
    while (!progress.done) {
      most = Math.max(most, openFiles());
      await turn();
    }
    expect([...(await checked)]).toEqual([[missing, `'${missing}' does not exist`]]);
    // 16 files, and the one that the counting itself opens.
    expect(most - before).toBeLessThanOrEqual(17);
    expect(most).toBeGreaterThan(before);
  });
});
