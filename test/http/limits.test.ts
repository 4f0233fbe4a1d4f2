import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { bodyOf, piecesOf } from './payload.js';
import { openSocket } from './raw-socket.js';
import { serveFakes, wireError, type FakeService } from './serve-fakes.js';

const MiB = 1024 * 1024;

function retryAfter(response: RawResponse): number {
  return Number(response.headers['retry-after']);
}

describe('--body-max', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, args: ['--body-max', '1MiB'] });
    await service.use('alpha');
  });

  it('lets a body of just that size through', async () => {
    for (const body of [bodyOf(MiB, 'alpha'), piecesOf(bodyOf(MiB, 'alpha'), 100_000)]) {
      expect((await rawRequest(`${service.url}/infill`, { method: 'POST', body })).status).toBe(200);
    }
  });

  it.each(['/infill', '/v1/audio/transcriptions', '/models/load'])(
    'refuses one byte more at %s: 413 in JSON, with a Content-Length and in chunks',
    async (path) => {
      for (const body of [bodyOf(MiB + 1, 'alpha'), piecesOf(bodyOf(MiB + 1, 'alpha'), 100_000)]) {
        const response = await rawRequest(`${service.url}${path}`, { method: 'POST', body });
        const error = wireError(response, 413, 'invalid_request_error');
        expect(error.reason).toBe('body_too_large');
        expect(error.message).toContain('--body-max');
      }
    },
  );

  it.each([
    ['with a Content-Length', `Content-Length: ${100 * MiB}\r\n\r\n`, (piece: string) => piece],
    [
      'in chunks',
      'Transfer-Encoding: chunked\r\n\r\n',
      (piece: string) => `${piece.length.toString(16)}\r\n${piece}\r\n`,
    ],
  ])('is told to a client that is still sending, %s', async (_how, head, framed) => {
    const client = openSocket(service.supervisor.port);
    client.send(`POST /infill HTTP/1.1\r\nHost: x\r\n${head}`);
    const piece = framed('x'.repeat(64 * 1024));
    let sent = 0;
    const sending = setInterval(() => {
      if (sent < 20 * MiB && client.socket.write(piece)) sent += piece.length;
    }, 1);
    try {
      const answer = await client.receives('the refusal', /\r\n\r\n\{.*\}/s);
      expect(answer).toMatch(/^HTTP\/1\.1 413 /);
      expect(answer).toMatch(/^connection: close\r$/im);
      expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({
        error: { code: 413, reason: 'body_too_large' },
      });
    } finally {
      clearInterval(sending);
    }
    expect(await client.closed('the connection is closed')).toMatch(/\}$/);
  });

  it.skipIf(!canListProcesses)(
    'is bounded in memory also for a body of a million chunks of one byte',
    async () => {
      const before = residentMiB(service.supervisor.pid);
      const client = openSocket(service.supervisor.port);
      client.send('POST /infill HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n');
      const piece = Buffer.from('1\r\n \r\n'.repeat(100_000));
      for (let sent = 0; sent < 10; sent++) client.send(piece);
      client.send('0\r\n\r\n');
      await client.receives('its refusal', /\r\n\r\n\{.*\}$/s);
      expect(residentMiB(service.supervisor.pid) - before).toBeLessThan(80);
    },
  );

  it('reaches no child, and the next request is served', async () => {
    const before = service.journal.of('request').length;
    await rawRequest(`${service.url}/infill`, { method: 'POST', body: bodyOf(2 * MiB, 'alpha') });
    expect(service.journal.of('request')).toHaveLength(before);
    expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
  });
});

describe('--body-memory-max', () => {
  it('bounds all bodies together: 503 with Retry-After, until one has gone', async () => {
    const service = await serveFakes({
      models: { alpha: {} },
      args: ['--body-max', '1MiB', '--body-memory-max', '1.5MiB'],
    });
    await service.use('alpha');
    const ask = () => rawRequest(`${service.url}/infill`, { method: 'POST', body: bodyOf(MiB, 'alpha') });

    const hold = () => {
      const client = openSocket(service.supervisor.port);
      client.send(`POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: ${MiB}\r\n\r\n${'x'.repeat(MiB - 1)}`);
      return client;
    };
    let holder = hold();
    const refusal = await eventually('the memory is full', async () => {
      // When both arrive at once it can be the one meant to hold the memory that is refused.
      if (holder.received() !== '') holder = hold();
      const response = await ask();
      return response.status !== 200 && response;
    });
    const error = wireError(refusal, 503, 'unavailable_error');
    expect(error.reason).toBe('body_memory_full');
    expect(error.message).toContain('--body-memory-max');
    expect(retryAfter(refusal)).toBeGreaterThanOrEqual(1);
    // Small ones still fit.
    expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });

    holder.socket.destroy();
    await eventually('there is room again', async () => (await ask()).status === 200);
    for (let request = 0; request < 5; request++) expect((await ask()).status).toBe(200);
  });

  it('holds a body no longer than until its answer begins', async () => {
    const service = await serveFakes({
      models: { alpha: { tokenIntervalMs: 50 } },
      args: ['--body-max', '1MiB', '--body-memory-max', '1MiB'],
    });
    const large = { model: 'alpha', stream: true, max_tokens: 1000, prompt: 'x'.repeat(700 * 1024) };
    // Each of the two alone fills most of the memory.
    for (let taken = 0; taken < 2; taken++) {
      const stream = rawExchange(`${service.url}/completion`, jsonPost(large));
      atEndOfTest(() => stream.abort());
      expect((await stream.head).status).toBe(200);
    }
  });
});

describe('--queue-max and --queue-timeout', () => {
  async function busy(args: string[]): Promise<FakeService> {
    const service = await serveFakes({
      models: { busy: { tokenIntervalMs: 20 }, wanted: {} },
      args: ['--models-max', '1', ...args],
    });
    const stream = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'busy', stream: true, max_tokens: -1 }),
    );
    // Its end would be waited for at shutdown.
    atEndOfTest(() => {
      stream.abort();
    });
    await stream.head;
    return service;
  }

  it('one more waiter than --queue-max: 429 with Retry-After', async () => {
    const service = await busy(['--queue-max', '2']);
    const waiting = [0, 1].map(() => rawExchange(`${service.url}/infill`, jsonPost({ model: 'wanted' })));
    await service.until('two wait', 'wanted', (entry) => entry.waiting === 2);
    for (const path of ['/infill', '/models/load']) {
      const response = await rawRequest(`${service.url}${path}`, jsonPost({ model: 'wanted' }));
      const error = wireError(response, 429, 'overloaded_error');
      expect(error).toMatchObject({ reason: 'queue_full', model: 'wanted' });
      expect(error.message).toContain('--queue-max');
      expect(retryAfter(response)).toBeGreaterThanOrEqual(1);
    }
    // Who needs not wait is served.
    expect(await service.use('busy')).toMatchObject({ alias: 'busy' });
    for (const waiter of waiting) waiter.abort();
  });

  it('a wait longer than --queue-timeout: 503 with Retry-After', async () => {
    const service = await busy(['--queue-timeout', '1']);
    const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'wanted' }));
    const error = wireError(response, 503, 'unavailable_error');
    expect(error).toMatchObject({ reason: 'queue_timeout', model: 'wanted' });
    expect(error.message).toContain('--queue-timeout');
    expect(retryAfter(response)).toBeGreaterThanOrEqual(1);
    expect((await service.entry('wanted')).waiting).toBe(0);
    expect(service.journal.of('start', 'wanted')).toEqual([]);
  });
});

describe('a request that cannot be read', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: { tokenIntervalMs: 20 } } });
    await service.use('alpha');
  });

  /** The answer to bytes on a connection that the other side then closes: its status and its error. */
  async function refusalOf(bytes: string): Promise<{ status: number; error: unknown }> {
    const client = openSocket(service.supervisor.port);
    client.send(bytes);
    const answer = await client.closed('the connection is closed');
    expect(answer).toMatch(/^content-type: application\/json/im);
    const { error } = JSON.parse(answer.slice(answer.indexOf('{'))) as { error: unknown };
    return { status: Number(/^HTTP\/1\.1 (\d+) /.exec(answer)?.[1]), error };
  }

  it.each([
    ['garbage', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello'],
    ['a header without a name', 'GET /health HTTP/1.1\r\n: x\r\nHost: x\r\n\r\n'],
    ['a blank before a colon', 'GET /health HTTP/1.1\r\nHost : x\r\n\r\n'],
    [
      'two different lengths',
      'POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello',
    ],
    [
      'a length and chunks',
      'POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    ],
    ['chunks that are none', 'POST /infill HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nhello'],
    ['a Host that is none', 'GET /health HTTP/1.1\r\nHost: a b/c\r\nConnection: close\r\n\r\n'],
  ])('%s: 400 in JSON', async (_what, bytes) => {
    expect(await refusalOf(bytes)).toMatchObject({
      status: 400,
      error: { code: 400, type: 'invalid_request_error' },
    });
  });

  it('headers of 64 KiB and more: 431 in JSON', async () => {
    const bytes = `GET /health HTTP/1.1\r\nHost: x\r\nX-Huge: ${'x'.repeat(80 * 1024)}\r\n\r\n`;
    expect(await refusalOf(bytes)).toMatchObject({ status: 431, error: { code: 431 } });
  });

  it('a query of 32 KiB is none', async () => {
    const response = await rawRequest(
      `${service.url}/infill?x=${'y'.repeat(32 * 1024)}`,
      jsonPost({ model: 'alpha' }),
    );
    expect(response.status).toBe(200);
  });

  it('behind one whose answer is still streaming: that stream is cut, and nothing is written into it', async () => {
    const client = openSocket(service.supervisor.port);
    const body = JSON.stringify({ model: 'alpha', stream: true, max_tokens: -1 });
    client.send(`POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    await client.receives('the stream runs', / 3"/);
    client.send('this is no request\r\n\r\n');
    const all = await client.closed('the connection is closed');
    expect(all.match(/HTTP\/1\.1/g)).toHaveLength(1);
    await service.until('the child is free', 'alpha', (entry) => entry.in_flight === 0);
  });

  it.each(['gzip', 'br', 'deflate, gzip'])('a body in Content-Encoding %s: 415', async (encoding) => {
    for (const path of ['/infill', '/models/load']) {
      const response = await rawRequest(`${service.url}${path}`, {
        method: 'POST',
        headers: { 'content-encoding': encoding },
        body: bodyOf(300_000, 'alpha'),
      });
      expect(wireError(response, 415, 'invalid_request_error').message).toContain(encoding);
    }
  });

  it('a body in Content-Encoding identity is none', async () => {
    const response = await rawRequest(`${service.url}/infill`, {
      method: 'POST',
      headers: { 'content-encoding': 'identity' },
      body: bodyOf(100, 'alpha'),
    });
    expect(response.status).toBe(200);
  });
});

function residentMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}
