import { expect, it } from 'vitest';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { sigkill } from '../helpers/processes.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { eventually } from '../helpers/eventually.js';
import {
  busySlots,
  chat,
  errorIn,
  modelEntry,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';

it('a crash in the middle of a stream is seen by its client, listed, mended, and felt by nobody else', async () => {
  const doomed = endless();
  const steady = endless('steady-');
  const dir = await writeModels({ doomed, steady });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  const bystander = streamChat(url, 'steady');
  const stream = streamChat(url, 'doomed');
  await Promise.all([bystander.untilPieces(10), stream.untilPieces(10)]);

  const { pid } = await modelEntry(url, 'doomed');
  if (pid === undefined) throw new Error('a loaded model is listed without its process');
  sigkill(pid);

  // The client: its words in order (the last event may be cut), an event that is an error, a connection that is cut.
  const { status, complete } = await stream.ended();
  expect({ status, complete }).toEqual({ status: 200, complete: false });
  expect(stream.pieces()).toEqual(piecesOf(doomed, stream.pieces().length));
  const error = errorIn(stream.events().at(-1) ?? '');
  expect(error).toMatchObject({ code: 502, type: 'server_error', reason: 'child_gone', model: 'doomed' });
  expect(error.message).toContain('SIGKILL');
  expect(stream.events()).not.toContain('[DONE]');

  // The list: the native form, and why.
  const failed = await untilStatus(url, 'doomed', 'unloaded');
  expect(failed.status).toMatchObject({ failed: true, exit_code: 1, error: { reason: 'crashed' } });
  expect(failed.status.error?.message).toContain('SIGKILL');

  // The next request: a new process, and no failure any more.
  expect(await chat(url, 'doomed', { max_tokens: 2 })).toBe('lap-1 lap-2');
  const again = await modelEntry(url, 'doomed');
  expect(again.status.value).toBe('loaded');
  expect(again.status.failed).toBeUndefined();
  expect(again.pid).not.toBe(pid);

  // The other model: its stream goes on as if nothing had been.
  await bystander.untilPieces(bystander.pieces().length + 200);
  expect(bystander.pieces()).toEqual(piecesOf(steady, bystander.pieces().length));
  bystander.abort();
});

it('a crash before an answer in one piece is a 502 in JSON that says why', async () => {
  const dir = await writeModels({ doomed: endless() });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  await chat(url, 'doomed', { max_tokens: 1 });
  const exchange = rawExchange(`${url}/v1/chat/completions`, jsonPost(question('doomed')));
  await eventually('it generates', async () => (await busySlots(url, 'doomed')) === 1);

  const { pid } = await modelEntry(url, 'doomed');
  if (pid === undefined) throw new Error('a loaded model is listed without its process');
  sigkill(pid);

  const { status, headers, body, complete } = await exchange.ended;
  expect({ status, complete }).toEqual({ status: 502, complete: true });
  expect(headers['content-type']).toMatch(/^application\/json/);
  const error = errorIn(body.toString());
  expect(error).toMatchObject({ code: 502, type: 'server_error', reason: 'child_gone', model: 'doomed' });
});

it('a crash while idle is listed, and the next request is answered by a new process', async () => {
  const dir = await writeModels({ idle: sayingItsName('idle') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
  await chat(url, 'idle');
  const { pid } = await modelEntry(url, 'idle');
  if (pid === undefined) throw new Error('a loaded model is listed without its process');
  sigkill(pid);
  const { status } = await untilStatus(url, 'idle', 'unloaded');
  expect(status).toMatchObject({ failed: true, error: { reason: 'crashed' } });
  expect(await chat(url, 'idle')).toBe(nameAnswer('idle'));
  expect((await modelEntry(url, 'idle')).pid).not.toBe(pid);
});
