import { spawn } from 'node:child_process';
import fs, { appendFileSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { startWatching } from '../../../../src/models/watching/watcher.js';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { eventually } from '../../../helpers/eventually.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { COMMIT, writeFile, writeRepo } from '../tree.js';
import { inotifyWatches, watchInTest } from './watcher-rig.js';

/** Another process that writes to `file` without a pause for `seconds`. */
function writeWithoutPause(file: string, seconds: number): Promise<number | null> {
  const script = `
    import { openSync, writeSync } from 'node:fs';
    const fd = openSync(process.argv[1], 'w');
    const block = Buffer.alloc(65536);
    const end = Date.now() + ${seconds * 1000};
    for (let n = 0; Date.now() < end; n++) writeSync(fd, block, 0, block.length, (n % 1000) * block.length);`;
  const writer = spawn(process.execPath, ['--input-type=module', '-e', script, file]);
  atEndOfTest(() => {
    writer.kill('SIGKILL');
  });
  return new Promise((resolve) => writer.once('exit', resolve));
}

describe('a burst of changes', () => {
  it('is told every two seconds while it goes on, and once more when it is over', async () => {
    const dir = tempDir();
    const { watching, changes } = await watchInTest({ modelsDirs: [dir] });
    const began = performance.now();
    const toldAt: number[] = [];
    const writing = writeWithoutPause(join(dir, 'big.gguf'), 7);
    const before = performance.eventLoopUtilization();
    const state = { isWriting: true };
    void writing.then(() => (state.isWriting = false));
    while (state.isWriting) {
      while (toldAt.length < changes.length) toldAt.push(performance.now() - began);
      await delay(5);
    }
    const ended = performance.now() - began;
    const { utilization } = performance.eventLoopUtilization(before);
    const during = changes.length;
    await eventually('the end is told', () => changes.length > during);
    await delay(2_500);

    expect(changes.length - during).toBeLessThanOrEqual(2);
    expect(toldAt.length).toBeGreaterThanOrEqual(2);
    for (const [index, time] of [...toldAt, ended].entries()) {
      const gap = time - (toldAt[index - 1] ?? 0);
      expect(gap, `told at ${toldAt.join(', ')}, ended at ${ended}`).toBeLessThan(6_000);
    }
    // One that comes late on a busy machine is soon followed by the next: in all there are not more.
    expect(toldAt.length).toBeLessThanOrEqual(Math.ceil(ended / 2_000) + 1);
    // chokidar alone keeps the event loop busy all the time.
    expect(utilization).toBeLessThan(0.5);
    await watching.close();
  });

  it('in the models does not delay the word of a presets file, nor hide it', async () => {
    const dir = tempDir();
    const file = writeFile(join(tempDir(), 'presets.ini'), '[a]');
    const { changes } = await watchInTest({ modelsDirs: [dir], files: [file] });
    const writing = writeWithoutPause(join(dir, 'big.gguf'), 4);
    await eventually('the burst is told', () => changes.length > 0);
    for (const text of ['[b]', '[c]']) {
      const told = changes.length;
      writeFileSync(file, text);
      await eventually(
        `the edit ${text} is told`,
        () => changes.slice(told).some(({ files }) => files.has(file)),
        {
          deadlineMs: 1_500,
        },
      );
    }
    expect(changes.filter(({ files, catalog }) => files.size > 0 && !catalog)).toHaveLength(2);
    await writing;
  });
});

/** Another process that makes repositories of six directories each, a few milliseconds apart. */
function makeRepositories(cache: string, count: number): Promise<number | null> {
  const script = `
    import { mkdirSync } from 'node:fs';
    import { setTimeout as delay } from 'node:timers/promises';
    for (let number = 0; number < ${count}; number++) {
      for (const part of ['blobs', 'refs', 'snapshots/${COMMIT}/sub']) {
        mkdirSync(process.argv[1] + '/models--user--repo-' + number + '/' + part, { recursive: true });
        await delay(Math.random() * 15);
      }
    }`;
  const maker = spawn(process.execPath, ['--input-type=module', '-e', script, cache]);
  atEndOfTest(() => {
    maker.kill('SIGKILL');
  });
  return new Promise((resolve) => maker.once('exit', resolve));
}

describe('directories that appear while the watcher is at work', () => {
  it('are watched if they do so when their parent has been read and is not watched yet', async () => {
    const cache = tempDir();
    const snapshots = join(cache, 'models--user--repo', 'snapshots');
    mkdirSync(snapshots, { recursive: true });
    const before = inotifyWatches();
    const realWatch = fs.watch;
    const spy = vi.spyOn(fs, 'watch').mockImplementation(((path: string, ...rest: never[]) => {
      if (path === snapshots) mkdirSync(join(snapshots, COMMIT), { recursive: true });
      return realWatch(path, ...rest);
    }) as typeof fs.watch);
    // chokidar has imported the function by name.
    syncBuiltinESMExports();
    atEndOfTest(() => {
      spy.mockRestore();
      syncBuiltinESMExports();
    });
    await watchInTest({ hubCaches: [cache] });
    await eventually('the snapshot is watched', () => inotifyWatches() - before === 4);
  });

  it('are all watched in the end', async () => {
    const cache = tempDir();
    const before = inotifyWatches();
    await watchInTest({ hubCaches: [cache] });
    expect(await makeRepositories(cache, 200)).toBe(0);
    // On a busy machine each look takes longer, and the rest after it ten times as long.
    const patience = { deadlineMs: 30_000 };
    await eventually('all are watched', () => inotifyWatches() - before === 1 + 200 * 6, patience);
  });
});

describe('writing that goes on beside the models', () => {
  it('is not told, and costs next to nothing, if its names cannot matter', async () => {
    const dir = tempDir();
    for (let number = 0; number < 10_000; number += 1) writeFile(join(dir, `model-${number}.gguf`), '');
    const part = writeFile(join(dir, 'partial.tmp'), '');
    const { changes } = await watchInTest({ modelsDirs: [dir] });
    const before = process.cpuUsage();
    const began = performance.now();
    while (performance.now() - began < 5_000) {
      appendFileSync(part, 'more');
      writeFileSync(join(dir, 'a.new.tmp'), 'x');
      renameSync(join(dir, 'a.new.tmp'), join(dir, 'b.new.tmp'));
      await delay(100);
    }
    const { user, system } = process.cpuUsage(before);
    expect(changes).toEqual([]);
    expect((user + system) / 1_000 / (performance.now() - began)).toBeLessThan(0.1);
  });

  it('is told again once the reader has read, and has rested ten times as long', async () => {
    const dir = tempDir();
    const file = writeFile(join(dir, 'a.gguf'));
    const keys = writeFile(join(tempDir(), 'keys.txt'));
    const readMs = 400;
    const told: { at: number; catalog: boolean }[] = [];
    let reading = 0;
    let mostReading = 0;
    const watching = startWatching(
      { hubCaches: [], flatCaches: [], modelsDirs: [dir], files: [keys] },
      {
        onChange: async ({ catalog }) => {
          told.push({ at: performance.now(), catalog });
          reading += 1;
          mostReading = Math.max(mostReading, reading);
          await delay(readMs);
          reading -= 1;
          throw new Error('the reader failed');
        },
        onNotice: () => undefined,
      },
    );
    atEndOfTest(() => watching.close());
    await watching.ready;
    const ofCatalog = () => told.filter(({ catalog }) => catalog).map(({ at }) => at);
    const changedAt = performance.now();
    appendFileSync(file, 'more');
    appendFileSync(keys, 'more');
    await eventually('the first change is told', () => ofCatalog().length === 1 && told.length === 2);
    await eventually(
      'three are told',
      () => {
        appendFileSync(file, 'more');
        return ofCatalog().length >= 3;
      },
      { deadlineMs: 30_000 },
    );
    const [first = 0, second = 0, third = 0] = ofCatalog();
    // Quiet, and the reading of the keys, should that have been first.
    expect(first - changedAt).toBeLessThan(1_000 + readMs);
    expect(second - first).toBeGreaterThan(11 * readMs - 50);
    expect(third - second).toBeGreaterThan(11 * readMs - 50);
    expect(mostReading).toBe(1);
  });
});

describe('thousands of models', () => {
  it.each([
    { count: 10_000, in: 'one', path: (n: number) => `model-${n}.gguf`, watches: 1 },
    { count: 1_000, in: 'their own', path: (n: number) => `model-${n}/a.gguf`, watches: 1_001 },
  ])('take one watch per directory: $count files, directory: $in', async ({ count, path, watches }) => {
    const dir = tempDir();
    for (let number = 0; number < count; number += 1) writeFile(join(dir, path(number)), '');
    const before = inotifyWatches();
    const { tellsOfCatalog } = await watchInTest({ modelsDirs: [dir] });
    expect(inotifyWatches() - before).toBe(watches);
    await tellsOfCatalog('growth of one', () => appendFileSync(join(dir, path(count / 2)), 'more'));
    await tellsOfCatalog('one more', () => writeFile(join(dir, path(count))));
    await tellsOfCatalog('growth of that', () => appendFileSync(join(dir, path(count)), 'more'));
  });
});

describe('closing', () => {
  it('leaves no watch, whenever it happens', async () => {
    const cache = tempDir();
    for (let number = 0; number < 40; number += 1) writeRepo(cache, `user/repo-${number}`, ['m-Q4_0.gguf']);
    const file = writeFile(join(cache, 'presets.ini'));
    const before = inotifyWatches();
    const late: string[] = [];
    for (let pauseMs = 0; pauseMs < 60; pauseMs += 3) {
      const closed: string[] = [];
      const watching = startWatching(
        { hubCaches: [cache], flatCaches: [], modelsDirs: [], files: [file] },
        { onChange: () => void late.push(...closed), onNotice: () => undefined },
      );
      if (pauseMs > 0) await delay(pauseMs);
      appendFileSync(file, 'x');
      writeFile(join(cache, 'models--user--repo-1', 'blobs', `blob-${pauseMs}`));
      await delay(pauseMs);
      await watching.close();
      closed.push('told after it was closed');
      expect(inotifyWatches()).toBe(before);
      await watching.ready;
      await watching.close();
    }
    expect(late).toEqual([]);
  });
});
