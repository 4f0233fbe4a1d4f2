/** Children that hang while they have requests, end to end. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { counting, endless, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseEvents } from '../helpers/sse.js';
import { serveFakes } from '../http/serve-fakes.js';
import { chat, errorIn, modelEntry, question, untilStatus } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

it('a frozen model is noticed, its clients are told, and the next request is served by a new one', async () => {
  const dir = await writeModels({ talker: endless(), other: counting(3) });
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, '[*]\nstop-timeout = 2\n');
  const { url } = await startRealSupervisor({
    args: ['--models-dir', dir, '--hang-timeout', '2', '--models-max', '2', '--models-preset', presets],
  });
  expect(await chat(url, 'other')).toBe('1 2 3');
  const stream = rawExchange(
    `${url}/v1/chat/completions`,
    jsonPost({ ...question('talker'), stream: true, max_tokens: -1 }),
  );
  await eventually('the answer has begun', () => stream.received().length > 1_000);
  const { pid = 0 } = await modelEntry(url, 'talker');
  process.kill(pid, 'SIGSTOP');

  const { body, complete } = await withDeadline('the client is told', stream.ended, 30_000);
  expect(complete).toBe(false);
  const error = errorIn(sseEvents(body).at(-1)?.data ?? '');
  expect(error.message).toContain('made no progress for');
  expect(error.message).toContain('--hang-timeout');
  // Meanwhile nobody else is disturbed.
  expect(await chat(url, 'other')).toBe('1 2 3');
  await untilStatus(url, 'talker', 'unloaded');
  expect((await modelEntry(url, 'talker')).status).toMatchObject({ failed: true, error: { reason: 'hung' } });

  const again = rawExchange(
    `${url}/v1/chat/completions`,
    jsonPost({ ...question('talker'), stream: true, max_tokens: 20 }),
  );
  expect((await withDeadline('the next answer', again.ended, 30_000)).complete).toBe(true);
  expect((await modelEntry(url, 'talker')).pid).not.toBe(pid);
});

it('a model that cuts every connection is asked for a token itself, and replaced, though its /health is well', async () => {
  const service = await serveFakes({ models: { deaf: { byStart: [{ breaksOff: true }] }, other: {} } });
  const ask = () => rawRequest(`${service.url}/infill`, jsonPost({ model: 'deaf' }));
  expect((await ask()).status).toBe(502);
  const { pid } = await service.entry('deaf');
  const statuses: number[] = [];
  await eventually(
    'it is replaced',
    async () => {
      statuses.push((await ask()).status);
      return statuses.at(-1) === 200;
    },
    { deadlineMs: 60_000 },
  );
  expect(statuses.slice(0, -1).every((status) => status === 502)).toBe(true);
  expect((await service.entry('deaf')).pid).not.toBe(pid);
  const hung = service.supervisor.log().find(({ msg }) => msg === 'hangs; stopping it');
  expect(hung?.['reason']).toMatch(
    /^broke off the last \d+ requests \(.*\) and broke off two one-token completions, too/,
  );
  expect(await service.use('other')).toMatchObject({ alias: 'other' });
});
