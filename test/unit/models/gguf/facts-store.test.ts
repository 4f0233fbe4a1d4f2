import { randomUUID } from 'node:crypto';
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { setTimeout as delay } from 'node:timers/promises';
import { execa } from 'execa';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { FactsCache } from '../../../../src/models/gguf/facts-cache.js';
import {
  FactsStore,
  type FactsReport,
  type FactsStoreOptions,
  type ModelFiles,
} from '../../../../src/models/gguf/facts-store.js';
import { GgufChecks } from '../../../../src/models/gguf/gguf-file.js';
import { UnfinishedFiles, WRITING_WINDOW_MS } from '../../../../src/models/gguf/unfinished-files.js';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../../helpers/eventually.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { compileFacts } from './compiled-facts.js';
import {
  boolPair,
  ggufHeader,
  ggufWith,
  LONG_AGO,
  stringPair,
  uint16Pair,
  uint32Pair,
  writeSparse,
} from '../gguf-header.js';

const compiled = compileFacts();
const workerUrl = pathToFileURL(join(compiled, 'facts-worker.js'));
/** A thread that dies at once: whoever uses it anyway fails. */
const noWorker = new URL('data:text/javascript,throw new Error("nothing was to be read")');

const started = join(tempDir(), 'started');
/** Reads as the real one does, but misbehaves on files whose names ask for it, and notes each of its starts. */
const oddWorker = pathToFileURL(join(compiled, 'odd-worker.js'));
writeFileSync(
  oddWorker,
  `import { appendFileSync } from 'node:fs';
  import { parentPort } from 'node:worker_threads';
  import { lookAtFile } from './gguf-look.js';
  appendFileSync(${JSON.stringify(started)}, 'x');
  parentPort.on('message', (path) => {
    if (path.includes('hang')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
    if (path.includes('crash')) throw new Error('boom');
    if (path.includes('exit')) process.exit(3);
    if (path.includes('greedy')) for (const all = []; ; ) all.push(Array.from({ length: 1e5 }, () => ({})));
    parentPort.postMessage(lookAtFile(path));
  });`,
);

function storeWith(options: Partial<FactsStoreOptions> = {}): FactsStore {
  const store = new FactsStore({ cacheFile: undefined, workerUrl, ...options });
  atEndOfTest(() => store.close());
  return store;
}

function filesOf(file: string, mmproj?: string): ModelFiles {
  return { file, mmproj };
}

function read(store: FactsStore, file: string, mmproj?: string): Promise<FactsReport> {
  return withDeadline(`facts of ${file}`, store.read(filesOf(file, mmproj), { urgent: false }), 20_000);
}

const whole = { architecture: 'llama', contextLength: 512, parameters: 1024 };

/** A header with one tensor whose 1024 elements take 4 KiB behind it. */
function header({
  contextLength = 512,
  split,
}: { contextLength?: number; split?: [number, number] } = {}): Buffer {
  return ggufWith({
    pairs: [
      stringPair('general.architecture', 'llama'),
      uint32Pair('llama.context_length', contextLength),
      ...(split === undefined ? [] : [uint16Pair('split.no', split[0]), uint16Pair('split.count', split[1])]),
    ],
    tensors: [{ shape: [1024] }],
  });
}

function wholeBytes(start: Buffer): number {
  return Math.ceil(start.length / 32) * 32 + 4096;
}

function writeModel(
  path: string,
  options: { contextLength?: number; split?: [number, number]; time?: Date } = {},
): string {
  const start = header(options);
  const { time = LONG_AGO } = options;
  return writeSparse(path, start, { sizeBytes: wholeBytes(start), time });
}

/** Changes what is in a file but neither its size nor its time, so that only who reads it can tell. */
function spoilUnseen(path: string): void {
  const content = readFileSync(path);
  writeFileSync(path, content.fill('x'));
  utimesSync(path, LONG_AGO, LONG_AGO);
}

function problemOf(report: FactsReport): string | undefined {
  return report.kind === 'problem' ? report.problem : undefined;
}

describe('facts', () => {
  it('are read, and known from then on', async () => {
    const file = writeModel(join(tempDir(), 'a.gguf'));
    const store = storeWith();
    expect(store.known(filesOf(file))).toBeUndefined();

    const report = await read(store, file);
    expect(report).toMatchObject({ kind: 'facts', facts: { ...whole, sizeBytes: wholeBytes(header()) } });
    expect(store.known(filesOf(file))).toEqual(report);
  });

  it('are read again when size or time has changed, and only then', async () => {
    const file = writeModel(join(tempDir(), 'a.gguf'));
    const store = storeWith();
    const first = await read(store, file);
    spoilUnseen(file);
    expect(await read(store, file)).toEqual(first);
    writeModel(file, { contextLength: 1024, time: new Date(LONG_AGO.getTime() + 1000) });
    expect(await read(store, file)).toMatchObject({ facts: { contextLength: 1024 } });
  });

  it('of one file under two names are read once', async () => {
    const directory = tempDir();
    const file = writeModel(join(directory, 'blob'));
    const links = ['a.gguf', 'b.gguf'].map((name) => join(directory, name));
    for (const link of links) symlinkSync(file, link);
    const store = storeWith();
    const [first, second] = links as [string, string];
    const report = await read(store, first);
    spoilUnseen(file);
    expect(await read(store, second)).toEqual(report);
  });

  it('of shards are those of all of them', async () => {
    const directory = tempDir();
    const paths = [1, 2, 3].map((index) => join(directory, `a-0000${index}-of-00003.gguf`));
    for (const [index, path] of paths.entries()) writeModel(path, { split: [index, 3] });
    const sizeBytes = 3 * wholeBytes(header({ split: [0, 3] }));
    const [first, second] = paths as [string, string];
    expect(await read(storeWith(), first)).toMatchObject({ facts: { parameters: 3 * 1024, sizeBytes } });
    expect(await read(storeWith(), second)).toEqual({
      kind: 'problem',
      problem: `'${second}' is shard 2 of 3; name the first one, '${first}'`,
      transient: false,
    });
  });

  it('include what the projector takes, if it can be read', async () => {
    const directory = tempDir();
    const file = writeModel(join(directory, 'a.gguf'));
    const projector = writeSparse(
      join(directory, 'mmproj.gguf'),
      ggufWith({ pairs: [boolPair('clip.has_vision_encoder', true)] }),
    );
    const broken = writeSparse(join(directory, 'broken.gguf'), 'not a projector');
    const store = storeWith();
    const modalities = async (mmproj?: string): Promise<unknown> => {
      const report = await read(store, file, mmproj);
      return report.kind === 'facts' ? report.facts.inputModalities : report;
    };
    expect(await modalities(projector)).toEqual(['text', 'image']);
    expect(await modalities(broken)).toEqual(['text']);
    expect(await modalities(join(directory, 'missing'))).toEqual(['text']);
    expect(await modalities()).toEqual(['text']);
  });
});

describe('a fault', () => {
  it('has the words of the check of first bytes', async () => {
    const directory = tempDir();
    const paths = [
      writeSparse(join(directory, 'empty.gguf'), ''),
      writeSparse(join(directory, 'text.gguf'), '<!DOCTYPE html>'),
      writeSparse(join(directory, 'short.gguf'), ggufHeader().subarray(0, 20)),
      join(directory, 'missing.gguf'),
      join(directory, 'dangling.gguf'),
      join(directory, 'folder.gguf'),
      writeModel(join(directory, 'half-00001-of-00002.gguf'), { split: [0, 2] }),
    ];
    symlinkSync(join(directory, 'nowhere'), join(directory, 'dangling.gguf'));
    mkdirSync(join(directory, 'folder.gguf'));
    const store = storeWith();
    const checks = await new GgufChecks().checkAll(paths);
    const seen: (string | undefined)[] = [];
    for (const path of paths) seen.push(problemOf(await read(store, path)));
    expect(seen).toEqual(paths.map((path) => checks.get(path)?.problem));
    expect(seen.filter((problem) => problem === undefined)).toEqual([]);
  });

  it('of a file that nobody writes to is lasting', async () => {
    const start = header();
    const file = writeSparse(join(tempDir(), 'a.gguf'), start, { sizeBytes: 3000 });
    expect(await read(storeWith(), file)).toEqual({
      kind: 'problem',
      problem: `'${file}' holds 3.0 kB of ${(wholeBytes(start) / 1000).toFixed(1)} kB: the file is truncated; copy or download it again`,
      transient: false,
    });
  });

  it('of a file that is being written passes', async () => {
    const start = header();
    const path = join(tempDir(), 'a.gguf');
    const file = writeSparse(path, start, { sizeBytes: 3000, time: new Date() });
    const store = storeWith();
    expect(await read(store, file)).toEqual({
      kind: 'problem',
      problem: `'${file}' is still being written: 3.0 kB of ${(wholeBytes(start) / 1000).toFixed(1)} kB so far`,
      transient: true,
    });
    writeModel(file, { time: new Date() });
    expect(await read(store, file)).toMatchObject({ kind: 'facts', facts: whole });
  });

  it('of a file that is seen to grow passes, whatever its time says', async () => {
    const path = join(tempDir(), 'a.gguf');
    const store = storeWith();
    const transients: unknown[] = [];
    for (const sizeBytes of [2000, 3000, 3000]) {
      const report = await read(store, writeSparse(path, header(), { sizeBytes }));
      transients.push(report.kind === 'problem' && report.transient);
    }
    expect(transients).toEqual([false, true, true]);
  });

  it('in the place of a missing shard passes while the others are new', async () => {
    const first = (time: Date): string =>
      writeModel(join(tempDir(), 'a-00001-of-00002.gguf'), { split: [0, 2], time });
    const store = storeWith();
    expect(await read(store, first(LONG_AGO))).toMatchObject({ kind: 'problem', transient: false });
    expect(await read(store, first(new Date()))).toMatchObject({ kind: 'problem', transient: true });
  });

  it('of a file that is no model by its own words passes while it is new', async () => {
    const adapter = ggufWith({ pairs: [stringPair('general.type', 'adapter')] });
    const path = join(tempDir(), 'a.gguf');
    const store = storeWith();
    const problem = `'${path}' is a LoRA adapter, not a model`;
    await read(store, writeSparse(path, adapter, { time: new Date() }));
    expect(store.known(filesOf(path))).toEqual({ kind: 'problem', problem, transient: true });
    await read(store, writeSparse(path, adapter, { time: LONG_AGO }));
    expect(store.known(filesOf(path))).toEqual({ kind: 'problem', problem, transient: false });
  });

  it('of a file that was written just now is not believed', async () => {
    const now = new Date();
    const path = join(tempDir(), 'a.gguf');
    const sizeBytes = wholeBytes(header());
    const store = storeWith();
    const spoilt = await read(store, writeSparse(path, 'x', { sizeBytes, time: now }));
    expect(spoilt).toMatchObject({ kind: 'problem', transient: true });
    expect(await read(store, writeModel(path, { time: now }))).toMatchObject({ kind: 'facts' });
  });
});

describe('growth', () => {
  const file = { path: '/m/a.gguf', mtimeMs: LONG_AGO.getTime() };

  it('counts for a while', () => {
    const unfinished = new UnfinishedFiles();
    const at = Date.now();
    expect(unfinished.isBeingWritten({ ...file, sizeBytes: 1 }, at)).toBe(false);
    expect(unfinished.isBeingWritten({ ...file, sizeBytes: 2 }, at)).toBe(true);
    expect(unfinished.isBeingWritten({ ...file, sizeBytes: 2 }, at + WRITING_WINDOW_MS - 1)).toBe(true);
    expect(unfinished.isBeingWritten({ ...file, sizeBytes: 2 }, at + WRITING_WINDOW_MS)).toBe(false);
  });

  it('is not what makes a file that was whole smaller', () => {
    const unfinished = new UnfinishedFiles();
    unfinished.isBeingWritten({ ...file, sizeBytes: 1 });
    unfinished.forget(file.path);
    expect(unfinished.isBeingWritten({ ...file, sizeBytes: 2 })).toBe(false);
  });
});

describe('the queue', () => {
  /** Files `a`, `b`, …, in a store of their own. */
  function lettered(count: number) {
    const directory = tempDir();
    const files = Array.from({ length: count }, (_, index) =>
      filesOf(writeModel(join(directory, `${String.fromCharCode(97 + index)}.gguf`))),
    );
    return { store: storeWith(), files };
  }

  it('reads once for all who wait for the same files', async () => {
    const { store, files } = lettered(2);
    const [a, b] = files as [ModelFiles, ModelFiles];
    const begun = store.read(a, { urgent: false });
    const waiting = store.read(b, { urgent: false });
    expect(store.read(b, { urgent: false })).toBe(waiting);
    expect(store.read(b, { urgent: true })).toBe(waiting);
    await withDeadline('all facts', Promise.all([begun, waiting]), 20_000);
  });

  it('goes on after a reading that throws, which says nothing against the file', async () => {
    const directory = tempDir();
    const [bad, good] = ['bad', 'good'].map((name) => writeModel(join(directory, `${name}.gguf`))) as [
      string,
      string,
    ];
    const store = storeWith();
    const spy = vi.spyOn(FactsCache.prototype, 'load').mockRejectedValueOnce(new Error('boom'));
    onTestFinished(() => spy.mockRestore());
    expect(await Promise.all([read(store, bad), read(store, good)])).toMatchObject([
      { kind: 'unread', reason: `'${bad}' cannot be read: Error: boom` },
      { kind: 'facts' },
    ]);
    expect(await read(store, bad)).toMatchObject({ kind: 'facts' });
  });

  it('looks again for who asks when a reading has begun', async () => {
    const { store, files } = lettered(1);
    const [a] = files as [ModelFiles];
    expect(store.read(a, { urgent: false })).not.toBe(store.read(a, { urgent: false }));
    await withDeadline('the facts', store.read(a, { urgent: false }), 20_000);
  });
});

describe('the reading thread', () => {
  const odd = (options: Partial<FactsStoreOptions> = {}): FactsStore =>
    storeWith({ workerUrl: oddWorker, ...options });
  const starts = (): number => (existsSync(started) ? readFileSync(started, 'utf8').length : 0);

  it.each([
    ['crash.gguf', 'its reader failed: boom'],
    ['exit.gguf', 'its reader ended'],
    ['greedy.gguf', 'its reader failed: Worker terminated due to reaching memory limit'],
  ])(
    'that dies of %s costs the facts of that file alone, and says nothing against it',
    async (name, cause) => {
      const directory = tempDir();
      const bad = writeModel(join(directory, name));
      const good = writeModel(join(directory, 'good.gguf'));
      const store = odd();
      const reports = await Promise.all([read(store, bad), read(store, good)]);
      const reason: unknown = expect.stringContaining(`'${bad}' cannot be read: ${cause}`);
      expect(reports).toMatchObject([{ kind: 'unread', reason }, { kind: 'facts' }]);
    },
  );

  it('that has died of a file is not given it again at once', async () => {
    const file = writeModel(join(tempDir(), 'crash.gguf'));
    const store = odd();
    const report = await read(store, file);
    const before = starts();
    expect(await read(store, file)).toEqual(report);
    expect(starts()).toBe(before);
  });

  it('that hangs is replaced, and nothing else waits for it', async () => {
    const directory = tempDir();
    const bad = writeModel(join(directory, 'hang.gguf'));
    const good = writeModel(join(directory, 'good.gguf'));
    const store = odd({ fileTimeoutMs: 1_000 });
    const reports = await Promise.all([read(store, bad), read(store, good)]);
    expect(reports).toEqual([
      { kind: 'unread', reason: `'${bad}' cannot be read: no answer within 1 s` },
      expect.objectContaining({ kind: 'facts' }),
    ]);
  });

  it('that hangs holds up nothing that is urgent', async () => {
    const directory = tempDir();
    const slow = ['hang-1', 'hang-2', 'hang-3'].map((name) => writeModel(join(directory, `${name}.gguf`)));
    const good = writeModel(join(directory, 'good.gguf'));
    const store = odd({ fileTimeoutMs: 600_000 });
    const [background, ...urgent] = slow.map((file, at) => store.read(filesOf(file), { urgent: at > 0 }));
    const report = store.read(filesOf(good), { urgent: true });
    expect(await withDeadline('the urgent facts', report, 20_000)).toMatchObject({ kind: 'facts' });
    await store.close();
    const ended = { kind: 'unread', reason: 'the supervisor is ending' };
    expect(await Promise.all([background, ...urgent])).toEqual([ended, ended, ended]);
  });

  it('that hangs holds up what waits behind it only until that becomes urgent', async () => {
    const directory = tempDir();
    const [hanging, wanted, other] = ['hang', 'wanted', 'other'].map((name) =>
      filesOf(writeModel(join(directory, `${name}.gguf`))),
    ) as [ModelFiles, ModelFiles, ModelFiles];
    const store = odd({ fileTimeoutMs: 600_000 });
    const waiting = [hanging, wanted, other].map((files) => store.read(files, { urgent: false }));
    void store.read(wanted, { urgent: true });
    expect(await withDeadline('the wanted facts', waiting[1] as Promise<FactsReport>, 20_000)).toMatchObject({
      kind: 'facts',
    });
    expect(store.known(other)).toBeUndefined();
    await store.close();
    expect(await Promise.all(waiting)).toMatchObject([
      { kind: 'unread' },
      { kind: 'facts' },
      { kind: 'unread' },
    ]);
  });

  it('is not given one file twice at a time, nor again when it hangs on it', async () => {
    const directory = tempDir();
    const projector = writeModel(join(directory, 'hang.gguf'));
    const models = ['a', 'b', 'c', 'd'].map((name) => writeModel(join(directory, `${name}.gguf`)));
    const store = odd({ fileTimeoutMs: 1_000 });
    const before = starts();
    const began = performance.now();
    const reports = models.map((file, at) => store.read(filesOf(file, projector), { urgent: at > 0 }));
    const facts = await withDeadline('all facts', Promise.all(reports), 20_000);
    expect(facts.map(({ kind }) => kind)).toEqual(['facts', 'facts', 'facts', 'facts']);
    // One deadline, not four.
    expect(performance.now() - began).toBeLessThan(3_500);
    expect(starts() - before).toBeLessThanOrEqual(4);
  });

  it('is kept for the next file and ended when there is none', async () => {
    const directory = tempDir();
    const [a, b, c] = ['a', 'b', 'c'].map((name) => writeModel(join(directory, `${name}.gguf`))) as [
      string,
      string,
      string,
    ];
    const store = odd({ workerIdleMs: 300 });
    const before = starts();
    await Promise.all([read(store, a), read(store, b)]);
    expect(starts() - before).toBe(1);
    await eventually('the thread to have ended', async () => {
      await delay(400);
      appendFileSync(c, ' ');
      await read(store, c);
      return starts() - before > 1;
    });
  });

  it('is not started for what has not changed', async () => {
    const file = writeModel(join(tempDir(), 'a.gguf'));
    const store = odd({ workerIdleMs: 1 });
    await read(store, file);
    const before = starts();
    await delay(50);
    for (let time = 0; time < 20; time++) await read(store, file);
    expect(starts()).toBe(before);
  });

  it('does not keep the process alive', async () => {
    const file = writeModel(join(tempDir(), 'a.gguf'));
    const script = `
      import { FactsStore } from ${JSON.stringify(join(compiled, 'facts-store.js'))};
      const alive = setInterval(() => undefined, 1000);
      const store = new FactsStore({ cacheFile: undefined, workerIdleMs: 600_000 });
      const report = await store.read({ file: ${JSON.stringify(file)}, mmproj: undefined }, { urgent: true });
      console.log(report.kind);
      clearInterval(alive);
    `;
    const { stdout } = await execa(process.execPath, ['--input-type=module', '--eval', script], {
      timeout: 20_000,
    });
    expect(stdout).toBe('facts');
  });

  it('is the compiled one where the sources run', async (context) => {
    const built = fileURLToPath(new URL('../../../../dist/models/gguf/facts-worker.js', import.meta.url));
    if (!existsSync(built)) context.skip('needs "npm run build"');
    const store = new FactsStore({ cacheFile: undefined });
    atEndOfTest(() => store.close());
    const file = writeModel(join(tempDir(), 'a.gguf'));
    expect(await read(store, file)).toMatchObject({ kind: 'facts' });
  });
});

describe('on disk', () => {
  async function learn(cacheFile: string, ...paths: string[]): Promise<FactsReport[]> {
    const store = new FactsStore({ cacheFile, workerUrl });
    const reports: FactsReport[] = [];
    for (const path of paths) reports.push(await read(store, path));
    await withDeadline('the store to close', store.close(), 10_000);
    return reports;
  }

  it('facts and faults outlive the process', async () => {
    const directory = tempDir();
    const cacheFile = join(directory, 'cache/facts.json');
    const good = writeModel(join(directory, 'good.gguf'));
    const bad = writeSparse(join(directory, 'bad.gguf'), '<!DOCTYPE html>');
    const reports = await learn(cacheFile, good, bad);

    const next = storeWith({ cacheFile, workerUrl: noWorker });
    expect([await read(next, good), await read(next, bad)]).toEqual(reports);
    expect(reports.map(({ kind }) => kind)).toEqual(['facts', 'problem']);
    expect(JSON.parse(readFileSync(cacheFile, 'utf8'))).toHaveProperty('files.length', 2);
  });

  it('what has changed since is read again', async () => {
    const directory = tempDir();
    const cacheFile = join(directory, 'facts.json');
    const file = writeSparse(join(directory, 'a.gguf'), '<!DOCTYPE html>');
    await learn(cacheFile, file);
    writeModel(file);
    expect(await learn(cacheFile, file)).toMatchObject([{ kind: 'facts' }]);
    writeModel(file, { contextLength: 99, time: new Date(LONG_AGO.getTime() + 1000) });
    expect(await learn(cacheFile, file)).toMatchObject([{ facts: { contextLength: 99 } }]);
  });

  it('facts are written soon, without being closed', async () => {
    const directory = tempDir();
    const cacheFile = join(directory, 'facts.json');
    await read(storeWith({ cacheFile }), writeModel(join(directory, 'a.gguf')));
    await eventually('the cache file', () => existsSync(cacheFile));
  });

  it.each([
    ['no JSON', 'hello'],
    ['nothing', ''],
    ['another format', '{"format":"another","files":[\n{"path":"x"}\n]}\n'],
    [
      'lines of nonsense',
      '{"format":"llama-supervisor gguf facts 1","files":[\n{"path":"x"},\nnull,\n12\n{{{\n]}\n',
    ],
  ])('a file with %s is as none, and is replaced', async (_what, content) => {
    const directory = tempDir();
    const cacheFile = join(directory, 'facts.json');
    const file = writeModel(join(directory, 'a.gguf'));
    writeFileSync(cacheFile, content);
    expect(await learn(cacheFile, file)).toMatchObject([{ kind: 'facts' }]);
    const next = storeWith({ cacheFile, workerUrl: noWorker });
    expect(await read(next, file)).toMatchObject({ kind: 'facts' });
  });

  it('an entry with fields of other types is not believed', async () => {
    const directory = tempDir();
    const cacheFile = join(directory, 'facts.json');
    const file = writeModel(join(directory, 'a.gguf'));
    await learn(cacheFile, file);
    const text = readFileSync(cacheFile, 'utf8');
    writeFileSync(cacheFile, text.replace('"parameters":1024', '"parameters":"many"'));
    expect(await learn(cacheFile, file)).toMatchObject([{ facts: { parameters: 1024 } }]);
  });

  it('a cache that can not be written is done without', async () => {
    const directory = tempDir();
    const inTheWay = join(directory, 'file');
    writeFileSync(inTheWay, '');
    const file = writeModel(join(directory, 'a.gguf'));
    expect(await learn(join(inTheWay, 'facts.json'), file)).toMatchObject([{ kind: 'facts' }]);
  });

  it('what was left by writers that were killed is removed, and nothing else', async () => {
    const directory = tempDir();
    const cacheFile = join(directory, 'facts.json');
    const [old, young] = [randomUUID(), randomUUID()].map((id) => `facts.json.${id}`) as [string, string];
    const others = ['facts.json.bak', `other.json.${randomUUID()}`, 'links'];
    for (const name of [old, young, ...others]) writeSparse(join(directory, name), '');
    utimesSync(join(directory, young), new Date(), new Date());
    await learn(cacheFile, writeModel(join(directory, 'a.gguf')));
    expect(readdirSync(directory).sort()).toEqual(['a.gguf', 'facts.json', young, ...others].sort());
  });

  it('what was not used longest gives way to what is new', async () => {
    const cacheFile = join(tempDir(), 'facts.json');
    const cache = new FactsCache(cacheFile);
    await cache.load();
    const identity = (index: number) => ({ path: `/m/${index}`, sizeBytes: 1, mtimeMs: 1 });
    for (let index = 0; index < 50_000; index++)
      cache.set(identity(index), { kind: 'fault', fault: 'is empty' });
    cache.get(identity(0));
    cache.set(identity(50_000), { kind: 'fault', fault: 'is empty' });
    await withDeadline('the cache to be written', cache.close(), 20_000);

    const next = new FactsCache(cacheFile);
    await withDeadline('the cache to be read', next.load(), 20_000);
    const isThere = (index: number): boolean => next.get(identity(index)) !== undefined;
    expect([0, 1, 2, 50_000].map(isThere)).toEqual([true, false, true, true]);
  });
});

describe('the end', () => {
  it('answers who waits, and who comes later', async () => {
    const directory = tempDir();
    const store = new FactsStore({ cacheFile: undefined, workerUrl: oddWorker });
    const reads = ['hang', 'a', 'b'].map((name) => read(store, writeModel(join(directory, `${name}.gguf`))));
    await withDeadline('the store to close', store.close(), 5_000);
    reads.push(read(store, join(directory, 'a.gguf')));
    const ended = { kind: 'unread', reason: 'the supervisor is ending' };
    expect(await Promise.all(reads)).toEqual([ended, ended, ended, ended]);
  });
});
