import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { downloadRig, type DownloadRig, type DownloadRigOptions } from '../helpers/download-rig.js';
import { eventually } from '../helpers/eventually.js';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { alive } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { startStandInHub, type StandInHub } from '../helpers/stand-in-hub.js';
import { tempDir } from '../helpers/temp-dir.js';

const token = `hf_${'e'.repeat(34)}`;
/** More than sockets and their buffers hold, so that a slow hub is seen as one. */
const weights = Buffer.concat([
  knownAnswerModel({ name: 'me', ...sayingItsName('me') }),
  Buffer.alloc(8 << 20),
]);
const slow = { kind: 'trickle', pieceBytes: 64 * 1024, pauseMs: 50 } as const;

let hub: StandInHub;

beforeEach(async () => {
  hub = await startStandInHub();
});

function rig(options: Partial<DownloadRigOptions> = {}): Promise<DownloadRig> {
  return downloadRig({ binary: realLlamaServer(), endpoint: hub.endpoint, ...options });
}

function fileOf({ catalog }: DownloadRig, id: string): string {
  const file = catalog.current.resolve(id)?.file;
  if (file === undefined) throw new Error(`'${id}' has no file`);
  return file;
}

async function blobs({ cache }: DownloadRig, repo = 'me--model'): Promise<string[]> {
  return await readdir(join(cache, `models--${repo}`, 'blobs')).catch(() => []);
}

/** The Range headers of the requests for bytes, oldest first. */
function ranges(): (string | undefined)[] {
  return hub.requests
    .filter(({ route, method }) => route === 'resolve' && method === 'GET')
    .map(({ headers }) => headers.range);
}

function bytesDone({ events }: DownloadRig): number {
  const last = events.findLast(({ type }) => type === 'download.progress');
  if (last?.type !== 'download.progress') return 0;
  return Object.values(last.progress).reduce((sum, { done }) => sum + done, 0);
}

describe('a download by the real worker', () => {
  test('tells its progress over all files, and when it has finished the model is listed', async () => {
    hub.publish('me/model', {
      'model-Q4_K_M.gguf': weights,
      'model-Q8_0.gguf': 'others',
      'mmproj-F16.gguf': 'eyes',
    });
    const run = await rig();
    let listedAtTheEnd: string[] = [];
    run.bus.subscribe(({ type }) => {
      if (type === 'download.finished') listedAtTheEnd = run.catalog.current.models.map(({ id }) => id);
    });
    await run.start('me/model');
    expect(run.downloads.list()).toMatchObject([{ id: 'me/model', state: 'downloading' }]);
    expect(await run.ended('me/model')).toEqual({ type: 'download.finished', model: 'me/model' });

    expect(listedAtTheEnd).toEqual(['me/model:Q4_K_M']);
    expect(readFileSync(fileOf(run, 'me/model:Q4_K_M')).equals(weights)).toBe(true);
    expect(run.downloads.list()).toEqual([]);
    const types = run.events.map(({ type }) => type);
    expect(types[0]).toBe('download.started');
    expect(new Set(types.slice(1, -1))).toEqual(new Set(['download.progress']));
    const last = run.events.findLast(({ type }) => type === 'download.progress');
    expect(last).toMatchObject({ type: 'download.progress' });
    const progress = last?.type === 'download.progress' ? last.progress : {};
    const byName = Object.entries(progress).map(([url, bytes]) => [url.split('/').at(-1), bytes]);
    expect(Object.fromEntries(byName)).toEqual({
      'model-Q4_K_M.gguf': { done: weights.byteLength, total: weights.byteLength },
      'mmproj-F16.gguf': { done: 4, total: 4 },
    });
  });

  test('of a private repository is let in by the token, which is told nowhere', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights }, { token });
    const run = await rig({ settings: { hfToken: token } });
    await run.start('me/model:Q4_0');
    const shown = JSON.stringify(run.downloads.list());
    expect((await run.ended('me/model:Q4_0')).type).toBe('download.finished');
    expect([shown, ...run.log, JSON.stringify(run.events)].join('\n')).not.toContain(token);
  });

  test('that breaks off because the network does is gone on with by the next', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    const run = await rig();
    hub.fault('resolve', { kind: 'cut', afterBytes: 1 << 20 });
    await run.start('me/model:Q4_0');
    expect(await run.ended('me/model:Q4_0')).toMatchObject({
      type: 'download.failed',
      reason: 'hub_unreachable',
    });
    expect(run.downloads.list()).toMatchObject([
      { id: 'me/model:Q4_0', state: 'failed', error: { reason: 'hub_unreachable' } },
    ]);
    const [partial = ''] = await blobs(run);
    const { size } = await stat(join(run.cache, 'models--me--model/blobs', partial));
    expect(size).toBeGreaterThan(0);

    hub.fault('resolve', undefined);
    await run.start('me/model:Q4_0');
    expect((await run.ended('me/model:Q4_0')).type).toBe('download.finished');
    expect(ranges().at(-1)).toBe(`bytes=${size}-`);
    expect(readFileSync(fileOf(run, 'me/model:Q4_0')).equals(weights)).toBe(true);
    expect(run.downloads.list()).toEqual([]);
  });

  test('whose worker is killed has failed, and is gone on with by the next', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', slow);
    const run = await rig();
    await run.start('me/model:Q4_0');
    await eventually('bytes arrive', () => bytesDone(run) > 0);
    // The guard kills the groups that are registered with it: here, that of the worker.
    run.guard.close();
    expect(await run.ended('me/model:Q4_0')).toMatchObject({ type: 'download.failed', reason: 'child_gone' });

    hub.fault('resolve', undefined);
    const next = await rig({ cache: run.cache });
    await next.start('me/model:Q4_0');
    expect((await next.ended('me/model:Q4_0')).type).toBe('download.finished');
    expect(ranges().at(-1)).toMatch(/^bytes=[1-9]\d*-$/);
    expect(readFileSync(fileOf(next, 'me/model:Q4_0')).equals(weights)).toBe(true);
  });

  test('that is cancelled leaves nothing of its files', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', slow);
    const run = await rig();
    await run.start('me/model:Q4_0');
    await eventually('bytes arrive', () => bytesDone(run) > 0);
    expect(run.downloads.cancel('me/model:Q4_0')).toBe(true);
    expect(await run.ended('me/model:Q4_0')).toMatchObject({ type: 'download.failed', reason: 'cancelled' });
    expect(await blobs(run)).toEqual([]);
    expect(run.downloads.list()).toEqual([]);
  });

  test('that is cancelled while the hub is silent leaves nothing either', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', { kind: 'trickle', pieceBytes: 1 << 20, pauseMs: 500 });
    const run = await rig();
    await run.start('me/model:Q4_0');
    await eventually('bytes arrive', () => bytesDone(run) > 0);
    hub.fault('resolve', { kind: 'hang' });
    run.downloads.cancel('me/model:Q4_0');
    expect(await run.ended('me/model:Q4_0')).toMatchObject({ reason: 'cancelled' });
    expect(await blobs(run)).toEqual([]);
  });

  test('goes on where a shutdown ended it', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    hub.fault('resolve', slow);
    const run = await rig();
    await run.start('me/model:Q4_0');
    await eventually('bytes arrive', () => bytesDone(run) > 0);
    await run.downloads.close();
    expect(run.events.at(-1)).toMatchObject({ type: 'download.failed', reason: 'shutting_down' });
    expect(await blobs(run)).toHaveLength(1);

    hub.fault('resolve', undefined);
    const next = await rig({ cache: run.cache });
    await next.start('me/model:Q4_0');
    expect((await next.ended('me/model:Q4_0')).type).toBe('download.finished');
    expect(ranges().at(-1)).toMatch(/^bytes=[1-9]\d*-$/);
  });

  test('whose file was whole but had not got its name yet is finished', async () => {
    // By itself the worker asks for what follows the last byte, is told that there is nothing, and fails each time.
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    const first = await rig();
    hub.fault('resolve', slow);
    await first.start('me/model:Q4_0');
    await eventually('bytes arrive', () => bytesDone(first) > 0);
    await first.downloads.close();
    const [partial = ''] = await blobs(first);
    writeFileSync(join(first.cache, 'models--me--model/blobs', partial), weights);

    hub.fault('resolve', undefined);
    const next = await rig({ cache: first.cache });
    await next.start('me/model:Q4_0');
    expect((await next.ended('me/model:Q4_0')).type).toBe('download.finished');
    expect(ranges().at(-1)).toBe(`bytes=${weights.byteLength - 1}-`);
    expect(readFileSync(fileOf(next, 'me/model:Q4_0')).equals(weights)).toBe(true);
  });

  test('that may not write any more has failed for lack of room, and says so', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights });
    const wrapper = join(tempDir(), 'llama-server');
    // As on a full disk, a write fails: here at the largest size that a file may have, in blocks of 512 bytes.
    writeFileSync(wrapper, `#!/bin/sh\ntrap '' XFSZ\nulimit -f 4096\nexec '${realLlamaServer()}' "$@"\n`);
    chmodSync(wrapper, 0o755);
    const run = await rig({ binary: wrapper });
    await run.start('me/model:Q4_0');
    const end = await run.ended('me/model:Q4_0');
    expect(end).toMatchObject({ type: 'download.failed', reason: 'disk_full' });
    expect(end).toHaveProperty('message', expect.stringContaining('error writing to file'));
  });

  test('waits for another one of the same repository, with which it may share a file', async () => {
    hub.publish('me/model', {
      'model-Q4_0.gguf': weights,
      'model-Q8_0.gguf': weights.subarray(0, weights.byteLength - 8),
      'mmproj-F16.gguf': 'eyes',
    });
    const run = await rig();
    await run.start('me/model:Q4_0');
    await run.start('me/model:Q8_0');
    await run.ended('me/model:Q4_0');
    expect((await run.ended('me/model:Q8_0')).type).toBe('download.finished');
    const ofModels = run.events.filter(({ type }) => type !== 'download.started').map(({ model }) => model);
    expect(ofModels).toEqual([...ofModels].sort());
    expect(run.catalog.current.models.map(({ id }) => id)).toEqual(['me/model:Q4_0', 'me/model:Q8_0']);
  });

  test('comes with all its parts', async () => {
    const part = (n: number): string => `big/model-Q4_0-0000${n}-of-00002.gguf`;
    hub.publish('me/model', { [part(1)]: weights, [part(2)]: weights.subarray(0, 64) });
    const run = await rig();
    await run.start('me/model:Q4_0');
    expect((await run.ended('me/model:Q4_0')).type).toBe('download.finished');
    const first = fileOf(run, 'me/model:Q4_0');
    expect(first.endsWith(part(1))).toBe(true);
    expect(readFileSync(first.replace(part(1), part(2)))).toHaveLength(64);
  });
});

test('a failure that is none of the usual ones is told in the words of the worker', async () => {
  hub.publish('me/model', { 'model-Q4_0.gguf': weights });
  hub.fault('resolve', slow);
  const run = await rig();
  await run.start('me/model:Q4_0');
  await eventually('bytes arrive', () => bytesDone(run) > 0);
  const [partial = ''] = await blobs(run);
  run.downloads.cancel('me/model:Q4_0');
  await run.ended('me/model:Q4_0');
  mkdirSync(join(run.cache, 'models--me--model/blobs', partial));

  hub.fault('resolve', undefined);
  await run.start('me/model:Q4_0');
  const end = await run.ended('me/model:Q4_0');
  expect(end).toMatchObject({ type: 'download.failed', reason: 'internal' });
  expect(end).toHaveProperty('message', expect.stringMatching(/download failed for model name=.*file size/));
});

test('no worker is left when its downloads are closed', async () => {
  hub.publish('me/model', { 'model-Q4_0.gguf': weights });
  hub.fault('resolve', slow);
  const wrapper = join(tempDir(), 'llama-server');
  writeFileSync(wrapper, `#!/bin/sh\necho pid $$\nexec '${realLlamaServer()}' "$@"\n`);
  chmodSync(wrapper, 0o755);
  const run = await rig({ binary: wrapper });
  await run.start('me/model:Q4_0');
  await eventually('bytes arrive', () => bytesDone(run) > 0);
  const pid = Number(/"line":"pid (\d+)"/.exec(run.log.join('\n'))?.[1]);
  expect(alive(pid)).toBe(true);
  await run.downloads.close();
  expect(alive(pid)).toBe(false);
});
