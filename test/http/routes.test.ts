import { Agent } from 'node:http';
import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { jsonIn, serveFakes, wireError, type FakeService } from './serve-fakes.js';

const postRoutes = [
  '/props',
  '/completion',
  '/completions',
  '/v1/completions',
  '/chat/completions',
  '/v1/chat/completions',
  '/v1/chat/completions/control',
  '/responses',
  '/v1/responses',
  '/audio/transcriptions',
  '/v1/audio/transcriptions',
  '/v1/messages',
  '/v1/messages/count_tokens',
  '/infill',
  '/embedding',
  '/embeddings',
  '/v1/embeddings',
  '/rerank',
  '/reranking',
  '/v1/rerank',
  '/v1/reranking',
  '/tokenize',
  '/detokenize',
  '/apply-template',
  '/chat/completions/input_tokens',
  '/v1/chat/completions/input_tokens',
  '/responses/input_tokens',
  '/v1/responses/input_tokens',
  '/lora-adapters',
  '/slots/0',
];
const getRoutes = ['/props', '/metrics', '/slots', '/lora-adapters'];

describe('the routes', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {}, beta: {} } });
    await service.use('alpha');
  });

  /** The helper, which has no alias, is asked for what may be of the web UI. */
  const requestsToModels = () => service.journal.of('request').filter(({ alias }) => alias !== '');
  const lastRequest = () => requestsToModels().at(-1);

  it.each(postRoutes)('POST %s reaches the child of the model in the body', async (path) => {
    const response = await rawRequest(`${service.url}${path}`, jsonPost({ model: 'alpha', content: 'x' }));
    expect(response.status).toBe(200);
    expect(lastRequest()).toMatchObject({ alias: 'alpha', method: 'POST', url: path });
  });

  it.each(getRoutes)('GET %s reaches the child of the model in the query', async (path) => {
    const response = await rawRequest(`${service.url}${path}?model=alpha`);
    expect(response.status).toBe(200);
    expect(lastRequest()).toMatchObject({ alias: 'alpha', method: 'GET', url: `${path}?model=alpha` });
  });

  it.each(getRoutes)('HEAD %s asks the child with GET and answers without a body', async (path) => {
    const asked = await rawRequest(`${service.url}${path}?model=alpha`);
    const response = await rawRequest(`${service.url}${path}?model=alpha`, { method: 'HEAD' });
    expect(response.status).toBe(200);
    expect(response.headers['content-type']).toBe(asked.headers['content-type']);
    expect(response.body).toHaveLength(0);
    expect(lastRequest()).toMatchObject({ alias: 'alpha', method: 'GET', url: `${path}?model=alpha` });
  });

  it.each(['/health', '/v1/health', '/models', '/v1/models', '/props'])(
    'HEAD %s answers as GET does, without the body, and leaves the connection usable',
    async (path) => {
      const agent = new Agent({ keepAlive: true, maxSockets: 1 });
      try {
        const response = await rawRequest(`${service.url}${path}`, { method: 'HEAD', agent });
        expect(response.status).toBe(200);
        expect(response.headers['content-type']).toMatch(/^application\/json/);
        expect(response.body).toHaveLength(0);
        expect((await rawRequest(`${service.url}${path}`, { agent })).body).not.toHaveLength(0);
      } finally {
        agent.destroy();
      }
    },
  );

  it('HEAD of what does not exist, or is not loaded, is an error without a body', async () => {
    for (const [path, status] of [
      ['/nope', 404],
      ['/infill', 404],
      ['/slots?model=beta', 400],
      ['/slots?model=nobody', 400],
    ] as const) {
      const response = await rawRequest(`${service.url}${path}`, { method: 'HEAD' });
      expect([path, response.status, response.body.length]).toEqual([path, status, 0]);
    }
  });

  it.each(['/health', '/v1/health'])('GET %s says ok', async (path) => {
    const response = await rawRequest(`${service.url}${path}`);
    expect([response.status, jsonIn(response)]).toEqual([200, { status: 'ok' }]);
  });

  it.each(['/props', '/props?model='])("GET %s is the router's own", async (path) => {
    const response = await rawRequest(`${service.url}${path}`);
    expect(response.status).toBe(200);
    const props = jsonIn(response) as Record<string, unknown>;
    expect(Object.keys(props)).toEqual([
      'role',
      'max_instances',
      'models_autoload',
      'model_alias',
      'model_path',
      'default_generation_settings',
      'ui_settings',
      'build_info',
      'cors_proxy_enabled',
    ]);
    expect(props).toMatchObject({
      role: 'router',
      max_instances: 4,
      models_autoload: true,
      model_alias: 'llama-server',
      model_path: 'none',
      default_generation_settings: { params: null, n_ctx: 0 },
    });
  });

  it.each(['/metrics', '/slots', '/lora-adapters', '/slots?model='])(
    'GET %s without a model says that it is missing',
    async (path) => {
      const error = wireError(await rawRequest(`${service.url}${path}`), 400, 'invalid_request_error');
      expect(error.message).toBe('model name is missing from the request');
    },
  );

  it.each([
    ['GET', '/nope'],
    ['GET', '/v1'],
    ['GET', '/v1/models/alpha'],
    ['GET', '/models/'],
    ['GET', '/health/x'],
    ['GET', '//health'],
    ['GET', '/api/tags'],
    ['POST', '/api/generate'],
    ['POST', '/slots/0/more'],
    ['POST', '/slots/'],
    ['POST', '/V1/chat/completions'],
    ['GET', '/infill'],
    ['GET', '/v1/chat/completions?model=alpha'],
    ['GET', '/models/load'],
    ['PUT', '/models/load'],
    ['POST', '/health'],
    ['POST', '/v1/models'],
    ['PUT', '/infill'],
    ['PATCH', '/v1/chat/completions'],
    ['DELETE', '/props'],
    ['PUT', '/nope'],
  ])('%s %s is a 404 in JSON, and no child hears of it', async (method, path) => {
    const before = requestsToModels().length;
    const options = method === 'GET' ? { method } : { ...jsonPost({ model: 'alpha' }), method };
    const error = wireError(await rawRequest(`${service.url}${path}`, options), 404, 'not_found_error');
    expect(error.message).toBe('File Not Found');
    expect(requestsToModels()).toHaveLength(before);
  });

  it('a POST ignores the model in its query', async () => {
    const response = await rawRequest(`${service.url}/infill?model=beta`, jsonPost({ model: 'alpha' }));
    expect(jsonIn(response)).toMatchObject({ alias: 'alpha', url: '/infill?model=beta' });
    const missing = await rawRequest(`${service.url}/infill?model=alpha`, jsonPost({ prompt: 'x' }));
    expect(wireError(missing, 400, 'invalid_request_error').message).toBe(
      'model name is missing from the request',
    );
  });
});
