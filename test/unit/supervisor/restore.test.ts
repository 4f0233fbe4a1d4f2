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
import { describe, expect, it, vi } from 'vitest';
import { loadedModelsFile, writeLoadedModels } from '../../../src/supervisor/loaded-models-file.js';
import { modelsToRestore } from '../../../src/supervisor/restore.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';

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
