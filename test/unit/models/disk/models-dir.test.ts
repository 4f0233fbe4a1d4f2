import { chmodSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { shardPath } from '../../../../src/models/disk/gguf-name.js';
import { LastReadings } from '../../../../src/models/disk/last-readings.js';
import { scanModelsDir } from '../../../../src/models/disk/models-dir.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile, writeLink, writeOddFile } from '../tree.js';
import { failAt, mend } from './failing-fs.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('./failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

/** What a scan finds in a directory `M` that holds those files. */
async function scan(...files: string[]): ReturnType<typeof scanModelsDir> {
  const directory = tempDir();
  for (const file of files) writeFile(join(directory, file));
  const { models, warnings } = await scanModelsDir(directory);
  const relative = (text: string): string => text.replaceAll(directory, 'M');
  return {
    models: models.map(({ id, file, mmproj, draft }) => ({
      id,
      file: relative(file),
      mmproj: mmproj && relative(mmproj),
      draft: draft && relative(draft),
    })),
    warnings: warnings.map(relative),
  };
}

describe('files', () => {
  it('are models named like them, in bytewise order', async () => {
    const { models, warnings } = await scan('b.gguf', 'B.gguf', 'a.Q4_0.gguf', 'ä.gguf', 'x.gguf.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['B', 'M/B.gguf'],
      ['a.Q4_0', 'M/a.Q4_0.gguf'],
      ['b', 'M/b.gguf'],
      ['x', 'M/x.gguf.gguf'],
      ['ä', 'M/ä.gguf'],
    ]);
    expect(warnings).toEqual([]);
  });

  it.each([
    ['no GGUF file by its name', ['a.GGUF', 'a.bin', 'gguf']],
    ['a projector', ['x-mmproj-y.gguf']],
    ['a draft', ['mtp-a.gguf', 'dspark-a.gguf', 'dflash-a.gguf', 'eagle3-a.gguf']],
    ['an importance matrix', ['imatrix.gguf', 'imatrix_x.gguf', 'a-imatrix.gguf', 'a.imatrix.gguf']],
  ])('of which each is %s are none, also in a directory', async (_, names) => {
    const found = await scan(...names, ...names.map((name) => `v/${name}`));
    expect(found).toEqual({ models: [], warnings: [] });
  });

  it('that were made with an importance matrix, or by its team, are models', async () => {
    const { models } = await scan('a-imatrix-Q4_0.gguf', 'matrix.gguf', 'a-mtp-Q4_0.gguf');
    expect(models.map(({ id }) => id)).toEqual(['a-imatrix-Q4_0', 'a-mtp-Q4_0', 'matrix']);
  });

  it('that are shards are one model, named without their number', async () => {
    const { models, warnings } = await scan('big-Q4_0-00001-of-00002.gguf', 'big-Q4_0-00002-of-00002.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['big-Q4_0', 'M/big-Q4_0-00001-of-00002.gguf'],
    ]);
    expect(warnings).toEqual([]);
  });

  it('that are shards without the first are one model still, which points at the missing one', async () => {
    const { models } = await scan('big-00002-of-00003.gguf', 'big-00003-of-00003.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([['big', 'M/big-00001-of-00003.gguf']]);
  });

  it('that are shards leave their id to another model of that name, and have that of their first', async () => {
    const { models, warnings } = await scan('x-00001-of-00002.gguf', 'x-00002-of-00002.gguf', 'x.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['x', 'M/x.gguf'],
      ['x-00001-of-00002', 'M/x-00001-of-00002.gguf'],
    ]);
    expect(warnings).toEqual([]);
  });

  it('that are shards of two divisions are two models', async () => {
    const { models } = await scan('x-00001-of-00002.gguf', 'x-00002-of-00002.gguf', 'x-00001-of-00001.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['x', 'M/x-00001-of-00001.gguf'],
      ['x-00001-of-00002', 'M/x-00001-of-00002.gguf'],
    ]);
  });

  it('whose name is nothing but the ending are told and left out', async () => {
    const { models, warnings } = await scan('.gguf');
    expect(models).toEqual([]);
    expect(warnings).toEqual(["'M/.gguf' is not listed: its name leaves no model id"]);
  });
});

describe('directories', () => {
  it('are models named like them, with the projector and the draft beside the model', async () => {
    const { models, warnings } = await scan(
      'v/mmproj-F16.gguf',
      'v/model.gguf',
      'v/mtp-x.gguf',
      '.hid/a.gguf',
    );
    expect(models).toEqual([
      { id: '.hid', file: 'M/.hid/a.gguf', mmproj: undefined, draft: undefined },
      { id: 'v', file: 'M/v/model.gguf', mmproj: 'M/v/mmproj-F16.gguf', draft: 'M/v/mtp-x.gguf' },
    ]);
    expect(warnings).toEqual([]);
  });

  it('without a model, or with one only further down, are none', async () => {
    expect(await scan('v/mmproj.gguf', 'w/readme.md', 'x/y/z.gguf')).toEqual({ models: [], warnings: [] });
  });

  it.each([
    ['Q4_K_M', ['a-Q2_K', 'a-Q4_K_M', 'a-Q8_0'], 'a-Q4_K_M', { 'v:Q2_K': 'a-Q2_K', 'v:Q8_0': 'a-Q8_0' }],
    ['else Q8_0', ['a-F16', 'a-Q8_0'], 'a-Q8_0', { 'v:F16': 'a-F16' }],
    ['else the first by name', ['a-Q5_0', 'a-Q2_K'], 'a-Q2_K', { 'v:Q5_0': 'a-Q5_0' }],
    [
      'but the only one in shards, as in the native router',
      ['a-Q4_K_M', 'a-BF16-00001-of-00002', 'a-BF16-00002-of-00002'],
      'a-BF16-00001-of-00002',
      { 'v:Q4_K_M': 'a-Q4_K_M' },
    ],
    [
      'of several in shards again Q4_K_M',
      ['a-BF16-00001-of-00001', 'a-Q4_K_M-00001-of-00001'],
      'a-Q4_K_M-00001-of-00001',
      { 'v:BF16': 'a-BF16-00001-of-00001' },
    ],
    [
      'but never one whose first shard is missing',
      ['a-Q4_K_M-00002-of-00002', 'a-F16'],
      'a-F16',
      { 'v:Q4_K_M': 'a-Q4_K_M-00001-of-00002' },
    ],
  ])('with several models are %s; the others have their tag', async (_, names, preferred, others) => {
    const { models, warnings } = await scan(...names.map((name) => `v/${name}.gguf`));
    const files = Object.fromEntries(models.map(({ id, file }) => [id, file]));
    const expected = Object.entries({ v: preferred, ...others });
    expect(files).toEqual(Object.fromEntries(expected.map(([id, name]) => [id, `M/v/${name}.gguf`])));
    expect(warnings).toEqual([]);
  });

  it('with models that no tag tells apart are one of them, and say so', async () => {
    const { models, warnings } = await scan('v/b.gguf', 'v/a.gguf', 'v/x-Q4_0.gguf', 'v/y-Q4_0.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['v', 'M/v/a.gguf'],
      ['v:Q4_0', 'M/v/x-Q4_0.gguf'],
    ]);
    expect(warnings).toEqual([
      "'M/v' holds several models and 'M/v/a.gguf' is used; give each a directory of its own: " +
        "'M/v/b.gguf', 'M/v/y-Q4_0.gguf'",
    ]);
  });

  it('leave the id with a tag to a model that has it natively', async () => {
    const { models, warnings } = await scan('v/a-Q4_K_M.gguf', 'v/a-F16.gguf', 'v:F16.gguf');
    expect(models.map(({ id, file }) => [id, file])).toEqual([
      ['v', 'M/v/a-Q4_K_M.gguf'],
      ['v:F16', 'M/v:F16.gguf'],
    ]);
    expect(warnings).toEqual([
      "'M/v/a-F16.gguf' is not listed: 'M/v:F16.gguf' has the id 'v:F16' already; rename one of them",
    ]);
  });

  it('with several companions give each model those nearest to it in bits', async () => {
    const { models } = await scan(
      ...['v/a-Q4_K_M.gguf', 'v/a-BF16.gguf', 'v/mmproj-F32.gguf', 'v/mmproj-F16.gguf', 'v/mmproj-Q8_0.gguf'],
      ...['v/mtp-a-BF16.gguf', 'v/mtp-a-Q4_0.gguf', 'v/eagle3-a-Q4_0.gguf'],
    );
    expect(models).toEqual([
      { id: 'v', file: 'M/v/a-Q4_K_M.gguf', mmproj: 'M/v/mmproj-Q8_0.gguf', draft: 'M/v/mtp-a-Q4_0.gguf' },
      { id: 'v:BF16', file: 'M/v/a-BF16.gguf', mmproj: 'M/v/mmproj-F16.gguf', draft: 'M/v/mtp-a-BF16.gguf' },
    ]);
  });

  it('with a companion that leads nowhere are served without it, and say so', async () => {
    const directory = tempDir();
    writeFile(join(directory, 'v/a.gguf'));
    const link = writeLink(join(directory, 'v/mmproj-F16.gguf'), join(directory, 'nowhere'));
    const { models, warnings } = await scanModelsDir(directory);
    expect(models.map(({ id, mmproj }) => [id, mmproj])).toEqual([['v', undefined]]);
    expect(warnings).toEqual([
      `'${link}' is a link to a file that does not exist; its model is served without it`,
    ]);
  });

  it('with later shards only are models that point at the first, which is missing', async () => {
    const { models } = await scan('v/b-00002-of-00002.gguf');
    expect(models.map(({ file }) => file)).toEqual(['M/v/b-00001-of-00002.gguf']);
  });

  it('that may not be read are a warning, and the others stay', async (context) => {
    if (process.getuid?.() === 0) context.skip('root may read every directory');
    const directory = tempDir();
    writeFile(join(directory, 'a.gguf'));
    const closed = join(directory, 'closed');
    mkdirSync(closed, { mode: 0 });
    const { models, warnings } = await scanModelsDir(directory);
    chmodSync(closed, 0o700);
    expect(models.map(({ id }) => id)).toEqual(['a']);
    expect(warnings).toEqual([`'${closed}' cannot be read: EACCES`]);
  });
});

it('of a directory and a file with one id the directory is listed, and the file is told', async () => {
  const { models, warnings } = await scan('x.gguf', 'x/model.gguf', 'y.gguf', 'y/readme.md');
  expect(models.map(({ id, file }) => [id, file])).toEqual([
    ['x', 'M/x/model.gguf'],
    ['y', 'M/y.gguf'],
  ]);
  expect(warnings).toEqual([
    "'M/x.gguf' is not listed: 'M/x/model.gguf' has the id 'x' already; rename one of them",
  ]);
});

it.each([
  'new\nline',
  'carriage\rreturn',
  '\u001b[31mred',
  `quo"te'`,
  'comma,comma',
  '-dash',
  '--model',
  ' space ',
  '%41%FF',
  '\uFFFD',
  '🦙',
  '<b>&amp;',
  '..x',
  'a:b',
  '$HOME `x` \\',
])('the name %j is an id as it is, of a file and of a directory', async (name) => {
  const file = await scan(`${name}.gguf`, `${name}-Q4_0-00001-of-00002.gguf`);
  expect(file.models.map(({ id }) => id).sort()).toEqual([name, `${name}-Q4_0`].sort());
  expect(file.warnings).toEqual([]);
  const directory = await scan(`${name}/model.gguf`);
  expect(directory).toEqual({
    models: [{ id: name, file: `M/${name}/model.gguf`, mmproj: undefined, draft: undefined }],
    warnings: [],
  });
});

it('links are followed, and one that leads nowhere is a model still, so that it can be listed with the reason', async () => {
  const directory = tempDir();
  const elsewhere = tempDir();
  writeLink(join(directory, 'linked.gguf'), writeFile(join(elsewhere, 'a.gguf')));
  writeLink(join(directory, 'folder'), elsewhere);
  writeLink(join(directory, 'gone.gguf'), join(elsewhere, 'gone.gguf'));
  writeLink(join(directory, 'gone-folder'), join(elsewhere, 'nothing'));
  const { models } = await scanModelsDir(directory);
  expect(models.map(({ id }) => id)).toEqual(['folder', 'gone', 'linked']);
});

it('paths begin with the directory as it was given', async () => {
  const directory = tempDir();
  writeFile(join(directory, 'a.gguf'));
  const given = `${directory}/./`;
  expect((await scanModelsDir(given)).models.map(({ file }) => file)).toEqual([`${given}a.gguf`]);
});

it('a directory that is missing or none is an error that names option and path', async () => {
  const directory = tempDir();
  const file = writeFile(join(directory, 'file'));
  await expect(scanModelsDir(join(directory, 'no'))).rejects.toThrow(
    `--models-dir '${join(directory, 'no')}' does not exist`,
  );
  await expect(scanModelsDir(file)).rejects.toThrow(`--models-dir '${file}' is not a directory`);
});

it('a directory that cannot be read at the first scan is an error with the reason and no wrong advice', async () => {
  const directory = tempDir();
  failAt(directory, 'EMFILE');
  await expect(scanModelsDir(directory)).rejects.toThrow(
    new Error(`--models-dir '${directory}' cannot be read: EMFILE`),
  );
});

it('a link back to the directory, or to one above it, is passed over; others are not', async () => {
  const root = tempDir();
  const directory = join(root, 'models');
  writeFile(join(root, 'outside.gguf'));
  writeFile(join(root, 'models-2/b.gguf'));
  writeFile(join(directory, 'a.gguf'));
  writeLink(join(directory, 'loop'), '.');
  writeLink(join(directory, 'above'), '..');
  writeLink(join(directory, 'sibling'), '../models-2');
  writeLink(join(root, 'link'), directory);
  const ids = async (path: string): Promise<string[]> =>
    (await scanModelsDir(path)).models.map(({ id }) => id);
  expect(await ids(directory)).toEqual(['a', 'sibling']);
  expect(await ids(join(root, 'link'))).toEqual(['a', 'sibling']);
});

describe('a moment in which the system fails', () => {
  it.each([
    ['EMFILE', 'the directory', ''],
    ['EIO', 'a sub-directory', 'v'],
    ['ESTALE', 'one that is a link', 'linked'],
  ])('with %s at %s leaves what was there, with a warning', async (code, _what, below) => {
    const directory = tempDir();
    const readings = new LastReadings();
    const file = writeFile(join(directory, 'a.gguf'));
    writeFile(join(directory, 'v/b-Q4_0.gguf'));
    writeFile(join(directory, 'v/mmproj-F16.gguf'));
    const elsewhere = tempDir();
    writeFile(join(elsewhere, 'c.gguf'));
    writeLink(join(directory, 'linked'), elsewhere);
    const before = await scanModelsDir(directory, { readings });
    expect(before.models.map(({ id }) => id)).toEqual(['a', 'linked', 'v']);
    const path = below === '' ? directory : join(directory, below);
    failAt(path, code);
    const told = [`'${path}' cannot be read: ${code}; what it held last is used`];
    // However long it lasts.
    expect(await scanModelsDir(directory, { readings })).toEqual({ ...before, warnings: told });
    expect(await scanModelsDir(directory, { readings })).toEqual({ ...before, warnings: told });
    mend();
    rmSync(file);
    const after = await scanModelsDir(directory, { readings });
    expect(after.models.map(({ id }) => id)).toEqual(['linked', 'v']);
    expect(after.warnings).toEqual([]);
  });

  it('at a link to a companion leaves it; at one that never was followed it is told', async () => {
    const directory = tempDir();
    const readings = new LastReadings();
    writeFile(join(directory, 'v/a.gguf'));
    const target = writeFile(join(tempDir(), 'm.gguf'));
    const link = writeLink(join(directory, 'v/mmproj-F16.gguf'), target);
    const before = await scanModelsDir(directory, { readings });
    expect(before.models.map(({ mmproj }) => mmproj)).toEqual([link]);
    failAt(link, 'EIO');
    expect(await scanModelsDir(directory, { readings })).toEqual(before);
    const { models, warnings } = await scanModelsDir(directory);
    expect(models.map(({ mmproj }) => mmproj)).toEqual([undefined]);
    expect(warnings).toEqual([`'${link}' cannot be read; its model is served without it`]);
  });

  it('at a directory that is gone by now is no error about what it held', async () => {
    const directory = tempDir();
    const readings = new LastReadings();
    writeFile(join(directory, 'v/a.gguf'));
    await scanModelsDir(directory, { readings });
    rmSync(directory, { recursive: true });
    await expect(scanModelsDir(directory, { readings })).rejects.toThrow('does not exist; create it');
    failAt(directory, 'EIO');
    await expect(scanModelsDir(directory, { readings })).rejects.toThrow('cannot be read: EIO');
  });
});

describe.runIf(process.platform === 'linux')('names that are not UTF-8', () => {
  it('are told and left out where no links can be made', async () => {
    const directory = tempDir();
    writeOddFile(`${directory}/caf\xe9.gguf`);
    writeOddFile(`${directory}/caf\xe9.txt`);
    expect(await scanModelsDir(directory)).toEqual({
      models: [],
      warnings: [`'${directory}/caf\uFFFD.gguf' is not listed: its name is not valid UTF-8; rename it`],
    });
  });

  it('are ids with the odd bytes escaped, of files, shards, directories and what is in them', async () => {
    const directory = tempDir();
    const linksDirectory = join(tempDir(), 'links');
    writeOddFile(`${directory}/caf\xe9.gguf`);
    writeOddFile(`${directory}/big\xff-Q4_0-00001-of-00002.gguf`);
    writeOddFile(`${directory}/big\xff-Q4_0-00002-of-00002.gguf`);
    writeOddFile(`${directory}/d\xe9/a.gguf`);
    writeOddFile(`${directory}/d\xe9/mmproj-\xe9.gguf`);
    writeOddFile(`${directory}/plain/\xfe-Q4_K_M.gguf`);
    writeOddFile(`${directory}/plain/b-F16.gguf`);
    const { models, warnings } = await scanModelsDir(directory, { linksDirectory });
    expect(models.map(({ id }) => id)).toEqual(['big%FF-Q4_0', 'caf%E9', 'd%E9', 'plain', 'plain:F16']);
    expect(warnings).toEqual([]);
    const opened = models.flatMap(({ file, mmproj }) => [file, mmproj ?? file]);
    for (const path of [...opened, shardPath(models[0]?.file ?? '', 2)]) {
      expect(readFileSync(path, 'latin1')).toMatch(/^GGUF/);
    }
    expect(models[2]?.mmproj).toContain('mmproj-%E9.gguf');
    expect(models[3]?.file).toContain('%FE-Q4_K_M.gguf');
  });

  it('that read the same as another are told', async () => {
    const directory = tempDir();
    const linksDirectory = join(tempDir(), 'links');
    writeOddFile(`${directory}/caf\xe9.gguf`);
    const readable = writeFile(join(directory, 'caf%E9.gguf'));
    const { models, warnings } = await scanModelsDir(directory, { linksDirectory });
    expect(models.map(({ file }) => file)).toEqual([readable]);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain(`'${readable}' has the id 'caf%E9' already; rename one of them`);
  });
});
