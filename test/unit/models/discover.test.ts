import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { discoverCatalog, type DiscoveryOptions } from '../../../src/models/discover.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { table } from './help-table.js';
import { writeFile, writeLink, writeRepo } from './tree.js';

const discover = (options: Partial<DiscoveryOptions>): ReturnType<typeof discoverCatalog> =>
  discoverCatalog({
    env: { LLAMA_CACHE: '/nonexistent' },
    modelsDirs: [],
    presetFiles: [],
    base: new Map(),
    table,
    ...options,
  });

it('every source is found, and each broken model is listed with its reason beside the good ones', async () => {
  const root = tempDir();
  const cache = join(root, 'hub');
  const models = join(root, 'models');
  writeRepo(cache, 'org/good', ['g-Q4_0.gguf']);
  const gone = writeRepo(cache, 'org/gone', ['x-Q4_0.gguf']);
  rmSync(join(cache, 'models--org--gone/blobs'), { recursive: true });
  writeFile(join(models, 'good.gguf'));
  const empty = writeFile(join(models, 'empty.gguf'), '');
  const html = writeFile(join(models, 'folder/page.gguf'), '<html></html>');
  const half = writeFile(join(models, 'half-00001-of-00002.gguf'));
  const link = writeLink(join(models, 'link.gguf'), join(root, 'nowhere'));
  const presetFile = writeFile(
    join(root, 'presets.ini'),
    [
      ...['[named]', `model = ${join(models, 'good.gguf')}`],
      ...['[missing]', `model = ${join(root, 'missing.gguf')}`],
      ...['[bad-line]', 'model = missing.gguf', 'oops'],
      ...['[nothing]', '[to-download]', 'hf-repo = org/other:Q4_0'],
    ].join('\n'),
  );

  const catalog = await discover({
    env: { HF_HUB_CACHE: cache },
    modelsDirs: [models],
    presetFiles: [presetFile],
  });
  expect(catalog.models.map(({ id, problem }) => [id, problem])).toEqual([
    ['bad-line', `${presetFile}:7: is neither 'key = value' nor '[section]' nor a comment: 'oops'`],
    ['empty', `'${empty}' is empty`],
    ['folder', `'${html}' is not a GGUF file (starts with "<htm")`],
    ['good', undefined],
    ['half', `'${half.replace('-00001-', '-00002-')}' (shard 2 of 2) does not exist`],
    ['link', `'${link}' is a link to a file that does not exist`],
    ['missing', `'${join(root, 'missing.gguf')}' does not exist`],
    ['named', undefined],
    ['nothing', expect.stringMatching(/^names no model: /)],
    ['org/gone:Q4_0', `'${join(gone, 'x-Q4_0.gguf')}' is a link to a file that does not exist`],
    ['org/good:Q4_0', undefined],
    ['to-download', undefined],
  ]);
  expect(catalog.resolve('named')?.problem).toBeUndefined();
  expect(catalog.resolve('empty')?.problem).toBe(`'${empty}' is empty`);
});

it('nothing configured and nothing in the cache is an empty catalog', async () => {
  expect(await discover({})).toMatchObject({ models: [], warnings: [] });
});

it('a models directory or a presets file that is missing is an error', async () => {
  await expect(discover({ modelsDirs: ['/nonexistent/models'] })).rejects.toThrow(
    "--models-dir '/nonexistent/models' does not exist",
  );
  await expect(discover({ presetFiles: ['/nonexistent/p.ini'] })).rejects.toThrow(
    "--models-preset '/nonexistent/p.ini' does not exist",
  );
});
