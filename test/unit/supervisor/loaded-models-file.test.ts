import { execFileSync } from 'node:child_process';
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { EventBus } from '../../../src/events/events.js';
import {
  LoadedModels,
  loadedModelsFile,
  modelsToRestore,
  type AbsentModel,
  type LoadedList,
  writeLoadedModels,
} from '../../../src/supervisor/loaded-models-file.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';

/** Longer than bursts are waited for, and shorter than the order is looked at. Milliseconds. */
const aWhileMs = 5_000;

/** A list whose disk is the test's, and which hears of models what the test tells. */
function rig(
  restored: readonly string[] = [],
  absent: readonly AbsentModel[] = [],
  late?: Promise<LoadedList>,
) {
  const events = new EventBus((error) => {
    throw error;
  });
  const written: (readonly string[])[] = [];
  const writtenAbsent: string[][] = [];
  const back = new Set<string>();
  const cameBack: string[] = [];
  const forgotten: string[] = [];
  const errors: unknown[] = [];
  const usedAt = new Map<string, Date>();
  const disk: { write: () => Promise<void> } = { write: () => Promise.resolve() };
  const loaded = new LoadedModels(
    {
      write: async (list) => {
        await disk.write();
        written.push(list.models);
        writtenAbsent.push(list.absent.map(({ model }) => model));
      },
      comeBack: (model) => {
        if (back.has(model)) cameBack.push(model);
        return Promise.resolve(back.has(model));
      },
      onForgotten: ({ model }) => forgotten.push(model),
      usedAt: (model) => usedAt.get(model),
      onError: (error) => errors.push(error),
    },
    { models: restored, absent, ...(late && { late }) },
  );
  loaded.listenTo(events);
  return {
    loaded,
    events,
    written,
    writtenAbsent,
    cameBack,
    forgotten,
    /** The catalog has these models from now on. */
    finds: (...models: string[]) => {
      for (const model of models) back.add(model);
      events.emit({
        type: 'catalog.changed',
        ...{ added: models, removed: [], changed: [], broken: [], warnings: [] },
      });
    },
    errors,
    disk,
    loads: (...models: string[]) => {
      for (const model of models) events.emit({ type: 'model.loaded', model, loadMs: 1, info: undefined });
    },
    ends: (model: string, reason: string, { failed = false } = {}) =>
      events.emit({ type: 'model.unloaded', model, reason, failed, exitCode: 0, lastLines: [] }),
    uses: (model: string) => usedAt.set(model, new Date()),
    passes: (ms = aWhileMs) => vi.advanceTimersByTimeAsync(ms),
  };
}

describe('the list of loaded models', () => {
  beforeEach(() => {
    vi.useFakeTimers();
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  it('is kept half a second after it has changed, once for a burst of changes', async () => {
    const { written, loads, passes } = rig();
    await passes();
    written.length = 0;
    loads('a', 'b');
    await passes(499);
    loads('c');
    expect(written).toEqual([]);
    await passes(1);
    expect(written).toEqual([['c', 'b', 'a']]);
    await passes();
    expect(written).toHaveLength(1);
  });

  it('has the most recently used first, although no event tells of a use', async () => {
    const { loaded, written, loads, uses, passes } = rig();
    loads('a', 'b', 'c');
    await passes();
    uses('a');
    await passes();
    uses('b');
    expect(loaded.models).toEqual(['b', 'a', 'c']);
    await passes(60_000);
    expect(written.at(-1)).toEqual(['b', 'a', 'c']);
    const times = written.length;
    await passes(600_000);
    expect(written).toHaveLength(times);
  });

  it.each(['unloaded', 'evicted', 'removed'])('is without a model that was %s', async (reason) => {
    const { written, loads, ends, passes } = rig();
    loads('a', 'b');
    ends('b', reason);
    await passes();
    expect(written.at(-1)).toEqual(['a']);
  });

  it.each([
    ['crashed', 'was ended by SIGSEGV', true],
    ['is to be started in another form', 'changed', false],
    ['was ended by a shutdown', 'shutdown', false],
  ])('keeps a model that %s', async (_, reason, failed) => {
    const { written, loads, ends, passes } = rig();
    loads('a', 'b');
    ends('a', reason, { failed });
    await passes();
    expect(written.at(-1)).toEqual(['b', 'a']);
  });

  it('is empty when all were unloaded', async () => {
    const { written, loads, ends, passes } = rig(['a']);
    loads('a', 'b');
    await passes();
    ends('a', 'unloaded');
    ends('b', 'unloaded');
    await passes();
    expect(written.at(-1)).toEqual([]);
  });

  it('is without what was deleted, or is in the catalog no more, also when it was not running', async () => {
    const { written, events, loads, passes } = rig(['gone', 'deleted']);
    loads('a');
    events.emit({
      type: 'catalog.changed',
      ...{ added: [], removed: ['gone'], changed: ['a'], broken: [], warnings: [] },
    });
    events.emit({ type: 'model.removed', model: 'deleted' });
    await passes();
    expect(written.at(-1)).toEqual(['a']);
  });

  it('has from the start what is being restored, which keeps its order until it is used', async () => {
    const { written, loads, uses, passes } = rig(['a', 'b', 'c']);
    loads('c', 'a');
    await passes();
    expect(written).toEqual([['a', 'b', 'c']]);
    uses('c');
    loads('d');
    await passes();
    expect(written.at(-1)).toEqual(['c', 'd', 'a', 'b']);
  });

  it('keeps what was left out at the start, and has it loaded when the catalog has it', async () => {
    const since = new Date().toISOString();
    const absent = ['x', 'y'].map((model) => ({ model, since }));
    const { written, writtenAbsent, cameBack, finds, passes } = rig(['a'], absent);
    await passes();
    expect(writtenAbsent.at(-1)).toEqual(['x', 'y']);
    finds('other');
    expect(cameBack).toEqual([]);
    finds('y');
    finds('later');
    await passes();
    expect(cameBack).toEqual(['y']);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['a', 'y'], ['x']]);
  });

  it('waits no more for what was left out and has been loaded since', async () => {
    const { written, writtenAbsent, cameBack, loads, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date().toISOString() }],
    );
    loads('x');
    finds('x');
    await passes();
    expect(cameBack).toEqual([]);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['x'], []]);
  });

  it('waits no more for what was left out and has been deleted since', async () => {
    const { loaded, events, writtenAbsent, cameBack, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date().toISOString() }],
    );
    events.emit({ type: 'model.removed', model: 'x' });
    finds('x');
    await passes();
    await loaded.close();
    expect(cameBack).toEqual([]);
    expect(writtenAbsent.at(-1)).toEqual([]);
  });

  it('waits no more for what was left out and is called off, or was unloaded while it was loading', async () => {
    const since = new Date().toISOString();
    const { loaded, writtenAbsent, cameBack, ends, finds, passes } = rig(
      [],
      ['called off', 'unloaded', 'away'].map((model) => ({ model, since })),
    );
    expect(loaded.callOff('called off')).toBe(true);
    expect(loaded.callOff('called off')).toBe(false);
    ends('unloaded', 'unloaded');
    finds('called off', 'unloaded');
    await passes();
    expect(cameBack).toEqual([]);
    expect(writtenAbsent.at(-1)).toEqual(['away']);
  });

  it('waits for what was left out as long as there is no room for it, but not longer than a week', async () => {
    const sixDays = 6 * 24 * 3_600_000;
    const { written, writtenAbsent, cameBack, forgotten, finds, passes } = rig(
      ['a'],
      [{ model: 'x', since: new Date(Date.now() - sixDays).toISOString() }],
    );
    finds();
    await passes();
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['a'], ['x']]);
    await vi.advanceTimersByTimeAsync(23 * 3_600_000);
    expect(forgotten).toEqual([]);
    await vi.advanceTimersByTimeAsync(2 * 3_600_000);
    expect(forgotten).toEqual(['x']);
    expect(writtenAbsent.at(-1)).toEqual([]);
    finds('x');
    await passes();
    expect(cameBack).toEqual([]);
  });

  it('does not load what is back only after a week, also when it was not written meanwhile', async () => {
    const { cameBack, forgotten, finds, passes } = rig(
      [],
      [{ model: 'x', since: new Date(Date.now() - 8 * 24 * 3_600_000).toISOString() }],
    );
    finds('x');
    await passes(0);
    expect([cameBack, forgotten]).toEqual([[], ['x']]);
  });

  it('is not written before that of the last run is there, whose models then come back', async () => {
    const since = new Date().toISOString();
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { written, writtenAbsent, cameBack, loads, finds, passes } = rig([], [], late);
    finds('a', 'c');
    loads('b');
    await passes(600_000);
    expect(written).toEqual([]);
    arrive({ models: ['a', 'b', 'x'], absent: [{ model: 'c', since }] });
    await passes();
    expect(cameBack).toEqual(['a', 'c']);
    expect([written.at(-1), writtenAbsent.at(-1)]).toEqual([['b', 'a', 'c'], ['x']]);
  });

  it('has no model of the last run that was told to go before that list was there', async () => {
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { cameBack, written, loads, ends, finds, passes } = rig([], [], late);
    finds('a', 'b');
    loads('a', 'b');
    ends('a', 'unloaded');
    ends('b', 'evicted');
    loads('b');
    arrive({ models: ['a', 'b'], absent: [] });
    await passes();
    finds();
    await passes();
    expect(cameBack).toEqual([]);
    expect(written.at(-1)).toEqual(['b']);
  });

  it('has what was loaded before it was followed', async () => {
    const { loaded, events, written, passes } = rig(['a'], [{ model: 'b', since: new Date().toISOString() }]);
    loaded.listenTo(events, ['b']);
    await passes();
    expect(written.at(-1)).toEqual(['b', 'a']);
  });

  it('of a run that ends before that of the last one was there is not written, and nothing comes back', async () => {
    let arrive: (list: LoadedList) => void = () => undefined;
    const late = new Promise<LoadedList>((resolve) => (arrive = resolve));
    const { loaded, written, cameBack, loads, finds, passes } = rig([], [], late);
    finds('a');
    loads('b');
    await loaded.close();
    arrive({ models: ['a'], absent: [] });
    await passes(600_000);
    expect([written, cameBack]).toEqual([[], []]);
  });

  it('is kept once more by a shutdown, in its last order, and what that ends does not change it', async () => {
    const { loaded, written, loads, ends, uses, passes } = rig();
    loads('a', 'b');
    uses('a');
    await loaded.close();
    expect(written).toEqual([['a', 'b']]);
    ends('a', 'unloaded');
    uses('b');
    await passes(600_000);
    expect(written).toEqual([['a', 'b']]);
  });

  it('is kept later when it cannot be kept now, and that is told once until it can', async () => {
    const { written, errors, disk, loads, passes } = rig();
    await passes();
    const full = new Error('ENOSPC');
    disk.write = () => Promise.reject(full);
    loads('a');
    await passes();
    loads('b');
    await passes(600_000);
    expect(errors).toEqual([full]);
    disk.write = () => Promise.resolve();
    await passes(60_000);
    expect(written.at(-1)).toEqual(['b', 'a']);
    disk.write = () => Promise.reject(full);
    loads('c');
    await passes();
    expect(errors).toEqual([full, full]);
  });

  it('is written by one at a time, and a disk that does not answer keeps a shutdown two seconds', async () => {
    const { loaded, disk, loads, passes } = rig();
    let writes = 0;
    disk.write = () => {
      writes += 1;
      return new Promise(() => undefined);
    };
    loads('a');
    await passes();
    loads('b');
    await passes();
    let closed = false;
    void loaded.close().then(() => (closed = true));
    await passes(1_999);
    expect(closed).toBe(false);
    await passes(1);
    expect(closed).toBe(true);
    expect(writes).toBe(1);
  });
});

/** What is restored from a file, of a catalog that has `a`, `b` and `c`, and what is said about it. */
async function restore(file: string, modelsMax = 0) {
  const said: { level: string; text: string }[] = [];
  const log = pino(
    { formatters: { level: (level) => ({ level }) } },
    {
      write: (record: string) => {
        const { level } = JSON.parse(record) as { level: string };
        said.push({ level, text: record });
      },
    },
  );
  const refusal = (model: string) =>
    ['a', 'b', 'c'].includes(model) ? undefined : { message: `model '${model}' not found` };
  return { ...(await modelsToRestore({ file, refusal, modelsMax, log })), said };
}

describe('the file', () => {
  it('gives back what was written, in a directory of its user alone, and leaves nothing else there', async () => {
    const file = join(tempDir(), 'state', 'loaded.json');
    await writeLoadedModels(file, { models: ['b', 'gone'], absent: [] });
    await writeLoadedModels(file, { models: ['b', 'a'], absent: [] });
    expect(await restore(file)).toEqual({ models: ['b', 'a'], absent: [], said: [] });
    expect(readdirSync(dirname(file))).toEqual(['loaded.json']);
    expect(statSync(dirname(file)).mode & 0o777).toBe(0o700);
    expect(statSync(file).mode & 0o777).toBe(0o600);
  });

  it('is as it was when a new one cannot take its place, and nothing half-written is left', async () => {
    const file = join(tempDir(), 'loaded.json');
    mkdirSync(join(file, 'a directory that is not empty'), { recursive: true });
    await expect(writeLoadedModels(file, { models: ['a'], absent: [] })).rejects.toThrow();
    expect(readdirSync(dirname(file))).toEqual(['loaded.json']);
  });

  it('that is not there is said, as what it is at the first start', async () => {
    const { models, said } = await restore(join(tempDir(), 'none.json'));
    expect(models).toEqual([]);
    expect(said).toMatchObject([{ level: 'info', text: expect.stringContaining('no list') as string }]);
  });

  it('whose directory is a file is not there, and does not keep a list from being tried', async () => {
    const directory = join(tempDir(), 'state');
    writeFileSync(directory, 'in the way');
    const { models, late, said } = await restore(join(directory, 'loaded.json'));
    expect([models, late]).toEqual([[], undefined]);
    expect(said).toMatchObject([{ level: 'info', text: expect.stringContaining('no list') as string }]);
  });

  it('that names models which cannot be loaded gives the others, and each of those is said with its reason', async () => {
    const file = join(tempDir(), 'loaded.json');
    await writeLoadedModels(file, { models: ['x', 'b', 'line\nfeed', 'a', 'b'], absent: [] });
    const { models, absent, said } = await restore(file);
    expect(models).toEqual(['b', 'a']);
    expect(absent.map(({ model }) => model)).toEqual(['x', 'line\nfeed']);
    expect(said.map(({ level }) => level)).toEqual(['warn', 'warn']);
    expect(said[0]?.text).toContain("model 'x' not found");
  });

  it('forgets what could not be loaded for a week, and gives what can be again', async () => {
    const file = join(tempDir(), 'loaded.json');
    const daysAgo = (days: number) => new Date(Date.now() - days * 24 * 3_600_000).toISOString();
    const recent = { model: 'x', since: daysAgo(6) };
    const absent = [recent, { model: 'y', since: daysAgo(8) }, { model: 'c', since: daysAgo(1) }];
    await writeLoadedModels(file, { models: ['a'], absent });
    const { said, ...restored } = await restore(file);
    expect(restored).toEqual({ models: ['a', 'c'], absent: [recent] });
    expect(said.map(({ level, text }) => [level, /"model":"(\w)"/.exec(text)?.[1]])).toEqual([
      ['warn', 'x'],
      ['info', 'y'],
    ]);
  });

  it('that names more than there are slots gives what was loaded, and of what was left out as many as fit', async () => {
    const file = join(tempDir(), 'loaded.json');
    const since = new Date().toISOString();
    const absent = ['b', 'c'].map((model) => ({ model, since }));
    await writeLoadedModels(file, { models: ['a'], absent });
    const { models, absent: left, said } = await restore(file, 2);
    expect([models, left]).toEqual([['a', 'b'], [{ model: 'c', since }]]);
    expect(said).toMatchObject([{ level: 'warn', text: expect.stringContaining('no slot') as string }]);
  });

  const damaged: Readonly<Record<string, (file: string) => void>> = {
    'is empty': (file) => writeFileSync(file, ''),
    'was cut': (file) => {
      writeFileSync(file, '{"models":["a","b"]}');
      truncateSync(file, 12);
    },
    'holds zeros, as after a power failure': (file) => writeFileSync(file, Buffer.alloc(100)),
    'holds another kind of JSON': (file) => writeFileSync(file, '["a"]'),
    'holds null': (file) => writeFileSync(file, 'null'),
    'has no list': (file) => writeFileSync(file, '{"models":"a"}'),
    'has no date for what is absent': (file) =>
      writeFileSync(file, '{"models":["a"],"absent":[{"model":"b","since":"soon"}]}'),
    'lists what is no id': (file) => writeFileSync(file, '{"models":["a",{"id":"b"}]}'),
    'is far too large': (file) => {
      writeFileSync(file, '');
      truncateSync(file, 10 * 1024 ** 3);
    },
    'is a directory': (file) => mkdirSync(file),
    'is a pipe that nobody writes to': (file) => execFileSync('mkfifo', [file]),
  };
  it.each(Object.keys(damaged))('that %s gives nothing, is said, and is set aside', async (what) => {
    const file = join(tempDir(), 'loaded.json');
    damaged[what]?.(file);
    const { ino } = statSync(file);
    const { models, late, said } = await restore(file);
    expect([models, late]).toEqual([[], undefined]);
    expect(said).toMatchObject([{ level: 'warn', text: expect.stringContaining(file) as string }]);
    expect(readdirSync(dirname(file))).toEqual(['loaded.json.broken']);
    expect(statSync(`${file}.broken`).ino).toBe(ino);
  });

  it('that cannot be read is left as it is, and read as soon as it can be', async () => {
    const file = join(tempDir(), 'loaded.json');
    // A stand-in for a disk with an error that passes: it cannot be opened.
    symlinkSync(file, file);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const { models, late, said } = await restore(file);
      expect(models).toEqual([]);
      expect(said).toMatchObject([{ level: 'warn', text: expect.stringContaining('ELOOP') as string }]);
      await vi.advanceTimersByTimeAsync(60_000);
      expect(readdirSync(dirname(file))).toEqual(['loaded.json']);
      // Takes the place of the link at once: whoever reads just then finds the one or the other.
      await writeLoadedModels(file, { models: ['a'], absent: [] });
      const arrived = vi.fn();
      void late?.then(arrived);
      await eventually('it is read', async () => {
        await vi.advanceTimersByTimeAsync(5_000);
        return arrived.mock.calls.length > 0;
      });
      expect(arrived).toHaveBeenCalledWith({ models: ['a'], absent: [] });
    } finally {
      vi.useRealTimers();
    }
  });

  it('lies in the state directory, one for each port or socket', () => {
    const env = { XDG_STATE_HOME: '/state' };
    expect(loadedModelsFile(env, { port: 8080 })).toBe(
      '/state/llama-supervisor/8080/loaded-models-8080.json',
    );
    expect(loadedModelsFile({ STATE_DIRECTORY: '/var/lib/unit' }, { port: 1 })).toBe(
      '/var/lib/unit/loaded-models-1.json',
    );
    const sockets = ['/run/one.sock', '/run/two.sock'].map((socketPath) =>
      loadedModelsFile(env, { socketPath }),
    );
    expect(new Set(sockets).size).toBe(2);
  });

  it('is JSON that a person can read and mend', async () => {
    const file = join(tempDir(), 'loaded.json');
    await writeLoadedModels(file, { models: ['org/model:Q4_K_M'], absent: [] });
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({ models: ['org/model:Q4_K_M'] });
  });
});
