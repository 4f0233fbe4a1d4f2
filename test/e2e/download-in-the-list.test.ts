import { readdirSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { sayingItsName, writeHubModel } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { startStandInHub } from '../helpers/stand-in-hub.js';
import { eventually } from '../helpers/eventually.js';
import { tempDir } from '../helpers/temp-dir.js';
import { chat, errorIn, listModels, modelEntry, post, question } from '../helpers/supervisor-client.js';

it('a model that is being downloaded is listed, refused with 400, and cancelled by an unload', async () => {
  const hub = await startStandInHub();
  hub.publish('me/model', {
    'model-Q4_0.gguf': knownAnswerModel({ name: 'me', ...sayingItsName('me') }),
  });
  hub.fault('resolve', { kind: 'trickle', pieceBytes: 1024, pauseMs: 100 });
  const { url } = await startRealSupervisor({ env: { HF_ENDPOINT: hub.endpoint } });
  const id = 'me/model:Q4_0';

  expect(await post(url, '/models', { model: id })).toMatchObject({ status: 200, json: { success: true } });
  expect(await modelEntry(url, id)).toMatchObject({
    status: { value: 'downloading' },
    source: 'cache',
    can_remove: true,
  });
  const refused = await post(url, '/v1/chat/completions', question(id));
  expect({ status: refused.status, type: errorIn(refused.text).type }).toEqual({
    status: 400,
    type: 'invalid_request_error',
  });

  expect((await post(url, '/models/unload', { model: id })).status).toBe(200);
  await eventually('it is not listed any more', async () => (await listModels(url)).length === 0);
  hub.fault('resolve', undefined);
  expect((await post(url, '/models', { model: id })).status).toBe(200);
  await eventually('it is there', async () => {
    const entry = (await listModels(url)).find((model) => model.id === id);
    return entry?.status.value === 'unloaded';
  });
  expect(await chat(url, id)).toContain('I am me');
});

it('a model whose file is not whole is downloaded again under its name, and listed once meanwhile', async () => {
  const hub = await startStandInHub();
  const bytes = knownAnswerModel({ name: 'me', ...sayingItsName('me') });
  hub.publish('me/model', { 'model-Q4_0.gguf': bytes });
  const cache = tempDir();
  await writeHubModel(cache, 'me/model', 'model-Q4_0.gguf', sayingItsName('me'));
  const blobs = join(cache, 'models--me--model', 'blobs');
  for (const name of readdirSync(blobs)) truncateSync(join(blobs, name), bytes.length / 2);
  const { url } = await startRealSupervisor({ env: { HF_ENDPOINT: hub.endpoint, LLAMA_CACHE: cache } });
  const id = 'me/model:Q4_0';
  await eventually(
    'it is known to be broken',
    async () => (await modelEntry(url, id)).status.failed === true,
  );

  hub.fault('resolve', { kind: 'trickle', pieceBytes: 1024, pauseMs: 100 });
  expect(await post(url, '/models', { model: id })).toMatchObject({ status: 200, json: { success: true } });
  expect((await listModels(url)).map((model) => [model.id, model.status.value])).toEqual([
    [id, 'downloading'],
  ]);
  hub.fault('resolve', undefined);
  expect((await post(url, '/models/unload', { model: id })).status).toBe(200);
  await eventually(
    'it is listed as before',
    async () => (await modelEntry(url, id)).status.value === 'unloaded',
  );
});
