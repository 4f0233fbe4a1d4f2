import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { oddChild, scripted, type Script } from './odd-child.js';
import { openSocket } from './raw-socket.js';
import { echoIn, jsonIn, serveFakes, type FakeService } from './serve-fakes.js';

describe('the answer of a child', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} } });
    await service.use('alpha');
  });

  it.each([200, 201, 202, 400, 401, 403, 404, 418, 429, 500, 501, 503])(
    'with status %i comes through with its body',
    async (status) => {
      service.setBehaviour('alpha', { echo: { status } });
      const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'alpha' }));
      expect([response.status, response.complete]).toEqual([status, true]);
      expect(echoIn(response)).toMatchObject({ alias: 'alpha', url: '/infill' });
    },
  );

  it('to a path that it does not know is its own 404', async () => {
    const response = await rawRequest(`${service.url}/slots/9?action=save`, jsonPost({ model: 'alpha' }));
    expect(response.status).toBe(404);
    // The fake says it in this order, as llama-server does; ours would have a reason.
    expect(response.body.toString()).toBe(
      '{"error":{"message":"File Not Found","type":"not_found_error","code":404}}',
    );
  });

  it('that is an error is its own', async () => {
    service.setBehaviour('alpha', { errorStatus: 500 });
    const response = await rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' }));
    expect(response.status).toBe(500);
    expect(jsonIn(response)).toEqual({ error: { code: 500, message: 'fake failure', type: 'server_error' } });
  });

  it('keeps its headers, also repeated ones, and its Content-Length', async () => {
    const headers = {
      'set-cookie': ['a=1; Path=/', 'b=2', 'a=3'],
      'x-custom': ['one', 'two'],
      etag: '"x"',
      'cache-control': 'no-store',
      vary: 'Origin',
    };
    service.setBehaviour('alpha', { echo: { headers } });
    const post = jsonPost({ model: 'alpha' });
    const response = await rawRequest(`${service.url}/infill`, {
      ...post,
      // Of a page: then we set headers of our own as well.
      headers: { ...post.headers, Origin: 'http://localhost:3000' },
    });
    expect(response.headers['access-control-allow-origin']).toBe('http://localhost:3000');
    expect(response.headers['set-cookie']).toEqual(headers['set-cookie']);
    expect(response.headers).toMatchObject({
      'x-custom': 'one, two',
      etag: '"x"',
      'cache-control': 'no-store',
      vary: 'Origin',
      server: 'llama.cpp',
      'content-type': 'application/json; charset=utf-8',
      'content-length': String(response.body.length),
    });
    expect(response.headers).not.toHaveProperty('transfer-encoding');
    const names = response.rawHeaders.filter((_, at) => at % 2 === 0).map((name) => name.toLowerCase());
    expect(names.filter((name) => name === 'x-custom')).toHaveLength(2);
    expect(names.filter((name) => name === 'date')).toHaveLength(1);
  });

  it('is marked for proxies not to be buffered when it is an event stream, and only then', async () => {
    service.setBehaviour('alpha', {});
    const ask = (stream: boolean) =>
      rawRequest(`${service.url}/v1/chat/completions`, jsonPost({ model: 'alpha', stream }));
    const [streamed, whole] = [await ask(true), await ask(false)];
    expect(streamed.headers['content-type']).toBe('text/event-stream');
    expect(streamed.headers['x-accel-buffering']).toBe('no');
    expect(whole.headers).not.toHaveProperty('x-accel-buffering');
  });
});

describe('an unusual answer of a child', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, llamaServer: oddChild() });
  });
  const ask = (script: Script) => rawRequest(`${service.url}/infill`, scripted(script));

  it('in chunks that is no event stream comes through whole and as it comes', async () => {
    const exchange = rawExchange(
      `${service.url}/infill`,
      scripted([
        'HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n',
        '3\r\none\r\n',
        500,
        '3;ext=1\r\ntwo\r\n',
        '0\r\nX-Trailer: 1\r\n\r\n',
      ]),
    );
    const head = await exchange.head;
    expect(head.headers['content-type']).toBe('application/x-ndjson');
    expect(head.headers).not.toHaveProperty('x-accel-buffering');
    const response = await exchange.ended;
    expect([response.body.toString(), response.complete]).toEqual(['onetwo', true]);
  });

  it('without a body has none', async () => {
    const response = await ask(['HTTP/1.1 204 No Content\r\nX-Kept: 1\r\n\r\n']);
    expect([response.status, response.body.length, response.complete]).toEqual([204, 0, true]);
    expect(response.headers['x-kept']).toBe('1');
    expect(response.headers).not.toHaveProperty('content-length');
  });

  it('with an empty body of announced length has one', async () => {
    const response = await ask(['HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n']);
    expect([response.status, response.headers['content-length'], response.complete]).toEqual([
      200,
      '0',
      true,
    ]);
  });

  it('that ends with its connection is whole', async () => {
    const response = await ask([
      'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n',
      'abc',
      50,
      'def',
      { end: 'close' },
    ]);
    expect([response.body.toString(), response.complete]).toEqual(['abcdef', true]);
  });

  it('that is preceded by informational ones is told alone', async () => {
    const client = openSocket(service.supervisor.port);
    const script = [
      'HTTP/1.1 102 Processing\r\n\r\n',
      'HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n',
      50,
      'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone',
    ];
    const { body } = scripted(script);
    client.send(`POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    const answer = await client.receives('the answer', /\r\n\r\ndone$/);
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(answer).not.toContain('Link:');
  });

  it('has its status and the spelling of its headers, but those of the connection', async () => {
    const response = await ask([
      'HTTP/1.1 299 Quite Fine\r\nX-SpelLing: Kept\r\nX-Latin: caf\u00e9\r\nKeep-Alive: timeout=5, max=100\r\n' +
        'Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\nTrailer: x\r\n' +
        'Content-Length: 2\r\n\r\nok',
    ]);
    expect(response.status).toBe(299);
    const { rawHeaders } = response;
    expect(rawHeaders[rawHeaders.indexOf('X-SpelLing') + 1]).toBe('Kept');
    expect(response.headers['x-latin']).toBe('caf\u00e9');
    expect(response.headers).not.toHaveProperty('x-hop');
    expect(response.headers).not.toHaveProperty('proxy-authenticate');
    expect(response.headers).not.toHaveProperty('trailer');
    expect(response.headers['keep-alive'] ?? '').not.toContain('max=100');
  });
});
