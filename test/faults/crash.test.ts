import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
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
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { gatedLlamaServer } from './gated-llama-server.js';

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

/** What ends a process that fails: a wild pointer, an assertion, and somebody's `kill -9`. */
const crashes = ['SIGSEGV', 'SIGABRT', 'SIGKILL'] as const;

describe.each(crashes)('a process that is ended by %s', (signal) => {
  const steady = endless('steady-');
  let url: string;
  let supervisor: SupervisorProcess;

  beforeAll(async () => {
    const doomed = ['loading', 'idle', 'streaming', 'answering'].map((name) => [name, endless()] as const);
    const dir = await writeModels({ steady, ...Object.fromEntries(doomed) });
    supervisor = await startRealSupervisor({
      args: ['--models-dir', dir, '--models-max', '0', '--log-level', 'debug'],
    });
    ({ url } = supervisor);
  });

  /** What happens to one model, under the eyes of another one's client. */
  async function felt(happening: () => Promise<void>): Promise<void> {
    const bystander = streamChat(url, 'steady');
    await bystander.untilPieces(10);
    await happening();
    await bystander.untilPieces(bystander.pieces().length + 50);
    expect(bystander.pieces()).toEqual(piecesOf(steady, bystander.pieces().length));
    bystander.abort();
  }

  async function crash(model: string): Promise<void> {
    process.kill(await pidOf(url, model), signal);
  }

  it('while it loads is felt by nobody: those who wait are served by the next one', async () => {
    await felt(async () => {
      const { pid, waiting } = await frozenWhileLoading(supervisor, 'loading');
      process.kill(pid, signal);
      // It hears of the other two when it goes on.
      if (signal !== 'SIGKILL') process.kill(pid, 'SIGCONT');
      for (const { status, text } of await Promise.all(waiting)) {
        expect(status).toBe(200);
        expect(text).toContain('lap-1 lap-2');
      }
      const unloaded = await eventually('its end is told', () =>
        supervisor
          .log()
          .find(
            ({ msg, model, reason }) =>
              msg === 'model.unloaded' && model === 'loading' && reason !== 'unloaded',
          ),
      );
      expect(unloaded['reason']).toContain(`was ended by ${signal}`);
      expect(unloaded['lastLines']).not.toEqual([]);
    });
  });

  it('while it is idle is listed so, and nobody is told but who looks', async () => {
    await felt(async () => {
      await chat(url, 'idle', { max_tokens: 1 });
      await crash('idle');
      const { status } = await untilStatus(url, 'idle', 'unloaded');
      expect(status).toMatchObject({ failed: true, error: { reason: 'crashed' } });
      expect(status.error?.message).toContain(`was ended by ${signal}`);
      expect(await chat(url, 'idle', { max_tokens: 2 })).toBe('lap-1 lap-2');
    });
  });

  it('while it streams is seen by its client, with the signal and its last words', async () => {
    await felt(async () => {
      const stream = streamChat(url, 'streaming');
      await stream.untilPieces(10);
      await crash('streaming');
      expect(await stream.ended()).toMatchObject({ status: 200, complete: false });
      const error = errorIn(stream.events().at(-1) ?? '');
      expect(error).toMatchObject({ code: 502, reason: 'child_gone', model: 'streaming' });
      expect(error.message).toContain(`was ended by ${signal}`);
      expect(error.last_lines).not.toEqual([]);
      expect(await chat(url, 'streaming', { max_tokens: 2 })).toBe('lap-1 lap-2');
    });
  });

  it('before an answer in one piece is a 502 in JSON with the signal and its last words', async () => {
    await felt(async () => {
      await chat(url, 'answering', { max_tokens: 1 });
      const exchange = rawExchange(`${url}/v1/chat/completions`, jsonPost(question('answering')));
      await eventually('it generates', async () => (await busySlots(url, 'answering')) === 1);
      await crash('answering');
      const { status, body, complete } = await exchange.ended;
      expect({ status, complete }).toEqual({ status: 502, complete: true });
      const error = errorIn(body.toString());
      expect(error.message).toContain(`was ended by ${signal}`);
      expect(error.last_lines).not.toEqual([]);
      expect(await chat(url, 'answering', { max_tokens: 2 })).toBe('lap-1 lap-2');
    });
  });
});

it('a process that aborts as it wakes up says why, and no debugger reads its stack first', async () => {
  const dir = await writeModels({ sleeper: sayingItsName('sleeper') });
  const { url } = await startRealSupervisor({
    // A model whose file is seen to have gone is asked nothing any more.
    args: ['--models-dir', dir, '--sleep-idle-seconds', '1', '--no-watch'],
    env: { GGML_NO_BACKTRACE: undefined },
  });
  await chat(url, 'sleeper');
  await untilStatus(url, 'sleeper', 'sleeping');
  rmSync(join(dir, 'sleeper.gguf'));
  const { status, text } = await post(url, '/v1/chat/completions', question('sleeper'));
  expect(status).toBe(502);
  const error = errorIn(text);
  expect(error).toMatchObject({ reason: 'child_gone', model: 'sleeper' });
  const said = error.last_lines?.join('\n') ?? '';
  expect(said).toContain('failed to reload model after sleeping');
  expect(said).not.toMatch(/\[Inferior|ggml_print_backtrace|in main \(/);
});

async function pidOf(url: string, model: string): Promise<number> {
  const { pid } = await modelEntry(url, model);
  if (pid === undefined) throw new Error(`${model} is listed without its process`);
  return pid;
}

it('a process that is killed twice while it loads is an error for those who wait: 503 with the signal, and later it is served', async () => {
  const gated = gatedLlamaServer();
  const dir = await writeModels({ twice: sayingItsName('twice') });
  const supervisor = await startSupervisor({ llamaServer: gated.path, args: ['--models-dir', dir] });
  const { url } = supervisor;
  const waiting = [1, 2].map(() => post(url, '/v1/chat/completions', question('twice')));
  const first = await pidOfLoading(url, 'twice');
  sigkill(first);
  sigkill(await pidOfLoading(url, 'twice', first));
  for (const { status, text, headers } of await Promise.all(waiting)) {
    expect(status).toBe(503);
    expect(Number(headers['retry-after'])).toBeGreaterThan(0);
    const error = errorIn(text);
    expect(error).toMatchObject({ reason: 'load_failed', model: 'twice' });
    expect(error.message).toContain('was ended by SIGKILL');
  }
  const told = () =>
    supervisor.log().flatMap(({ msg, model }) => (model === 'twice' && msg !== 'request' ? [msg] : []));
  await eventually('its end is told', () => told().filter((msg) => msg === 'model.unloaded').length === 2);
  expect(told()).toEqual([
    ...['model.queued', 'model.loading', 'model.unloaded', 'model.retrying'],
    ...['model.loading', 'model.unloaded'],
  ]);
  gated.open('twice');
  await eventually(
    'its pause is over',
    async () => (await post(url, '/v1/chat/completions', question('twice'))).status === 200,
    { deadlineMs: 30_000 },
  );
});

/** The process of a model that is loading, other than the one that was. */
function pidOfLoading(url: string, model: string, before?: number): Promise<number> {
  return eventually(`${model} loads`, async () => {
    const { pid, status } = await modelEntry(url, model);
    return status.value === 'loading' && pid !== before && pid;
  });
}

/** Asks twice for a model, and stops its process when that has begun to load, and has said so. */
async function frozenWhileLoading(supervisor: SupervisorProcess, model: string) {
  const { url } = supervisor;
  const lines = () => supervisor.log().filter((line) => line['model'] === model);
  const body = { ...question(model), max_tokens: 2 };
  const stopped = async () => {
    const before = lines().length;
    const waiting = [1, 2].map(() => post(url, '/v1/chat/completions', body));
    const pid = await eventually(
      `${model} loads`,
      () =>
        lines()
          .slice(before)
          .find(({ msg }) => msg === 'child')?.['pid'] as number | undefined,
      { intervalMs: 1 },
    );
    process.kill(pid, 'SIGSTOP');
    if ((await modelEntry(url, model)).status.value === 'loading') return { pid, waiting };
    // It was faster than this process, which is busy.
    process.kill(pid, 'SIGCONT');
    await Promise.all(waiting);
    await post(url, '/models/unload', { model });
    await untilStatus(url, model, 'unloaded');
    return undefined;
  };
  return await eventually(`${model} is stopped as it loads`, stopped, { deadlineMs: 40_000 });
}
