/** A load is a job of its own: it does not end with the client that asked for it, nor begin for one that has left. */
import OpenAI, { APIConnectionTimeoutError } from 'openai';
import { expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, modelEntry, post, question, streamChat, untilStatus } from '../helpers/supervisor-client.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { gatedLlamaServer } from './gated-llama-server.js';

const loadsOf = (supervisor: SupervisorProcess, model: string): number =>
  supervisor.log().filter((line) => line.msg === 'model.loading' && line['model'] === model).length;

const untilWaiting = (url: string, model: string, count: number): Promise<unknown> =>
  eventually(
    `${count} wait for ${model}`,
    async () => (await modelEntry(url, model)).waiting === count || undefined,
  );

it('the time-out of a client does not end a load that others wait for', async () => {
  const gated = gatedLlamaServer();
  const dir = await writeModels({ slow: sayingItsName('slow') });
  const supervisor = await startSupervisor({ llamaServer: gated.path, args: ['--models-dir', dir] });
  const { url } = supervisor;

  const patient = chat(url, 'slow');
  await untilWaiting(url, 'slow', 1);
  const hasty = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 500 });
  const given = { model: 'slow', messages: [{ role: 'user' as const, content: 'Who are you?' }] };
  await expect(hasty.chat.completions.create(given)).rejects.toThrow(APIConnectionTimeoutError);
  await untilWaiting(url, 'slow', 1);
  gated.open('slow');

  expect(await patient).toBe(nameAnswer('slow'));
  expect(loadsOf(supervisor, 'slow')).toBe(1);
});

it('a load that has begun goes on when the last who waited has left, and serves who comes next', async () => {
  const gated = gatedLlamaServer();
  const dir = await writeModels({ slow: sayingItsName('slow'), other: sayingItsName('other') });
  const supervisor = await startSupervisor({
    llamaServer: gated.path,
    args: ['--models-dir', dir, '--models-max', '1'],
  });
  const { url } = supervisor;

  const leaving = rawExchange(`${url}/v1/chat/completions`, jsonPost(question('slow')));
  await untilWaiting(url, 'slow', 1);
  const { pid } = await modelEntry(url, 'slow');
  leaving.abort();
  await untilWaiting(url, 'slow', 0);
  gated.open('slow');
  await untilStatus(url, 'slow', 'loaded');

  const next = await post(url, '/v1/chat/completions', question('slow'));
  expect(next.status).toBe(200);
  expect(next.headers).not.toHaveProperty('server-timing');
  expect((await modelEntry(url, 'slow')).pid).toBe(pid);
  expect(loadsOf(supervisor, 'slow')).toBe(1);
  // It holds its slot like any idle model: no longer than nobody else needs it.
  gated.open('other');
  expect(await chat(url, 'other')).toBe(nameAnswer('other'));
});

it('what nobody waits for any more is not loaded, and costs no other model its slot', async () => {
  const talker = endless();
  const dir = await writeModels({ talker, wanted: sayingItsName('wanted') });
  const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
  const { url } = supervisor;

  const stream = streamChat(url, 'talker');
  await stream.untilPieces(10);
  const leaving = rawExchange(`${url}/v1/chat/completions`, jsonPost(question('wanted')));
  await untilWaiting(url, 'wanted', 1);
  leaving.abort();
  await untilWaiting(url, 'wanted', 0);
  stream.abort();
  await eventually('the talker is idle', async () => (await modelEntry(url, 'talker')).in_flight === 0);

  const again = streamChat(url, 'talker');
  await again.untilPieces(10);
  expect(again.pieces()).toEqual(piecesOf(talker, again.pieces().length));
  again.abort();
  expect(loadsOf(supervisor, 'talker')).toBe(1);
  expect(loadsOf(supervisor, 'wanted')).toBe(0);
});
