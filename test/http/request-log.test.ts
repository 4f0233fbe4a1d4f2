import { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { serveFakes, type FakeService } from './serve-fakes.js';

describe('the log of requests', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {}, slow: { loadMs: 600, nonStreamMs: 300 }, paced: { tokenIntervalMs: 20 } },
      args: ['--log-level', 'debug', '--api-key', 'sk-secret-key'],
      env: { HF_TOKEN: 'hf-secret-token' },
    });
  });

  const key = { Authorization: 'Bearer sk-secret-key' };
  const post = (model: string, id: string, more: Record<string, unknown> = {}) => {
    const { method, body, headers } = jsonPost({ model, prompt: 'secret-prompt', ...more });
    return { method, body, headers: { ...headers, ...key, 'X-Request-Id': id } };
  };
  const linesOf = (id: string) => service.supervisor.log().filter((line) => line['id'] === id);
  const lineOf = (id: string) => eventually(`the line of ${id}`, () => linesOf(id)[0]);

  const warn = 40;
  const info = 30;
  const debug = 20;

  it('has one line for each, with what is needed to find out what happened', async () => {
    await rawRequest(`${service.url}/v1/completions?q=secret-query`, post('slow', 'slow-1'));
    const line = await lineOf('slow-1');
    expect(line).toMatchObject({
      level: info,
      msg: 'request',
      method: 'POST',
      path: '/v1/completions',
      status: 200,
      model: 'slow',
    });
    const times = line as unknown as { ms: number; loadMs: number; queueMs: number; firstByteMs: number };
    // The load took 600 ms, then the answer 300 ms; timers may fire a millisecond early.
    expect(times.loadMs).toBeGreaterThanOrEqual(590);
    expect(times.queueMs).toBeGreaterThanOrEqual(0);
    expect(times.firstByteMs).toBeGreaterThanOrEqual(times.queueMs + times.loadMs + 290);
    expect(times.ms).toBeGreaterThanOrEqual(times.firstByteMs);
    expect(times.ms).toBeLessThan(30_000);
    expect(line).not.toHaveProperty('error');
    expect(line).not.toHaveProperty('clientGone');
    expect(linesOf('slow-1')).toHaveLength(1);
  });

  it('tells no wait of a request that had none, however slowly it was sent', async () => {
    await rawRequest(`${service.url}/infill`, post('alpha', 'warm-up'));
    const { method, body, headers } = post('alpha', 'at-once');
    const slowly = Readable.from(
      (async function* () {
        yield body.slice(0, 5);
        await delay(300);
        yield body.slice(5);
      })(),
    );
    await rawRequest(`${service.url}/infill`, { method, headers, body: slowly });
    const line = await lineOf('at-once');
    expect(line).toMatchObject({ status: 200, model: 'alpha' });
    expect(line).not.toHaveProperty('queueMs');
    expect(line).not.toHaveProperty('loadMs');
  });

  it.each([
    ['a-sane_one.1:2/3+4=', true],
    ['00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', true],
    ['x'.repeat(128), true],
    ['x'.repeat(129), false],
    ['with blank', false],
    ['{"level":60}', false],
    ['caf\u00e9', false],
  ])('takes over the X-Request-Id %s: %s', async (id, taken) => {
    const before = service.supervisor.log().length;
    await rawRequest(`${service.url}/models`, { headers: { ...key, 'X-Request-Id': id } });
    const line = await eventually('the line', () =>
      service.supervisor
        .log()
        .slice(before)
        .find(({ msg }) => msg === 'request'),
    );
    if (taken) expect(line['id']).toBe(id);
    else expect(line['id']).toMatch(/^\d+-\d+$/);
  });

  it('gives those without an id different ones', async () => {
    const before = service.supervisor.log().length;
    for (let request = 0; request < 3; request++) await rawRequest(`${service.url}/models`, { headers: key });
    const lines = await eventually('three lines', () => {
      const found = service.supervisor
        .log()
        .slice(before)
        .filter(({ msg }) => msg === 'request');
      return found.length === 3 && found;
    });
    expect(new Set(lines.map((line) => line['id'])).size).toBe(3);
  });

  it('tells an alias by the model that it stands for, and an error by its reason', async () => {
    await rawRequest(`${service.url}/infill`, post('nobody', 'unknown-1'));
    expect(await lineOf('unknown-1')).toMatchObject({
      level: info,
      status: 400,
      error: { reason: 'model_unknown', message: "model 'nobody' not found" },
    });
  });

  it('warns of what failed here', async () => {
    service.setBehaviour('alpha', { dieOnRequest: true });
    await rawRequest(`${service.url}/infill`, post('alpha', 'dies-1'));
    expect(await lineOf('dies-1')).toMatchObject({
      level: warn,
      status: 502,
      model: 'alpha',
      error: { reason: 'child_gone' },
    });
    service.setBehaviour('alpha', { tokenIntervalMs: 10, dieMidStream: { afterChunks: 3 } });
    await rawRequest(`${service.url}/v1/completions`, post('alpha', 'dies-2', { stream: true }));
    // The client was told 200 before; what came of it is in the error.
    expect(await lineOf('dies-2')).toMatchObject({
      level: warn,
      status: 200,
      error: { reason: 'child_gone' },
    });
  });

  it('tells of a client that left, once, wherever it was', async () => {
    const streaming = rawExchange(
      `${service.url}/v1/completions`,
      post('paced', 'left-streaming', { stream: true, max_tokens: -1 }),
    );
    await streaming.head;
    streaming.abort();
    service.setBehaviour('slow', { nonStreamMs: 60_000 });
    const waiting = rawExchange(`${service.url}/v1/completions?late`, post('slow', 'left-waiting'));
    await eventually('the child is at work', () =>
      service.journal.of('request', 'slow').some(({ url }) => url.endsWith('?late')),
    );
    waiting.abort();
    for (const [id, status] of [
      ['left-streaming', 200],
      ['left-waiting', undefined],
    ] as const) {
      const line = await lineOf(id);
      expect(line).toMatchObject({ level: info, clientGone: true });
      expect(line['status']).toBe(status);
      expect(line).not.toHaveProperty('error');
      expect(linesOf(id)).toHaveLength(1);
    }
  });

  it('has the probes of balancers at the level debug only', async () => {
    for (const path of ['/health', '/v1/health', '/livez', '/readyz']) {
      await rawRequest(`${service.url}${path}`, { headers: { 'X-Request-Id': `probe${path}` } });
      expect(await lineOf(`probe${path}`)).toMatchObject({ level: debug, path, status: 200 });
    }
  });

  it('has no key, query, header or body in it, even at the level debug', async () => {
    const secrets = [
      'sk-secret-key',
      'sk-wrong-key',
      'secret-query',
      'secret-prompt',
      'secret-cookie',
      'hf-secret',
    ];
    const { headers, method, body } = post('paced', 'secrets-1');
    await rawRequest(`${service.url}/infill?api_key=secret-query`, {
      method,
      body,
      headers: { ...headers, Cookie: 'secret-cookie' },
    });
    for (const path of [
      '/nope',
      '/models',
      '/slots?model=paced&x=secret-query',
      '/slots?model=nobody&secret-query',
    ]) {
      await rawRequest(`${service.url}${path}?secret-query`, { headers: key });
      await rawRequest(`${service.url}${path}?secret-query`, {
        headers: { Authorization: 'Bearer sk-wrong-key' },
      });
    }
    await rawRequest(`${service.url}/infill`, {
      ...post('paced', 'secrets-2'),
      body: '{"model":"paced", secret-prompt',
    });
    await lineOf('secrets-2');
    const childKeys = service.journal.of('start').map(({ env }) => env['LLAMA_API_KEY'] ?? '');
    expect(childKeys.every((childKey) => childKey.length >= 32)).toBe(true);
    expect(childKeys.length).toBeGreaterThan(0);
    const output = service.supervisor.output();
    expect([...secrets, ...childKeys].filter((secret) => output.includes(secret))).toEqual([]);
  });
});

describe('under --api-prefix', () => {
  it('the probes of balancers are at the level debug, too', async () => {
    const service = await serveFakes({ models: {}, args: ['--api-prefix', '/llama'] });
    await rawRequest(`${service.url}/health`, { headers: { 'X-Request-Id': 'probe' } });
    await rawRequest(`${service.url}/models`, { headers: { 'X-Request-Id': 'list' } });
    await eventually('the later line', () => service.supervisor.log().some((line) => line['id'] === 'list'));
    expect(service.supervisor.log().some((line) => line['id'] === 'probe')).toBe(false);
  });
});
