import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { echoIn, jsonIn, serveFakes, wireError, type FakeService } from './serve-fakes.js';

const ownLooks = ['/health', '/v1/health', '/models', '/v1/models', '/props'];
const proxiedLooks = ['/props', '/metrics', '/slots', '/lora-adapters'];

const notLoaded = { code: 400, type: 'invalid_request_error', message: 'model is not loaded' };

describe('looking', () => {
  it('loads nothing', async () => {
    const service = await serveFakes({ models: { alpha: {} } });
    for (const method of ['GET', 'HEAD']) {
      for (const path of ownLooks) {
        expect((await rawRequest(`${service.url}${path}`, { method })).status).toBe(200);
      }
      for (const path of proxiedLooks) {
        expect((await rawRequest(`${service.url}${path}?model=alpha`, { method })).status).toBe(400);
      }
    }
    for (const path of proxiedLooks) {
      const response = await rawRequest(`${service.url}${path}?model=alpha`);
      expect(wireError(response, 400, 'invalid_request_error')).toMatchObject(notLoaded);
    }
    expect(service.journal.of('start')).toEqual([]);
    expect((await service.entry('alpha')).status.value).toBe('unloaded');
  });

  it('does not make a model the most recently used one', async () => {
    const service = await serveFakes({
      models: { first: {}, second: {}, third: {} },
      args: ['--models-max', '2'],
    });
    await service.use('first');
    await service.use('second');
    for (const path of proxiedLooks) {
      expect((await rawRequest(`${service.url}${path}?model=first`)).status).toBe(200);
    }
    await rawRequest(`${service.url}/slots?model=first&autoload=true`);
    await service.list();
    await service.use('third');
    const loaded = (await service.list()).filter(({ status }) => status.value === 'loaded');
    expect(loaded.map(({ id }) => id)).toEqual(['second', 'third']);
  });
});

describe('?autoload=', () => {
  const on = ['true', '1'];
  const off = ['false', '0', 'TRUE', 'yes', 'on'];

  /** A name for the model that one value is tried on: each must be unloaded at first. */
  const tried = (kind: string, value: string) => `${kind}-${value || 'empty'}`;
  const models = (kinds: string[]) =>
    Object.fromEntries(kinds.flatMap((kind) => ['', ...on, ...off].map((value) => [tried(kind, value), {}])));

  describe.each<[string, number, string[]]>([
    ['loads by default', 200, []],
    ['does not load by default', 400, ['--no-models-autoload']],
  ])('of a server that %s', (_server, byDefault, args) => {
    let service: FakeService;
    beforeAll(async () => {
      service = await serveFakes({
        models: { ...models(['post', 'get']), plain: {} },
        args: ['--models-max', '0', ...args],
      });
    });
    const post = async (model: string, query: string) =>
      (await rawRequest(`${service.url}/infill${query}`, jsonPost({ model }))).status;
    const get = async (model: string, query: string) =>
      (await rawRequest(`${service.url}/slots?model=${model}${query}`)).status;

    it(`answers a POST that does not say with ${byDefault}, absent and empty alike`, async () => {
      expect(await post('plain', '')).toBe(byDefault);
      expect(await post(tried('post', ''), '?autoload=')).toBe(byDefault);
    });
    it.each(on)('loads for a POST with %s', async (value) => {
      expect(await post(tried('post', value), `?autoload=${value}`)).toBe(200);
    });
    it.each(off)('does not load for a POST with %s', async (value) => {
      expect(await post(tried('post', value), `?x=1&autoload=${value}`)).toBe(400);
      expect(service.journal.of('start', tried('post', value))).toEqual([]);
    });
    it.each(on)('loads for a GET with %s', async (value) => {
      expect(await get(tried('get', value), `&autoload=${value}`)).toBe(200);
    });
    it.each(['', ...off])('does not load for a GET with "%s"', async (value) => {
      expect(await get(tried('get', value), `&autoload=${value}`)).toBe(400);
      expect(service.journal.of('start', tried('get', value))).toEqual([]);
    });
    it('serves a loaded model whatever is said', async () => {
      await rawRequest(`${service.url}/infill?autoload=1`, jsonPost({ model: 'plain' }));
      expect(await post('plain', '?autoload=0')).toBe(200);
      expect(await get('plain', '&autoload=false')).toBe(200);
    });
  });

  it('off: the refusal is the native one, and says so in /props', async () => {
    const service = await serveFakes({ models: { alpha: {} }, args: ['--no-models-autoload'] });
    const response = await rawRequest(`${service.url}/v1/chat/completions`, jsonPost({ model: 'alpha' }));
    expect(wireError(response, 400, 'invalid_request_error')).toMatchObject(notLoaded);
    expect(jsonIn(await rawRequest(`${service.url}/props`))).toMatchObject({ models_autoload: false });
  });
});

describe('POST /models/load and /models/unload', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: {
        alpha: {},
        beta: {},
        gamma: {},
        slow: { loadMs: 1_500 },
        stopped: { loadMs: 20_000 },
        mended: { byStart: [{ exitWhileLoading: {} }] },
      },
      presets: '[beta]\nalias = bee\n',
      args: ['--no-models-autoload', '--models-max', '0'],
    });
  });
  const load = (body: unknown) => rawRequest(`${service.url}/models/load`, jsonPost(body));
  const unload = (body: unknown) => rawRequest(`${service.url}/models/unload`, jsonPost(body));
  const becomes = (model: string, value: string) =>
    service.until(`${model} is ${value}`, model, ({ status }) => status.value === value);

  it('load and unload a model, seen by polling the list', async () => {
    const answer = await load({ model: 'alpha' });
    expect([answer.status, jsonIn(answer)]).toEqual([200, { success: true }]);
    await becomes('alpha', 'loaded');
    expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
    const end = await unload({ model: 'alpha' });
    expect([end.status, jsonIn(end)]).toEqual([200, { success: true }]);
    await becomes('alpha', 'unloaded');
    await eventually('the child has ended', () => service.journal.of('exit', 'alpha').length === 1);
  });

  it('load answers once the child is spawned, not when it is ready', async () => {
    expect((await load({ model: 'slow' })).status).toBe(200);
    const entry = await service.entry('slow');
    expect(entry.status.value).toBe('loading');
    expect(entry.pid).toBeGreaterThan(0);
    await becomes('slow', 'loaded');
  });

  it('take an alias, and ignore other fields', async () => {
    expect((await load({ model: 'bee', extra_args: ['--ctx-size', '1'] })).status).toBe(200);
    await becomes('beta', 'loaded');
    expect(service.journal.of('start', 'beta')[0]?.argv).not.toContain('--ctx-size');
    expect((await unload({ model: 'bee' })).status).toBe(200);
    await becomes('beta', 'unloaded');
  });

  it('load of a model that runs, or is just starting, is refused', async () => {
    expect((await load({ model: 'gamma' })).status).toBe(200);
    expect(wireError(await load({ model: 'gamma' }), 400, 'invalid_request_error').message).toBe(
      'model is already running',
    );
    await becomes('gamma', 'loaded');
    expect(wireError(await load({ model: 'gamma' }), 400, 'invalid_request_error').message).toBe(
      'model is already running',
    );
  });

  it('load of a model that failed tries again', async () => {
    expect((await load({ model: 'mended' })).status).toBe(200);
    await service.until('the first start fails', 'mended', ({ status }) => status.failed === true);
    expect((await load({ model: 'mended' })).status).toBe(200);
    expect((await becomes('mended', 'loaded')).status).not.toHaveProperty('failed');
  });

  it('a request that waits for a load which is then unloaded is told so, and nothing counts as failed', async () => {
    const waiting = rawExchange(`${service.url}/infill?autoload=1`, jsonPost({ model: 'stopped' }));
    await service.until('it waits', 'stopped', (entry) => entry.waiting === 1 && entry.pid !== undefined);
    expect((await unload({ model: 'stopped' })).status).toBe(200);
    expect(wireError(await waiting.ended, 400, 'invalid_request_error').message).toBe(
      'model name=stopped is not running',
    );
    expect((await becomes('stopped', 'unloaded')).status).not.toHaveProperty('failed');
  });

  it('unload lets a request in flight end, and a new one waits for the next instance', async () => {
    service.setBehaviour('alpha', { tokenIntervalMs: 50 });
    await load({ model: 'alpha' });
    const { pid } = await becomes('alpha', 'loaded');
    const stream = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'alpha', stream: true, max_tokens: 15 }),
    );
    await stream.head;
    expect((await unload({ model: 'alpha' })).status).toBe(200);
    const next = rawRequest(`${service.url}/infill?autoload=1`, jsonPost({ model: 'alpha' }));
    expect((await stream.ended).body.toString()).toMatch(/ 15".*\[DONE\]\n\n$/s);
    expect(echoIn(await next).pid).not.toBe(pid);
  });

  it.each<[string, typeof load, string, number, string]>([
    ['load of an unknown model', load, 'X', 404, "model 'X' not found"],
    ['unload of an unknown model', unload, 'X', 400, 'model is not found'],
    ['unload of a model that does not run', unload, 'stopped', 400, 'model is not running'],
  ])('%s is refused in the native words', async (_what, route, model, status, message) => {
    const type = status === 404 ? 'not_found_error' : 'invalid_request_error';
    expect(wireError(await route({ model }), status, type).message).toBe(message);
  });

  it('a byte order mark before the body is skipped, as on the proxied routes', async () => {
    const body = Buffer.from('\ufeff{"model":"X"}');
    const response = await rawRequest(`${service.url}/models/unload`, { method: 'POST', body });
    expect(wireError(response, 400, 'invalid_request_error').message).toBe('model is not found');
  });
});
