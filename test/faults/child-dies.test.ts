import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import type { Death, FakeBehaviour } from '../helpers/fake-llama-server.js';
import { oddChild, scripted, type Ending, type Script } from '../http/odd-child.js';
import { openSocket } from '../http/raw-socket.js';
import {
  serveFakes,
  textOf,
  wireError,
  words,
  type FakeService,
  type WireError,
} from '../http/serve-fakes.js';

describe('a child that dies', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {}, bystander: {} } });
  });

  /** The model's next instance behaves so; one that runs does at once. */
  async function behaves(behaviour: FakeBehaviour): Promise<void> {
    service.setBehaviour('alpha', {});
    await service.use('alpha');
    service.setBehaviour('alpha', behaviour);
  }

  it.each([
    ['with an exit code', { code: 9 }, 'exited with code 9'],
    ['by a signal', { signal: 'SIGSEGV' }, 'SIGSEGV'],
  ] satisfies [string, Death, string][])(
    'before a byte of its answer, %s: 502 with the reason and its last lines',
    async (_how, death, said) => {
      await behaves({ dieOnRequest: death });
      const response = await rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' }));
      const error = wireError(response, 502, 'server_error');
      expect(error).toMatchObject({ reason: 'child_gone', model: 'alpha' });
      expect(error.message).toContain(said);
      expect(error['last_lines']).toEqual(
        expect.arrayContaining([expect.stringContaining("loading model 'alpha'")]),
      );
      expect((await service.entry('alpha')).status).toMatchObject({ value: 'unloaded', failed: true });
    },
  );

  it('within an event stream: the client gets what came, an error event, and no clean end', async () => {
    await behaves({ tokenIntervalMs: 10, dieMidStream: { afterChunks: 4, signal: 'SIGKILL' } });
    const response = await rawRequest(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'alpha', stream: true, max_tokens: 100 }),
    );
    expect([response.status, response.complete]).toEqual([200, false]);
    const data = sseData(response.body);
    const last = JSON.parse(data.pop() ?? '') as { error: WireError };
    expect(last.error).toMatchObject({
      code: 502,
      type: 'server_error',
      reason: 'child_gone',
      model: 'alpha',
    });
    expect(last.error.message).toContain('SIGKILL');
    expect(textOf(data)).toBe(words('alpha', 3));
    expect(data).not.toContain('[DONE]');
  });

  it('within a stream that can be resumed: the bytes are those of the child alone', async () => {
    await behaves({ tokenIntervalMs: 10, dieMidStream: { afterChunks: 4, signal: 'SIGKILL' } });
    const request = jsonPost({ model: 'alpha', stream: true, max_tokens: 100 });
    const response = await rawRequest(`${service.url}/v1/completions`, {
      ...request,
      headers: { ...request.headers, 'X-Conversation-Id': 'c::alpha' },
    });
    expect([response.status, response.complete]).toEqual([200, false]);
    expect(response.body.toString()).not.toContain('error');
    expect(textOf(sseData(response.body))).toBe(words('alpha', 3));
  });

  it('within an answer to a client of HTTP/1.0: the connection is reset, since its end would be that of the answer', async () => {
    const service = await serveFakes({ models: { mortal: { dieMidStream: { afterChunks: 3 } } } });
    const client = openSocket(service.supervisor.port);
    const errors: string[] = [];
    client.socket.on('error', ({ code = '' }: NodeJS.ErrnoException) => errors.push(code));
    const body = JSON.stringify({ model: 'mortal', stream: true });
    client.send(
      'POST /v1/completions HTTP/1.0\r\nX-Conversation-Id: c\r\nContent-Type: application/json\r\n' +
        `Content-Length: ${body.length}\r\n\r\n${body}`,
    );
    const text = await client.closed('the connection is closed');
    expect(text).toContain('mortal');
    expect(text).not.toContain('Transfer-Encoding');
    expect(errors).toEqual(['ECONNRESET']);
  });

  it('is replaced at the next request, and takes nobody with it', async () => {
    const { pid } = await service.use('bystander');
    await behaves({ dieOnRequest: true });
    const bystander = rawRequest(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'bystander', stream: true, max_tokens: 2_000 }),
    );
    const first = await service.entry('alpha');
    wireError(await rawRequest(`${service.url}/infill`, jsonPost({ model: 'alpha' })), 502, 'server_error');
    service.setBehaviour('alpha', {});
    expect((await service.use('alpha')).pid).not.toBe(first.pid);
    const undisturbed = await bystander;
    expect(undisturbed.complete).toBe(true);
    expect(textOf(sseData(undisturbed.body))).toBe(words('bystander', 2_000));
    expect((await service.use('bystander')).pid).toBe(pid);
  });

  it('at each generation is left alone after the second, although what needs no generation is answered in between', async () => {
    const weak = await serveFakes({ models: { weak: {} } });
    const { url } = weak;
    const crash = async () => {
      weak.setBehaviour('weak', { dieOnRequest: true });
      wireError(await rawRequest(`${url}/v1/completions`, jsonPost({ model: 'weak' })), 502, 'server_error');
      weak.setBehaviour('weak', {});
    };
    const tokenize = () => rawRequest(`${url}/tokenize`, jsonPost({ model: 'weak', content: 'a' }));
    expect((await tokenize()).status).toBe(200);
    await crash();
    expect((await tokenize()).status).toBe(200);
    await crash();
    expect((await weak.entry('weak')).status.error).toMatchObject({ failures: 2 });
    const refused = await eventually('it is left alone', async () => {
      const answer = await tokenize();
      if (answer.status !== 200) return wireError(answer, 503, 'unavailable_error');
      // On a busy machine the pause was over before: after one more crash it is twice as long.
      await crash();
      return undefined;
    });
    expect(refused.reason).toBe('model_failing');
  });

  it('while many wait for its answer: each of them is told', async () => {
    await behaves({ nonStreamMs: 20_000 });
    const requests = Array.from({ length: 10 }, () =>
      rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' })),
    );
    const { pid } = await service.until('all are at work', 'alpha', (entry) => entry.in_flight === 10);
    expect(pid).toBeGreaterThan(0);
    process.kill(pid ?? 0, 'SIGKILL');
    for (const response of await Promise.all(requests)) {
      expect(wireError(response, 502, 'server_error').message).toContain('SIGKILL');
    }
    expect((await service.entry('alpha')).in_flight).toBe(0);
  });
});

describe('an answer that breaks off', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, llamaServer: oddChild() });
  });
  const ask = async (script: Script) => {
    // One that has died again and again is left alone for a while, unless somebody wants it now.
    await rawRequest(`${service.url}/models/load`, jsonPost({ model: 'alpha' }));
    return await rawRequest(`${service.url}/infill`, scripted(script));
  };

  const chunked =
    'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{"a":1\r\n';
  const withLength = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":1';
  const endings: Ending[] = ['close', 'reset', 'die'];

  it.each(
    endings.flatMap((end): [string, Ending, string][] => [
      ['in chunks', end, chunked],
      ['of announced length', end, withLength],
    ]),
  )(
    '%s, by "%s": the client has the bytes that came, and sees that it is not whole',
    async (_what, end, head) => {
      const response = await ask([head, 100, { end }]);
      expect([response.status, response.complete]).toEqual([200, false]);
      expect(response.body.toString()).toBe('{"a":1');
    },
  );

  it.each(endings)('within an event, by "%s": that event is closed, and one tells the error', async (end) => {
    const response = await ask([
      'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n' +
        'A\r\ndata: cut \r\n',
      100,
      { end },
    ]);
    expect([response.status, response.complete]).toEqual([200, false]);
    const [cut, error] = sseData(response.body);
    expect(cut).toBe('cut ');
    expect(JSON.parse(error ?? '')).toMatchObject({ error: { code: 502, reason: 'child_gone' } });
  });

  it.each(endings)('after a head with its length, by "%s": 502 in JSON', async (end) => {
    const head = 'HTTP/1.1 200 OK\r\nX-Of-Child: yes\r\nContent-Length: 100\r\n\r\n';
    const response = await ask([head, 100, { end }]);
    expect(wireError(response, 502, 'server_error')).toMatchObject({ reason: 'child_gone', model: 'alpha' });
    expect(response.headers).not.toHaveProperty('x-of-child');
  });

  it.each(endings)('before it began, by "%s": 502 in JSON', async (end) => {
    const error = wireError(await ask([{ end }]), 502, 'server_error');
    expect(error).toMatchObject({ reason: 'child_gone', model: 'alpha' });
    if (end === 'die') expect(error['last_lines']).toContain('odd child: its last words');
  });

  it.each([
    ['is no HTTP', 'NONSENSE\r\n\r\n'],
    ['has a broken header', 'HTTP/1.1 200 OK\r\nBad Header\r\n\r\n'],
    ['has headers without end', `HTTP/1.1 200 OK\r\nX-Long: ${'x'.repeat(200_000)}`],
  ])('an answer that %s: 502 in JSON', async (_what, bytes) => {
    wireError(await ask([bytes]), 502, 'server_error');
  });

  it('leaves no lease behind', async () => {
    await ask([withLength, { end: 'reset' }]);
    await service.until('nothing is in flight', 'alpha', (entry) => entry.in_flight === 0);
  });
});

describe('a child that is silent for longer than --timeout', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, llamaServer: oddChild(), args: ['--timeout', '1'] });
  });

  it('before its answer: 504 in JSON', async () => {
    const response = await rawRequest(`${service.url}/infill`, scripted([]));
    expect(wireError(response, 504, 'server_error')).toMatchObject({
      reason: 'child_timeout',
      model: 'alpha',
    });
  });

  it('within its answer: the client sees that it is not whole', async () => {
    const response = await rawRequest(
      `${service.url}/infill`,
      scripted(['HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc']),
    );
    expect([response.body.toString(), response.complete]).toEqual(['abc', false]);
  });
});
