import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { EventSource } from 'eventsource';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { listenToModels } from '../helpers/model-events.js';
import { sigkill } from '../helpers/processes.js';
import { rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  get,
  listModels,
  modelEntry,
  post,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

async function pidOf(url: string, model: string): Promise<number> {
  const { pid } = await eventually(`${model} has a process`, async () => {
    const entry = await modelEntry(url, model);
    return entry.pid !== undefined && { pid: entry.pid };
  });
  return pid;
}

it('a load by a request is told from its beginning to its end, and with what the list says of it', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const heard = await listenToModels(url);
  expect(await chat(url, 'alpha')).toBe(nameAnswer('alpha'));
  expect(await heard.until('alpha status_change loaded')).toEqual([
    'alpha model_status loading',
    'alpha status_change loading',
    'alpha status_change loaded',
  ]);
  const progress = heard.all().flatMap(({ data }) => (data?.progress ? [data.progress] : []));
  expect(progress[0]).toEqual({ stages: ['text_model'], current: 'text_model', value: 0 });
  expect(progress.at(-1)).toMatchObject({ value: 1 });
  const { meta } = (await modelEntry(url, 'alpha')) as unknown as { meta: object };
  expect(heard.all().at(-1)?.data?.info).toMatchObject({ id: 'alpha', meta });
});

it('an eviction is told before the load that it makes room for', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
  await chat(url, 'alpha');
  const heard = await listenToModels(url);
  await chat(url, 'beta');
  expect(await heard.until('beta status_change loaded')).toEqual([
    'alpha status_change unloaded 0',
    'beta model_status loading',
    'beta status_change loading',
    'beta status_change loaded',
  ]);
  expect(heard.all()[0]?.data?.reason).toBe('evicted');
});

it('sleep and wake are told', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--sleep-idle-seconds', '1'] });
  await chat(url, 'alpha');
  const heard = await listenToModels(url);
  await heard.until('alpha status_change sleeping');
  await chat(url, 'alpha');
  expect(await heard.until('alpha status_change loaded')).toEqual([
    'alpha status_change sleeping',
    'alpha status_change loading',
    'alpha status_change loaded',
  ]);
  expect(heard.all().at(-1)).toEqual({
    model: 'alpha',
    event: 'status_change',
    data: { status: 'loaded' },
  });
});

it('a crash is told with what the process said last, and so is the load after it', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  await chat(url, 'alpha');
  const heard = await listenToModels(url);
  sigkill(await pidOf(url, 'alpha'));
  await heard.until('alpha status_change unloaded 1');
  const { error } = heard.all()[0]?.data ?? {};
  expect(error?.message).toBe('its process was ended by SIGKILL');
  expect(error?.last_lines.join('\n')).toContain('alpha.gguf');
  expect(await chat(url, 'alpha')).toBe(nameAnswer('alpha'));
  expect(await heard.until('alpha status_change loaded')).toEqual([
    'alpha status_change unloaded 1',
    'alpha model_status loading',
    'alpha status_change loading',
    'alpha status_change loaded',
  ]);
});

it('a load that fails is told with the reason', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, '[alpha]\nctx-size = nonsense\n');
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-preset', presets] });
  const heard = await listenToModels(url);
  await expect(chat(url, 'alpha')).rejects.toThrow('alpha answered 503');
  expect(await heard.until('alpha status_change unloaded 1')).toEqual([
    'alpha model_status loading',
    'alpha status_change unloaded 1',
  ]);
  const { error } = heard.all().at(-1)?.data ?? {};
  expect(error?.message).toBe('its process exited with code 1');
  expect(error?.last_lines.join('\n')).toContain('ctx-size');
});

it('a load that is given up is told as one that did not succeed, and is no failure of the model', async () => {
  const dir = await writeModels({ heavy: { ...sayingItsName('heavy'), extraBytes: 300e6 } });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const heard = await listenToModels(url);
  await post(url, '/models/load', { model: 'heavy' });
  // It is large enough to be held up before it is loaded.
  process.kill(await pidOf(url, 'heavy'), 'SIGSTOP');
  expect((await modelEntry(url, 'heavy')).status.value).toBe('loading');
  expect(await post(url, '/models/unload', { model: 'heavy' })).toMatchObject({ status: 200 });
  const story = await heard.until('heavy status_change unloaded 1');
  expect(story[0]).toBe('heavy model_status loading');
  expect(story).not.toContain('heavy status_change loaded');
  expect(heard.all().at(-1)?.data).toEqual({ status: 'unloaded', exit_code: 1, reason: 'unloaded' });
  expect((await modelEntry(url, 'heavy')).status).not.toHaveProperty('failed');
});

it('what changes on disk is told, and what comes of that after it', async () => {
  const dir = await writeModels({ gone: sayingItsName('gone'), changed: sayingItsName('changed') });
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, '[changed]\nctx-size = 256\n');
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-preset', presets] });
  await chat(url, 'gone');
  await chat(url, 'changed');
  const heard = await listenToModels(url);

  await writeModels({ late: sayingItsName('late') }, dir);
  expect(await heard.until('* models_reload')).toEqual(['* models_reload']);
  expect((await listModels(url)).map(({ id }) => id)).toEqual(['changed', 'gone', 'late']);

  rmSync(join(dir, 'gone.gguf'));
  await heard.until('* models_reload', 'gone status_change unloaded 0');
  expect(heard.all().at(-1)?.data?.reason).toBe('removed');

  writeFileSync(`${presets}.new`, '[changed]\nctx-size = 512\n');
  renameSync(`${presets}.new`, presets);
  await heard.until('* models_reload', 'changed status_change unloaded 0');
  expect(heard.all().at(-1)?.data?.reason).toBe('changed');
});

it('a look at the disk that finds it as it was tells nothing', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const heard = await listenToModels(url);
  expect((await get(url, '/models?reload=1')).status).toBe(200);
  await chat(url, 'alpha');
  expect((await heard.until('alpha status_change loaded'))[0]).toBe('alpha model_status loading');
});

it('several listeners hear the same while two models load and stop at once', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const all = await Promise.all([listenToModels(url), listenToModels(url), listenToModels(url)]);
  await Promise.all([chat(url, 'alpha'), chat(url, 'beta')]);
  await Promise.all(['alpha', 'beta'].map((model) => post(url, '/models/unload', { model })));
  for (const heard of all) {
    await heard.until('alpha status_change unloaded 0');
    await heard.until('beta status_change unloaded 0');
  }
  const [first, ...others] = all.map((heard) => heard.all());
  for (const other of others) expect(other).toEqual(first);
  for (const model of ['alpha', 'beta']) {
    const own = all[0].story().filter((line) => line.startsWith(`${model} `));
    expect([...new Set(own)]).toEqual([
      `${model} model_status loading`,
      `${model} status_change loading`,
      `${model} status_change loaded`,
      `${model} status_change unloaded 0`,
    ]);
  }
});

it('a shutdown ends the stream as a whole one at once, although a request is still being answered', async () => {
  const dir = await writeModels({ talker: endless() });
  const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--drain-timeout', '2'] });
  const { url } = supervisor;
  const answer = streamChat(url, 'talker');
  await answer.untilPieces(1);
  const heard = await listenToModels(url);
  const began = performance.now();
  const stopped = supervisor.stop();
  const { complete } = await heard.ended();
  expect(complete).toBe(true);
  expect(performance.now() - began).toBeLessThan(1_000);
  expect(supervisor.hasExited()).toBe(false);
  expect((await stopped).code).toBe(0);
});

it('the stream wants a key, has its place under --api-prefix, and answers HEAD', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({
    args: ['--models-dir', dir, '--api-key', 'secret', '--api-prefix', '/llama'],
  });
  expect(url).toMatch(/\/llama$/);
  const headers = { authorization: 'Bearer secret' };
  expect((await rawRequest(`${url}/models/sse`)).status).toBe(401);
  expect(await rawRequest(`${url}/models/sse`, { method: 'HEAD', headers })).toMatchObject({
    status: 200,
    headers: { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' },
    complete: true,
  });
  const heard = await listenToModels(url, headers);
  await post(url, '/models/load', { model: 'alpha' }, headers);
  await heard.until('alpha status_change loaded');
});

it('an EventSource gets the records as its messages', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const source = new EventSource(`${url}/models/sse`);
  atEndOfTest(() => source.close());
  const messages: unknown[] = [];
  source.onmessage = ({ data }) => messages.push(JSON.parse(data as string));
  await eventually('it is open', () => source.readyState === EventSource.OPEN);
  await chat(url, 'alpha');
  await untilStatus(url, 'alpha', 'loaded');
  await eventually('it has heard of the end of the load', () =>
    messages.some((message) => (message as { data?: { status?: string } }).data?.status === 'loaded'),
  );
  expect(messages[0]).toEqual({ model: 'alpha', event: 'model_status', data: { status: 'loading' } });
});
