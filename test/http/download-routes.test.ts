import { once } from 'node:events';
import { connect, type AddressInfo } from 'node:net';
import { Hono } from 'hono';
import { beforeEach, describe, expect, test } from 'vitest';
import { asRouterError, RouterError } from '../../src/errors.js';
import { EventBus, type SupervisorEvent } from '../../src/events/events.js';
import type { HttpEnv } from '../../src/http/app.js';
import { BodyBudget } from '../../src/http/body-budget.js';
import {
  removeModel,
  startDownload,
  type Downloads,
  type RemoveModelOptions,
} from '../../src/http/download-routes.js';
import { createCatalog } from '../../src/models/catalog.js';
import type { Removed } from '../../src/models/disk/removal.js';
import type { Model } from '../../src/models/model.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { aModel } from '../unit/models/a-model.js';
import { appServer } from './app-server.js';
import { jsonIn, wireError } from './serve-fakes.js';

const gone: Removed = { removed: ['/cache/a.gguf', '/cache/b.gguf'], freedBytes: 123 };

/** What was done, in order. */
let steps: string[];
let events: SupervisorEvent[];
/** Those of the catalog now. */
let models: readonly Model[];
/** Downloads that go on or have failed, with the models that they have brought. */
let downloads: Map<string, string | undefined>;
let begin: Downloads['start'];
let keepOut: Downloads['keepOut'];
let withdraw: RemoveModelOptions['withdraw'];
/** Why a model is not removed. */
let refuse: (model: Model) => RouterError | undefined;
let removeFiles: (model: Model) => Promise<Removed>;
let removeTimeoutMs: number;
/** Failures that no request has been told. */
let lateFailures: string[];
let port: number;
/** How many requests have come. */
let asked: number;

beforeEach(async () => {
  steps = [];
  events = [];
  models = [];
  downloads = new Map();
  begin = (name) => Promise.resolve(void steps.push(`start ${name}`));
  keepOut = (_, work) => work(() => undefined);
  withdraw = (id) => {
    steps.push(`withdraw ${id}`);
    return Promise.resolve(() => void steps.push(`put back ${id}`));
  };
  removeFiles = ({ id }) => {
    steps.push(`remove files of ${id}`);
    models = models.filter((model) => model.id !== id);
    return Promise.resolve(gone);
  };
  refuse = () => undefined;
  removeTimeoutMs = 60_000;
  lateFailures = [];
  port = await serve();
});

async function serve(): Promise<number> {
  const bus = new EventBus((error) => {
    throw error;
  });
  bus.subscribe((event) => events.push(event));
  const api: Pick<Downloads, 'start' | 'remove' | 'keepOut'> = {
    start: (name, signal) => begin(name, signal),
    remove: (id) => {
      const found = downloads.has(id) ? { brought: downloads.get(id) } : undefined;
      downloads.delete(id);
      return Promise.resolve(found);
    },
    keepOut: (id, work) => keepOut(id, work),
  };
  const app = new Hono<HttpEnv>();
  asked = 0;
  app.use((_, next) => {
    asked += 1;
    return next();
  });
  const bodyLimits = { maxBytes: 1000, budget: new BodyBudget(10_000) };
  app.post('/models', startDownload({ downloads: api, bodyLimits }));
  app.delete(
    '/models',
    removeModel({
      downloads: api,
      catalog: () => createCatalog(models, []),
      reload: () => Promise.resolve(void steps.push('reload')),
      withdraw: (id) => withdraw(id),
      planRemoval: (model) => {
        const refusal = refuse(model);
        return refusal === undefined ? Promise.resolve(() => removeFiles(model)) : Promise.reject(refusal);
      },
      onLateRemovalFailure: (id, error) => lateFailures.push(`${id}: ${String(error)}`),
      removeTimeoutMs,
      events: bus,
    }),
  );
  app.onError((thrown) => {
    const error = asRouterError(thrown);
    const headers = { 'Content-Type': 'application/json; charset=utf-8', ...error.headers };
    return new Response(JSON.stringify(error), { status: error.status, headers });
  });
  const server = appServer({ app });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEndOfTest(async () => {
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  });
  return (server.address() as AddressInfo).port;
}

function post(body: string, headers: Record<string, string> = {}): Promise<RawResponse> {
  const request = rawRequest(`http://127.0.0.1:${port}/models`, { method: 'POST', body, headers });
  return withDeadline('POST /models', request, 10_000);
}

function remove(query: string): Promise<RawResponse> {
  const request = rawRequest(`http://127.0.0.1:${port}/models${query}`, { method: 'DELETE' });
  return withDeadline('DELETE /models', request, 10_000);
}

describe('POST /models', () => {
  test.each(['application/json', 'application/x-www-form-urlencoded'])(
    'begins a download, whatever its JSON is called: %s',
    async (type) => {
      const response = await post('{"model":"me/model:Q4_0"}', { 'content-type': type });
      expect(response.status).toBe(200);
      expect(jsonIn(response)).toEqual({ success: true });
      expect(steps).toEqual(['start me/model:Q4_0']);
    },
  );

  test.each(['{}', '{"model":""}', '{"model":null}', '{"model":7}', '{"model":["a"]}', '[]', '"a"'])(
    'without a name is refused: %s',
    async (body) => {
      const error = wireError(await post(body), 400, 'invalid_request_error');
      expect(error.message).toBe('model must be a non-empty string');
      expect(steps).toEqual([]);
    },
  );

  test.each(['', '{', '{"model":"a"', 'model=a'])('that is no JSON is malformed: %j', async (body) => {
    expect(wireError(await post(body), 400, 'invalid_request_error').reason).toBe('body_malformed');
    expect(steps).toEqual([]);
  });

  test('of more bytes than a body may have is refused', async () => {
    const body = JSON.stringify({ model: 'a'.repeat(2000) });
    expect(wireError(await post(body), 413, 'invalid_request_error').reason).toBe('body_too_large');
  });

  test('that cannot be begun says why', async () => {
    begin = () =>
      Promise.reject(new RouterError('disk_full', 'no room', { model: 'me/model', retryAfterS: 3 }));
    const response = await post('{"model":"me/model"}');
    const error = wireError(response, 507, 'server_error');
    expect(error).toMatchObject({ reason: 'disk_full', message: 'no room', model: 'me/model' });
    expect(response.headers['retry-after']).toBe('3');
  });

  test('is given up when its client leaves before the download has begun', async () => {
    let client: AbortSignal | undefined;
    begin = (_, signal) => {
      client = signal;
      return new Promise((resolve) => signal.addEventListener('abort', () => resolve()));
    };
    const socket = connect(port, '127.0.0.1');
    atEndOfTest(() => void socket.destroy());
    socket.on('error', () => undefined);
    const body = '{"model":"me/model"}';
    socket.write(`POST /models HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
    await eventually('the download is to begin', () => client);
    expect(client?.aborted).toBe(false);
    socket.destroy();
    await eventually('its client has left', () => client?.aborted);
  });
});

describe('DELETE /models', () => {
  const cached = aModel('me/model:Q4_0', { source: 'cache', canRemove: true, aliases: ['you/alias'] });

  test.each(['', '?model=', '?model=me/model:Q4_0&model='])(
    'without a name is refused: "%s"',
    async (query) => {
      models = [cached];
      const error = wireError(await remove(query), 400, 'invalid_request_error');
      expect(error.message).toBe('model must be a non-empty string');
      expect(steps).toEqual([]);
    },
  );

  test.each(['me/other', 'you/alias', 'ME/MODEL:Q4_0'])('of %s, no id of a model, is refused', async (id) => {
    models = [cached];
    const error = wireError(await remove(`?model=${id}`), 404, 'not_found_error');
    expect(error).toMatchObject({ message: `model name=${id} is not found`, model: id });
    expect(steps).toEqual([]);
    expect(events).toEqual([]);
  });

  test('of a model that is in no cache is refused', async () => {
    models = [aModel('mine')];
    const error = wireError(await remove('?model=mine'), 400, 'invalid_request_error');
    expect(error).toMatchObject({
      reason: 'model_not_removable',
      message: 'model name=mine is not removable (not from cache)',
    });
    expect(steps).toEqual([]);
    expect(events).toEqual([]);
  });

  test('stops the model, removes its files, has the catalog made anew and says so, in this order', async () => {
    models = [cached];
    const response = await remove(`?model=${encodeURIComponent(cached.id)}`);
    expect(response.status).toBe(200);
    expect(jsonIn(response)).toEqual({ success: true, removed: gone.removed, freed_bytes: 123 });
    expect(steps).toEqual([
      `withdraw ${cached.id}`,
      `remove files of ${cached.id}`,
      'reload',
      `put back ${cached.id}`,
    ]);
    expect(events).toEqual([{ type: 'model.removed', model: cached.id, files: gone }]);
  });

  test('removes the model as it is when it has stopped', async () => {
    models = [cached];
    const moved = { ...cached, file: '/elsewhere.gguf' };
    withdraw = () => {
      models = [moved];
      return Promise.resolve(() => undefined);
    };
    let removed: Model | undefined;
    removeFiles = (model) => {
      removed = model;
      return Promise.resolve(gone);
    };
    await remove(`?model=${cached.id}`);
    expect(removed).toBe(moved);
  });

  test.each<[string, readonly Model[], number]>([
    ['gone', [], 404],
    ['not of the cache any more', [{ ...cached, canRemove: false }], 400],
  ])('of a model that is %s when it has stopped removes nothing', async (_, then, status) => {
    models = [cached];
    withdraw = () => {
      models = then;
      return Promise.resolve(() => void steps.push('put back'));
    };
    expect((await remove(`?model=${cached.id}`)).status).toBe(status);
    expect(steps).toEqual(['put back']);
    expect(events).toEqual([]);
  });

  test('of a model whose repository is being downloaded is refused before it is stopped', async () => {
    models = [cached];
    keepOut = () => Promise.reject(new RouterError('model_downloading', 'wait'));
    const error = wireError(await remove(`?model=${cached.id}`), 400, 'invalid_request_error');
    expect(error.reason).toBe('model_downloading');
    expect(steps).toEqual([]);
    expect(events).toEqual([]);
  });

  test('of a model that may not be removed is refused before it is stopped', async () => {
    models = [cached];
    refuse = ({ id }) => new RouterError('model_not_removable', `'mine' loads ${id}, too`);
    const error = wireError(await remove(`?model=${cached.id}`), 400, 'invalid_request_error');
    expect(error.message).toBe(`'mine' loads ${cached.id}, too`);
    expect(steps).toEqual([]);
    expect(events).toEqual([]);
  });

  test('of a model that may not be removed any more when it has stopped puts it back into service', async () => {
    models = [cached];
    refuse = () =>
      steps.length === 0 ? undefined : new RouterError('model_not_removable', 'somebody loads it by now');
    expect((await remove(`?model=${cached.id}`)).status).toBe(400);
    expect(steps).toEqual([`withdraw ${cached.id}`, `put back ${cached.id}`]);
    expect(events).toEqual([]);
  });

  describe('whose files the cache does not let go', () => {
    let held: Promise<unknown>[];
    let end: { remove: () => void; fail: () => void };

    beforeEach(async () => {
      models = [cached];
      removeTimeoutMs = 50;
      held = [];
      keepOut = (_, work) => work((until) => void held.push(until));
      removeFiles = ({ id }) => {
        steps.push(`remove files of ${id}`);
        if (id !== cached.id) return Promise.resolve(gone);
        return new Promise((resolve, reject) => {
          end = { remove: () => resolve(gone), fail: () => reject(new RouterError('remove_failed', 'EIO')) };
        });
      };
      port = await serve();
    });

    test('says so, keeps them and the model out of use until they are gone, and tells that', async () => {
      const error = wireError(await remove(`?model=${cached.id}`), 500, 'server_error');
      expect(error.reason).toBe('remove_failed');
      expect(error.message).toContain('the cache does not answer');
      expect(held).toHaveLength(1);
      expect(steps).toEqual([`withdraw ${cached.id}`, `remove files of ${cached.id}`]);
      expect(events).toEqual([]);
      end.remove();
      await withDeadline('the files are let go', Promise.all(held), 10_000);
      expect(steps.slice(2)).toEqual(['reload', `put back ${cached.id}`]);
      expect(events).toEqual([{ type: 'model.removed', model: cached.id, files: gone }]);
      expect(lateFailures).toEqual([]);
    });

    test('puts the model back when it fails at last, which is told elsewhere', async () => {
      expect((await remove(`?model=${cached.id}`)).status).toBe(500);
      end.fail();
      await eventually('the failure is told', () => lateFailures.length > 0);
      expect(lateFailures).toEqual([`${cached.id}: RouterError: EIO`]);
      expect(steps.at(-1)).toBe(`put back ${cached.id}`);
      expect(events).toEqual([]);
    });

    test('does not hold up the removal of another model', async () => {
      const second = { ...cached, id: 'me/other:Q8_0', aliases: [] };
      models = [cached, second];
      const first = remove(`?model=${cached.id}`);
      await eventually('the first is being removed', () => steps.length === 2);
      expect((await remove(`?model=${second.id}`)).status).toBe(200);
      expect((await first).status).toBe(500);
      end.remove();
      await Promise.all(held);
    });
  });

  test('of two models removes the files of one after the other, whatever became of the first', async () => {
    const second = { ...cached, id: 'me/model:Q8_0', aliases: [] };
    models = [cached, second];
    let fail: () => void = () => undefined;
    removeFiles = ({ id }) => {
      steps.push(`remove files of ${id}`);
      if (id === second.id) return Promise.resolve(gone);
      return new Promise((_, reject) => (fail = () => reject(new RouterError('internal', 'EACCES'))));
    };
    const first = remove(`?model=${cached.id}`);
    await eventually('the first is being removed', () => steps.length === 2);
    const next = remove(`?model=${second.id}`);
    await eventually('the second is stopped', () => steps.length === 3);
    expect(steps.at(-1)).toBe(`withdraw ${second.id}`);
    fail();
    expect([(await first).status, (await next).status]).toEqual([500, 200]);
    expect(steps).toContain(`remove files of ${second.id}`);
  });

  test('of files that cannot be removed says so and puts the model back into service', async () => {
    models = [cached];
    removeFiles = () => Promise.reject(new RouterError('internal', 'EACCES'));
    const error = wireError(await remove(`?model=${cached.id}`), 500, 'server_error');
    expect(error.message).toBe('EACCES');
    expect(steps).toEqual([`withdraw ${cached.id}`, `put back ${cached.id}`]);
    expect(events).toEqual([]);
  });

  test('of a download ends or forgets it, and of nothing else is asked', async () => {
    downloads.set('me/model:Q8_0', undefined);
    expect(jsonIn(await remove('?model=me/model:Q8_0'))).toEqual({ success: true });
    expect(steps).toEqual([]);
    expect(events).toEqual([{ type: 'model.removed', model: 'me/model:Q8_0' }]);
    expect((await remove('?model=me/model:Q8_0')).status).toBe(404);
  });

  test('of a download that has brought its model meanwhile removes that, too', async () => {
    for (const name of [cached.id, 'me/model']) {
      downloads.set(name, cached.id);
      models = [cached];
      steps = [];
      events = [];
      expect((await remove(`?model=${name}`)).status).toBe(200);
      expect(steps).toContain(`remove files of ${cached.id}`);
      expect(events).toEqual([{ type: 'model.removed', model: cached.id, files: gone }]);
    }
  });

  test('twice at a time is done once', async () => {
    models = [cached];
    let release: () => void = () => undefined;
    withdraw = (id) => {
      steps.push(`withdraw ${id}`);
      return new Promise((resolve) => (release = () => resolve(() => undefined)));
    };
    const first = remove(`?model=${cached.id}`);
    await eventually('the model is stopped', () => steps.length === 1);
    const second = remove(`?model=${cached.id}`);
    await eventually('the second is being served', () => asked === 2);
    release();
    expect([(await first).status, (await second).status]).toEqual([200, 200]);
    expect(steps.filter((step) => step.startsWith('withdraw'))).toHaveLength(1);
    expect(events).toHaveLength(1);
  });
});
