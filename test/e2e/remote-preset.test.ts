import { readFileSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pino } from 'pino';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { loadOptionTable, type LlamaServerFacts } from '../../src/config/help.js';
import { childEnvironment } from '../../src/instance/child-environment.js';
import {
  runDownloadWorker,
  type DownloadOutcome,
  type DownloadProgress,
} from '../../src/instance/download-worker.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { readPreset } from '../../src/models/presets/preset-file.js';
import {
  findRemotePreset,
  type RemotePreset,
  type RemotePresetOptions,
} from '../../src/models/presets/remote-preset.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { runMarker } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { startStandInHub, type StandInHub } from '../helpers/stand-in-hub.js';
import { tempDir } from '../helpers/temp-dir.js';

const presets = '[*]\nmmap = 1\n\n[small]\nhf = me/small\nload-on-startup = 1\n';
const token = `hf_${'a'.repeat(34)}`;
/** More than sockets and their buffers hold, so that a slow hub is seen as one. */
const weights = Buffer.alloc(8 * 1024 * 1024, 'weights');

let facts: LlamaServerFacts;
let hub: StandInHub;
let cache: string;
let guard: OrphanGuard;

beforeAll(async () => {
  facts = await loadOptionTable(realLlamaServer(), tempDir());
});

beforeEach(async () => {
  hub = await startStandInHub();
  cache = tempDir();
  guard = new OrphanGuard(pino({ enabled: false }));
  atEndOfTest(() => guard.close());
});

/** Nothing of this user's own: config files, models, tokens. */
function testEnv(): NodeJS.ProcessEnv {
  const foreign = /^(?:LLAMA|HF|HUGGINGFACE|MODEL|AIP)_/;
  const inherited = Object.entries(process.env).filter(([name]) => !foreign.test(name));
  const home = { HOME: cache, XDG_CONFIG_HOME: join(cache, 'config') };
  return { ...Object.fromEntries(inherited), ...home, LLAMA_CACHE: cache, HF_ENDPOINT: hub.endpoint };
}

interface Download {
  readonly progress: readonly DownloadProgress[];
  cancel(): void;
  /** Its end, 30 s at most. */
  outcome(): Promise<DownloadOutcome>;
}

function download(hfRepo: string, given: { token?: string } = {}): Download {
  const cancel = new AbortController();
  const progress: DownloadProgress[] = [];
  const outcome = runDownloadWorker({
    binary: realLlamaServer(),
    hfRepo,
    // The marker is what processes left behind are found by.
    environment: { ...childEnvironment(testEnv()), [runMarker]: process.env[runMarker] },
    token: given.token,
    guard,
    silenceTimeoutMs: 20_000,
    signal: cancel.signal,
    onProgress: (step) => progress.push(step),
  });
  atEndOfTest(async () => {
    cancel.abort();
    await withDeadline('the worker is gone', outcome, 10_000);
  });
  return {
    progress,
    cancel: () => cancel.abort(),
    outcome: () => withDeadline('the worker ends', outcome, 30_000),
  };
}

function find(options: Partial<RemotePresetOptions> = {}): Promise<RemotePreset> {
  const { token: given } = options;
  return findRemotePreset({
    hfRepo: 'me/presets',
    offline: false,
    token: undefined,
    env: testEnv(),
    userAgent: `llama-cpp/${facts.buildInfo}`,
    signal: new AbortController().signal,
    download: (repo) => download(repo, given === undefined ? {} : { token: given }).outcome(),
    ...options,
  });
}

function fileOf(found: RemotePreset): string {
  if (found.kind !== 'preset') throw new Error(`not a preset: ${found.warnings.join('\n')}`);
  return found.file;
}

async function blobs(): Promise<string[]> {
  return await readdir(join(cache, 'models--me--model', 'blobs')).catch(() => []);
}

describe('the presets of a repository', () => {
  test('come from the hub, then from the cache: with it, offline, and without it', async () => {
    const commit = hub.publish('me/presets', { 'README.md': 'mine', 'preset.ini': presets });
    const file = fileOf(await find());
    expect(file).toBe(join(cache, 'models--me--presets', 'snapshots', commit, 'preset.ini'));
    expect(readFileSync(file, 'utf8')).toBe(presets);
    const { sections } = await readPreset(file, facts.table);
    expect(sections.map(({ name, problems }) => ({ name, problems }))).toEqual([
      { name: 'small', problems: [] },
    ]);
    const fetched = hub.requests.filter(({ route }) => route === 'resolve').length;
    expect(fetched).toBeGreaterThan(0);

    expect(fileOf(await find())).toBe(file);
    expect(hub.requests.filter(({ route }) => route === 'resolve')).toHaveLength(fetched);
    await hub.close();
    expect(fileOf(await find({ offline: true }))).toBe(file);
    expect(fileOf(await find())).toBe(file);
  });

  test('are asked for as llama-server itself asks', async () => {
    hub.publish('me/presets', { 'preset.ini': presets }, { token });
    await find({ token });
    const asked = hub.requests
      .filter(({ route }) => route !== 'resolve')
      .map(({ method, url, headers }) => {
        const { accept, authorization, 'user-agent': userAgent } = headers;
        return { method, url, accept, authorization, userAgent };
      });
    // Two by us, then two by its worker.
    expect(asked).toHaveLength(4);
    expect(asked.slice(0, 2)).toEqual(asked.slice(2));
    expect(asked[0]?.authorization).toBe(`Bearer ${token}`);
  });

  test('follow the hub to its next commit', async () => {
    hub.publish('me/presets', { 'preset.ini': presets });
    await find();
    hub.publish('me/presets', { 'preset.ini': `${presets}\n[large]\nhf = me/large\n` });
    const file = fileOf(await find());
    expect(readFileSync(file, 'utf8')).toContain('[large]');
    expect(fileOf(await find({ offline: true }))).toBe(file);
  });

  test('are taken although llama-server refuses the whole file for one key', async () => {
    const text = `${presets}[other]\nno-such-key = 1\n`;
    hub.publish('me/presets', { 'preset.ini': text });
    const found = await find();
    expect(readFileSync(fileOf(found), 'utf8')).toBe(text);
    expect(found.warnings).toHaveLength(1);
  });

  test('that the hub lists but does not give are an error that says what the worker met', async () => {
    hub.publish('me/presets', { 'preset.ini': presets });
    hub.fault('resolve', { kind: 'status', status: 404 });
    await expect(find()).rejects.toThrow(/was not downloaded: .*\n(.*\n)*.*failed with status code: 404/);
  });
});

describe('the download worker', () => {
  test('brings a model with its companions and tells how far it is', async () => {
    hub.publish('me/model', {
      'model-Q4_0.gguf': weights,
      'model-Q8_0.gguf': 'others',
      'mmproj-F16.gguf': 'eyes',
    });
    const run = download('me/model:Q4_0');
    expect(await run.outcome()).toMatchObject({ kind: 'finished' });
    expect(await blobs()).toHaveLength(2);
    const done = run.progress.filter(({ downloadedBytes, totalBytes }) => downloadedBytes === totalBytes);
    expect(new Map(done.map(({ url, totalBytes }) => [url.split('/').at(-1), totalBytes]))).toEqual(
      new Map([
        ['model-Q4_0.gguf', weights.byteLength],
        ['mmproj-F16.gguf', 4],
      ]),
    );
  });

  test('says that it has finished with a repository that does not exist: look for the file', async () => {
    const { kind, lastLines } = await download('me/none').outcome();
    expect(kind).toBe('finished');
    expect(lastLines.join('\n')).toContain('404');
  });

  test('opens a private repository with the token, which no line of it holds', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': 'weights' }, { token });
    const { lastLines } = await download('me/model', { token }).outcome();
    expect(await blobs()).toHaveLength(1);
    expect(lastLines.join('\n')).not.toContain(token);
  });

  test('removes what it has of a file when it is cancelled', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', { kind: 'trickle', pieceBytes: 64 * 1024, pauseMs: 50 });
    const run = download('me/model');
    await eventually('bytes arrive', () => run.progress.some(({ downloadedBytes }) => downloadedBytes > 0));
    expect(await blobs()).toHaveLength(1);
    run.cancel();
    expect(await run.outcome()).toMatchObject({ kind: 'cancelled' });
    expect(await blobs()).toEqual([]);
  });

  test('that was killed with its supervisor leaves what the next one goes on with', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', { kind: 'trickle', pieceBytes: 64 * 1024, pauseMs: 50 });
    const run = download('me/model');
    await eventually('bytes arrive', () => run.progress.some(({ downloadedBytes }) => downloadedBytes > 0));
    // What the guard does when the supervisor is gone.
    guard.close();
    expect(await run.outcome()).toMatchObject({ kind: 'failed' });

    hub.fault('resolve', undefined);
    guard = new OrphanGuard(pino({ enabled: false }));
    atEndOfTest(() => guard.close());
    expect(await download('me/model').outcome()).toMatchObject({ kind: 'finished' });
    expect(hub.requests.at(-1)?.headers.range).toMatch(/^bytes=[1-9]\d*-$/);
    const [blob = ''] = await blobs();
    expect((await readFile(join(cache, 'models--me--model', 'blobs', blob))).equals(weights)).toBe(true);
  });

  test('goes on where a connection broke', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', { kind: 'cut', afterBytes: 1024 * 1024 });
    const run = download('me/model');
    const gets = () => hub.requests.filter(({ route, method }) => route === 'resolve' && method === 'GET');
    await eventually('the connection is broken', () => gets().length === 1);
    hub.fault('resolve', undefined);
    expect(await run.outcome()).toMatchObject({ kind: 'finished' });
    expect(gets().map(({ headers }) => headers.range)).toEqual([
      undefined,
      expect.stringMatching(/^bytes=[1-9]\d*-$/),
    ]);
    const [blob = ''] = await blobs();
    expect((await readFile(join(cache, 'models--me--model', 'blobs', blob))).equals(weights)).toBe(true);
  });
});
