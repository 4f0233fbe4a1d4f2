import { createHash } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { RouterError } from '../../src/errors.js';
import { freeBytes } from '../../src/models/hub/planned-files.js';
import { downloadRig, type DownloadRig, type DownloadRigOptions } from '../helpers/download-rig.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { alive } from '../helpers/processes.js';
import { startStandInHub, type HubFault, type StandInHub } from '../helpers/stand-in-hub.js';
import { tempDir } from '../helpers/temp-dir.js';
import { ggufHeader } from '../unit/models/gguf-header.js';
import { writeFile, writeLink } from '../unit/models/tree.js';

const token = `hf_${'a'.repeat(34)}`;
const model = 'me/model:Q4_0';
const weights = Buffer.concat([ggufHeader(), Buffer.from('good')]);

let hub: StandInHub;
/** Where a worker finds what it is to bring. */
let goods: string;

beforeEach(async () => {
  hub = await startStandInHub();
  goods = tempDir();
});

/** A llama-server that only downloads, by this shell script. */
function worker(script: string): string {
  const binary = join(tempDir(), 'llama-server');
  writeFileSync(binary, `#!/bin/sh\n${script}\n`);
  chmodSync(binary, 0o755);
  return binary;
}

function say(payload: unknown): string {
  return `printf '\\n%s\\n' 'cmd_child_to_router:state:${JSON.stringify({ state: 'downloading', payload })}'`;
}

const progress = (url: string, downloaded: number, total: number): string => say({ url, downloaded, total });
const finished = `${say({ result: 'download_finished' })}\nread -r command`;
const failed = `${say({ result: 'download_failed' })}\nread -r command`;
const bring = 'cp -a "$GOODS/." "$LLAMA_CACHE/"';
/** Waits for the file of that name among the goods. */
const until = (name: string): string => `until [ -e "$GOODS/../${name}" ]; do sleep 0.02; done`;

function rig(script: string, options: Partial<DownloadRigOptions> = {}): Promise<DownloadRig> {
  const { env, ...others } = options;
  return downloadRig({
    binary: worker(script),
    endpoint: hub.endpoint,
    env: { GOODS: join(goods, 'cache'), ...env },
    ...others,
  });
}

/** Publishes a repository of models, and puts its files where a worker finds them, laid out as in the hub cache. */
function publish(repo = 'me/model', paths: readonly string[] = ['model-Q4_0.gguf']): string {
  const contents = paths.map((path) => [path, Buffer.concat([weights, Buffer.from(path)])] as const);
  const commit = hub.publish(repo, Object.fromEntries(contents));
  const folder = join(goods, 'cache', `models--${repo.replace('/', '--')}`);
  writeFile(join(folder, 'refs/main'), commit);
  for (const [path, content] of contents) {
    const oid = createHash('sha256').update(content).digest('hex');
    writeFile(join(folder, 'blobs', oid), content);
    writeLink(join(folder, 'snapshots', commit, path), `../../blobs/${oid}`);
  }
  return commit;
}

function go(name: string): void {
  writeFileSync(join(goods, name), '');
}

/** Where the bytes of the only file of `me/model` are. */
function blobOf(cache: string, content = Buffer.concat([weights, Buffer.from('model-Q4_0.gguf')])): string {
  return join(cache, 'models--me--model/blobs', createHash('sha256').update(content).digest('hex'));
}

async function refusal(started: Promise<void>): Promise<RouterError> {
  try {
    await withDeadline('the answer', started, 15_000);
  } catch (error) {
    if (error instanceof RouterError) return error;
    throw error;
  }
  throw new Error('it was not refused');
}

describe('a download is refused, and no worker started,', () => {
  const never = `touch "$GOODS.started"; ${finished}`;

  async function refused(name: string, options: Partial<DownloadRigOptions> = {}): Promise<RouterError> {
    const run = await rig(never, options);
    const error = await refusal(run.start(name));
    expect(run.events).toEqual([]);
    expect(run.downloads.list()).toEqual([]);
    expect(existsSync(join(goods, 'cache.started'))).toBe(false);
    return error;
  }

  test('for a name that is none', async () => {
    expect(await refused('model')).toMatchObject({ code: 'hub_name_invalid', status: 400 });
    expect(hub.requests).toEqual([]);
  });

  test('for a model that is there, whatever it comes from', async () => {
    const modelsDir = tempDir();
    writeFile(join(modelsDir, 'file.gguf'), weights);
    const presets = writeFile(
      join(tempDir(), 'presets.ini'),
      `[me/model:Q4_0]\nmodel = ${modelsDir}/file.gguf\nalias = you/alias\n`,
    );
    for (const name of [model, 'you/alias']) {
      const error = await refused(name, { modelsDir, presets });
      expect(error).toMatchObject({
        code: 'model_exists',
        status: 400,
        message: `model '${name}' already exists`,
      });
    }
    expect(hub.requests).toEqual([]);
  });

  test.each(['me/model', 'me/model:q4_0'])('for %s, when it is there under its full name', async (name) => {
    publish();
    const error = await refused(name, { cache: join(goods, 'cache') });
    expect(error).toMatchObject({ code: 'model_exists', message: `model '${model}' already exists` });
  });

  test('for a model whose files are whole, though it cannot be served', async () => {
    const bad = Buffer.from('this is no model');
    const commit = hub.publish('me/model', { 'model-Q4_0.gguf': bad });
    const folder = join(goods, 'cache/models--me--model');
    writeFile(join(folder, 'refs/main'), commit);
    writeFile(join(folder, 'snapshots', commit, 'model-Q4_0.gguf'), bad);
    const error = await refused(model, { cache: join(goods, 'cache') });
    expect(error).toMatchObject({ code: 'model_exists', message: `model '${model}' already exists` });
  });

  test('when nothing may be asked of the network', async () => {
    const error = await refused(model, { settings: { offline: true } });
    expect(error).toMatchObject({ code: 'hub_offline', status: 403 });
    expect(hub.requests).toEqual([]);
  });

  test('when there is no such repository', async () => {
    const error = await refused(model);
    expect(error).toMatchObject({ code: 'hub_not_found', status: 404 });
    expect(error.message).toContain("no repository 'me/model'");
  });

  test('when it has no such quantisation, naming those that it has', async () => {
    publish('me/model', ['model-Q4_0.gguf', 'model-Q8_0.gguf']);
    const error = await refused('me/model:Q9_9');
    expect(error).toMatchObject({ code: 'hub_not_found', status: 404 });
    expect(error.message).toContain('there are Q4_0, Q8_0');
  });

  test('when the repository or its files need another token', async () => {
    hub.publish('me/model', { 'model-Q4_0.gguf': weights }, { token });
    const wrong = `hf_${'b'.repeat(34)}`;
    const stranger = await refused(model);
    expect(stranger).toMatchObject({ code: 'hub_refused', status: 403 });
    expect(stranger.message).toContain('--hf-token or HF_TOKEN');
    const other = await refused(model, { settings: { hfToken: wrong } });
    expect(other.code).toBe('hub_refused');
    expect(JSON.stringify(other)).not.toContain(wrong);

    hub.fault('resolve', { kind: 'status', status: 403 });
    expect((await refused(model, { settings: { hfToken: token } })).code).toBe('hub_refused');
  });

  test.each<[string, HubFault | undefined]>([
    ['is not there', undefined],
    ['is silent', { kind: 'hang' }],
    ['is broken', { kind: 'status', status: 502 }],
  ])('when the hub %s', async (_, fault) => {
    if (fault === undefined) await hub.close();
    else hub.fault('refs', fault);
    const error = await refused(model, { askTimeoutMs: 300 });
    expect(error).toMatchObject({ code: 'hub_unreachable', status: 502 });
  });

  test('when the disk has no room for what is missing, with both numbers', async () => {
    publish();
    const free = await freeBytes(tempDir());
    announce(free + 5e12);
    const error = await refused(model);
    expect(error).toMatchObject({ code: 'disk_full', status: 507 });
    expect(error.message).toMatch(/needs \d+\.\d [GM]B more; .* \d+\.\d [GM]B are free/);
  });

  test('when its client has left', async () => {
    publish();
    hub.fault('refs', { kind: 'hang' });
    const run = await rig(never);
    const client = new AbortController();
    const started = run.downloads.start(model, client.signal);
    await eventually('the hub is asked', () => hub.requests.length === 1);
    client.abort();
    expect((await refusal(started)).code).toBe('client_gone');
    expect(run.events).toEqual([]);
  });

  test('once the downloads are closed, also when the hub is being asked', async () => {
    publish();
    hub.fault('refs', { kind: 'hang' });
    const run = await rig(never);
    const started = run.start(model);
    await eventually('the hub is asked', () => hub.requests.length === 1);
    await run.downloads.close();
    expect((await refusal(started)).code).toBe('shutting_down');
    expect((await refusal(run.start(model))).code).toBe('shutting_down');
    expect(run.events).toEqual([]);
  });
});

test.each(['cancel', 'remove'] as const)('a %s while the hub is asked gives the download up', async (how) => {
  publish();
  hub.fault('refs', { kind: 'hang' });
  const run = await rig(`touch "$GOODS.started"\n${bring}\n${finished}`);
  const started = refusal(run.start(model));
  await eventually('the hub is asked', () => hub.requests.length === 1);
  if (how === 'cancel') expect(run.downloads.cancel(model)).toBe(true);
  else expect(await run.downloads.remove(model)).toEqual({ brought: undefined });
  expect(await started).toMatchObject({ code: 'model_unloaded_meanwhile', status: 400 });
  expect(run.downloads.cancel(model)).toBe(false);
  expect(run.events).toEqual([]);
  expect(existsSync(join(goods, 'cache.started'))).toBe(false);
});

/** From now on the hub says that the model has so many bytes. */
function announce(sizeBytes: number): void {
  const lfs = { oid: 'b'.repeat(64), size: sizeBytes, pointerSize: 135 };
  const entry = { type: 'file', path: 'model-Q4_0.gguf', oid: 'c'.repeat(40), size: sizeBytes, lfs };
  hub.fault('tree', { kind: 'text', text: JSON.stringify([entry]) });
}

test('what has come already needs no room', async () => {
  publish();
  const cache = tempDir();
  const size = Math.ceil((await freeBytes(cache)) + 1e9);
  announce(size);
  // All bytes but one, none of which takes room: a file with a hole.
  const partial = join(cache, 'models--me--model/blobs', `${'b'.repeat(64)}.downloadInProgress`);
  truncateSync(writeFile(partial, 'x'), size - 1);
  const run = await rig(failed, { cache });
  await run.start(model);
  await run.ended(model);
});

describe('a download', () => {
  test('is told from its start to its end, with the progress of all files so far', async () => {
    publish();
    const run = await rig(
      [progress('http://a', 0, 10), progress('http://b', 2, 4), progress('http://a', 10, 10)].join('\n') +
        `\n${bring}\n${finished}`,
    );
    await run.start(model);
    await run.ended(model);
    const a = (done: number) => ({ 'http://a': { done, total: 10 } });
    const b = { 'http://b': { done: 2, total: 4 } };
    expect(run.events).toEqual([
      { type: 'download.started', model },
      { type: 'download.progress', model, progress: a(0) },
      { type: 'download.progress', model, progress: { ...a(0), ...b } },
      { type: 'download.progress', model, progress: { ...a(10), ...b } },
      { type: 'download.finished', model },
    ]);
  });

  test('has finished only when the catalog has its model, and then is listed no more', async () => {
    publish();
    const run = await rig(`${bring}\n${finished}`);
    let seen: unknown;
    run.bus.subscribe(({ type }) => {
      if (type !== 'download.finished') return;
      seen = { file: run.catalog.current.resolve(model)?.file, list: run.downloads.list() };
    });
    await run.start(model);
    await run.ended(model);
    expect(seen).toEqual({
      file: expect.stringMatching(/snapshots\/\w+\/model-Q4_0\.gguf$/) as string,
      list: [],
    });
  });

  test('is listed while it goes on, with the command line of its worker and no secret', async () => {
    publish();
    const binary = worker(`${progress('http://a', 1, 10)}\n${until('go')}\n${bring}\n${finished}`);
    const run = await downloadRig({
      binary,
      endpoint: hub.endpoint,
      env: { GOODS: join(goods, 'cache') },
      settings: { hfToken: token },
    });
    await run.start(model);
    await eventually('its progress is told', () => run.events.length === 2);
    expect(run.downloads.list()).toEqual([
      {
        id: model,
        state: 'downloading',
        progress: { 'http://a': { done: 1, total: 10 } },
        args: [binary, '--host', '127.0.0.1', '--port', '0', '--alias', model],
      },
    ]);
    go('go');
    expect((await run.ended(model)).type).toBe('download.finished');
  });

  test('gives its worker the token, in the environment alone', async () => {
    publish();
    const check = `[ "$HF_TOKEN" = "${token}" ] && case "$*" in *hf_*) ;; *) echo as it should; esac; exit 1`;
    const run = await rig(check, { settings: { hfToken: token } });
    await run.start(model);
    await run.ended(model);
    expect(run.downloads.list()).toMatchObject([{ error: { lastLines: ['as it should'] } }]);
  });

  test('that is asked for twice is refused the second time, already while the hub is asked', async () => {
    publish();
    const run = await rig(`${until('go')}\n${bring}\n${finished}`);
    const first = run.start(model);
    expect((await refusal(run.start(model))).code).toBe('model_exists');
    await first;
    expect((await refusal(run.start(model))).code).toBe('model_exists');
    go('go');
    await run.ended(model);
  });

  test('is one of four at most', async () => {
    const names = [1, 2, 3, 4, 5].map((n) => `me/model-${n}`);
    for (const name of names) publish(name);
    const run = await rig(`${until('go')}\n${failed}`);
    const started = await Promise.allSettled(names.map((name) => run.start(name)));
    expect(started.map(({ status }) => status)).toEqual([...Array<string>(4).fill('fulfilled'), 'rejected']);
    const error = await refusal(run.start('me/model-5'));
    expect(error).toMatchObject({ code: 'too_many_downloads', status: 429 });
    expect(error.headers).toHaveProperty('Retry-After');
    go('go');
    for (const name of names.slice(0, 4)) await run.ended(name);
    await run.start('me/model-5');
    await run.ended('me/model-5');
  });

  test('takes its turn after another one of the same repository', async () => {
    publish('me/model', ['model-Q4_0.gguf', 'model-Q8_0.gguf']);
    const started = (name: string): boolean => existsSync(join(goods, `cache.started.${name}`));
    const run = await rig(
      `touch "$GOODS.started.$LLAMA_ARG_HF_REPO"\n${until('go')}\n${bring}\n${finished}`.replace(
        '$LLAMA_ARG_HF_REPO"',
        '${LLAMA_ARG_HF_REPO#*:}"',
      ),
    );
    await run.start(model);
    await eventually('the first works', () => started('Q4_0'));
    await run.start('me/model:Q8_0');
    expect(run.downloads.list().map(({ id }) => id)).toEqual([model, 'me/model:Q8_0']);
    expect(started('Q8_0')).toBe(false);
    go('go');
    expect((await run.ended(model)).type).toBe('download.finished');
    expect((await run.ended('me/model:Q8_0')).type).toBe('download.finished');
    expect(started('Q8_0')).toBe(true);
  });

  test.each([
    ['lacks a part', 'model-Q4_0-00001-of-00002.gguf', 'new'],
    ['is of an older commit', 'model-Q4_0-00001-of-00001.gguf', 'old'],
  ])('brings a model that %s, under its own name', async (_, path, snapshot) => {
    const old = publish('me/model', [path]);
    const cache = tempDir();
    const parts = ['model-Q4_0-00001-of-00002.gguf', 'model-Q4_0-00002-of-00002.gguf'];
    const commit = publish('me/model', parts);
    const folder = join(cache, 'models--me--model');
    writeFile(join(folder, 'refs/main'), commit);
    const there = snapshot === 'old' ? old : commit;
    writeFile(join(folder, 'snapshots', there, path), Buffer.concat([weights, Buffer.from(path)]));
    const run = await rig(`${until('go')}\n${bring}\n${finished}`, { cache });
    const before = run.catalog.current.resolve(model);
    expect(before?.file).toBe(join(folder, 'snapshots', there, path));
    expect(before?.problem === undefined).toBe(snapshot === 'old');
    await run.start(model);
    expect(run.downloads.list()).toHaveLength(snapshot === 'old' ? 0 : 1);
    go('go');
    expect((await run.ended(model)).type).toBe('download.finished');
    expect(run.catalog.current.resolve(model)).toMatchObject({
      file: join(folder, 'snapshots', commit, parts[0] ?? ''),
      problem: undefined,
    });
    expect((await refusal(run.start(model))).code).toBe('model_exists');
  });

  test('is found in the commit that its repository got after the question', async () => {
    const old = publish();
    const run = await rig(`${until('go')}\n${bring}\n${finished}`);
    await run.start(model);
    const next = publish('me/model', ['model-Q4_0.gguf', 'model-Q8_0.gguf']);
    expect(next).not.toBe(old);
    rmSync(join(goods, 'cache/models--me--model/snapshots', old), { recursive: true });
    go('go');
    expect((await run.ended(model)).type).toBe('download.finished');
  });
});

describe('a download has failed', () => {
  async function failure(script: string, options: Partial<DownloadRigOptions> = {}) {
    publish();
    const run = await rig(script, options);
    await run.start(model);
    const end = await run.ended(model);
    if (end.type !== 'download.failed') throw new Error(`it is ${end.type}`);
    expect(run.downloads.list()).toMatchObject([
      { id: model, state: 'failed', error: { reason: end.reason, message: end.message } },
    ]);
    return end;
  }

  test.each([
    ['by itself', 'exit 3', 'exit code 3'],
    ['by a signal', 'kill -SEGV $$', 'SIGSEGV'],
  ])('when its worker ends %s', async (_, end, words) => {
    const { reason, message } = await failure(`echo nothing wrong\n${end}`);
    expect(reason).toBe('child_gone');
    expect(message).toContain(words);
  });

  test('when its worker is silent for too long', async () => {
    expect(await failure('sleep 600', { silenceTimeoutMs: 300 })).toMatchObject({ reason: 'child_timeout' });
  });

  test('when its worker says so, for the reason that its words give', async () => {
    const words = 'common_pull_file: error writing to file: /cache/blobs/a.downloadInProgress';
    const { reason, message } = await failure(`echo '${words}' >&2\n${failed}`);
    expect(reason).toBe('disk_full');
    expect(message).toContain(words.slice('common_pull_file: '.length));
  });

  test('when its worker says that it has finished and has brought nothing', async () => {
    const { reason, message } = await failure(finished);
    expect(reason).toBe('hub_not_found');
    expect(message).toContain("brought no 'model-Q4_0.gguf'");
  });

  test('when it has brought nothing because the network was away', async () => {
    const words = 'E get_repo_commit: error: HTTPLIB failed: Could not establish connection';
    expect(await failure(`echo '${words}'\n${finished}`)).toMatchObject({ reason: 'hub_unreachable' });
  });

  test('when a file has too few bytes, and goes on with these the next time', async () => {
    publish();
    // What a disk that fills up with the last bytes leaves: the worker does not look whether they were written.
    const cut = `${bring}\nfor f in "$LLAMA_CACHE"/models--me--model/blobs/*; do truncate -s 20 "$f"; done`;
    const run = await rig(`[ -e "$GOODS/../go" ] || { ${cut}\n${finished}; exit; }\n${failed}`);
    await run.start(model);
    const end = await run.ended(model);
    expect(end).toMatchObject({ type: 'download.failed', reason: 'internal' });
    expect(end).toHaveProperty('message', expect.stringContaining("20 of 43 bytes of 'model-Q4_0.gguf'"));

    // The catalog sees the file, and what it lacks; that is no reason to refuse the next try or to hide the failed one.
    await run.catalog.reload();
    expect(run.catalog.current.resolve(model)?.problem).toBeDefined();
    expect(run.downloads.list()).toMatchObject([{ id: model, state: 'failed' }]);
    go('go');
    await run.start(model);
    await run.ended(model);
    const blob = blobOf(run.cache);
    expect(existsSync(blob)).toBe(false);
    expect(readFileSync(`${blob}.downloadInProgress`)).toHaveLength(20);
  });

  test('until the next try begins, or it is removed', async () => {
    publish();
    const run = await rig(`[ -e "$GOODS/../go" ] || exit 1\n${until('end')}\n${failed}`);
    await run.start(model);
    await run.ended(model);
    go('go');
    await run.start(model);
    expect(run.downloads.list()).toMatchObject([{ id: model, state: 'downloading' }]);
    go('end');
    await eventually('it has failed again', () => run.downloads.list()[0]?.state === 'failed');
    expect(await run.downloads.remove(model)).toEqual({ brought: undefined });
    expect(run.downloads.list()).toEqual([]);
    expect(await run.downloads.remove(model)).toBeUndefined();
  });

  test('until its model is there in another way', async () => {
    publish();
    const cache = tempDir();
    const run = await rig('exit 1', { cache });
    await run.start(model);
    await run.ended(model);
    expect(run.downloads.list()).toHaveLength(1);
    const oid = 'd'.repeat(64);
    writeFile(join(cache, 'models--me--model/refs/main'), 'e'.repeat(40));
    writeFile(join(cache, 'models--me--model/blobs', oid), weights);
    writeLink(
      join(cache, 'models--me--model/snapshots', 'e'.repeat(40), 'model-Q4_0.gguf'),
      `../../blobs/${oid}`,
    );
    await run.catalog.reload();
    expect(run.downloads.list()).toEqual([]);
  });

  test('and is remembered as one of the last sixteen', async () => {
    const run = await rig('exit 1');
    const names = Array.from({ length: 17 }, (_, n) => `me/model-${n}`);
    for (const name of names) {
      publish(name);
      await run.start(name);
      await run.ended(name);
    }
    expect(run.downloads.list().map(({ id }) => id)).toEqual(names.slice(1));
  });
});

describe('a download that is cancelled', () => {
  const partial = 'echo pid $$\nmkdir -p "$LLAMA_CACHE/models--me--model/blobs"\necho some > "$PARTIAL"';

  async function begun(script: string): Promise<{ run: DownloadRig; file: string; pid: number }> {
    publish();
    const cache = tempDir();
    const file = `${blobOf(cache)}.downloadInProgress`;
    const run = await rig(`${partial}\n${script}`, { cache, env: { PARTIAL: file } });
    await run.start(model);
    await eventually('bytes arrive', () => existsSync(file));
    const pid = await eventually('the worker tells its id', () =>
      Number(/"line":"pid (\d+)"/.exec(run.log.join('\n'))?.[1] ?? 0),
    );
    return { run, file, pid };
  }

  test('is ended, leaves nothing of its files, and is listed no more', async () => {
    const { run, file, pid } = await begun('read -r command');
    expect(run.downloads.cancel(model)).toBe(true);
    expect(await run.ended(model)).toEqual({
      type: 'download.failed',
      model,
      reason: 'cancelled',
      message: `the download of '${model}' was cancelled`,
    });
    expect(alive(pid)).toBe(false);
    expect(existsSync(file)).toBe(false);
    expect(run.downloads.list()).toEqual([]);
    expect(run.downloads.cancel(model)).toBe(false);
  });

  test('is ended also when its worker does not listen', async () => {
    const { run, file, pid } = await begun('while :; do sleep 0.1; done');
    run.downloads.cancel(model);
    await run.ended(model);
    expect(alive(pid)).toBe(false);
    expect(existsSync(file)).toBe(false);
  });

  test('by its removal is gone when that is told', async () => {
    const { run, file, pid } = await begun('read -r command');
    expect(await run.downloads.remove(model)).toEqual({ brought: undefined });
    expect(alive(pid)).toBe(false);
    expect(existsSync(file)).toBe(false);
    expect(run.events.at(-1)).toMatchObject({ type: 'download.failed', reason: 'cancelled' });
  });

  test('by a removal that comes too late is told with the model that it has brought', async () => {
    publish();
    const run = await rig(`${until('go')}\n${bring}\n${finished}`);
    const reload = run.catalog.reload.bind(run.catalog);
    let removal: Promise<unknown> | undefined;
    // Its files are found whole, and the catalog is made anew: nothing is left to be cancelled.
    run.catalog.reload = (options) => {
      removal ??= run.downloads.remove('me/model');
      return reload(options);
    };
    await run.start('me/model');
    go('go');
    expect((await run.ended('me/model')).type).toBe('download.finished');
    expect(await removal).toEqual({ brought: model });
  });

  test('before its turn leaves the files to the one whose turn it is', async () => {
    const { run, file } = await begun(`${until('go')}\n${failed}`);
    await run.start('me/model');
    run.downloads.cancel('me/model');
    expect(await run.ended('me/model')).toMatchObject({ reason: 'cancelled' });
    expect(existsSync(file)).toBe(true);
    expect(run.downloads.list()).toMatchObject([{ id: model, state: 'downloading' }]);
    go('go');
    await run.ended(model);
  });
});

describe('work on the files of a model', () => {
  test('is refused while its repository is being downloaded', async () => {
    publish();
    const run = await rig(`${until('go')}\n${failed}`);
    await run.start(model);
    const work = (): Promise<void> => Promise.reject(new Error('this is not to be done'));
    expect(await refusal(run.downloads.keepOut('me/model:Q8_0', work))).toMatchObject({
      code: 'model_downloading',
      status: 400,
    });
    await run.downloads.keepOut('me/other:Q4_0', () => Promise.resolve());
    go('go');
    await run.ended(model);
    await run.downloads.keepOut('me/model:Q8_0', () => Promise.resolve());
  });

  test('has downloads of its repository wait, and itself for earlier work', async () => {
    publish();
    const run = await rig(`touch "$GOODS.started"\n${bring}\n${finished}`);
    const steps: string[] = [];
    let endFirst: () => void = () => undefined;
    const first = run.downloads.keepOut('me/model:Q8_0', () => {
      steps.push('first');
      return new Promise<void>((resolve) => (endFirst = resolve));
    });
    const second = run.downloads.keepOut('me/model:Q2_K', () => Promise.resolve(steps.push('second')));
    await run.start(model);
    expect(steps).toEqual(['first']);
    expect(existsSync(join(goods, 'cache.started'))).toBe(false);
    endFirst();
    await Promise.all([first, second]);
    expect(steps).toEqual(['first', 'second']);
    expect((await run.ended(model)).type).toBe('download.finished');
  });

  test('that ends before it lets go of the files has downloads wait, and other work refused', async () => {
    publish();
    publish('me/other');
    const run = await rig(`touch "$GOODS.started.\${LLAMA_ARG_HF_REPO##*/}"\n${bring}\n${finished}`);
    const hasStarted = (name: string): boolean => existsSync(join(goods, `cache.started.${name}`));
    let letGo: () => void = () => undefined;
    const first = run.downloads.keepOut('me/model:Q8_0', (hold) => {
      hold(new Promise<void>((_, reject) => (letGo = () => reject(new Error('EIO')))));
      return Promise.reject(new Error('late'));
    });
    const second = refusal(run.downloads.keepOut('me/model:Q2_K', () => Promise.resolve()));
    await expect(first).rejects.toThrow('late');
    expect(await second).toMatchObject({ code: 'remove_failed', status: 500 });
    await run.downloads.keepOut('me/other:Q4_0', () => Promise.resolve());
    await run.start(model);
    // Another that is asked for later has come to its end by then.
    await run.start('me/other:Q4_0');
    await run.ended('me/other:Q4_0');
    expect([hasStarted('other:Q4_0'), hasStarted('model:Q4_0')]).toEqual([true, false]);
    letGo();
    expect((await run.ended(model)).type).toBe('download.finished');
    await run.downloads.keepOut('me/model:Q2_K', () => Promise.resolve());
  });

  test('that fails is not in the way of what follows', async () => {
    publish();
    const run = await rig(`${bring}\n${finished}`);
    const work = (): Promise<void> => Promise.reject(new Error('EACCES'));
    await expect(run.downloads.keepOut(model, work)).rejects.toThrow('EACCES');
    await run.start(model);
    expect((await run.ended(model)).type).toBe('download.finished');
  });
});

describe('closing while it is looked what a worker has brought', () => {
  test('finds that it has finished, though the catalog is closed and does not show the model', async () => {
    publish();
    const run = await rig(`${bring}\n${finished}`);
    const reload = run.catalog.reload.bind(run.catalog);
    run.catalog.reload = (options) => {
      run.catalog.close();
      void run.downloads.close();
      return reload(options);
    };
    await run.start(model);
    expect(await run.ended(model)).toEqual({ type: 'download.finished', model });
    expect(run.catalog.current.resolve(model)).toBeUndefined();
  });

  test('does not take what the hub was not asked any more for a failure of the hub', async () => {
    publish();
    const run = await rig(finished);
    await run.start(model);
    hub.fault('refs', { kind: 'hang' });
    const asked = (): number => hub.requests.filter(({ route }) => route === 'refs').length;
    await eventually('the hub is asked again', () => asked() === 2);
    await run.downloads.close();
    expect(await run.ended(model)).toMatchObject({ type: 'download.failed', reason: 'shutting_down' });
  });
});

test('closing ends all workers at once, also deaf ones and those that wait, and keeps what has come', async () => {
  publish('me/model', ['model-Q4_0.gguf', 'model-Q8_0.gguf']);
  publish('me/other');
  const cache = tempDir();
  const file = join(cache, 'partial.downloadInProgress');
  const run = await rig(`trap '' TERM\necho some > "${file}"\nwhile :; do sleep 0.1; done`, { cache });
  for (const name of [model, 'me/model:Q8_0', 'me/other']) await run.start(name);
  await eventually('bytes arrive', () => existsSync(file));
  await withDeadline('all are gone', run.downloads.close(), 2_000);
  expect(run.downloads.list().filter(({ state }) => state === 'downloading')).toEqual([]);
  const ends = run.events.filter(({ type }) => type === 'download.failed');
  expect(ends).toHaveLength(3);
  expect(ends.every((event) => 'reason' in event && event.reason === 'shutting_down')).toBe(true);
  expect(existsSync(file)).toBe(true);
});

test('a hub that speaks through the log of a worker cannot fill the memory with files', async () => {
  publish();
  const step = "printf '\\ncmd_child_to_router:state:" + '{"state":"downloading","payload":';
  const many = `i=0; while [ $i -lt 600 ]; do ${step}{"url":"u%s","downloaded":1,"total":2}}\\n' $i; i=$((i+1)); done`;
  const run = await rig(`${many}\nexit 1`);
  await run.start(model);
  await run.ended(model);
  expect(Object.keys(run.downloads.list()[0]?.progress ?? {})).toHaveLength(512);
});
