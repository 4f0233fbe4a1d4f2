/** Failures of the native router on the way of a request, each shown by it, and what becomes of them here. */
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { counting, endless, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { openSocket } from '../http/raw-socket.js';
import { ask, startPair, type OracleRequest } from './http-oracle.js';
import { OracleHome, startNative } from './native-oracle.js';

/** More connections than the native router has threads, with one that is always there and 1024 that come and go. */
const manyClients = 1_100;

/** Long for an answer to `/health`, and less than the five seconds after which the native router lets go of a client. */
const soonMs = 2_500;

it('clients that say nothing keep nobody from being answered', async () => {
  const pair = await startPair({ models: { alpha: sayingItsName('alpha') }, args: ['--threads-http', '1'] });
  const isAnswered: Record<string, boolean> = {};
  for (const who of ['native', 'ours'] as const) {
    const clients = await connectMany(Number(new URL(pair[who]).port));
    const health = rawRequest(`${pair[who]}/health`).then(({ status }) => status === 200);
    isAnswered[who] = await Promise.race([health, delay(soonMs, false)]);
    for (const client of clients) client.destroy();
    expect(await withDeadline(`the answer of ${who} in the end`, health, 20_000)).toBe(true);
  }
  expect(isAnswered).toEqual({ native: false, ours: true });
});

async function connectMany(port: number): Promise<Socket[]> {
  const clients = Array.from({ length: manyClients }, () => connect(port, '127.0.0.1'));
  atEndOfTest(() => {
    for (const client of clients) client.destroy();
  });
  const connected = clients.map(
    (client) =>
      new Promise<void>((resolve, reject) => {
        client.once('connect', resolve).on('error', reject);
      }),
  );
  await withDeadline(`${manyClients} connections`, Promise.all(connected), 20_000);
  return clients;
}

it('a client may ask a model again on the connection that it has', async () => {
  const pair = await startPair({ models: { alpha: sayingItsName('alpha') } });
  const body = '{"model":"alpha","content":"x"}';
  const request = `POST /tokenize HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  const answered = /\{"tokens":\[\d+\]\}/g;

  const native = openSocket(Number(new URL(pair.native).port));
  native.send(request);
  expect(await native.closed('the connection to the native router')).toMatch(answered);

  const ours = openSocket(Number(new URL(pair.ours).port));
  for (let time = 1; time <= 3; time += 1) {
    ours.send(request);
    await eventually(`answer ${time}`, () => ours.received().match(answered)?.length === time);
  }
});

describe.skipIf(!canListProcesses)('a body of 20 MB (memory of a process in /proc)', () => {
  it('is held about once', async () => {
    const dir = await writeModels({ alpha: sayingItsName('alpha') });
    const args = ['--models-dir', dir, '--threads', '1'];
    const native = await startNative(new OracleHome(), { args });
    const ours = await startRealSupervisor({ args });
    const small: OracleRequest = {
      method: 'POST',
      path: '/tokenize',
      body: { model: 'alpha', content: 'x' },
    };
    const large = { ...small, body: { model: 'alpha', content: 'x', more: 'y'.repeat(20e6) } };
    const growth: Record<string, number> = {};
    for (const [who, { url, pid }] of Object.entries({ native, ours })) {
      expect((await ask(url, small)).status).toBe(200);
      const before = peakBytes(pid);
      expect((await ask(url, large)).status).toBe(200);
      growth[who] = peakBytes(pid) - before;
    }
    expect(growth['native']).toBeGreaterThan(150e6);
    expect(growth['ours']).toBeLessThan(75e6);
  });
});

/** The most memory that a process ever had. */
function peakBytes(pid: number): number {
  const [, kibibytes = ''] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kibibytes) * 1024;
}

it('an answer in one piece that is being given when the end is asked for is given', async () => {
  const dir = await writeModels({ talker: { ...endless(), contextLength: 8192 } });
  const args = ['--models-dir', dir, '--threads', '1', '--ctx-size', '8192', '--parallel', '1'];
  const native = await startNative(new OracleHome(), { args });
  const ours = await startRealSupervisor({ args });
  const whole: Record<string, boolean> = {};
  for (const [who, { url, pid }] of Object.entries({ native, ours })) {
    await ask(url, {
      method: 'POST',
      path: '/completion',
      body: { model: 'talker', prompt: 'x', n_predict: 1 },
    });
    const request = jsonPost({ model: 'talker', prompt: 'x', n_predict: 6_000 });
    const { ended } = rawExchange(`${url}/completion`, request);
    await eventually('it is being answered', async () => {
      const { body } = await ask(url, { path: '/slots?model=talker' });
      return (body as { is_processing: boolean }[])[0]?.is_processing === true;
    });
    process.kill(pid, 'SIGTERM');
    const answer = await withDeadline(`the answer of ${who}`, ended, 30_000).catch(() => undefined);
    whole[who] = answer?.complete === true && answer.body.toString().includes('"tokens_predicted":6000');
  }
  expect(whole).toEqual({ native: false, ours: true });
});

describe('an answer with an X-Conversation-Id', () => {
  const id = 'a::talker';
  const path = `/v1/stream?conv_id=${encodeURIComponent(id)}`;
  const stop: OracleRequest = { method: 'DELETE', path };
  const lookUp: OracleRequest = {
    method: 'POST',
    path: '/v1/streams/lookup',
    body: { conversation_ids: [id] },
  };

  /** A generation without an end whose client has left. */
  async function leaveTalking(url: string, headers: Readonly<Record<string, string>>): Promise<void> {
    const request = jsonPost({ model: 'talker', prompt: 'x', stream: true, n_predict: -1 });
    const exchange = rawExchange(`${url}/completion`, {
      ...request,
      headers: { ...request.headers, ...headers, 'X-Conversation-Id': id },
    });
    atEndOfTest(() => exchange.abort());
    await eventually('it has begun', () => exchange.received().length > 200);
    exchange.abort();
  }

  async function isTalking(url: string, headers: Readonly<Record<string, string>>): Promise<boolean> {
    const { body } = await ask(url, { path: '/slots?model=talker', headers });
    return (body as { is_processing: boolean }[]).some((slot) => slot.is_processing);
  }

  it.each<[string, string[], Record<string, string>, string, Record<string, string>]>([
    ['under --api-prefix', ['--api-prefix', '/llama'], {}, '/llama', {}],
    ['with LLAMA_API_KEY in the environment', [], { LLAMA_API_KEY: 'sesame' }, '', { 'X-Api-Key': 'sesame' }],
  ])('is looked up and stopped %s', async (_where, args, env, prefix, headers) => {
    const pair = await startPair({ models: { talker: endless() }, args: ['--parallel', '1', ...args], env });
    // Of ours the prefix is in the address already.
    const bases = { native: pair.native + prefix, ours: pair.ours };
    const found: Record<string, number> = {};
    for (const who of ['native', 'ours'] as const) {
      await leaveTalking(bases[who], headers);
      found[who] = ((await ask(bases[who], { ...lookUp, headers })).body as unknown[]).length;
      expect((await ask(bases[who], { ...stop, headers })).status).toBe(204);
    }
    expect(found).toEqual({ native: 0, ours: 1 });
    await eventually('ours has stopped', async () => !(await isTalking(bases.ours, headers)));
    expect(await isTalking(bases.native, headers)).toBe(true);
  });

  it('is read on under --api-prefix', async () => {
    const args = ['--api-prefix', '/llama'];
    const pair = await startPair({ models: { counter: counting(10) }, args });
    const request: OracleRequest = {
      method: 'POST',
      path: '/completion',
      body: { model: 'counter', prompt: 'x', stream: true },
      headers: { 'X-Conversation-Id': id },
    };
    const statuses: Record<string, number> = {};
    for (const [who, url] of [
      ['native', `${pair.native}/llama`],
      ['ours', pair.ours],
    ] as const) {
      const { body } = await ask(url, request);
      const again = await ask(url, { path });
      statuses[who] = again.status;
      if (who === 'ours') expect(again.body).toEqual(body);
    }
    expect(statuses).toEqual({ native: 404, ours: 200 });
  });
});
