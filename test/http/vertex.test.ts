import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { launchSupervisor } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { jsonIn, serveFakes, wireError, words, type Echo, type FakeService } from './serve-fakes.js';

type Prediction = Partial<Echo> & {
  error?: Record<string, unknown>;
  choices?: { text?: string; message?: { content: string } }[];
};

/** As Vertex AI names them. */
const routes = {
  health: '/v1/endpoints/12/deployedModels/34',
  predict: '/v1/endpoints/12/deployedModels/34:predict',
};

/** The environment in which Vertex AI starts a container; any free port is taken. */
const vertex = {
  AIP_MODE: 'PREDICTION',
  AIP_HTTP_PORT: '0',
  AIP_HEALTH_ROUTE: routes.health,
  AIP_PREDICT_ROUTE: routes.predict,
  AIP_STORAGE_URI: 'gs://bucket/model',
};

function send(url: string, instances: unknown[], headers = {}): Promise<RawResponse> {
  const request = jsonPost({ instances });
  return rawRequest(url, { ...request, headers: { ...request.headers, ...headers } });
}

function predictionsIn(response: RawResponse): Prediction[] {
  expect(response.status, response.body.toString()).toBe(200);
  return (jsonIn(response) as { predictions: Prediction[] }).predictions;
}

const infill = (model: string) => ({ '@requestFormat': 'infill', model });

describe('in the environment of Vertex AI', () => {
  let service: FakeService;
  let predict: (...instances: unknown[]) => Promise<Prediction[]>;

  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {}, beta: {}, broken: { exitWhileLoading: { lines: ['error: no such tensor'] } } },
      args: ['--models-max', '1'],
      env: vertex,
    });
    predict = async (...instances) => predictionsIn(await send(service.url + routes.predict, instances));
  });

  it('each instance is answered by the model that it names, loaded in its turn', async () => {
    const models = ['alpha', 'beta', 'alpha', 'beta'];
    const predictions = await predict(...models.map(infill));
    expect(predictions.map(({ alias }) => alias)).toEqual(models);
    expect(predictions.map(({ url }) => url)).toEqual(models.map(() => '/infill'));
  });

  it('each instance is a request to the route that its format names, and none is streamed', async () => {
    const asked = { model: 'alpha', max_tokens: 3 };
    const [chat, text, path] = await predict(
      { '@requestFormat': 'chatCompletions', ...asked, stream: true },
      { '@requestFormat': 'completions', ...asked },
      { '@requestFormat': '/v1/messages', ...asked },
    );
    expect(chat?.choices?.[0]?.message?.content).toBe(words('alpha', 3));
    expect(text?.choices?.[0]?.text).toBe(words('alpha', 3));
    expect(path?.url).toBe('/v1/messages');
  });

  it('a model that cannot be loaded fails its own instances, with its last words', async () => {
    const [before, failed, after] = await predict(infill('alpha'), infill('broken'), infill('beta'));
    expect([before?.alias, after?.alias]).toEqual(['alpha', 'beta']);
    expect(failed?.error).toMatchObject({
      code: 503,
      reason: 'load_failed',
      model: 'broken',
      last_lines: expect.arrayContaining(['error: no such tensor']) as string[],
    });
    await eventually('the log has the reason', () =>
      service.supervisor.log().some((line) => {
        const { reason } = (line['error'] ?? {}) as { reason?: string };
        return line['path'] === routes.predict && reason === 'load_failed';
      }),
    );
  });

  it('no lease is left of a request whose client has gone', async () => {
    await service.use('alpha');
    service.setBehaviour('alpha', { hangs: ['/infill'] });
    const instances = Array.from({ length: 20 }, () => infill('alpha'));
    const exchange = rawExchange(service.url + routes.predict, jsonPost({ instances }));
    await service.until('sixteen are at work', 'alpha', (entry) => entry.in_flight === 16);
    exchange.abort();
    await service.until('none is at work', 'alpha', (entry) => entry.in_flight === 0);
    service.setBehaviour('alpha', {});
  });

  it('the health route answers like /health, and its probes are not in the log', async () => {
    const [probe, native] = await Promise.all([
      rawRequest(service.url + routes.health),
      rawRequest(`${service.url}/health`),
    ]);
    expect([probe.status, jsonIn(probe)]).toEqual([200, { status: 'ok' }]);
    expect(probe.headers['content-type']).toBe(native.headers['content-type']);
    await send(service.url + routes.predict, [], { 'X-Request-Id': 'later' });
    const paths = await eventually('the later request is in the log', () => {
      const log = service.supervisor.log();
      return log.some(({ id }) => id === 'later') && log.map((line) => line['path']);
    });
    expect(paths).not.toContain(routes.health);
  });

  it('each route has its method', async () => {
    wireError(await rawRequest(service.url + routes.predict), 404, 'not_found_error');
    const post = rawRequest(service.url + routes.health, jsonPost({}));
    wireError(await post, 404, 'not_found_error');
  });

  it('children know nothing of it', async () => {
    await service.use('alpha');
    const starts = service.journal.of('start', 'alpha');
    expect(starts.length).toBeGreaterThan(0);
    const names = starts.flatMap(({ env }) => Object.keys(env));
    expect(names.filter((name) => name.startsWith('AIP_'))).toEqual([]);
  });
});

describe('with keys and a prefix', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {} },
      args: ['--api-key', 'sesame', '--api-prefix', '/llama', '--default-model', 'alpha'],
      env: { ...vertex, AIP_PREDICT_ROUTE: '', AIP_HEALTH_ROUTE: 'ping' },
    });
  });

  it('predictions are made for who has the key', async () => {
    const url = `${service.url}/predict`;
    expect(new URL(url).pathname).toBe('/llama/predict');
    wireError(await send(url, [infill('alpha')]), 401, 'authentication_error');
    const allowed = await send(url, [infill('alpha')], { Authorization: 'Bearer sesame' });
    expect(predictionsIn(allowed)).toMatchObject([{ alias: 'alpha', url: '/llama/infill' }]);
  });

  it('an instance that names no model is for the default one', async () => {
    const url = `${service.url}/predict`;
    const response = await send(url, [{ '@requestFormat': 'infill' }], { 'X-Api-Key': 'sesame' });
    expect(predictionsIn(response)).toMatchObject([{ alias: 'alpha' }]);
  });

  it('the health route needs none, for probes have none', async () => {
    expect((await rawRequest(`${service.url}/ping`)).status).toBe(200);
    expect((await rawRequest(`${service.url}/models`)).status).toBe(401);
  });
});

describe('one path for both routes', () => {
  it('is open to probes, and asks who wants predictions for a key', async () => {
    const { url } = await serveFakes({
      models: { alpha: {} },
      args: ['--api-key', 'sesame'],
      env: { ...vertex, AIP_HEALTH_ROUTE: '/ping', AIP_PREDICT_ROUTE: '/ping' },
    });
    expect((await rawRequest(`${url}/ping`)).status).toBe(200);
    wireError(await send(`${url}/ping`, [infill('alpha')]), 401, 'authentication_error');
    const allowed = await send(`${url}/ping`, [infill('alpha')], { Authorization: 'Bearer sesame' });
    expect(predictionsIn(allowed)).toMatchObject([{ alias: 'alpha' }]);
  });
});

describe('a start in the environment of Vertex AI', () => {
  /** What a start writes that is refused. */
  async function refusalOf(env: Record<string, string>): Promise<string> {
    const supervisor = launchSupervisor({ args: ['--models-dir', tempDir()], env: { ...vertex, ...env } });
    expect((await supervisor.exited).code).toBe(1);
    return supervisor.output();
  }

  it('listens on its port instead of that of --port, and says so', async () => {
    const port = await freePort();
    const { supervisor } = await serveFakes({
      models: { alpha: {} },
      args: ['--port', '1'],
      env: { ...vertex, AIP_HTTP_PORT: String(port) },
    });
    expect(supervisor.port).toBe(port);
    expect(supervisor.output()).toContain(`AIP_HTTP_PORT ${port} takes the place of --port 1`);
  });

  it.each([
    ['a port that is none', { AIP_HTTP_PORT: 'eighty' }, 'AIP_HTTP_PORT: expected a whole number'],
    ['a route that is a pattern', { AIP_HEALTH_ROUTE: '/*' }, 'AIP_HEALTH_ROUTE: expected a path'],
    [
      'a route that is taken',
      { AIP_PREDICT_ROUTE: '/v1/chat/completions' },
      'AIP_PREDICT_ROUTE: /v1/chat/completions is a route of llama-server already; choose another one',
    ],
  ])('is refused with %s, in words', async (_what, env, message) => {
    const output = await refusalOf(env);
    expect(output).toContain(message);
    expect(output).not.toContain('    at ');
  });

  it('outside of that mode is one like any other', async () => {
    const { url } = await serveFakes({
      models: { alpha: {} },
      env: { ...vertex, AIP_MODE: '', AIP_HTTP_PORT: 'eighty' },
    });
    wireError(await send(url + routes.predict, []), 404, 'not_found_error');
  });
});
