import { execFileSync } from 'node:child_process';
import type { Server } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { connect as connectSecurely } from 'node:tls';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import type { App } from '../../../src/http/app.js';
import { ConnectionLimit } from '../../../src/http/connection-limit.js';
import { RequestTracer } from '../../../src/http/request-trace.js';
import { listen, type HttpServerOptions, type RefusedRequest } from '../../../src/http/server.js';
import { TlsFiles } from '../../../src/http/tls-files.js';
import { Counters } from '../../../src/observe/counters.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { appServer } from '../../http/app-server.js';
import { openSocket } from '../../http/raw-socket.js';

function server(options: Partial<HttpServerOptions> = {}) {
  const app = new Hono().get('/health', (c) => c.text('ok')) as unknown as App;
  const created = appServer({ app, ...options });
  atEndOfTest(() => {
    created.close();
    created.closeAllConnections();
  });
  return created;
}

describe('createServer', () => {
  it('keeps idle connections longer than nginx does, and bounds what a client may take', () => {
    const { keepAliveTimeout, headersTimeout, requestTimeout, timeout } = server();
    const nginxKeepsMs = 60_000;
    expect(keepAliveTimeout).toBeGreaterThan(nginxKeepsMs);
    expect(headersTimeout).toBeGreaterThan(0);
    expect(headersTimeout).toBeLessThanOrEqual(60_000);
    expect(requestTimeout).toBeGreaterThan(600_000);
    // Silence is bounded where it is known who should speak, not here.
    expect(timeout).toBe(0);
  });

  it('refuses headers that come too slowly: 408 in JSON', async () => {
    const created = server();
    // The real bound would be waited for half a minute.
    Object.assign(created, { headersTimeout: 200, connectionsCheckingInterval: 50 });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = openSocket(port);
    client.send('GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ');
    const answer = await client.closed('the connection is closed');
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({
      error: { code: 408, type: 'invalid_request_error' },
    });
  });
});

describe('a request that cannot be read', () => {
  /** A traced server, the lines of its log, and its counters. */
  async function traced() {
    const lines: Record<string, unknown>[] = [];
    const write = (line: string): void => void lines.push(JSON.parse(line) as Record<string, unknown>);
    const counters = new Counters();
    const created = server({ tracer: new RequestTracer(pino({ level: 'info' }, { write }), counters) });
    const { port } = await listen(created, '127.0.0.1', 0);
    return { port, lines, counters };
  }

  it.each([
    [
      'whose Host is none',
      'GET /health HTTP/1.1\r\nHost: a b\r\n',
      'GET',
      '/health',
      400,
      'request_malformed',
    ],
    [
      'whose target is no URL',
      'GET http://[/?secret HTTP/1.1\r\nHost: x\r\n',
      'GET',
      'http://[/',
      400,
      'request_malformed',
    ],
    [
      'for the server as a whole',
      'OPTIONS * HTTP/1.1\r\nHost: x\r\n',
      'OPTIONS',
      '*',
      400,
      'request_malformed',
    ],
    [
      'that expects what nobody knows',
      'GET /health HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n',
      'GET',
      '/health',
      417,
      'expectation_unknown',
    ],
  ])('%s is answered, logged and counted like any other', async (_, head, method, path, status, reason) => {
    const { port, lines, counters } = await traced();
    const client = openSocket(port);
    client.send(`${head}X-Request-Id: odd-1\r\n\r\n`);
    const answer = await client.receives('the refusal', /\r\n\r\n\{.*\}$/s);
    expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `));
    expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({
      error: { code: status, type: 'invalid_request_error', reason },
    });
    await eventually('its line', () => lines.length > 0);
    expect(lines).toMatchObject([{ id: 'odd-1', method, path, status, msg: 'request', error: { reason } }]);
    expect(counters.requests).toEqual(new Map([[`other ${status}`, 1]]));
    expect(counters.inFlight).toBe(0);
    // The connection is good for the next one.
    client.send('GET /health HTTP/1.1\r\nHost: x\r\n\r\n');
    await client.receives('the next answer', /HTTP\/1\.1 200 [^]*ok$/);
  });

  it('is told from others that come at the same time', async () => {
    const { port, lines } = await traced();
    const clients = Array.from({ length: 20 }, (_, at) => {
      const client = openSocket(port);
      client.send(
        `GET /health HTTP/1.1\r\nHost: ${at % 2 === 0 ? 'x' : 'a b'}\r\nX-Request-Id: r-${at}\r\n\r\n`,
      );
      return client;
    });
    for (const [at, client] of clients.entries()) {
      await client.receives(
        `answer ${at}`,
        at % 2 === 0 ? /^HTTP\/1\.1 200 [^]*ok$/ : /^HTTP\/1\.1 400 [^]*\}$/,
      );
    }
    await eventually('their lines', () => lines.length === clients.length);
    for (const { id, status } of lines)
      expect(status, String(id)).toBe(Number(String(id).slice(2)) % 2 === 0 ? 200 : 400);
  });

  it('is answered while its body is still on its way', async () => {
    const { port, lines } = await traced();
    const client = openSocket(port);
    client.send('POST /health HTTP/1.1\r\nHost: a b\r\nContent-Length: 1000000\r\n\r\n{');
    expect(await client.closed('the connection is closed')).toMatch(
      /^HTTP\/1\.1 400 [^]*"request_malformed"/,
    );
    await eventually('its line', () => lines.length > 0);
    expect(lines).toMatchObject([{ method: 'POST', path: '/health', status: 400 }]);
  });

  it.each([
    ['is no HTTP', 'no HTTP at all\r\n\r\n', 400, 'HPE_INVALID_METHOD'],
    [
      'has too large headers',
      `GET / HTTP/1.1\r\nX: ${'x'.repeat(70_000)}\r\n\r\n`,
      431,
      'HPE_HEADER_OVERFLOW',
    ],
    ['asks for a tunnel', 'CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n', 400, 'CONNECT'],
  ])('because it %s is told once, with the address of its client', async (_what, bytes, status, reason) => {
    const refusals: RefusedRequest[] = [];
    const created = server({ onRefused: (refusal) => refusals.push(refusal) });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = halfOpen(port);
    client.socket.write(bytes);
    await eventually('the refusal', () => client.received().startsWith(`HTTP/1.1 ${status} `));
    expect(client.received()).toMatch(/"type":"invalid_request_error"\}\}$/);
    client.socket.write('more of it\r\n\r\n');
    await eventually('the server has no connection left', async () => (await connectionsOf(created)) === 0);
    expect(refusals).toMatchObject([{ client: '127.0.0.1', status, error: { reason } }]);
  });

  it('because it breaks into an answer is told without a status: it gets none', async () => {
    const refusals: RefusedRequest[] = [];
    const app = new Hono().get('/begun', () => new Response(new ReadableStream({ start: begin })));
    const created = server({
      app: app as unknown as App,
      onRefused: (refusal) => refusals.push(refusal),
    });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = openSocket(port);
    client.send('GET /begun HTTP/1.1\r\nHost: x\r\n\r\n');
    await client.receives('the answer begins', /begun/);
    client.send('no HTTP at all\r\n\r\n');
    expect(await client.closed('the connection is closed')).not.toContain('HTTP/1.1 400');
    expect(refusals).toHaveLength(1);
    expect(refusals[0]).toMatchObject({ client: '127.0.0.1', status: undefined });
  });

  it('is not told of clients that leave', async () => {
    const refusals: RefusedRequest[] = [];
    const created = server({ onRefused: (refusal) => refusals.push(refusal) });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = openSocket(port);
    client.send('GET /health HTTP/1.1\r\n');
    await eventually('it is connected', async () => (await connectionsOf(created)) === 1);
    client.socket.resetAndDestroy();
    await eventually('the server has noticed', async () => (await connectionsOf(created)) === 0);
    expect(refusals).toEqual([]);
  });
});

it('a request that asks for another protocol is answered in this one', async () => {
  const { port } = await listen(server(), '127.0.0.1', 0);
  const client = openSocket(port);
  client.send('GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  await client.receives('the answer', /^HTTP\/1\.1 200 [^]*ok$/);
});

it('the answers of a server that is draining close their connections, so that the next request goes elsewhere', async () => {
  let isDraining = false;
  const { port } = await listen(server({ isDraining: () => isDraining }), '127.0.0.1', 0);
  const client = openSocket(port);
  const ask = 'GET /health HTTP/1.1\r\nHost: x\r\n\r\n';
  client.send(ask);
  expect(await client.receives('an answer', /ok$/)).toMatch(/^connection: keep-alive\r$/im);
  isDraining = true;
  client.send(ask);
  const all = await client.closed('the connection is closed');
  expect(all.slice(all.lastIndexOf('HTTP/1.1 200'))).toMatch(/^connection: close\r$[^]*ok$/im);
});

/** The beginning of an answer that never ends. */
function begin(controller: ReadableStreamDefaultController<Uint8Array>): void {
  controller.enqueue(new TextEncoder().encode('begun'));
}

/** A client that keeps its side open when the other is closed. */
function halfOpen(port: number) {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  atEndOfTest(() => void socket.destroy());
  let said = '';
  socket.setEncoding('utf8').on('data', (text: string) => (said += text));
  socket.on('error', () => undefined);
  return { socket, received: () => said };
}

describe('a client that does not close its side', () => {
  it('is let go after a refusal all the same', async () => {
    const created = server();
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = halfOpen(port);
    client.socket.write('no HTTP at all\r\n\r\n');
    await eventually('the refusal', () => client.received().includes('HTTP/1.1 400'));
    await eventually('the server has no connection left', async () => (await connectionsOf(created)) === 0);
  });

  it('is let go when it never agrees on an encryption', async () => {
    const created = server({
      tls: await tlsFiles(),
      handshakeTimeoutMs: 200,
    });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = openSocket(port);
    await eventually('it is connected', async () => (await connectionsOf(created)) === 1);
    await client.closed('the server closes it');
    await eventually('the server has no connection left', async () => (await connectionsOf(created)) === 0);
  });
});

/** A key and a certificate of its own. */
function tlsFiles(): Promise<TlsFiles | undefined> {
  const directory = tempDir();
  const [key, cert] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
  const options = [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
    '-nodes',
    '-days',
    '2',
  ];
  execFileSync('openssl', [...options, '-subj', '/CN=localhost', '-keyout', key, '-out', cert], {
    stdio: 'pipe',
  });
  return TlsFiles.open({ sslKeyFile: key, sslCertFile: cert }, pino({ level: 'silent' }));
}

describe('with TLS, where as many clients are connected as may be', () => {
  async function full() {
    let nowMs = 0;
    const connections = new ConnectionLimit({ max: 1, onFull: () => undefined, now: () => nowMs });
    const { port } = await listen(server({ tls: await tlsFiles(), connections }), '127.0.0.1', 0);
    const connectTls = () => {
      const socket = connectSecurely({ port, host: '127.0.0.1', rejectUnauthorized: false });
      atEndOfTest(() => void socket.destroy());
      let said = '';
      socket.setEncoding('utf8').on('data', (text: string) => (said += text));
      socket.on('error', () => undefined);
      return {
        socket,
        ask: async () => {
          said = '';
          socket.write('GET /health HTTP/1.1\r\nHost: x\r\n\r\n');
          await eventually('the answer', () => /^HTTP\/1\.1 200 [^]*ok$/.test(said));
        },
      };
    };
    const first = connectTls();
    await first.ask();
    return { first, connectTls, pass: (ms: number) => (nowMs += ms) };
  }

  it('one more is closed at once, and who is in is served', async () => {
    const { first, connectTls } = await full();
    const { socket } = connectTls();
    await eventually('it is closed', () => socket.closed);
    await first.ask();
  });

  it('one that has been idle gives way', async () => {
    const { first, connectTls, pass } = await full();
    pass(60_000);
    await connectTls().ask();
    await eventually('it is closed', () => first.socket.closed);
  });
});

function connectionsOf(created: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    created.getConnections((error, count) => (error ? reject(error) : resolve(count)));
  });
}

describe('listen', () => {
  it('says where it listens', async () => {
    const created = server();
    const { port } = await listen(created, '127.0.0.1', 0);
    expect(port).toBe((created.address() as AddressInfo).port);
  });

  it('rejects with the address and what to do when the port is taken', async () => {
    const { port } = await listen(server(), '127.0.0.1', 0);
    await expect(listen(server(), '127.0.0.1', port)).rejects.toThrow(
      new RegExp(`127\\.0\\.0\\.1:${port} \\(EADDRINUSE\\).*--port`),
    );
  });
});
