/** Several requests written at once on one connection (RFC 9112, section 9.3.2). */
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { openSocket } from './raw-socket.js';
import { serveFakes, type FakeService } from './serve-fakes.js';

function completion(model: string, more: object): string {
  const body = JSON.stringify({ model, ...more });
  return (
    `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n` +
    `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
  );
}

describe('pipelined requests', () => {
  let service: FakeService;
  let port: number;
  beforeAll(async () => {
    service = await serveFakes({ models: { paced: { tokenIntervalMs: 20 }, quick: {}, unused: {} } });
    ({ port } = service.supervisor);
    await service.use('paced');
  });

  it('are answered in order', async () => {
    const client = openSocket(port);
    const words = [3, 1, 2];
    client.send(words.map((max_tokens) => completion('quick', { max_tokens })).join(''));
    const text = await client.receives('all three answers', /(HTTP\/1\.1 200[^]*){3}"quick 1 2"/);
    expect(text.match(/"quick(?: \d)+"/g)).toEqual(['"quick 1 2 3"', '"quick 1"', '"quick 1 2"']);
  });

  it('behind a stream are begun when that has ended', async () => {
    const client = openSocket(port);
    client.send(
      completion('paced', { stream: true, max_tokens: 10 }) + completion('quick', { max_tokens: 4 }),
    );
    const text = await client.receives('the second answer', /"quick 1 2 3 4"/);
    expect(text.indexOf('[DONE]')).toBeGreaterThan(0);
    expect(text.indexOf('[DONE]')).toBeLessThan(text.indexOf('"quick 1'));
  });

  it('whose connection ends before their turn hold no model, and load none', async () => {
    const client = openSocket(port);
    const endless = completion('paced', { stream: true, max_tokens: -1 });
    client.send(endless + endless + completion('unused', { max_tokens: 1 }));
    await client.receives('the first stream', /paced/);
    client.socket.destroy();
    await eventually('no request is in flight', async () => {
      const entries = await service.list();
      return entries.every(({ in_flight, waiting }) => in_flight === 0 && waiting === 0);
    });
    const unused = await service.entry('unused');
    expect(unused.status.value).toBe('unloaded');
    // Its slot is free: another takes it.
    await service.use('quick');
  });

  it('a hundred behind a stream are answered', async () => {
    const client = openSocket(port);
    client.send(completion('paced', { stream: true, max_tokens: 20 }));
    client.send('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(99));
    client.send('GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n');
    const text = await client.receives('the last answer', /HTTP\/1\.1 404 .*\r\n\r\n\{/s);
    expect(text.match(/HTTP\/1\.1 200/g)).toHaveLength(100);
    expect(text.indexOf('[DONE]')).toBeLessThan(text.indexOf('{"status":"ok"}'));
  });

  it('of any number do not fill the memory: the connection is closed, and the log says so once', async () => {
    const client = openSocket(port);
    client.send(completion('paced', { stream: true, max_tokens: -1 }));
    await client.receives('the stream', /paced/);
    client.send('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(100_000));
    await client.closed('the connection is closed');
    await service.until('the child is free', 'paced', ({ in_flight }) => in_flight === 0);
    const refusals = await eventually('a line of the log', () => {
      const lines = service.supervisor.log().filter(({ msg }) => msg === 'request refused');
      return lines.length > 0 && lines;
    });
    expect(refusals).toMatchObject([{ client: '127.0.0.1', error: { reason: 'pipelined' } }]);
  });
});
