import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { endless, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { busySlots, get, post, question } from '../helpers/supervisor-client.js';

it('under a prefix an answer is read on, looked up and stopped', async () => {
  const modelsDir = await writeModels({ talker: endless() });
  const { url } = await startRealSupervisor({
    args: ['--models-dir', modelsDir, '--api-prefix', '/llama/v2'],
  });
  const { headers, ...request } = jsonPost({ ...question('talker'), stream: true, max_tokens: -1 });
  const first = rawExchange(`${url}/v1/chat/completions`, {
    ...request,
    headers: { ...headers, 'X-Conversation-Id': 'talk' },
  });
  atEndOfTest(() => first.abort());
  first.ended.catch(() => undefined);
  await eventually('some of the answer', () => first.received().length > 1_000);
  first.abort();
  const seen = first.received();

  const replay = rawExchange(`${url}/v1/stream?conv_id=talk&from=0`);
  atEndOfTest(() => replay.abort());
  replay.ended.catch(() => undefined);
  await eventually('the same again, and more', () => replay.received().length > seen.length);
  expect(replay.received().subarray(0, seen.length).equals(seen)).toBe(true);
  const known = await post(url, '/v1/streams/lookup', { conversation_ids: ['talk'] });
  expect(known.json).toMatchObject([{ conversation_id: 'talk', is_done: false }]);

  expect((await rawRequest(`${url}/v1/stream?conv_id=talk`, { method: 'DELETE' })).status).toBe(204);
  await eventually('the model is at rest', async () => (await busySlots(url, 'talker')) === 0);
  expect((await get(url, '/v1/stream?conv_id=talk')).status).toBe(404);
});
