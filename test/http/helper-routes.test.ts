import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { createGzip, gzipSync } from 'node:zlib';
import { getRequestListener, type HttpBindings } from '@hono/node-server';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { asRouterError, RouterError } from '../../src/errors.js';
import type { HttpEnv } from '../../src/http/app.js';
import { KeyRing, requireApiKey } from '../../src/http/auth.js';
import { BodyBudget } from '../../src/http/body-budget.js';
import { allowOrigins } from '../../src/http/cors.js';
import type { Helper, ReadyHelper } from '../../src/http/helper-request.js';
import { helperFeatures, serveByHelper } from '../../src/http/helper-routes.js';
import { RequestTracer } from '../../src/http/request-trace.js';
import { isForWebUi, serveWebUi } from '../../src/http/web-ui.js';
import { Upstream } from '../../src/instance/upstream.js';
import { Counters } from '../../src/observe/counters.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest, type RawRequest } from '../helpers/raw-http.js';
import { jsonIn, wireError } from './serve-fakes.js';

interface Asked {
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

type Answer = (asked: Asked, res: ServerResponse) => void;

interface Service {
  readonly url: string;
  /** What the helper was asked, in order. */
  readonly asked: readonly Asked[];
  /** How often the helper was needed. */
  needed(): number;
  get(path: string, options?: RawRequest): ReturnType<typeof rawRequest>;
}

interface ServiceOptions {
  /** What the helper answers; by default an echo. */
  readonly answer?: Answer;
  readonly helper?: Helper;
  readonly prefix?: string;
  readonly keys?: readonly string[];
  readonly isOn?: boolean;
  readonly staticPath?: string;
  readonly bodyMaxBytes?: number;
  readonly isDraining?: () => boolean;
}

const helperKey = 'key-of-the-helper';

const echo: Answer = ({ method, url, headers, body }, res) =>
  res.end(JSON.stringify({ method, url, headers, body }));

/** The routes of the helper in front of a stand-in for it, as `app.ts` has them. */
async function serve(options: ServiceOptions = {}): Promise<Service> {
  const { answer = echo, prefix = '', isOn = true, staticPath, bodyMaxBytes = 1024 ** 2 } = options;
  const { isDraining = () => false } = options;
  const asked: Asked[] = [];
  const standIn = await listening(
    createServer((req, res) => {
      void (async () => {
        const chunks: Buffer[] = [];
        for await (const chunk of req) chunks.push(chunk as Buffer);
        const { method = '', url = '', headers } = req;
        const request = { method, url, headers, body: Buffer.concat(chunks).toString() };
        asked.push(request);
        answer(request, res);
      })().catch(() => undefined);
    }),
  );
  const upstream = new Upstream(standIn, helperKey, 10_000);
  atEndOfTest(() => upstream.destroy());
  let needed = 0;
  const ready: ReadyHelper = { upstream, ended: new Promise(() => undefined) };
  const helper: Helper = {
    ready: (signal) => {
      needed += 1;
      return options.helper?.ready(signal) ?? Promise.resolve(ready);
    },
  };

  const keys = new KeyRing(options.keys ?? []);
  const slowReaderMs = 10_000;
  const bodyLimits = { maxBytes: bodyMaxBytes, budget: new BodyBudget(2 * bodyMaxBytes) };
  const app = new Hono<HttpEnv>().basePath(prefix);
  const auth = requireApiKey(keys, prefix);
  app.use(allowOrigins({ origins: '*', methods: 'GET', headers: '*', credentials: true }));
  app.use((c, next) => (isForWebUi(c) ? next() : auth(c, next)));
  app.get('/models', (c) => c.json('ours'));
  app.on(
    ['GET', 'POST'],
    ['/tools', '/cors-proxy'],
    serveByHelper({ helper, apiPrefix: prefix, bodyLimits, isDraining, slowReaderMs }, { isOn }),
  );
  app.get('*', serveWebUi({ helper, keys, apiPrefix: prefix, staticPath, slowReaderMs }));
  app.notFound(() => {
    throw new RouterError('not_found', 'File Not Found');
  });
  app.onError((thrown) => {
    const error = asRouterError(thrown);
    return Response.json(error, { status: error.status, headers: error.headers });
  });
  const tracer = new RequestTracer(pino({ level: 'silent' }), new Counters());
  const listener = getRequestListener(
    (request, bindings) => {
      const { incoming, outgoing } = bindings as HttpBindings;
      return app.fetch(request, { incoming, outgoing, trace: tracer.begin(incoming, outgoing) });
    },
    { overrideGlobalObjects: false },
  );
  const port = await listening(
    createServer((req: IncomingMessage, res: ServerResponse) => void listener(req, res)),
  );
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    asked,
    needed: () => needed,
    get: (path, request) => withDeadline(`the answer of ${path}`, rawRequest(url + path, request), 10_000),
  };
}

async function listening(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEndOfTest(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

function bearer(key: string): { headers: Record<string, string> } {
  return { headers: { authorization: `Bearer ${key}` } };
}

describe.each(['', '/llama', '/a/b'])('/tools and /cors-proxy under the prefix %j', (prefix) => {
  test('reach the helper as they came, without the prefix and with its key in place of the client’s', async () => {
    const service = await serve({ prefix, keys: ['client-key'] });
    const body = ' {"tool" : "get_info", "x":1e2}\n';
    const response = await service.get(`${prefix}/cors-proxy?url=http%3A%2F%2Fa%2Fb&x=+`, {
      method: 'POST',
      headers: {
        'Content-Type': 'text/plain; a=b',
        Authorization: 'Bearer client-key',
        'X-Api-Key': 'client-key',
        Cookie: 'session=1',
        'X-Tool-Cwd': '/tmp',
        'X-Tool-Runtime': 'none',
        'X-Resp-Type': 'raw',
        'X-Llama-Server-Proxy-Header-Authorization': 'Bearer of the target',
      },
      body,
    });
    const seen = jsonIn(response) as Asked;
    expect(seen).toMatchObject({ method: 'POST', url: '/cors-proxy?url=http%3A%2F%2Fa%2Fb&x=+', body });
    expect(seen.headers).toMatchObject({
      'content-type': 'text/plain; a=b',
      'content-length': String(body.length),
      authorization: `Bearer ${helperKey}`,
      'x-tool-cwd': '/tmp',
      'x-tool-runtime': 'none',
      'x-resp-type': 'raw',
      'x-llama-server-proxy-header-authorization': 'Bearer of the target',
    });
    expect(seen.headers).not.toHaveProperty('cookie');
    expect(seen.headers).not.toHaveProperty('x-api-key');
  });

  test('give the answer back as it came', async () => {
    const bytes = randomBytes(300_000);
    const service = await serve({
      prefix,
      answer: (_asked, res) =>
        res.writeHead(418, 'Teapot', { 'X-Own': 'yes', 'Content-Length': bytes.length }).end(bytes),
    });
    const response = await service.get(`${prefix}/tools`);
    expect(response).toMatchObject({ status: 418, complete: true });
    expect(response.headers).toMatchObject({ 'x-own': 'yes' });
    expect(response.body.equals(bytes)).toBe(true);
  });

  test('are for those who hold a key', async () => {
    const service = await serve({ prefix, keys: ['client-key'] });
    wireErrorOf(await service.get(`${prefix}/tools`), 401);
    expect(service.needed()).toBe(0);
    expect((await service.get(`${prefix}/tools`, bearer('client-key'))).status).toBe(200);
  });

  test('are refused where they are off, and the helper is not needed for that', async () => {
    const service = await serve({ prefix, isOn: false });
    for (const request of [{}, jsonPost({ tool: 'get_info' })]) {
      for (const path of ['/tools', '/cors-proxy?url=http://127.0.0.1']) {
        const response = await service.get(prefix + path, request);
        expect(response.status).toBe(403);
        expect(response.headers['content-type']).toBe('application/json; charset=utf-8');
        expect(response.body.toString()).toBe(
          '{"error":{"message":"this feature is disabled","type":"feature_disabled"}}',
        );
      }
    }
    expect(service.needed()).toBe(0);
  });
});

function wireErrorOf(
  response: { status: number; body: Buffer },
  status: number,
): { reason: string; message: string } {
  expect({ status: response.status, body: response.body.toString() }).toMatchObject({ status });
  return (JSON.parse(response.body.toString()) as { error: { reason: string; message: string } }).error;
}

describe('a request to the helper', () => {
  test('streams its answer, event by event', async () => {
    let response: ServerResponse | undefined;
    const service = await serve({
      answer: (_asked, res) => {
        response = res.writeHead(200, { 'Content-Type': 'text/event-stream' });
        res.write('data: 1\n\n');
      },
    });
    const exchange = rawExchange(`${service.url}/tools`, jsonPost({ stream: true }));
    await eventually('the first event has come', () => exchange.received().toString() === 'data: 1\n\n');
    expect((await exchange.head).headers['x-accel-buffering']).toBe('no');
    response?.end('data: 2\n\n');
    expect((await exchange.ended).body.toString()).toBe('data: 1\n\ndata: 2\n\n');
  });

  test('ends in the helper when its client leaves', async () => {
    let closed = false;
    const service = await serve({
      answer: (_asked, res) => {
        res.writeHead(200).write('begun');
        res.once('close', () => (closed = true));
      },
    });
    const exchange = rawExchange(`${service.url}/tools`, jsonPost({}));
    await eventually('it has begun', () => exchange.received().length > 0);
    exchange.abort();
    await eventually('the helper is told', () => closed);
  });

  test('is bounded in size', async () => {
    const service = await serve({ bodyMaxBytes: 1000 });
    const tooLarge = { method: 'POST', body: Buffer.alloc(1001) };
    expect(wireError(await service.get('/tools', tooLarge), 413, 'invalid_request_error').reason).toBe(
      'body_too_large',
    );
    expect(service.needed()).toBe(0);
    expect((await service.get('/tools', { method: 'POST', body: Buffer.alloc(1000) })).status).toBe(200);
  });

  test('that is still being sent when a drain begins is refused, and not passed on', async () => {
    let hasBegun = false;
    let looks = 0;
    const isDraining = () => {
      looks += 1;
      return hasBegun;
    };
    const service = await serve({ isDraining });
    const body = (async function* () {
      yield '{"tool":';
      await eventually('the request is looked at', () => looks > 0);
      hasBegun = true;
      yield '"x"}';
    })();
    const response = await service.get('/tools', { method: 'POST', body });
    expect(wireError(response, 503, 'unavailable_error').reason).toBe('shutting_down');
    expect([service.asked.length, service.needed()]).toEqual([0, 0]);
  });

  test('is refused with the reason of a helper that cannot be started', async () => {
    const error = new RouterError('helper_failed', 'it exited with code 1', {
      lastLines: ['unknown tool'],
      retryAfterS: 2,
    });
    const service = await serve({ helper: { ready: () => Promise.reject(error) } });
    for (const path of ['/tools', '/']) {
      const response = await service.get(path);
      expect(response.headers['retry-after']).toBe('2');
      expect(wireError(response, 503, 'unavailable_error')).toMatchObject({
        reason: 'helper_failed',
        message: 'it exited with code 1',
        last_lines: ['unknown tool'],
      });
    }
  });

  test('stops waiting for the start when its client leaves', async () => {
    let left = false;
    const helper: Helper = {
      ready: (signal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            left = true;
            reject(new RouterError('client_gone', 'the client left'));
          });
        }),
    };
    const service = await serve({ helper });
    const exchange = rawExchange(`${service.url}/`);
    await eventually('it waits', () => service.needed() === 1);
    exchange.abort();
    await eventually('it waits no longer', () => left);
  });

  /** A helper that breaks every connection, and whose end is known. */
  const dying = async (): Promise<Helper & { readonly connections: () => number }> => {
    let connections = 0;
    const port = await listening(
      createServer((req) => {
        connections += 1;
        req.socket.destroy();
      }),
    );
    const upstream = new Upstream(port, helperKey, 10_000);
    atEndOfTest(() => upstream.destroy());
    const ended = Promise.resolve({ message: 'was ended by SIGSEGV', lastLines: ['ggml assert'] });
    return { ready: () => Promise.resolve({ upstream, ended }), connections: () => connections };
  };

  test('that only looks is made once more when the helper dies of it, and then told why', async () => {
    const helper = await dying();
    const service = await serve({ helper });
    expect(wireError(await service.get('/'), 502, 'server_error')).toMatchObject({
      reason: 'child_gone',
      message:
        'the llama-server that serves the web UI and tools was ended by SIGSEGV while it was answering',
      last_lines: ['ggml assert'],
    });
    expect(helper.connections()).toBe(2);
  });

  test('that may have done something is not made again', async () => {
    const helper = await dying();
    const service = await serve({ helper });
    expect(wireError(await service.get('/tools', jsonPost({})), 502, 'server_error').reason).toBe(
      'child_gone',
    );
    expect(helper.connections()).toBe(1);
  });

  test('that was answered in part is seen to break, with an event where it is a stream of events', async () => {
    const service = await serve({
      answer: (_asked, res) => {
        res
          .writeHead(200, { 'Content-Type': 'text/event-stream' })
          .write('data: 1\n\nda', () => res.destroy());
      },
    });
    const response = await withDeadline('it ends', service.get('/tools', jsonPost({})), 5_000);
    expect(response.complete).toBe(false);
    expect(response.body.toString()).toMatch(
      /^data: 1\n\nda\n\nevent: error\ndata: \{"type":"error","error":\{.*"reason":"child_gone".*\}\}\n\n$/,
    );
  });
});

describe.each(['', '/llama', '/a/b'])('the web UI under the prefix %j', (prefix) => {
  test('is whatever no other route has, for GET and HEAD', async () => {
    const service = await serve({ prefix, answer: ({ method, url }, res) => res.end(`${method} ${url}`) });
    const bodyOf = async (path: string) => (await service.get(prefix + path)).body.toString();
    expect(await bodyOf('/')).toBe('GET /');
    expect(await bodyOf('/_app/a%20b.js?v=%2F1')).toBe('GET /_app/a%20b.js?v=%2F1');
    expect(await bodyOf('/models/')).toBe('GET /models/');
    expect(await bodyOf('/models')).toBe('"ours"');
    expect((await service.get(`${prefix}/x`, { method: 'HEAD' })).status).toBe(200);
    expect(service.asked.at(-1)).toMatchObject({ method: 'HEAD', url: '/x' });
    const before = service.needed();
    for (const method of ['POST', 'DELETE', 'PUT']) {
      expect((await service.get(`${prefix}/x`, { method })).status).toBe(404);
    }
    expect(service.needed()).toBe(before);
  });

  test.each([
    [
      'an escape that only the helper reads',
      ['/%u0063ors-proxy', '/%u002ftools', '/to%u006fls', '/%75%u0073e'],
    ],
    ['an escape that is none', ['/%', '/%7', '/a%zz', '/%U0063ors-proxy']],
    ['a slash, a backslash or an end that is escaped', ['/v1%2fprops', '/a%2Fb', '/a%5cb', '/tools%00']],
    ['a route of the helper that no route here has', ['/props', '/%70rops', '/v1/models', '/models/%73se']],
  ])('is not asked for %s', async (_what, paths) => {
    const service = await serve({ prefix });
    for (const path of paths) {
      const response = await service.get(prefix + path);
      expect([path, response.status]).toEqual([path, 404]);
      expect(wireError(response, 404, 'not_found_error').reason).toBe('not_found');
    }
    expect(service.needed()).toBe(0);
  });

  test('keeps status, headers and bytes as the helper gives them', async () => {
    const bytes = gzipSync('page');
    const service = await serve({
      prefix,
      answer: ({ headers }, res) => {
        if (headers['if-none-match'] === '"tag"') res.writeHead(304, { ETag: '"tag"' }).end();
        else {
          res.writeHead(200, {
            'Content-Encoding': 'gzip',
            'Content-Type': 'text/html; charset=utf-8',
            ETag: '"tag"',
            'Cache-Control': 'no-cache',
            'Cross-Origin-Embedder-Policy': 'require-corp',
            'Cross-Origin-Opener-Policy': 'same-origin',
            'Access-Control-Allow-Origin': 'https://helper.example',
            'Content-Length': bytes.length,
          });
          res.end(bytes);
        }
      },
    });
    const headers = { 'accept-encoding': 'br, gzip', origin: 'https://page.example' };
    const response = await service.get(`${prefix}/`, { headers });
    expect(response.headers).toMatchObject({
      'content-encoding': 'gzip',
      'content-type': 'text/html; charset=utf-8',
      'content-length': String(bytes.length),
      etag: '"tag"',
      'cache-control': 'no-cache',
      'cross-origin-embedder-policy': 'require-corp',
      'cross-origin-opener-policy': 'same-origin',
      'access-control-allow-origin': 'https://page.example',
      vary: 'Origin, Accept-Encoding',
    });
    expect(response.body.equals(bytes)).toBe(true);
    const again = await service.get(`${prefix}/`, { headers: { ...headers, 'if-none-match': '"tag"' } });
    expect(again.status).toBe(304);
    expect(again.body).toHaveLength(0);
    const head = await service.get(`${prefix}/`, { headers, method: 'HEAD' });
    expect(head.headers['content-length']).toBe(String(bytes.length));
  });

  test('keeps a redirect below the prefix', async () => {
    const service = await serve({
      prefix,
      staticPath: 'site',
      answer: (_asked, res) => res.writeHead(301, { Location: '/docs/' }).end(),
    });
    expect((await service.get(`${prefix}/docs`)).headers.location).toBe(`${prefix}/docs/`);
  });
});

describe('the web UI', () => {
  test('is below the slash that ends the prefix, where the page looks for its parts', async () => {
    const service = await serve({ prefix: '/llama' });
    const response = await service.get('/llama?model=a/b');
    expect(response).toMatchObject({ status: 302 });
    expect(response.headers.location).toBe('/llama/?model=a/b');
    expect((await service.get('/')).status).toBe(404);
    expect((await service.get('/other/')).status).toBe(404);
    expect((await service.get('/llamas/')).status).toBe(404);
  });

  test('may be asked for under a prefix that is percent-encoded', async () => {
    const service = await serve({ prefix: '/llama' });
    expect(jsonIn(await service.get('/%6clama/x.js'))).toMatchObject({ url: '/x.js' });
  });

  test('is asked for with the helper’s key by who holds ours, and by all others without one', async () => {
    const service = await serve({ keys: ['client-key'] });
    const authorization = async (request: RawRequest = {}) =>
      (jsonIn(await service.get('/x', request)) as Asked).headers.authorization;
    expect(await authorization()).toBeUndefined();
    expect(await authorization(bearer('wrong'))).toBeUndefined();
    expect(await authorization(bearer(helperKey))).toBeUndefined();
    expect(await authorization(bearer('client-key'))).toBe(`Bearer ${helperKey}`);
  });

  test('is asked for with the helper’s key where no key is asked for', async () => {
    const service = await serve();
    expect((jsonIn(await service.get('/x')) as Asked).headers.authorization).toBe(`Bearer ${helperKey}`);
  });

  test.each([
    [401, 'key_invalid', 'authentication_error'],
    [404, 'not_found', 'not_found_error'],
  ])('has the refusal %i of the helper in our own words', async (status, reason, type) => {
    const service = await serve({
      answer: (_asked, res) => res.writeHead(status, { Connection: 'close' }).end('{"error":"theirs"}'),
    });
    for (const path of ['/x', '/y']) {
      expect(wireError(await service.get(path), status, type).reason).toBe(reason);
    }
    expect(await service.get('/x', { method: 'HEAD' })).toMatchObject({ status });
  });

  test('is told to be missing where the binary was built without one', async () => {
    const service = await serve({ answer: (_asked, res) => res.writeHead(404).end() });
    for (const path of ['/', '/index.html', '/?model=a']) {
      expect(wireError(await service.get(path), 404, 'not_found_error').message).toMatch(
        /^this llama-server was built without its web UI: /,
      );
    }
    expect(wireError(await service.get('/x'), 404, 'not_found_error').message).toBe('File Not Found');
  });

  test('leads to no other route of the helper: a slash that is percent-encoded is none', async () => {
    const service = await serve();
    for (const path of ['/models%2fsse', '/v1%2Fmodels', '/%2fmodels']) {
      expect((await service.get(path)).status).toBe(404);
    }
    expect(service.needed()).toBe(0);
  });
});

describe('a client that does not take gzip', () => {
  const text = Array.from({ length: 100_000 }, (_, at) => `line ${at}`).join('\n');
  const bytes = gzipSync(text);
  const compressed: Answer = ({ headers }, res) => {
    if (!headers['accept-encoding']?.includes('gzip')) {
      res.writeHead(415).end();
      return;
    }
    const status = headers['if-none-match'] === undefined ? 200 : 304;
    res.writeHead(status, {
      'Content-Encoding': 'gzip',
      ETag: '"tag"',
      'Content-Length': bytes.length,
      'Accept-Ranges': 'bytes',
    });
    res.end(status === 200 ? bytes : undefined);
  };

  test.each<Record<string, string>>([
    {},
    { 'accept-encoding': 'br' },
    { 'accept-encoding': 'identity' },
    { 'accept-encoding': 'gzip;q=0, identity' },
    { 'accept-encoding': 'br, gzip; q=0.000' },
  ])('gets the text itself: %j', async (headers) => {
    const service = await serve({ answer: compressed });
    const response = await service.get('/', { headers: { ...headers, range: 'bytes=0-9' } });
    expect(response).toMatchObject({ status: 200, complete: true });
    expect(response.body.toString()).toBe(text);
    // Not the tag of the compressed bytes, and not their length.
    expect(response.headers).toMatchObject({ etag: 'W/"tag"', vary: 'Accept-Encoding' });
    for (const name of ['content-encoding', 'content-length', 'accept-ranges']) {
      expect(response.headers).not.toHaveProperty(name);
    }
    expect(service.asked[0]?.headers).not.toHaveProperty('range');
  });

  test.each(['gzip', 'GZIP', 'x-gzip', '*', 'br;q=1, gzip;q=0.5', 'deflate, gzip'])(
    'is not one that says %j',
    async (accepted) => {
      const service = await serve({ answer: compressed });
      const response = await service.get('/', { headers: { 'accept-encoding': accepted } });
      expect(response.headers['content-encoding']).toBe('gzip');
      expect(response.body.equals(bytes)).toBe(true);
    },
  );

  test('gets answers without a body as they are', async () => {
    const service = await serve({ answer: compressed });
    const head = await service.get('/', { method: 'HEAD' });
    expect(head).toMatchObject({ status: 200, complete: true });
    expect(head.headers).not.toHaveProperty('content-encoding');
    const unchanged = await service.get('/', { headers: { 'if-none-match': 'W/"tag"' } });
    expect(unchanged).toMatchObject({ status: 304, complete: true });
    expect(unchanged.headers.etag).toBe('W/"tag"');
  });

  test('gets what is not compressed as it is', async () => {
    const service = await serve({
      answer: (_asked, res) => res.writeHead(200, { 'Content-Length': 5, ETag: '"t"' }).end('plain'),
    });
    const response = await service.get('/');
    expect(response.body.toString()).toBe('plain');
    expect(response.headers).toMatchObject({ 'content-length': '5', etag: '"t"' });
  });

  test('sees that it breaks when the compressed bytes are broken or cut', async () => {
    for (const broken of [
      bytes.subarray(0, 1000),
      Buffer.concat([bytes.subarray(0, 5000), randomBytes(99)]),
    ]) {
      const service = await serve({
        answer: (_asked, res) => res.writeHead(200, { 'Content-Encoding': 'gzip' }).end(broken),
      });
      const response = await withDeadline('it ends', service.get('/'), 5_000);
      expect(response.complete).toBe(false);
    }
  });

  test('may read slowly, which slows the helper', async () => {
    // Too much for all buffers of the kernel together, and no smaller when it is compressed.
    const content = randomBytes(48 * 1024 * 1024);
    const much = gzipSync(content, { level: 0 });
    const responses: ServerResponse[] = [];
    const service = await serve({
      answer: (_asked, res) => {
        responses.push(res);
        res.writeHead(200, { 'Content-Encoding': 'gzip', 'Content-Length': much.length }).end(much);
      },
    });
    const slow = rawExchange(`${service.url}/`);
    slow.pause();
    await slow.head;
    let left = -1;
    await eventually(
      'the helper gets rid of no more',
      () => {
        const before = left;
        left = responses[0]?.socket?.writableLength ?? -1;
        return left === before;
      },
      { intervalMs: 200 },
    );
    expect(left).toBeGreaterThan(0);
    slow.resume();
    const { body } = await withDeadline('all of it has come', slow.ended, 20_000);
    expect(body.equals(content)).toBe(true);
  });

  test('ends the work of the helper when it leaves, reading or not', async () => {
    let working = 0;
    const service = await serve({
      answer: (_asked, res) => {
        working += 1;
        const gzip = createGzip({ level: 0 });
        const timer = setInterval(() => gzip.write(randomBytes(100_000)), 5);
        res.once('close', () => {
          working -= 1;
          clearInterval(timer);
        });
        gzip.pipe(res.writeHead(200, { 'Content-Encoding': 'gzip' }));
      },
    });
    for (const reads of [true, false]) {
      const leaving = rawExchange(`${service.url}/`);
      if (!reads) leaving.pause();
      await leaving.head;
      if (reads) await eventually('something has come', () => leaving.received().length > 0);
      expect(working).toBe(1);
      leaving.abort();
      await eventually('the helper works no more', () => working === 0);
    }
  });

  test('gets the files of a directory as the helper gives them', async () => {
    const service = await serve({
      staticPath: 'site',
      answer: ({ headers }, res) => res.end(`${headers['accept-encoding'] ?? 'none'} ${headers.range ?? ''}`),
    });
    const response = await service.get('/', { headers: { range: 'bytes=0-1' } });
    expect(response.body.toString()).toBe('none bytes=0-1');
    expect(response.headers).not.toHaveProperty('vary');
  });
});

describe('what is on', () => {
  const off = {
    tools: undefined,
    mcpServersConfig: undefined,
    mcpServersJson: undefined,
    uiMcpProxy: false,
  };
  test.each([
    [{}, { tools: false, corsProxy: false }],
    [{ tools: 'read_file' }, { tools: true, corsProxy: false }],
    [{ mcpServersConfig: 'mcp.json' }, { tools: true, corsProxy: false }],
    [{ mcpServersJson: '{}' }, { tools: true, corsProxy: false }],
    [{ uiMcpProxy: true }, { tools: false, corsProxy: true }],
  ])('of the helper with %j is %j', (settings, expected) => {
    expect(helperFeatures({ ...off, ...settings })).toEqual(expected);
  });
});
