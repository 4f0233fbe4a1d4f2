import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, it, onTestFinished, vi } from 'vitest';
import { FactsStore } from '../../../src/models/gguf/facts-store.js';
import { LiveCatalog } from '../../../src/models/live-catalog.js';
import type { CatalogDiff } from '../../../src/models/catalog-diff.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { compileFacts } from './gguf/compiled-facts.js';
import { ggufWith, stringPair, writeSparse } from './gguf-header.js';
import { table } from './help-table.js';

const workerUrl = pathToFileURL(join(compileFacts(), 'facts-worker.js'));
const header = ggufWith({
  pairs: [stringPair('general.architecture', 'llama')],
  tensors: [{ shape: [100 * 1024] }],
});
const wholeBytes = Math.ceil(header.length / 32) * 32 + 400 * 1024;

const nothing = { removed: [], changed: [], broken: [] };

it.each<[string, (path: string) => unknown, Record<string, string[]>]>([
  [
    'whole',
    (path) => writeSparse(path, header, { sizeBytes: wholeBytes, time: new Date() }),
    { changed: ['big'] },
  ],
  ['truncated', () => aMinuteLater(), { broken: ['big'] }],
  ['gone', (path) => rmSync(path), { removed: ['big'] }],
])('a file that grows is told of when that begins and when it ends %s', async (_how, end, told) => {
  const directory = tempDir();
  const path = join(directory, 'big.gguf');
  const facts = new FactsStore({ cacheFile: undefined, workerUrl });
  const diffs: CatalogDiff[] = [];
  const live = await LiveCatalog.open({
    env: { LLAMA_CACHE: '/nonexistent' },
    modelsDirs: [directory],
    presetFiles: [],
    base: new Map(),
    table,
    facts,
    onChange: (diff) => diffs.push(diff),
    onError: (error) => {
      throw error;
    },
  });
  atEndOfTest(async () => {
    live.close();
    await facts.close();
  });
  /** What was told since the last call. */
  const news = () => {
    const some = diffs.splice(0);
    return {
      removed: some.flatMap(({ removed }) => removed),
      changed: some.flatMap(({ changed }) => changed),
      broken: some.flatMap(({ broken }) => broken.map(({ id }) => id)),
    };
  };
  const problem = (): string | undefined => live.current.models[0]?.problem;
  const grow = async (sizeBytes: number): Promise<void> => {
    writeSparse(path, header, { sizeBytes, time: new Date() });
    await live.reload();
  };

  await grow(10_000);
  live.learn();
  await eventually('it is found to be unfinished', () => problem()?.includes('10.0 kB of') === true);
  expect(news()).toEqual({ ...nothing, broken: ['big'] });

  for (let sizeBytes = 20_000; sizeBytes < 200_000; sizeBytes += 10_000) {
    await grow(sizeBytes);
    expect(problem()).toContain(`is still being written: ${sizeBytes / 1000}.0 kB of`);
  }
  expect(news()).toEqual(nothing);

  end(path);
  await live.reload();
  await eventually('the end is told', () => diffs.some((diff) => Object.values(diff).flat().length > 0));
  expect(news()).toEqual({ ...nothing, ...told });
});

function aMinuteLater(): void {
  const clock = vi.spyOn(Date, 'now').mockReturnValue(Date.now() + 60_000);
  onTestFinished(() => clock.mockRestore());
}
