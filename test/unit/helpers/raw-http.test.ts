import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import { type AddressInfo } from 'node:net';
import { expect, test } from 'vitest';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { rawExchange, rawRequest } from '../../helpers/raw-http.js';

async function serve(listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEndOfTest(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test('hands over status, headers as sent, and the body as bytes', async () => {
  const bytes = Buffer.from([0, 255, 13, 10]);
  const url = await serve((_req, res) => {
    res.writeHead(418, ['X-One', 'a', 'x-one', 'b']);
    res.end(bytes);
  });
  const response = await rawRequest(url);
  expect(response).toMatchObject({ status: 418, complete: true, body: bytes });
  expect(response.rawHeaders.slice(0, 4)).toEqual(['X-One', 'a', 'x-one', 'b']);
});

test('sends a body with its length, or piece by piece, and header lists in their order', async () => {
  const seen: { headers: string[]; body: string }[] = [];
  const url = await serve((req, res) => {
    let body = '';
    req.setEncoding('utf8').on('data', (piece: string) => (body += piece));
    req.on('end', () => {
      seen.push({ headers: req.rawHeaders, body });
      res.end();
    });
  });
  await rawRequest(url, { method: 'POST', headers: ['Host', 'x', 'b', '2', 'A', '1'], body: 'grüße' });
  async function* pieces() {
    yield 'one ';
    await Promise.resolve();
    yield Buffer.from('two');
  }
  await rawRequest(url, { method: 'POST', body: pieces() });
  expect(seen[0]?.body).toBe('grüße');
  expect(seen[0]?.headers.slice(0, 8)).toEqual(['Host', 'x', 'b', '2', 'A', '1', 'Content-Length', '7']);
  expect(seen[1]?.body).toBe('one two');
  expect(seen[1]?.headers).toContain('chunked');
});

test('a body that is cut is told from one that is whole, and keeps what came', async () => {
  const url = await serve((_req, res) => {
    res.write('half', () => res.destroy());
  });
  expect(await rawRequest(url)).toMatchObject({ status: 200, complete: false, body: Buffer.from('half') });
});

test('rejects when the connection ends without a response', async () => {
  const url = await serve((req) => req.socket.destroy());
  await expect(rawRequest(url)).rejects.toThrow('socket hang up');
});

test('shows the pieces as they come, and abort closes the connection', async () => {
  let closed = false;
  const url = await serve((_req, res) => {
    res.once('close', () => (closed = true));
    res.write('first');
  });
  const pieces: string[] = [];
  const exchange = rawExchange(url, { onChunk: (piece) => pieces.push(piece.toString()) });
  expect((await exchange.head).status).toBe(200);
  await eventually('the piece has come', () => pieces.length === 1);
  expect(exchange.received().toString()).toBe('first');
  exchange.abort();
  expect(await exchange.ended).toMatchObject({ complete: false, body: Buffer.from('first') });
  await eventually('the server saw it', () => closed);
});
