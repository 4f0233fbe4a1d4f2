import { renameSync, rmSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Catalog } from '../../../src/models/catalog.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';
import {
  get,
  HeldScans,
  openRig,
  problems,
  replaceScans,
  soon,
  turns,
  untilRead,
  watch,
  writeModel,
  type Kind,
  type Rig,
} from './live-catalog-rig.js';
import { writeFile } from './tree.js';

/** What is found is published after so long; what is unfinished is looked at again after so long. Milliseconds. */
const PUBLISH_MS = 100;
const LOOK_AGAIN_MS = 5_000;

// The time of the catalog stands still unless a test lets it pass; that of the tests' own waits does not.
beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** A models directory with a file for each name. */
function modelsDir(models: Readonly<Record<string, Kind>> = {}): string {
  const directory = tempDir();
  for (const [name, kind] of Object.entries(models)) writeModel(join(directory, `${name}.gguf`), kind);
  return directory;
}

/** Opens a catalog of one directory and a presets file, if there are lines for one. */
async function open(directory: string, ...presetLines: string[]): Promise<Rig> {
  const presetFiles =
    presetLines.length === 0 ? [] : [writeFile(join(tempDir(), 'p.ini'), presetLines.join('\n'))];
  // Long settled: a file that was changed just now is looked at again.
  for (const file of presetFiles) utimesSync(file, 1_000, 1_000);
  return await openRig({ modelsDirs: [directory], presetFiles });
}

/** Has the files read and what is found published. */
async function learnAll(rig: Rig): Promise<void> {
  rig.live.learn();
  await untilRead(rig);
  vi.advanceTimersByTime(PUBLISH_MS);
}

function ids({ live }: Rig): string[] {
  return live.current.models.map(({ id }) => id);
}

describe('reloads that meet', () => {
  it('share the scan after the one that goes on, and settle when that has seen the disk', async () => {
    const directory = modelsDir({ a: 'good' });
    const rig = await open(directory);
    const scans = new HeldScans();
    const first = watch(rig.live.reload());
    await eventually('the first scan has seen the disk', () => scans.waiting === 1);

    writeModel(join(directory, 'b.gguf'));
    const second = rig.live.reload();
    const third = rig.live.reload();
    const secondIs = watch(second);
    scans.letGo();
    await eventually('the first reload settles', () => first.settled);
    expect(ids(rig)).toEqual(['a']);
    await eventually('the next scan has seen the disk', () => scans.waiting === 1);
    expect(secondIs.settled).toBe(false);
    scans.letGo();
    await Promise.all([soon('the second reload', second), soon('the third reload', third)]);
    expect(ids(rig)).toEqual(['a', 'b']);
    expect(scans.begun).toBe(2);
  });

  it('during the shared scan wait for yet another', async () => {
    const directory = modelsDir();
    const rig = await open(directory);
    const scans = new HeldScans();
    const waits = [rig.live.reload(), rig.live.reload()];
    await eventually('the first scan waits', () => scans.waiting === 1);
    scans.letGo();
    await eventually('the shared scan waits', () => scans.begun === 2 && scans.waiting === 1);
    writeModel(join(directory, 'late.gguf'));
    waits.push(rig.live.reload());
    scans.letGo();
    await eventually('the last scan waits', () => scans.begun === 3 && scans.waiting === 1);
    scans.letGo();
    await Promise.all(waits.map((wait) => soon('a reload', wait)));
    expect(ids(rig)).toEqual(['late']);
  });

  it('do not wait for ever behind somebody who reloads again as soon as it has', async () => {
    const rig = await open(modelsDir());
    let rounds = 0;
    let enough = false;
    const again = async (): Promise<void> => {
      for (; !enough && rounds < 100; rounds++) await rig.live.reload();
    };
    const other = again();
    const roundsMeanwhile = await soon(
      'a reload among many',
      rig.live.reload().then(() => rounds),
    );
    enough = true;
    expect(roundsMeanwhile).toBeLessThan(5);
    await soon('the other', other);
  });
});

describe('a scan that fails', () => {
  const failing = (times: number): { readonly scans: number } => {
    const count = { scans: 0 };
    replaceScans(async (scanNow) => {
      const catalog = await scanNow();
      count.scans += 1;
      if (count.scans <= times) throw new Error(`scan ${count.scans} failed`);
      return catalog;
    });
    return count;
  };

  it('is told to who asked for it and changes nothing; who waits for the next gets that', async () => {
    const directory = modelsDir({ a: 'good' });
    const rig = await open(directory);
    const count = failing(1);
    const first = rig.live.reload();
    writeModel(join(directory, 'b.gguf'));
    const second = rig.live.reload();
    await expect(first).rejects.toThrow('scan 1 failed');
    expect(ids(rig)).toEqual(['a']);
    await soon('the second reload', second);
    expect([ids(rig), count.scans]).toEqual([['a', 'b'], 2]);
  });

  it('is told to all who shared it, and the next reload scans again', async () => {
    const rig = await open(modelsDir());
    failing(2);
    const [first, second, third] = [rig.live.reload(), rig.live.reload(), rig.live.reload()];
    await expect(first).rejects.toThrow('scan 1 failed');
    await expect(second).rejects.toThrow('scan 2 failed');
    await expect(third).rejects.toThrow('scan 2 failed');
    await soon('a reload', rig.live.reload());
    expect(rig.published).toHaveLength(1);
  });

  it('in the background is handed to the owner', async () => {
    const rig = await open(modelsDir({ a: 'unfinished' }));
    await learnAll(rig);
    failing(1);
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('the failure is told', () => rig.errors.length > 0);
    expect(rig.errors).toEqual([new Error('scan 1 failed')]);
  });
});

it('an owner that fails on hearing of a change does not undo it', async () => {
  const directory = modelsDir({ a: 'bad' });
  const failure = new Error('the owner failed');
  const rig = await openRig({
    modelsDirs: [directory],
    onPublish: () => {
      throw failure;
    },
  });
  await learnAll(rig);
  expect(problems(rig)).toEqual({ a: 'is bad' });
  writeModel(join(directory, 'b.gguf'));
  await soon('a reload', rig.live.reload());
  expect(ids(rig)).toEqual(['a', 'b']);
  expect(rig.errors).toEqual([failure, failure]);
});

describe('what reading a file finds', () => {
  it('is published together, once, and not again by later scans', async () => {
    const rig = await open(modelsDir({ a: 'bad', b: 'good', c: 'bad' }));
    await learnAll(rig);
    expect(problems(rig)).toEqual({ a: 'is bad', b: undefined, c: 'is bad' });
    expect(rig.published.map(({ diff }) => diff)).toMatchObject([
      { added: [], removed: [], changed: [], broken: [{ id: 'a' }, { id: 'c' }] },
    ]);
    await rig.live.reload();
    await learnAll(rig);
    expect(problems(rig)).toEqual({ a: 'is bad', b: undefined, c: 'is bad' });
    expect(rig.published.slice(1).map(({ diff }) => diff)).toEqual([
      { added: [], removed: [], changed: [], broken: [], warnings: [] },
    ]);
  });

  it('is not published when there is nothing against any file', async () => {
    const rig = await open(modelsDir({ a: 'good', b: 'unread' }));
    await learnAll(rig);
    expect(rig.published).toEqual([]);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('holds for every model of that file, whatever else each loads', async () => {
    const directory = modelsDir({ one: 'bad' });
    const mmproj = writeModel(join(tempDir(), 'mmproj.gguf'));
    const file = join(directory, 'one.gguf');
    const rig = await open(
      directory,
      ...['[with-projector]', `model = ${file}`, `mmproj = ${mmproj}`],
      ...['[with-draft]', `model = ${file}`, `model-draft = ${mmproj}`],
    );
    await learnAll(rig);
    expect(problems(rig)).toEqual({ one: 'is bad', 'with-draft': 'is bad', 'with-projector': 'is bad' });
    await rig.live.reload();
    await learnAll(rig);
    expect(problems(rig)).toEqual({ one: 'is bad', 'with-draft': 'is bad', 'with-projector': 'is bad' });
    expect(rig.published.map(({ diff }) => diff.broken.length)).toEqual([3, 0]);
  });

  it('says nothing about the next state of the file', async () => {
    const directory = modelsDir({ a: 'bad' });
    const rig = await open(directory);
    await learnAll(rig);
    rig.facts.hold();
    writeModel(join(directory, 'a.gguf'), 'good');
    await soon('a reload', rig.live.reload());
    expect(problems(rig)).toEqual({ a: undefined });
    expect(rig.published.at(-1)?.diff).toMatchObject({ changed: ['a'], broken: [] });
  });

  it('is published again when the file is replaced by one with the same fault', async () => {
    const directory = modelsDir({ a: 'bad' });
    const rig = await open(directory);
    await learnAll(rig);
    writeModel(join(directory, 'a.gguf'), 'bad');
    await soon('a reload', rig.live.reload());
    await learnAll(rig);
    expect(problems(rig)).toEqual({ a: 'is bad' });
    expect(rig.published.map(({ diff }) => diff.broken.map(({ id }) => id))).toEqual([['a'], [], ['a']]);
  });

  it('is forgotten with the file', async () => {
    const directory = modelsDir({ a: 'good' });
    const aside = join(tempDir(), 'aside.gguf');
    const file = join(directory, 'a.gguf');
    const rig = await open(directory);
    await learnAll(rig);
    renameSync(file, aside);
    await soon('a reload', rig.live.reload());
    renameSync(aside, file);
    await soon('a reload', rig.live.reload());
    await learnAll(rig);
    expect(rig.facts.seen).toEqual([file, file]);
  });

  it('while the disk was away for a moment is looked for again when it is back as it was', async () => {
    const directory = modelsDir({ a: 'good' });
    const aside = join(tempDir(), 'aside');
    const rig = await open(directory);
    renameSync(directory, aside);
    await learnAll(rig);
    expect(problems(rig)).toEqual({ a: 'is gone' });
    renameSync(aside, directory);
    await soon('a reload', rig.live.reload());
    await learnAll(rig);
    expect(problems(rig)).toEqual({ a: undefined });
  });

  it('is known, and what a scan found goes before it', async () => {
    const directory = modelsDir({ a: 'good', b: 'bad' });
    const file = join(directory, 'b.gguf');
    const rig = await open(directory, '[b]', `model = ${file}`, 'words');
    const beforehand = problems(rig);
    expect(rig.live.facts(get(rig, 'a'))).toBeUndefined();
    await learnAll(rig);
    expect(rig.live.facts(get(rig, 'a'))).toMatchObject({ architecture: 'llama' });
    expect(rig.live.facts(get(rig, 'b'))).toBeUndefined();
    expect(beforehand['b']).toMatch(/p\.ini:3: .*'words'/);
    expect(problems(rig)).toEqual(beforehand);
  });

  it('during a scan is published with what it finds, and once', async () => {
    const directory = modelsDir({ a: 'bad' });
    const rig = await open(directory);
    const scans = new HeldScans();
    writeModel(join(directory, 'b.gguf'));
    const reload = rig.live.reload();
    await eventually('the scan has seen the disk', () => scans.waiting === 1);
    rig.live.learn();
    await untilRead(rig);
    scans.letGo();
    await soon('a reload', reload);
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(rig.published.map(({ diff }) => diff)).toMatchObject([{ added: ['b'], broken: [{ id: 'a' }] }]);
    expect(problems(rig)).toEqual({ a: 'is bad', b: undefined });
  });

  it('and published during a scan stays when that is over', async () => {
    const directory = modelsDir({ a: 'bad' });
    const rig = await open(directory);
    const scans = new HeldScans();
    const reload = rig.live.reload();
    await eventually('the scan has seen the disk', () => scans.waiting === 1);
    await learnAll(rig);
    scans.letGo();
    await soon('a reload', reload);
    expect(rig.published.map(({ diff }) => diff.broken.map(({ id }) => id))).toEqual([['a'], []]);
    expect(problems(rig)).toEqual({ a: 'is bad' });
  });
});

describe('a file that is still being written', () => {
  it('is looked at again by itself until it is whole', async () => {
    const directory = modelsDir({ a: 'unfinished' });
    const rig = await open(directory);
    await learnAll(rig);
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is looked at again', () => rig.facts.seen.length === 2);
    expect(problems(rig)).toEqual({ a: 'is unfinished' });

    writeModel(join(directory, 'a.gguf'), 'good');
    await untilRead(rig);
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is served', () => problems(rig)['a'] === undefined);
    expect(rig.published.map(({ diff }) => diff)).toMatchObject([
      { changed: [], broken: [{ id: 'a' }] },
      { changed: [], broken: [] },
      { changed: ['a'], broken: [] },
    ]);
    await untilRead(rig);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is looked at again even where neither its size nor its time tells', async () => {
    const directory = modelsDir({ a: 'unfinished' });
    const rig = await open(directory);
    const findings = ['is unfinished', 'is unfinished', undefined];
    vi.spyOn(rig.facts, 'read').mockImplementation(async () => {
      const problem = findings.shift();
      await turns();
      return problem === undefined
        ? { kind: 'facts', facts: { sizeBytes: 1 } as never }
        : { kind: 'problem', problem, transient: true };
    });
    rig.live.learn();
    for (let look = 0; look < 3; look++) {
      await eventually(`look ${look}`, () => findings.length === 2 - look);
      await turns();
      await turns();
      vi.advanceTimersByTime(PUBLISH_MS);
      expect(problems(rig)['a']).toBe(look < 2 ? 'is unfinished' : undefined);
      vi.advanceTimersByTime(LOOK_AGAIN_MS);
    }
    expect(vi.getTimerCount()).toBe(0);
  });

  it('is not told to be well between two looks, however often it is scanned', async () => {
    const directory = modelsDir({ a: 'unfinished' });
    const rig = await open(directory);
    await learnAll(rig);
    for (let growth = 0; growth < 3; growth++) {
      writeModel(join(directory, 'a.gguf'), 'unfinished');
      await soon('a reload', rig.live.reload());
      expect(problems(rig)).toEqual({ a: 'is unfinished' });
    }
    expect(rig.published.slice(1).flatMap(({ diff }) => [...diff.broken])).toEqual([]);
    writeModel(join(directory, 'a.gguf'), 'good');
    await soon('a reload', rig.live.reload());
    expect(problems(rig)).toEqual({ a: undefined });
  });

  it('and can not be read for a moment is looked at again all the same', async () => {
    const directory = modelsDir({ a: 'unfinished' });
    const rig = await open(directory);
    await learnAll(rig);
    const read = vi.spyOn(rig.facts, 'read').mockResolvedValue({ kind: 'unread', reason: 'slow' });
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is looked at', () => read.mock.calls.length > 0);
    await turns();
    expect(problems(rig)).toEqual({ a: 'is unfinished' });
    read.mockRestore();
    const seen = rig.facts.seen.length;
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is looked at again', () => rig.facts.seen.length > seen);
  });

  it('so that a scan rejects it is looked at again, too', async () => {
    const directory = modelsDir();
    const file = writeFile(join(directory, 'a.gguf'), '');
    const rig = await open(directory);
    const scanned = problems(rig)['a'];
    expect(scanned).toBe(`'${file}' is empty`);
    vi.spyOn(rig.facts, 'read').mockResolvedValueOnce({
      kind: 'problem',
      problem: 'is empty',
      transient: true,
    });
    rig.live.learn();
    await turns();
    writeModel(file);
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is served', () => problems(rig)['a'] === undefined);
  });

  it('and is whole before it is read, but not before it is scanned, is scanned again', async () => {
    const directory = modelsDir();
    const file = writeFile(join(directory, 'a.gguf'), '');
    const rig = await open(directory);
    writeModel(file);
    await learnAll(rig);
    expect(problems(rig)['a']).toBe(`'${file}' is empty`);
    vi.advanceTimersByTime(LOOK_AGAIN_MS);
    await eventually('it is served', () => problems(rig)['a'] === undefined);
  });
});

it('a model with a fault in its section is not scanned for again and again', async () => {
  const directory = modelsDir({ a: 'good' });
  const rig = await open(directory, '[a]', 'words');
  await learnAll(rig);
  vi.advanceTimersByTime(LOOK_AGAIN_MS);
  await eventually('it is scanned once more', () => rig.published.length === 1);
  await untilRead(rig);
  expect(vi.getTimerCount()).toBe(0);
});

describe('before a load', () => {
  it('a model has the problem that is known, and no file is read for it', async () => {
    const directory = modelsDir();
    const file = writeFile(join(directory, 'empty.gguf'), '');
    const rig = await open(directory, '[nothing]', 'c = 1', '[remote]', 'hf-repo = o/r:Q4_0');
    expect(await rig.live.vet(get(rig, 'empty'))).toBe(`'${file}' is empty`);
    expect(await rig.live.vet(get(rig, 'nothing'))).toMatch(/^names no model/);
    expect(await rig.live.vet(get(rig, 'remote'))).toBeUndefined();
    expect(rig.facts.seen).toEqual([]);
  });

  it('its file is read as it is now, before all that is read in the background', async () => {
    const rig = await open(modelsDir({ a: 'good', b: 'good', z: 'bad' }));
    rig.facts.hold();
    rig.live.learn();
    const vetted = rig.live.vet(get(rig, 'z'));
    await eventually('both wait', () => rig.facts.waiting.length === 2);
    rig.facts.releaseOne();
    expect(await soon('the vet', vetted)).toBe('is bad');
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: undefined, b: undefined, z: 'is bad' });
  });

  it('a file that has become bad since the scan is refused and published, until a scan finds another', async () => {
    const directory = modelsDir({ a: 'good' });
    const rig = await open(directory);
    await learnAll(rig);
    writeModel(join(directory, 'a.gguf'), 'bad');
    expect(await rig.live.vet(get(rig, 'a'))).toBe('is bad');
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: 'is bad' });
    writeModel(join(directory, 'a.gguf'), 'good');
    await soon('a reload', rig.live.reload());
    expect(await rig.live.vet(get(rig, 'a'))).toBeUndefined();
    expect(problems(rig)).toEqual({ a: undefined });
  });

  it('what is found of a model that a scan has replaced meanwhile is not held against the new one', async () => {
    const directory = modelsDir({ a: 'bad' });
    const rig = await open(directory);
    rig.facts.hold();
    const outdated = get(rig, 'a');
    const vetted = rig.live.vet(outdated);
    await eventually('its reading waits', () => rig.facts.waiting.length === 1);
    rig.facts.releaseOne();
    await turns();
    writeModel(join(directory, 'a.gguf'), 'good');
    await soon('a reload', rig.live.reload());
    expect(await soon('the vet', vetted)).toBe('is bad');
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: undefined });
  });

  it('what is found of an old form takes nothing from what is known of the new one', async () => {
    const directory = modelsDir({ a: 'good' });
    const rig = await open(directory);
    const outdated = get(rig, 'a');
    writeModel(join(directory, 'a.gguf'), 'bad');
    await soon('a reload', rig.live.reload());
    await learnAll(rig);
    vi.spyOn(rig.facts, 'read').mockResolvedValueOnce({ kind: 'facts', facts: {} as never });
    expect(await rig.live.vet(outdated)).toBeUndefined();
    rig.facts.hold();
    await soon('a reload', rig.live.reload());
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: 'is bad' });
  });

  it('a file that can not be read now is given the benefit', async () => {
    const rig = await open(modelsDir({ a: 'unread' }));
    expect(await rig.live.vet(get(rig, 'a'))).toBeUndefined();
    expect(problems(rig)).toEqual({ a: undefined });
  });
});

describe('reading in the background', () => {
  it('reads each file once, and after a reload those that have changed', async () => {
    const directory = modelsDir({ a: 'good', b: 'good' });
    const [a, b] = [join(directory, 'a.gguf'), join(directory, 'b.gguf')];
    const rig = await open(directory);
    rig.live.learn();
    rig.live.learn();
    await untilRead(rig);
    expect(rig.facts.seen).toEqual([a, b]);
    rig.live.learn();
    writeModel(b);
    await soon('a reload', rig.live.reload());
    await untilRead(rig);
    expect(rig.facts.seen).toEqual([a, b, b]);
  });

  it('goes on to the files of catalogs that came meanwhile', async () => {
    const directory = modelsDir({ a: 'good', b: 'good' });
    const rig = await open(directory);
    rig.facts.hold();
    rig.live.learn();
    for (const name of ['c', 'd']) {
      writeModel(join(directory, `${name}.gguf`), 'bad');
      await soon('a reload', rig.live.reload());
    }
    rig.facts.release();
    await untilRead(rig);
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: undefined, b: undefined, c: 'is bad', d: 'is bad' });
    expect(rig.facts.seen).toHaveLength(4);
  });

  it.each(Array.from({ length: 12 }, (_, turn) => turn))(
    'finds the files of a catalog that comes %i turns after the last one was read',
    async (distance) => {
      const directory = modelsDir({ a: 'good' });
      const rig = await open(directory);
      rig.facts.hold();
      rig.live.learn();
      writeModel(join(directory, 'b.gguf'));
      let letGo!: (catalog: Catalog) => void;
      let scanned: Catalog | undefined;
      replaceScans(async (scanNow) => {
        scanned = await scanNow();
        return await new Promise<Catalog>((resolve) => (letGo = resolve));
      });
      const reload = rig.live.reload();
      await eventually('the scan has seen the disk', () => scanned !== undefined);
      if (scanned === undefined) throw new Error('not scanned');

      rig.facts.release();
      for (let turn = 0; turn < distance; turn++) await Promise.resolve();
      letGo(scanned);
      await soon('a reload', reload);
      await untilRead(rig);
      expect(rig.facts.seen).toEqual([join(directory, 'a.gguf'), join(directory, 'b.gguf')]);
    },
  );

  it('is not kept from the rest by a file that is gone, and says nothing against a model that is', async () => {
    const directory = modelsDir({ a: 'good', b: 'good', c: 'bad' });
    const rig = await open(directory);
    rig.facts.hold();
    rig.live.learn();
    rmSync(join(directory, 'b.gguf'));
    await soon('a reload', rig.live.reload());
    rig.facts.release();
    await untilRead(rig);
    vi.advanceTimersByTime(PUBLISH_MS);
    expect(problems(rig)).toEqual({ a: undefined, c: 'is bad' });
  });
});

describe('closing', () => {
  it('during a scan lets it settle, changes nothing and tells nothing', async () => {
    const directory = modelsDir({ a: 'good' });
    const rig = await open(directory);
    const scans = new HeldScans();
    const reload = rig.live.reload();
    await eventually('the scan has seen the disk', () => scans.waiting === 1);
    const next = rig.live.reload();
    writeModel(join(directory, 'b.gguf'));
    rig.live.close();
    scans.letGo();
    await eventually('the next scan has seen the disk', () => scans.waiting === 1);
    scans.letGo();
    await Promise.all([soon('the reload', reload), soon('the next', next)]);
    await turns();
    expect([ids(rig), rig.published, rig.facts.seen]).toEqual([['a'], [], []]);
  });

  it('while files are read reads no other and leaves no timer', async () => {
    const rig = await open(modelsDir({ a: 'unfinished', b: 'good' }));
    rig.facts.hold();
    rig.live.learn();
    const vetted = rig.live.vet(get(rig, 'a'));
    rig.live.close();
    rig.facts.release();
    expect(await soon('the vet', vetted)).toBe('is unfinished');
    await untilRead(rig);
    expect(rig.facts.seen).toEqual([join(directoryOf(rig), 'a.gguf'), join(directoryOf(rig), 'a.gguf')]);
    rig.live.learn();
    await untilRead(rig);
    expect(rig.facts.seen).toHaveLength(2);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('takes back what was to be published and looked at', async () => {
    const rig = await open(modelsDir({ a: 'unfinished' }));
    rig.live.learn();
    await untilRead(rig);
    expect(vi.getTimerCount()).toBe(2);
    rig.live.close();
    expect(vi.getTimerCount()).toBe(0);
    expect(rig.published).toEqual([]);
  });

  it('is not needed for the process to end', async () => {
    vi.useRealTimers();
    const rig = await open(modelsDir({ a: 'unfinished' }));
    const read = vi.spyOn(rig.facts, 'read').mockResolvedValue({
      kind: 'problem',
      problem: 'is unfinished',
      transient: true,
    });
    const holding = (): number =>
      process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;
    const before = holding();
    rig.live.learn();
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    expect(read).toHaveBeenCalledOnce();
    expect(holding()).toBe(before);
    await eventually('the timers were set', () => rig.published.length === 1);
  });
});

function directoryOf(rig: Rig): string {
  return join(get(rig, 'a').file ?? '', '..');
}

it('says where the caches are', async () => {
  const rig = await openRig({ env: { LLAMA_CACHE: '/nonexistent/cache' } });
  expect(rig.live.cacheDirectories).toEqual({
    hub: '/nonexistent/cache',
    flat: ['/nonexistent/cache'],
  });
});

it('is not opened on what cannot be read', async () => {
  await expect(openRig({ modelsDirs: ['/nonexistent/models'] })).rejects.toThrow('does not exist');
});
