/** Every route of the API, and what is none: which request means what, to the native router and to ours. */
import { beforeAll, describe, expect, it } from 'vitest';
import { proxiedPosts } from '../../src/http/app.js';
import { counting, sayingItsName } from '../helpers/known-answer-models.js';
import { tempDir } from '../helpers/temp-dir.js';
import { startPair, title, type OracleRequest, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

const posts = proxiedPosts.map((path) => path.replace(':id_slot', '0'));
const proxiedGets = ['/props', '/metrics', '/slots', '/lora-adapters'];
const ownGets = ['/health', '/v1/health', '/models', '/v1/models'];
const gets = [...ownGets, ...proxiedGets];

/** What each of the routes wants, for answers of two words. */
const anything = {
  messages: [{ role: 'user', content: 'Who are you?' }],
  prompt: 'x',
  input: 'x',
  content: 'x',
  tokens: [5],
  query: 'x',
  documents: ['a', 'b'],
  input_prefix: 'a',
  input_suffix: 'b',
  n_predict: 2,
  max_tokens: 2,
  max_output_tokens: 2,
};

function post(path: string, body: unknown): OracleRequest {
  return { method: 'POST', path, body };
}

function withMethod(method: string, path: string): OracleRequest {
  return { method, path, ...(method === 'PUT' || method === 'PATCH' ? { body: anything } : {}) };
}

let pair: Pair;

beforeAll(async () => {
  pair = await startPair({
    models: { alpha: sayingItsName('alpha'), beta: counting(3) },
    args: ['--metrics', '--slot-save-path', tempDir()],
  });
  const { native, ours } = await pair.play(post('/models/load', { model: 'alpha' }));
  expect([native.status, ours.status]).toEqual([200, 200]);
  await pair.untilBoth('alpha', 'loaded');
});

describe('POST', () => {
  it.each(posts)('%s is answered alike, whatever it says of the model', async (path) => {
    expect((await pair.expectSame(post(path, anything))).status).toBe(400);
    expect((await pair.expectSame(post(path, { ...anything, model: 'nobody' }))).status).toBe(400);
    expect((await pair.expectSame(post(`${path}?autoload=false`, { model: 'beta' }))).status).toBe(400);
    expect((await pair.expectSame(post(path, { ...anything, model: 'alpha' }))).status).not.toBe(404);
    await pair.expectSame(post(path, { model: 'alpha' }));
    await pair.expectSame(post(`${path}?model=beta&x=1`, { ...anything, model: 'alpha' }));
  });

  it.each(posts)('%s with another method or other slashes is answered alike', async (path) => {
    const others = ['PUT', 'PATCH', 'DELETE', 'HEAD', ...(gets.includes(path) ? [] : ['GET'])];
    for (const method of others.filter((other) => !(gets.includes(path) && other === 'HEAD'))) {
      expect((await pair.expectSame(withMethod(method, `${path}?model=alpha`))).status, method).toBe(404);
    }
    expect((await pair.expectSame(withMethod('OPTIONS', path))).status).toBe(200);
    const odd = [`/${path}`, `${path}%20`, path.toUpperCase(), `${path};x=1`, `/v2${path}`];
    if (path !== '/slots/0') odd.push(`${path}/`);
    // What stands behind `/slots/` is the name of a slot, whatever it is.
    for (const other of odd.filter((name) => !name.startsWith('/slots/'))) {
      expect((await pair.expectSame(post(other, { ...anything, model: 'alpha' }))).status, other).toBe(404);
    }
  });

  it.each<OracleRequest>([
    post('/tokeniz%65', { content: 'I am', model: 'alpha' }),
    post('/v1/ch%61t/completions', { ...anything, model: 'alpha' }),
    post('/slots/%30', { model: 'alpha' }),
    post('/slots/%C3%A4', { model: 'alpha' }),
    post('/slots/7', { model: 'alpha' }),
    post('/slots/0?action=', { model: 'alpha' }),
    post('/slots/0?action=nothing', { model: 'alpha' }),
    post('/slots/0?action=erase', { model: 'alpha' }),
    post('/slots/0?x=%26action%3Dnothing&action=er%61se', { model: 'alpha' }),
    post('/slots/0?b=1+2&action=erase&a=%C3%A4%2F%25&empty=&bare', { model: 'alpha' }),
    post('/slots/0?action=save', { model: 'alpha', filename: '../outside' }),
    post('/slots/0?action=save', { model: 'alpha', filename: 'a slot' }),
    post('/slots/0?action=restore', { model: 'alpha', filename: 'a slot' }),
    post('/tokenize?%zz=%&%ff=%ff&=', { content: 'I am', model: 'alpha' }),
  ])('$path reaches the child with its path and query', async (request) => {
    expect((await pair.expectSame(request)).status).not.toBe(404);
  });
});

describe('GET', () => {
  const queries = ['', '?model=', '?model', '?x=1&model=alpha&a=%26&b=+', '?&model=alpha', '?model=%61lpha'];
  queries.push('?model=nobody', '?model=al+pha', '?MODEL=alpha', '?model=alpha;x=1', '?model=Alpha');
  queries.push('?model=alpha&%zz', '?model=alpha&a=%', '?model=alpha&%ff=%ff', '?model=alpha&autoload=false');
  queries.push('?model=nobody&model=alpha', '?model=alpha&model=nobody', '?model=&model=alpha');
  queries.push('?model=alpha&model=', '?model=beta&autoload=true&autoload=0');

  it.each(gets)('%s is answered alike, whatever its query says, and so is HEAD', async (path) => {
    const statuses = new Set<number>();
    for (const query of queries) {
      statuses.add((await pair.expectSame({ path: path + query })).status);
      await pair.expectSame({ method: 'HEAD', path: path + query });
    }
    // Guards the table: some of the queries name a model, and some name none.
    expect([...statuses].sort()).toEqual(ownGets.includes(path) ? [200] : [200, 400]);
  });

  it.each(gets)('%s with another method or other slashes is answered alike', async (path) => {
    for (const method of ['PUT', 'PATCH', 'DELETE'].filter(
      (other) => `${other} ${path}` !== 'DELETE /models',
    )) {
      expect((await pair.expectSame(withMethod(method, path))).status, method).toBe(404);
    }
    const inLetters = path.replace('s', '%73');
    expect((await pair.expectSame({ path: `${inLetters}?model=alpha` })).status).toBe(200);
    for (const odd of [
      `${path}/`,
      `/${path}`,
      path.toUpperCase(),
      `${path}%20`,
      `${path};x=1`,
      `${path}%2F`,
    ]) {
      expect((await pair.expectSame({ path: `${odd}?model=alpha` })).status, odd).toBe(404);
    }
  });

  it('/slots?fail_on_no_slot= reaches the child, which has a free one', async () => {
    expect((await pair.expectSame({ path: '/slots?fail_on_no_slot=1&model=alpha' })).status).toBe(200);
  });
});

describe('the router’s own routes', () => {
  const methods = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'];
  const paths = [
    '/models/load',
    '/models/unload',
    '/v1/stream',
    '/v1/streams/lookup',
    '/tools',
    '/cors-proxy',
  ];
  const requests = [...paths, '/models/sse'].flatMap((path) =>
    methods
      // The feed has no end, and a load or unload without a model is `nameless-load`.
      .filter((method) => path !== '/models/sse' || (method !== 'GET' && method !== 'HEAD'))
      .filter((method) => !path.includes('load') || method !== 'POST')
      .flatMap((method) => [withMethod(method, path), withMethod(method, `${path}/`)]),
  );

  it.each(requests.map((request) => [title(request), request] as const))('%s', async (_title, request) => {
    await pair.expectSame(request);
  });

  it.each([
    '/',
    '/nowhere',
    '/v1',
    '/v1/',
    '/v1/models/alpha',
    '/models/alpha',
    '/api/tags',
    '/api/chat',
    '/v2/models',
  ])('POST %s is none of them', async (path) => {
    expect((await pair.expectSame(post(path, { model: 'alpha' }))).status).toBe(404);
  });

  it(intended('nameless-load'), async () => {
    for (const body of [{}, { model: '' }, { model: 7 }, { id: 'alpha' }]) {
      const load = await pair.play(post('/models/load', body));
      expect(load.native).toMatchObject({ status: 404, body: { error: { message: 'File Not Found' } } });
      const unload = await pair.play(post('/models/unload', body));
      expect(unload.native).toMatchObject({
        status: 400,
        body: { error: { message: 'model is not found' } },
      });
      for (const { ours } of [load, unload]) {
        expect(ours).toMatchObject({
          status: 400,
          body: {
            error: { message: 'model name is missing from the request', type: 'invalid_request_error' },
          },
        });
      }
    }
  });

  it(intended('unknown-to-load'), async () => {
    const { native, ours } = await pair.play(post('/models/load', { model: 'nobody' }));
    const error = { code: 404, type: 'not_found_error' };
    expect(native).toMatchObject({ status: 404, body: { error: { ...error, message: 'File Not Found' } } });
    expect(ours).toMatchObject({
      status: 404,
      body: { error: { ...error, message: "model 'nobody' not found" } },
    });
  });
});

describe('what is no request of the API', () => {
  it(intended('unknown-methods'), async () => {
    for (const method of ['TRACE', 'PROPFIND']) {
      const { native, ours } = await pair.play({ method, path: '/health' });
      expect(native, method).toMatchObject({ status: 400, body: '' });
      expect(ours, method).toMatchObject({ status: 404, body: { error: { message: 'File Not Found' } } });
    }
    const { native, ours } = await pair.play({ method: 'BREW', path: '/health' });
    expect(native).toMatchObject({ status: 400, body: '' });
    expect(ours).toMatchObject({ status: 400, body: { error: { type: 'invalid_request_error' } } });
  });

  it(intended('request-targets'), async () => {
    const statusesOf = async (target: string): Promise<unknown> => {
      const { native, ours } = await pair.playText(
        `GET ${target} HTTP/1.1\r\nHost: somewhere\r\nConnection: close\r\n\r\n`,
      );
      return [native, ours].map((answer) => answer.slice(0, 'HTTP/1.1 000'.length));
    };
    for (const target of ['http://somewhere/health', '/x/../health', '/./health', '/%2e%2e/health']) {
      expect(await statusesOf(target), target).toEqual(['HTTP/1.1 404', 'HTTP/1.1 200']);
    }
    expect(await statusesOf('/v1%2Fhealth')).toEqual(['HTTP/1.1 200', 'HTTP/1.1 404']);
  });
});

it(intended('head-ranges'), async () => {
  for (const request of [{ path: '/health' }, { path: '/slots?model=alpha' }]) {
    const head = { method: 'HEAD', headers: { range: 'bytes=0-3' } };
    const [native, ours] = await Promise.all(
      [pair.native, pair.ours].map((url) => fetch(url + request.path, head)),
    );
    expect(native?.headers.get('accept-ranges')).toBe('bytes');
    expect(ours?.headers.get('accept-ranges')).toBeNull();
  }
});

it(intended('look-loads-nothing'), async () => {
  for (const path of proxiedGets) {
    const { native, ours } = await pair.play({ path: `${path}?model=beta` });
    expect(native.status, path).toBe(200);
    expect(ours, path).toMatchObject({ status: 400, body: { error: { message: 'model is not loaded' } } });
  }
  await pair.expectSame({ path: '/slots?model=beta&autoload=true' });
  await pair.untilBoth('beta', 'loaded');
});
