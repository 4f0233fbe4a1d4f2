import { execFileSync } from 'node:child_process';
import type { Server } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import type { App } from '../../../src/http/app.js';
import { RequestTracer } from '../../../src/http/request-trace.js';
import { createServer, listen, type HttpServerOptions } from '../../../src/http/server.js';
import { TlsFiles } from '../../../src/http/tls-files.js';
import { Counters } from '../../../src/observe/counters.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { openSocket } from '../../http/raw-socket.js';

function server(options: Partial<Pick<HttpServerOptions, 'tls' | 'handshakeTimeoutMs'>> = {}) {
  const app = new Hono().get('/health', (c) => c.text('ok')) as unknown as App;
  const tracer = new RequestTracer(pino({ level: 'silent' }), new Counters());
  const created = createServer({ app, tracer, tls: undefined, onAcceptError: () => undefined, ...options });
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

describe('a client that does not close its side', () => {
  it('is let go after a refusal all the same', async () => {
    const created = server();
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    atEndOfTest(() => void client.destroy());
    let said = '';
    client.setEncoding('utf8').on('data', (text: string) => (said += text));
    client.on('error', () => undefined);
    client.write('no HTTP at all\r\n\r\n');
    await eventually('the refusal', () => said.includes('HTTP/1.1 400'));
    await eventually('the server has no connection left', async () => (await connectionsOf(created)) === 0);
  });

  it('is let go when it never agrees on an encryption', async () => {
    const directory = tempDir();
    const [key, cert] = [join(directory, 'key.pem'), join(directory, 'cert.pem')];
    execFileSync(
      'openssl',
      [
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
      ].concat(['-subj', '/CN=localhost', '-keyout', key, '-out', cert]),
      { stdio: 'pipe' },
    );
    const created = server({
      tls: await TlsFiles.open({ sslKeyFile: key, sslCertFile: cert }, pino({ level: 'silent' })),
      handshakeTimeoutMs: 200,
    });
    const { port } = await listen(created, '127.0.0.1', 0);
    const client = openSocket(port);
    await eventually('it is connected', async () => (await connectionsOf(created)) === 1);
    await client.closed('the server closes it');
    await eventually('the server has no connection left', async () => (await connectionsOf(created)) === 0);
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
