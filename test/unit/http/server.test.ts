import type { AddressInfo } from 'node:net';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import type { App } from '../../../src/http/app.js';
import { RequestTracer } from '../../../src/http/request-trace.js';
import { createServer, listen } from '../../../src/http/server.js';
import { Counters } from '../../../src/observe/counters.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { openSocket } from '../../http/raw-socket.js';

function server() {
  const app = new Hono().get('/health', (c) => c.text('ok')) as unknown as App;
  const tracer = new RequestTracer(pino({ level: 'silent' }), new Counters());
  const created = createServer({ app, tracer, tls: undefined, onAcceptError: () => undefined });
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
