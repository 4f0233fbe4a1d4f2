import { expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, modelEntry, post, streamChat, untilStatus } from '../helpers/supervisor-client.js';

it('a model is loaded and unloaded by hand', async () => {
  const dir = await writeModels({ handmade: sayingItsName('handmade') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const load = () => post(url, '/models/load', { model: 'handmade' });
  const unload = () => post(url, '/models/unload', { model: 'handmade' });

  expect(await load()).toMatchObject({ status: 200, json: { success: true } });
  const { pid } = await untilStatus(url, 'handmade', 'loaded');
  expect(await load()).toMatchObject({
    status: 400,
    json: { error: { message: 'model is already running' } },
  });
  expect(await chat(url, 'handmade')).toBe(nameAnswer('handmade'));
  expect((await modelEntry(url, 'handmade')).pid).toBe(pid);

  expect(await unload()).toMatchObject({ status: 200, json: { success: true } });
  const { status } = await untilStatus(url, 'handmade', 'unloaded');
  for (const sign of ['failed', 'exit_code', 'error']) expect(status).not.toHaveProperty(sign);
  expect(await unload()).toMatchObject({ status: 400, json: { error: { message: 'model is not running' } } });

  expect(await post(url, '/models/load', { model: 'nobody' })).toMatchObject({ status: 404 });
  expect(await post(url, '/models/unload', { model: 'nobody' })).toMatchObject({ status: 400 });
});

it('a load when all slots are busy takes its turn, and is withdrawn when its client leaves', async () => {
  const dir = await writeModels({
    busy: endless(),
    first: sayingItsName('first'),
    second: sayingItsName('second'),
  });
  const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
  const { url } = supervisor;
  const stream = streamChat(url, 'busy');
  await stream.untilPieces(1);

  const withdrawn = rawExchange(`${url}/models/load`, jsonPost({ model: 'first' }));
  await eventually('the first load waits', async () => (await modelEntry(url, 'first')).waiting === 1);
  let answered = false;
  const load = post(url, '/models/load', { model: 'second' }).finally(() => (answered = true));
  await eventually('the second load waits', async () => (await modelEntry(url, 'second')).waiting === 1);
  withdrawn.abort();
  await eventually('the first load is withdrawn', async () => (await modelEntry(url, 'first')).waiting === 0);
  expect(answered).toBe(false);

  stream.abort();
  expect(await load).toMatchObject({ status: 200, json: { success: true } });
  await untilStatus(url, 'second', 'loaded');
  expect(supervisor.log().filter(({ msg, model }) => msg === 'model.loading' && model === 'first')).toEqual(
    [],
  );
});

it('an unload lets a stream come to its end, and a request meanwhile is served by the next instance', async () => {
  const talker = endless();
  const dir = await writeModels({ talker });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const stream = streamChat(url, 'talker', { max_tokens: 5000 });
  await stream.untilPieces(1);
  const { pid } = await modelEntry(url, 'talker');

  expect(await post(url, '/models/unload', { model: 'talker' })).toMatchObject({ status: 200 });
  expect(stream.events()).not.toContain('[DONE]');
  const meanwhile = chat(url, 'talker', { max_tokens: 2 });

  expect((await stream.ended()).complete).toBe(true);
  expect(stream.pieces()).toEqual(piecesOf(talker, 5000));
  expect(stream.events().at(-1)).toBe('[DONE]');
  expect(await meanwhile).toBe('lap-1 lap-2');
  const next = await modelEntry(url, 'talker');
  expect(next.status.value).toBe('loaded');
  expect(next.pid).not.toBe(pid);
});

it('a model that is idle for --sleep-idle-seconds sleeps, and wakes for a request', async () => {
  const dir = await writeModels({ sleepy: sayingItsName('sleepy') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--sleep-idle-seconds', '1'] });
  expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
  // Looking at it, as this does, is no use that keeps it awake.
  const { pid } = await untilStatus(url, 'sleepy', 'sleeping');
  // These would wake it in the child.
  for (const path of ['/slots?model=sleepy', '/lora-adapters?model=sleepy']) {
    const { status, json } = await get(url, path);
    expect({ status, json }).toMatchObject({
      status: 400,
      json: { error: { message: 'model is not loaded' } },
    });
  }
  expect((await get(url, '/props?model=sleepy')).status).toBe(200);
  expect((await modelEntry(url, 'sleepy')).status.value).toBe('sleeping');
  expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
  expect(await modelEntry(url, 'sleepy')).toMatchObject({ pid, status: { value: 'loaded' } });
});
