import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { DirectoryEntry } from '../../../../src/models/disk/directory.js';
import { escapeOddBytes, readNamedDirectory, sweepLinks } from '../../../../src/models/disk/odd-names.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile, writeOddFile } from '../tree.js';

it.each([
  ['caf\xe9', 'caf%E9'],
  ['\xff\xfe', '%FF%FE'],
  ['\xc3', '%C3'],
  ['\xc3\xa9\xe9', 'é%E9'],
  ['\xf0\x9f\xa6\x99\xf0\x9f', '🦙%F0%9F'],
  ['\xc0\xaf', '%C0%AF'],
  ['\xed\xa0\x80', '%ED%A0%80'],
  ['100%\n', '100%\n'],
  ['\xef\xbf\xbd', '\uFFFD'],
  ['', ''],
])('the bytes %j read %j', (latin1, expected) => {
  expect(escapeOddBytes(Buffer.from(latin1, 'latin1'))).toBe(expected);
});

describe.runIf(process.platform === 'linux')('links', () => {
  interface Place {
    readonly directory: string;
    readonly linksDirectory: string;
  }
  const place = (): Place => ({ directory: tempDir(), linksDirectory: join(tempDir(), 'deep/links') });
  const isGguf = ({ name }: { readonly name: string }): boolean => name.endsWith('.gguf');

  async function read({ directory, linksDirectory }: Place): Promise<{
    odd: DirectoryEntry[];
    warnings: string[];
  }> {
    const warnings: string[] = [];
    const entries = await readNamedDirectory(directory, { linksDirectory }, isGguf, warnings);
    return { odd: entries.filter(({ path }) => path.startsWith(linksDirectory)), warnings };
  }

  const allLinks = (linksDirectory: string): string[] =>
    readdirSync(linksDirectory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isSymbolicLink())
      .map((entry) => entry.name)
      .sort();

  it('lead to the file, side by side for all files of a directory, and only for those that are wanted', async () => {
    const where = place();
    writeOddFile(`${where.directory}/\xe9-00001-of-00002.gguf`);
    writeOddFile(`${where.directory}/\xe9-00002-of-00002.gguf`);
    writeOddFile(`${where.directory}/\xe9.txt`);
    writeFile(join(where.directory, '\uFFFD.gguf'));
    const { odd, warnings } = await read(where);
    expect(odd.map(({ name, kind }) => [name, kind])).toEqual([
      ['%E9-00001-of-00002.gguf', 'file'],
      ['%E9-00002-of-00002.gguf', 'file'],
    ]);
    expect(new Set(odd.map(({ path }) => dirname(path))).size).toBe(1);
    for (const { path } of odd) expect(readFileSync(path, 'latin1')).toMatch(/^GGUF/);
    expect(allLinks(where.linksDirectory)).toHaveLength(2);
    expect(warnings).toEqual([]);
  });

  it('are made for a directory given relative to the working directory, too', async () => {
    const where = place();
    writeOddFile(`${where.directory}/\xe9.gguf`);
    const relativeOne = { ...where, directory: relative(process.cwd(), where.directory) };
    expect((await read(relativeOne)).odd).toEqual((await read(where)).odd);
    expect(readFileSync((await read(relativeOne)).odd[0]?.path ?? '', 'latin1')).toMatch(/^GGUF/);
  });

  it('of two directories are apart', async () => {
    const [first, second] = [place(), place()];
    writeOddFile(`${first.directory}/\xe9.gguf`);
    writeOddFile(`${second.directory}/\xe9.gguf`);
    const both = { ...second, linksDirectory: first.linksDirectory };
    expect((await read(both)).odd[0]?.path).not.toBe((await read(first)).odd[0]?.path);
  });

  it('stay as they are when they are right, and are put right when they are not', async () => {
    const where = place();
    writeOddFile(`${where.directory}/\xe9.gguf`);
    const path = (await read(where)).odd[0]?.path ?? '';
    const { ino } = lstatSync(path);
    await read(where);
    expect(lstatSync(path).ino).toBe(ino);
    rmSync(path);
    symlinkSync('/nonexistent', path);
    await read(where);
    expect(readFileSync(path, 'latin1')).toMatch(/^GGUF/);
  });

  it('are the same when many make them at once', async () => {
    const where = place();
    for (let index = 0; index < 10; index++) writeOddFile(`${where.directory}/\xe9${index}.gguf`);
    const all = await Promise.all(
      Array.from({ length: 8 }, async () => {
        await sweepLinks(where);
        return await read(where);
      }),
    );
    expect(all.flatMap(({ warnings }) => warnings)).toEqual([]);
    expect(new Set(all.map(({ odd }) => JSON.stringify(odd))).size).toBe(1);
    expect(allLinks(where.linksDirectory)).toHaveLength(10);
  });

  it('are swept when their files are gone, with the directory that held them; the others stay', async () => {
    const [kept, gone] = [place(), place()];
    writeOddFile(`${kept.directory}/kept\xe9.gguf`);
    writeOddFile(`${kept.directory}/removed\xe9.gguf`);
    writeOddFile(`${gone.directory}/\xe9.gguf`);
    const { linksDirectory } = kept;
    await read(kept);
    await read({ ...gone, linksDirectory });
    expect(allLinks(linksDirectory)).toHaveLength(3);
    rmSync(Buffer.from(`${kept.directory}/removed\xe9.gguf`, 'latin1'));
    renameSync(gone.directory, `${gone.directory}-moved`);
    await sweepLinks(kept);
    renameSync(`${gone.directory}-moved`, gone.directory);
    expect(allLinks(linksDirectory)).toEqual(['kept%E9.gguf']);
    expect(readdirSync(linksDirectory)).toHaveLength(1);
  });

  it('to a link that leads nowhere stay, so that its model can be listed with the reason', async () => {
    const where = place();
    symlinkSync('/nonexistent', Buffer.from(`${where.directory}/\xe9.gguf`, 'latin1'));
    expect((await read(where)).odd.map(({ kind }) => kind)).toEqual(['dangling']);
    await sweepLinks(where);
    expect(allLinks(where.linksDirectory)).toEqual(['%E9.gguf']);
  });

  it('of two names that read the same are made for one, and the other is told', async () => {
    const where = place();
    writeOddFile(`${where.directory}/%E9\xe9.gguf`);
    writeOddFile(`${where.directory}/\xe9\xe9.gguf`);
    const { odd, warnings } = await read(where);
    expect(odd.map(({ name }) => name)).toEqual(['%E9%E9.gguf']);
    expect(warnings).toEqual([
      `'${where.directory}/\uFFFD\uFFFD.gguf' is not listed: its name is not valid UTF-8, ` +
        `and another is '%E9%E9.gguf' already; rename one of them`,
    ]);
  });

  it('that cannot be made are told', async () => {
    const where = place();
    writeOddFile(`${where.directory}/\xe9.gguf`);
    writeOddFile(`${where.directory}/${'\xe9'.repeat(100)}.gguf`);
    mkdirSync(dirname(where.linksDirectory), { recursive: true });
    const { odd, warnings } = await read(where);
    expect(odd.map(({ name }) => name)).toEqual(['%E9.gguf']);
    expect(warnings).toEqual([
      expect.stringMatching(
        /is not listed: its name is not valid UTF-8, and '.*' cannot be made: ENAMETOOLONG/,
      ),
    ]);
    const inTheWay = { ...where, linksDirectory: writeFile(join(tempDir(), 'file')) };
    expect((await read(inTheWay)).warnings).toHaveLength(2);
  });
});

it('sweeping links that never were is nothing', async () => {
  await expect(sweepLinks({ linksDirectory: join(tempDir(), 'none') })).resolves.toBeUndefined();
  await expect(sweepLinks({ linksDirectory: undefined })).resolves.toBeUndefined();
});
