import { copyFileSync, existsSync, linkSync, mkdirSync, symlinkSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import fc from 'fast-check';
import { afterEach, expect, it, vi } from 'vitest';
import type { Catalog } from '../../../../src/models/catalog.js';
import { discoverCatalog } from '../../../../src/models/discover.js';
import { removeFromCache } from '../../../helpers/remove-from-cache.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { ggufHeader } from '../gguf-header.js';
import { table } from '../help-table.js';
import { writeFile, writeRepo } from '../tree.js';
import { listing } from './disk-listing.js';
import { failUnlinksAfter, mend } from './failing-fs.js';

vi.mock(import('node:fs/promises'), async (importOriginal) => {
  const { withFailures } = await import('./failing-fs.js');
  return withFailures(await importOriginal());
});
afterEach(mend);

/** A few seconds' worth; REMOVALS=2000 after a change of the removal meets what is rare as well. */
const removals = Number(process.env['REMOVALS'] ?? 60);

const timeoutMs = 60_000 + 500 * removals;

const REPO = 'models--org--a';
const COMMITS = ['a', 'b', 'c'].map((digit) => digit.repeat(40));
/** No two companions of one kind in one directory are equally near to a model. */
const MODEL_TAGS = ['Q2_K', 'Q4_0', 'q6_k', 'Q8_0', 'F16'] as const;
const COMPANION_TAGS = ['Q8_0', 'F16'] as const;
const KINDS = ['mmproj', 'mtp-', 'eagle3-', 'dspark-', 'dflash-'] as const;

/** A file of the repository, shards as one, as its author means it; paths are made from it and never read back. */
interface Item {
  /** The directory in a snapshot, with `/` at its end; empty for the snapshot. */
  readonly directory: string;
  readonly kind: 'model' | 'other' | (typeof KINDS)[number];
  /** `''`: none. */
  readonly tag: string;
  readonly name: string;
  readonly shards: number;
  /** By snapshot: which of two contents it has there, if it is there. */
  readonly versions: readonly (0 | 1 | undefined)[];
}

interface Repository {
  readonly items: readonly Item[];
  readonly made: 'links' | 'copies' | 'hard links';
  /** Which snapshot `refs/main` names. */
  readonly main: number;
  readonly leavesDownloads: boolean;
  readonly hasOrphan: boolean;
}

/** A file of one snapshot. */
interface Entry {
  readonly item: Item;
  readonly snapshot: number;
  /** Below the snapshot. */
  readonly path: string;
  readonly blob: string;
}

const versions = fc.array(fc.option(fc.constantFrom<(0 | 1)[]>(0, 1), { nil: undefined }), {
  minLength: COMMITS.length,
  maxLength: COMMITS.length,
});
const directory = fc.constantFrom('', 'sub/', 'sub/deep er/');
const item: fc.Arbitrary<Item> = fc.oneof(
  fc.record({
    directory,
    kind: fc.constant('model' as const),
    tag: fc.constantFrom(...MODEL_TAGS, ''),
    name: fc.constantFrom('a', 'it’s', 'new\nline', '🦙%E9'),
    shards: fc.integer({ min: 1, max: 3 }),
    versions,
  }),
  fc.record({
    directory,
    kind: fc.constantFrom(...KINDS),
    tag: fc.constantFrom(...COMPANION_TAGS),
    name: fc.constant('x'),
    shards: fc.integer({ min: 1, max: 2 }),
    versions,
  }),
  fc.record({
    directory,
    kind: fc.constant('other' as const),
    tag: fc.constant(''),
    name: fc.constantFrom(
      'README.md',
      'a-imatrix.gguf',
      'imatrix-F16.gguf',
      'preset.ini',
      'a-Q4_0.safetensors',
    ),
    shards: fc.constant(1),
    versions,
  }),
);
const repository: fc.Arbitrary<Repository> = fc.record({
  items: fc.uniqueArray(item, {
    minLength: 1,
    maxLength: 8,
    selector: (one) => pathsOf({ ...one, shards: 1 })[0],
  }),
  made: fc.constantFrom('links', 'copies', 'hard links'),
  main: fc.integer({ min: 0, max: COMMITS.length - 1 }),
  leavesDownloads: fc.boolean(),
  hasOrphan: fc.boolean(),
});

function pathsOf({ directory: above, kind, tag, name, shards }: Item): string[] {
  if (kind === 'other') return [above + name];
  const stem = above + (kind === 'model' ? name : kind + name) + (tag === '' ? '' : `-${tag}`);
  if (shards === 1) return [`${stem}.gguf`];
  const number = (count: number): string => String(count).padStart(5, '0');
  return Array.from({ length: shards }, (_, at) => `${stem}-${number(at + 1)}-of-${number(shards)}.gguf`);
}

function entriesOf({ items }: Repository): Entry[] {
  return items.flatMap((one, at) =>
    one.versions.flatMap((version, snapshot) =>
      version === undefined
        ? []
        : pathsOf(one).map((path, shard) => ({
            item: one,
            snapshot,
            path,
            blob: `${at}${shard}${version}`.padEnd(64, '0'),
          })),
    ),
  );
}

/** The content of a blob: GGUF files that look right, all different and of different sizes. */
function contentOf(blob: string): Buffer {
  return Buffer.concat([ggufHeader(), Buffer.from(blob), Buffer.alloc(Number(blob.slice(0, 3)))]);
}

/** Writes the repository, and another beside it; gives the cache. */
function write(repo: Repository): string {
  const cache = tempDir();
  writeRepo(cache, 'org/b', ['b-Q4_0.gguf', 'mmproj-F16.gguf']);
  const root = join(cache, REPO);
  const blobs = join(root, 'blobs');
  writeFile(join(root, 'refs/main'), COMMITS[repo.main] ?? '');
  mkdirSync(blobs);
  if (repo.hasOrphan) writeFile(join(blobs, '9'.repeat(64)), 'of nobody');
  for (const { snapshot, path, blob } of entriesOf(repo)) {
    const file = join(root, 'snapshots', COMMITS[snapshot] ?? '', path);
    const source = join(blobs, blob);
    if (!existsSync(source)) writeFile(source, contentOf(blob));
    mkdirSync(dirname(file), { recursive: true });
    if (repo.made === 'links') symlinkSync(relative(dirname(file), source), file);
    else if (repo.made === 'copies') copyFileSync(source, file);
    else linkSync(source, file);
    if (repo.leavesDownloads) writeFile(`${source}.downloadInProgress`, 'half of it');
  }
  return cache;
}

/** The companion of one kind that llama-server gives a model among `entries` of its snapshot. */
function companionFor(model: Item, kind: Item['kind'], entries: readonly Entry[]): Item | undefined {
  const bits = (tag: string): number => Number(/\d+/.exec(tag)?.[0] ?? 0);
  return entries
    .map((entry) => entry.item)
    .filter((one) => one.kind === kind && model.directory.startsWith(one.directory))
    .sort(
      (a, b) =>
        b.directory.length - a.directory.length ||
        Math.abs(bits(a.tag) - bits(model.tag)) - Math.abs(bits(b.tag) - bits(model.tag)),
    )[0];
}

function snapshotOf({ snapshot }: Pick<Entry, 'snapshot'>): string {
  return `${REPO}/snapshots/${COMMITS[snapshot] ?? ''}`;
}

function pathInCache(entry: Entry): string {
  return `${snapshotOf(entry)}/${entry.path}`;
}

/** The entries that go with the models of `tag`. */
function goingWith(tag: string, all: readonly Entry[]): Set<Entry> {
  const going = new Set<Entry>();
  const isLastModel = all.every(
    ({ item: { kind, tag: other } }) => kind !== 'model' || other.toUpperCase() === tag,
  );
  for (const snapshot of COMMITS.keys()) {
    const entries = all.filter((entry) => entry.snapshot === snapshot);
    const models = entries.filter((entry) => entry.item.kind === 'model');
    const isOwn = (entry: Entry): boolean => entry.item.tag.toUpperCase() === tag;
    const own = models.filter(isOwn);
    const others = models.filter((entry) => !isOwn(entry));
    if (own.length === 0 && !isLastModel) continue;
    const takenBy = (some: readonly Entry[]): (Item | undefined)[] =>
      some.flatMap((model) => KINDS.map((kind) => companionFor(model.item, kind, entries)));
    const isCompanion = ({ item: { kind } }: Entry): boolean => kind !== 'model' && kind !== 'other';
    const companions = entries
      .filter(isCompanion)
      .filter((entry) => others.length === 0 || takenBy(own).includes(entry.item))
      .filter((entry) => !takenBy(others).includes(entry.item));
    for (const entry of [...own, ...companions]) going.add(entry);
  }
  return going;
}

/**
 * What there is to be left of `before` when the models of `tag` are removed.
 *
 * @param inUse the files that the other models are listed with
 */
function expectedAfter(
  repo: Repository,
  tag: string,
  before: ReadonlyMap<string, string>,
  inUse: readonly string[],
): Map<string, string> {
  const all = entriesOf(repo);
  const going = goingWith(tag, all);
  if (repo.made === 'links') {
    // A file that another model loads stays under all its names, those in snapshots that have no use for it, too.
    const loaded = all.filter((entry) => inUse.some((file) => file.endsWith(pathInCache(entry))));
    for (const entry of going) if (loaded.some(({ blob }) => blob === entry.blob)) going.delete(entry);
  }
  const staying = all.filter((entry) => !going.has(entry));
  const left = new Map(before);
  const remove = (path: string): void => void left.delete(Buffer.from(path).toString('latin1'));
  for (const entry of going) {
    remove(pathInCache(entry));
    if (repo.made === 'copies' || staying.some(({ blob }) => blob === entry.blob)) continue;
    remove(`${REPO}/blobs/${entry.blob}`);
    remove(`${REPO}/blobs/${entry.blob}.downloadInProgress`);
  }

  const isEmpty = (path: string): boolean => ![...left.keys()].some((other) => other.startsWith(`${path}/`));
  for (const entry of going) {
    for (let path = pathInCache(entry); path !== snapshotOf(entry);) {
      path = dirname(path);
      const isCheckedOut = path === snapshotOf({ snapshot: repo.main });
      if (isEmpty(path) && !isCheckedOut) remove(path);
    }
  }
  const isOfUse = ([path, what]: readonly [string, string]): boolean =>
    path.startsWith(`${REPO}/`) && !path.startsWith(`${REPO}/refs/`) && what !== 'a directory';
  if ([...left].some(isOfUse)) return left;
  return new Map([...left].filter(([path]) => path !== REPO && !path.startsWith(`${REPO}/`)));
}

async function catalogOf(cache: string): Promise<Catalog> {
  return await discoverCatalog({
    env: { LLAMA_CACHE: cache },
    modelsDirs: [],
    presetFiles: [],
    base: new Map(),
    table,
  });
}

/** Which models are listed, and what is wrong with each. */
function problemsIn({ models }: Catalog): Record<string, string | undefined> {
  return Object.fromEntries(models.map(({ id, problem }) => [id, problem]));
}

/** One of the models of the repository, if it lists any. */
async function pick(cache: string, choice: number) {
  const catalog = await catalogOf(cache);
  const own = catalog.models.filter(({ id }) => id.startsWith('org/a:'));
  return { catalog, model: own[choice % Math.max(1, own.length)] };
}

it(
  'exactly the files of the model go, and all others stay as they are, byte for byte',
  { timeout: timeoutMs },
  async () => {
    let count = 0;
    await fc.assert(
      fc.asyncProperty(repository, fc.nat(), async (repo, choice) => {
        const cache = write(repo);
        const { catalog, model } = await pick(cache, choice);
        fc.pre(model !== undefined);
        count++;
        const before = listing(cache);
        const caches = { hub: cache, flat: [cache] };
        const { removed, freedBytes } = await removeFromCache(model, caches, catalog.models);
        const after = listing(cache);
        const others = catalog.models.filter(({ id }) => id !== model.id);
        const inUse = others
          .flatMap(({ file, mmproj, draft }) => [file, mmproj, draft])
          .filter((path) => path !== undefined);
        const expected = expectedAfter(repo, model.id.split(':')[1] ?? '', before, inUse);
        expect([...after.keys()].sort()).toEqual([...expected.keys()].sort());
        expect(after).toEqual(expected);

        const gone = [...before].filter(([path, what]) => !after.has(path) && what !== 'a directory');
        const inBytes = (path: string): string => Buffer.from(relative(cache, path)).toString('latin1');
        expect(removed.map(inBytes).sort()).toEqual(gone.map(([path]) => path).sort());
        const names = new Set<string>();
        let sizes = 0;
        for (const [path, what] of gone) {
          // Hard links of a file hold its room once, and blobs are in the list of what has gone when that is free.
          if (what.startsWith('-> ') || (repo.made === 'hard links' && path.includes('/snapshots/')))
            continue;
          names.add(path);
          sizes += what.length;
        }
        expect(freedBytes).toBe(sizes);

        const listed = problemsIn(await catalogOf(cache));
        expect(listed).not.toHaveProperty([model.id]);
        expect(listed).toMatchObject(
          Object.fromEntries(Object.entries(problemsIn(catalog)).filter(([id]) => id !== model.id)),
        );
      }),
      { numRuns: removals },
    );
    expect(count).toBeGreaterThan(removals / 2);
  },
);

it(
  'when the disk fails in the middle, no model is listed that is half there',
  { timeout: timeoutMs },
  async () => {
    let failures = 0;
    await fc.assert(
      fc.asyncProperty(repository, fc.nat(), fc.nat({ max: 6 }), async (repo, choice, after) => {
        const cache = write(repo);
        const { catalog, model } = await pick(cache, choice);
        fc.pre(model !== undefined);
        failUnlinksAfter(after);
        const removal = removeFromCache(model, { hub: cache, flat: [cache] }, catalog.models);
        const failure = await removal.then(
          () => undefined,
          (error: unknown) => error,
        );
        mend();
        if (failure !== undefined) failures++;
        const before = problemsIn(catalog);
        const listed = problemsIn(await catalogOf(cache));
        const { [model.id]: ownBefore, ...othersBefore } = before;
        expect(listed).toMatchObject(othersBefore);
        if (model.id in listed) expect(listed[model.id]).toBe(ownBefore);
      }),
      { numRuns: removals },
    );
    expect(failures).toBeGreaterThan(removals / 4);
  },
);
