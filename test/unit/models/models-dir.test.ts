import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { scanModelsDir } from '../../../src/models/models-dir.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { writeFile, writeLink } from './tree.js';

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

  it('that are no GGUF files by name, projectors or drafts are none', async () => {
    const found = await scan(
      'a.GGUF',
      'a.bin',
      'x-mmproj-y.gguf',
      'mtp-a.gguf',
      'dspark-a.gguf',
      'dflash-a.gguf',
    );
    expect(found).toEqual({ models: [], warnings: [] });
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

  it('with several models are the one in shards, else the first by name, and say so', async () => {
    const sharded = await scan('v/a.gguf', 'v/b-00001-of-00002.gguf', 'v/b-00002-of-00002.gguf');
    expect(sharded.models.map(({ file }) => file)).toEqual(['M/v/b-00001-of-00002.gguf']);
    const single = await scan('v/b.gguf', 'v/a.gguf');
    expect(single.models.map(({ file }) => file)).toEqual(['M/v/a.gguf']);
    expect(single.warnings).toEqual([
      "'M/v' holds several models and 'M/v/a.gguf' is used; give each a directory of its own: 'M/v/b.gguf'",
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

it('of two models with one id the first by name is listed, and the other is told', async () => {
  const { models, warnings } = await scan('x.gguf', 'x/model.gguf', 'x-00001-of-00001.gguf');
  expect(models.map(({ id, file }) => [id, file])).toEqual([['x', 'M/x/model.gguf']]);
  expect(warnings).toEqual([
    "'M/x-00001-of-00001.gguf' is not listed: 'M/x/model.gguf' has the id 'x' already; rename one of them",
    "'M/x.gguf' is not listed: 'M/x/model.gguf' has the id 'x' already; rename one of them",
  ]);
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

it('names that are not UTF-8 are told and left out', async (context) => {
  if (process.platform !== 'linux') context.skip('other systems do not let such a name be written');
  const directory = tempDir();
  const name = Buffer.concat([Buffer.from(`${directory}/caf`), Buffer.of(0xe9), Buffer.from('.gguf')]);
  writeFileSync(name, '');
  const { models, warnings } = await scanModelsDir(directory);
  expect(models).toEqual([]);
  expect(warnings).toEqual([
    `'${directory}/caf\uFFFD.gguf' is not listed: its name is not valid UTF-8; rename it`,
  ]);
});
