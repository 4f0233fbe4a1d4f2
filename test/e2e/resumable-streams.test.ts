import { randomUUID } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { counting, endless, writeModels } from '../helpers/known-answer-models.js';
import { sigkill } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  busySlots,
  chat,
  errorIn,
  get,
  modelEntry,
  post,
  question,
  untilStatus,
} from '../helpers/supervisor-client.js';

/** The native router's delay of loads and of requests, for whatever has to happen meanwhile. */
const fakeTiming = { LLAMA_SERVER_DEBUG_FAKE_TIMING: '1' };

/** Longest wait for an answer to end once it was stopped. Milliseconds. */
const endMs = 15_000;

/** A streamed chat that can be read on by its id. */
function resumableChat(url: string, model: string, id: string, more: object = {}): RawExchange {
  const request = jsonPost({ ...question(model), stream: true, ...more });
  const exchange = rawExchange(`${url}/v1/chat/completions`, {
    ...request,
    headers: { ...request.headers, 'X-Conversation-Id': id },
  });
  exchange.ended.catch(() => undefined);
  atEndOfTest(() => exchange.abort());
  return exchange;
}

function streamPath(id: string, from?: number): string {
  return `/v1/stream?conv_id=${encodeURIComponent(id)}${from === undefined ? '' : `&from=${from}`}`;
}

function stop(url: string, id: string): Promise<number> {
  return rawRequest(url + streamPath(id), { method: 'DELETE' }).then(({ status }) => status);
}

async function lookUp(url: string, ids: unknown): Promise<unknown> {
  return (await post(url, '/v1/streams/lookup', { conversation_ids: ids })).json;
}

async function untilReceived(exchange: RawExchange, bytes: number): Promise<void> {
  await eventually(`${bytes} bytes of the answer`, () => exchange.received().length >= bytes);
}

describe('an answer with an X-Conversation-Id', () => {
  it('is finished when its client leaves, and read on from any byte', async () => {
    const dir = await writeModels({ counter: { ...counting(3_000), contextLength: 8192 } });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--ctx-size', '8192'] });
    const id = `${randomUUID()}::counter`;
    const first = resumableChat(url, 'counter', id);
    await untilReceived(first, 5_000);
    first.abort();
    const seen = first.received();

    const rest = await rawRequest(url + streamPath(id, seen.length));
    expect(rest.status).toBe(200);
    expect(rest.headers['content-type']).toMatch(/^text\/event-stream/);
    expect(rest.headers['x-accel-buffering']).toBe('no');
    expect(rest.complete).toBe(true);
    const whole = await rawRequest(url + streamPath(id, 0));
    expect(Buffer.concat([seen, rest.body]).equals(whole.body)).toBe(true);
    expect(whole.body.toString()).toMatch(/3000.*data: \[DONE\]\n\n$/s);

    expect(await lookUp(url, [id])).toMatchObject([
      { conversation_id: id, is_done: true, total_bytes: whole.body.length },
    ]);
    // The child's own words about an offset that is none.
    expect((await get(url, `${streamPath(id)}&from=x`)).status).toBe(400);
  });

  it('is gone with the process that gave it, also while another is loading in its place', async () => {
    const dir = await writeModels({ counter: counting(20) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir], env: fakeTiming });
    const id = `${randomUUID()}::counter`;
    const { body } = await resumableChat(url, 'counter', id).ended;
    expect((await rawRequest(url + streamPath(id, 0))).body.equals(body)).toBe(true);
    await post(url, '/models/unload', { model: 'counter' });
    await untilStatus(url, 'counter', 'unloaded');

    const again = chat(url, 'counter');
    await untilStatus(url, 'counter', 'loading');
    const unknown = { code: 404, reason: 'stream_unknown' };
    expect(errorIn(await get(url, streamPath(id, 0)).then(({ text }) => text))).toMatchObject(unknown);
    await again;
    expect(errorIn(await get(url, streamPath(id, 0)).then(({ text }) => text))).toMatchObject(unknown);
    expect(await lookUp(url, [id])).toEqual([]);
    expect(await stop(url, id)).toBe(204);
  });

  it('keeps its model while nobody reads it, and lets it go when it is stopped', async () => {
    const dir = await writeModels({ talker: endless(), other: counting(3) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    const first = resumableChat(url, 'talker', 'talk', { max_tokens: -1 });
    await untilReceived(first, 1_000);
    first.abort();
    const other = chat(url, 'other');
    await eventually('the other waits', async () => (await modelEntry(url, 'other')).waiting === 1);
    // Its client has gone, and it is still being written.
    const [before] = (await lookUp(url, ['talk'])) as { is_done: boolean; total_bytes: number }[];
    expect(before?.is_done).toBe(false);
    await eventually('more of it', async () => {
      const [now] = (await lookUp(url, ['talk'])) as { total_bytes: number }[];
      return (now?.total_bytes ?? 0) > (before?.total_bytes ?? Infinity);
    });
    expect((await modelEntry(url, 'talker')).in_flight).toBe(1);

    expect(await stop(url, 'talk')).toBe(204);
    expect(await other).toBe('1 2 3');
    const gone = await get(url, streamPath('talk'));
    expect(gone.status).toBe(404);
    expect(errorIn(gone.text).message).toBe('Stream not found or expired');
  });

  it('that is being read on keeps its model, too', async () => {
    const dir = await writeModels({ talker: endless(), other: counting(3) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    const first = resumableChat(url, 'talker', 'a b/c&d', { max_tokens: -1 });
    await untilReceived(first, 1_000);
    first.abort();
    const replay = rawExchange(url + streamPath('a b/c&d', 0));
    atEndOfTest(() => replay.abort());
    await untilReceived(replay, 1_000);
    const other = chat(url, 'other');
    await eventually('the other waits', async () => (await modelEntry(url, 'other')).waiting === 1);
    expect((await modelEntry(url, 'talker')).in_flight).toBe(2);
    const sofar = replay.received().length;
    await untilReceived(replay, sofar + 1_000);
    expect(await stop(url, 'a b/c&d')).toBe(204);
    await withDeadline('the end of what was read on', replay.ended, endMs);
    expect(await other).toBe('1 2 3');
  });

  it('can be read on when its model has gone to sleep, which does not wake it', async () => {
    const dir = await writeModels({ counter: counting(20) });
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir, '--sleep-idle-seconds', '1'],
    });
    const answer = await resumableChat(url, 'counter', 'nap').ended;
    await untilStatus(url, 'counter', 'sleeping');
    const again = await rawRequest(url + streamPath('nap', 0));
    expect({ status: again.status, body: again.body.toString() }).toEqual({
      status: 200,
      body: answer.body.toString(),
    });
    expect(await lookUp(url, ['nap'])).toMatchObject([{ conversation_id: 'nap', is_done: true }]);
    expect((await modelEntry(url, 'counter')).status.value).toBe('sleeping');
  });

  it('whose client leaves during the load is given all the same: 503 first, then the answer', async () => {
    const dir = await writeModels({ counter: counting(20) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir], env: fakeTiming });
    const first = resumableChat(url, 'counter', 'early');
    await untilStatus(url, 'counter', 'loading');
    first.abort();
    const early = await get(url, streamPath('early', 0));
    expect(early.status).toBe(503);
    expect(early.headers['retry-after']).toBe('2');
    expect(errorIn(early.text)).toMatchObject({
      message: 'Stream owner model is loading, retry later',
      type: 'unavailable_error',
    });
    const body = await eventually('the answer', async () => {
      const { status, text } = await get(url, streamPath('early', 0));
      return status === 200 ? text : undefined;
    });
    expect(body).toMatch(/20.*\[DONE\]\n\n$/s);
  });

  it('that is stopped while its model loads is never begun', async () => {
    const dir = await writeModels({ talker: endless() });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir], env: fakeTiming });
    const first = resumableChat(url, 'talker', 'halt', { max_tokens: -1 });
    await untilStatus(url, 'talker', 'loading');
    expect(await stop(url, 'halt')).toBe(204);
    const { status, body } = await withDeadline('the refusal', first.ended, endMs);
    expect(status).toBe(400);
    expect(errorIn(body.toString()).message).toBe('request cancelled by a stop while the model was loading');
    expect((await get(url, streamPath('halt'))).status).toBe(404);
  });

  it('that is stopped while it is written leaves no slot at work', async () => {
    const dir = await writeModels({ talker: endless() });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    const first = resumableChat(url, 'talker', 'long', { max_tokens: -1 });
    await untilReceived(first, 1_000);
    expect(await stop(url, 'long')).toBe(204);
    await withDeadline('its end', first.ended, endMs);
    await eventually('an idle child', async () => (await busySlots(url, 'talker')) === 0);
    await eventually('no lease', async () => (await modelEntry(url, 'talker')).in_flight === 0);
  });

  it('that nobody reads does not hold up the end of the supervisor, and one that is read does', async () => {
    const dir = await writeModels({ talker: endless() });
    const end = async (drainSeconds: number, isRead: boolean): Promise<number> => {
      const args = ['--models-dir', dir, '--drain-timeout', String(drainSeconds)];
      const supervisor = await startRealSupervisor({ args });
      const chat = resumableChat(supervisor.url, 'talker', 'last', { max_tokens: -1 });
      await untilReceived(chat, 1_000);
      if (!isRead) chat.abort();
      const before = performance.now();
      // Rejects when it takes longer than 15 s.
      expect((await supervisor.stop()).code).toBe(0);
      return performance.now() - before;
    };
    await end(600, false);
    expect(await end(3, true)).toBeGreaterThan(3_000);
  });

  it('that its child loses says so to who reads it on, whether or not somebody was reading it then', async () => {
    const dir = await writeModels({ talker: endless() });
    const supervisor = await startRealSupervisor({ args: ['--models-dir', dir] });
    const { url } = supervisor;
    for (const leaves of [true, false]) {
      const id = leaves ? 'left' : 'stayed';
      const first = resumableChat(url, 'talker', id, { max_tokens: -1 });
      await untilReceived(first, 1_000);
      if (leaves) {
        first.abort();
        // Its line is written when the client has gone, and the answer goes on.
        await eventually('its client is known to have left', () =>
          supervisor.log().some(({ msg, clientGone }) => msg === 'request' && clientGone === true),
        );
      }
      const { pid } = await modelEntry(url, 'talker');
      sigkill(pid ?? 0);
      await untilStatus(url, 'talker', 'unloaded');
      const { message } = await eventually('what became of it', async () => {
        const { status, text } = await get(url, streamPath(id));
        const error = status === 404 && errorIn(text);
        return error && error.message.includes('SIGKILL') && error;
      });
      expect(message).toMatch(
        /^Stream not found or expired: model name=talker failed while it was answering/,
      );
    }
    await eventually('a line of the log', () =>
      supervisor
        .log()
        .some(({ msg, model }) => msg === 'failed after its client had left' && model === 'talker'),
    );
  });

  it('is superseded by the next one of its conversation', async () => {
    const dir = await writeModels({ talker: endless(), counter: counting(5) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir], env: fakeTiming });
    const first = resumableChat(url, 'talker', 'same', { max_tokens: -1 });
    await untilStatus(url, 'talker', 'loading');
    const second = resumableChat(url, 'counter', 'same');
    expect((await withDeadline('the refusal of the first', first.ended, endMs)).status).toBe(400);
    const { status, body } = await withDeadline('the second', second.ended, endMs);
    expect(status).toBe(200);
    expect((await get(url, streamPath('same', 0))).text).toBe(body.toString());
  });
});

describe('the stream routes', () => {
  it('look up the answers of several models, and only those that are asked for', async () => {
    const dir = await writeModels({ alpha: counting(3), beta: counting(4) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    for (const [model, id] of [
      ['alpha', 'one'],
      ['beta', 'two'],
      ['alpha', 'three'],
    ] as const) {
      await resumableChat(url, model, id).ended;
    }
    const found = (await lookUp(url, ['one', 'two', 'unknown', 7, ''])) as { conversation_id: string }[];
    expect(found.map(({ conversation_id }) => conversation_id).sort()).toEqual(['one', 'two']);
    expect(await lookUp(url, [])).toEqual([]);
    expect(await lookUp(url, 'one')).toEqual([]);
    const broken = await rawRequest(`${url}/v1/streams/lookup`, { method: 'POST', body: '{' });
    expect({ status: broken.status, body: broken.body.toString() }).toEqual({ status: 200, body: '[]' });
  });

  it('name what is missing, and know nothing of what was never said', async () => {
    const dir = await writeModels({ alpha: counting(3) });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    for (const method of ['GET', 'DELETE']) {
      const { status, body } = await rawRequest(`${url}/v1/stream`, { method });
      expect(status).toBe(400);
      expect(errorIn(body.toString()).message).toBe('Missing conversation id in path');
    }
    expect((await get(url, streamPath('never'))).status).toBe(404);
    expect(await stop(url, 'never')).toBe(204);
    // An answer of a model that is no longer there is gone with it.
    await resumableChat(url, 'alpha', 'past').ended;
    await post(url, '/models/unload', { model: 'alpha' });
    await untilStatus(url, 'alpha', 'unloaded');
    expect((await get(url, streamPath('past'))).status).toBe(404);
    expect((await modelEntry(url, 'alpha')).status.value).toBe('unloaded');
  });
});
