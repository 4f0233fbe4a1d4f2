/** A load that runs out of the device's memory, and what is done to make room for it: whole processes. */
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import type { FakeBehaviour } from '../helpers/fake-llama-server.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { serveFakes, wireError } from '../http/serve-fakes.js';

const words =
  'ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of memory';
const noRoom: FakeBehaviour = { exitWhileLoading: { code: 1, lines: [words] } };

/** A model that is idle, one in the middle of an answer, and one that does not fit beside the first. */
async function crowded(large: FakeBehaviour) {
  const service = await serveFakes({
    models: { idle: {}, busy: { tokenIntervalMs: 20 }, large },
    args: ['--models-max', '0'],
  });
  const stream = rawExchange(
    `${service.url}/v1/completions`,
    jsonPost({ model: 'busy', stream: true, max_tokens: -1 }),
  );
  atEndOfTest(() => stream.abort());
  await service.use('idle');
  await eventually('it streams', () => sseData(stream.received()).length > 0);
  const said = (msg: string) => service.supervisor.log().filter((line) => line.msg === msg);
  const ask = () =>
    withDeadline('an answer', rawRequest(`${service.url}/infill`, jsonPost({ model: 'large' })), 30_000);
  return { service, stream, said, ask };
}

it('the idle one is stopped, and its client is served by the second try', async () => {
  const { service, stream, said, ask } = await crowded({ byStart: [noRoom] });
  expect((await ask()).status).toBe(200);
  expect(service.journal.of('start', 'large')).toHaveLength(2);
  expect((await service.entry('idle')).status.value).toBe('unloaded');
  await eventually('it is said', () => said('model.retrying').length > 0);
  expect(said('model.retrying')).toMatchObject([
    { model: 'large', evicted: ['idle'], reason: expect.stringContaining('ran out of') as string },
  ]);
  expect(said('model.stopping')).toMatchObject([{ model: 'idle', reason: 'evicted' }]);

  const before = sseData(stream.received()).length;
  await eventually('the busy one streams on', () => sseData(stream.received()).length > before);
  expect((await service.entry('busy')).status.value).toBe('loaded');
});

it('a second time it is refused, with what it ran out of and without whom', async () => {
  const { service, ask } = await crowded(noRoom);
  const answer = await ask();
  expect(answer.status).toBe(503);
  expect(Number(answer.headers['retry-after'])).toBeGreaterThan(0);
  const error = wireError(answer, 503, 'unavailable_error');
  expect(error).toMatchObject({ reason: 'out_of_memory', model: 'large' });
  expect(error.message).toContain('also without idle');
  expect(error.message).toContain("the device's memory");
  expect(error.message.split(words)).toHaveLength(2);
  expect(error['last_lines']).toContain(words);
  expect(service.journal.of('start', 'large')).toHaveLength(2);
  expect((await service.entry('large')).status.error).toMatchObject({ reason: 'out_of_memory' });
});
