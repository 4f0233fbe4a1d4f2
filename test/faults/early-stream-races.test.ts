/** What can come together with the beginning of a stream before its answer, and with its comments. */
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { sigkill } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { sseData, sseEvents } from '../helpers/sse.js';
import { oddChild } from '../http/odd-child.js';
import { openSocket } from '../http/raw-socket.js';
import { serveFakes, textOf, words, type FakeService } from '../http/serve-fakes.js';

const slow = { loadMs: 1_500 };

describe('of a stream that is begun while its model loads', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: {
        deserted: slow,
        old: slow,
        whole: slow,
        refusing: { ...slow, errorStatus: 400 },
        failing: { byStart: [{ exitWhileLoading: { code: 3 } }, { ...slow, errorStatus: 500 }] },
        crashing: { ...slow, dieOnRequest: { code: 4 } },
        timed: slow,
      },
      args: ['--models-max', '0', '--stream-ping-after', '0.2', '--stream-ping-interval', '0.1'],
    });
  });

  const begin = (model: string, { path = '/v1/chat/completions' } = {}): RawExchange => {
    const { method, body, headers } = jsonPost({ model, stream: true });
    return rawExchange(service.url + path, {
      method,
      body,
      headers: { ...headers, 'X-Request-Id': model },
    });
  };
  const lineOf = (model: string) =>
    eventually(`the line of ${model}`, () => service.supervisor.log().find(({ id }) => id === model));

  it('the client leaves between two comments: it waits no more, and the load goes on', async () => {
    const exchange = begin('deserted');
    await eventually('there are comments', () => sseEvents(exchange.received()).length > 2);
    exchange.abort();
    await service.until('nobody waits', 'deserted', ({ waiting }) => waiting === 0);
    expect(await lineOf('deserted')).toMatchObject({ msg: 'request', status: 200, clientGone: true });
    await service.until('it is loaded', 'deserted', ({ status }) => status.value === 'loaded');
  });

  it('the head says what had been waited by then, and for what', async () => {
    const { 'server-timing': timing } = (await begin('timed').head).headers;
    const [, queueMs, loadMs] = /^queue;dur=(\d+), load;dur=(\d+)$/.exec(String(timing)) ?? [];
    // Timers may fire a millisecond early.
    expect(Number(queueMs) + Number(loadMs)).toBeGreaterThanOrEqual(190);
    expect(Number(loadMs)).toBeGreaterThan(Number(queueMs));
  });

  it('a client of HTTP/1.0 reads comments and answer as they come, and the end of the connection is its end', async () => {
    const { body, headers } = jsonPost({ model: 'old', stream: true });
    const socket = openSocket(service.supervisor.port);
    socket.send(
      `POST /v1/chat/completions HTTP/1.0\r\nContent-Type: ${headers['content-type'] ?? ''}\r\n` +
        `Content-Length: ${body.length}\r\n\r\n${body}`,
    );
    const received = await socket.closed('the answer is over');
    const [head = '', ...rest] = received.split('\r\n\r\n');
    expect(head).toMatch(/^HTTP\/1\.1 200 /);
    expect(head.toLowerCase()).not.toContain('transfer-encoding');
    const bytes = Buffer.from(rest.join('\r\n\r\n'));
    expect(sseEvents(bytes).filter(({ comment }) => comment !== undefined).length).toBeGreaterThan(2);
    expect(textOf(sseData(bytes))).toBe(words('old', 5));
    expect(sseData(bytes).at(-1)).toBe('[DONE]');
  });

  it('the child gives its answer in one piece: it is an event', async () => {
    const { status, complete, body } = await begin('whole', { path: '/v1/messages' }).ended;
    expect(status).toBe(200);
    expect(complete).toBe(true);
    const data = sseData(body);
    expect(data).toHaveLength(1);
    expect(JSON.parse(data[0] ?? '')).toMatchObject({ alias: 'whole', method: 'POST', url: '/v1/messages' });
  });

  it('what the child refuses is logged with its status, and not as a client that left', async () => {
    const { complete } = await begin('refusing').ended;
    expect(complete).toBe(false);
    const line = await lineOf('refusing');
    expect(line).toMatchObject({ msg: 'request', status: 200, childStatus: 400 });
    expect(line).not.toHaveProperty('clientGone');
  });

  // Its status is 200 for the client, which passed for a success of its model.
  it('an error of the child does not close the row of its failures', async () => {
    const failed = await rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'failing' }));
    expect(failed.status).toBe(503);
    const { complete } = await begin('failing').ended;
    expect(complete).toBe(false);
    const { pid } = await service.entry('failing');
    sigkill(pid ?? NaN);
    const { status } = await service.until(
      'it has failed',
      'failing',
      ({ status: { failed } }) => failed === true,
    );
    expect(status.error).toMatchObject({ reason: 'crashed', failures: 2 });
  });

  it('the child dies at the request: an error event says so, and the request is not repeated', async () => {
    const { status, complete, body } = await begin('crashing').ended;
    expect(status).toBe(200);
    expect(complete).toBe(false);
    const errors = sseEvents(body).filter(({ event }) => event === 'error');
    expect(errors).toHaveLength(1);
    expect(JSON.parse(errors[0]?.data ?? '')).toMatchObject({
      type: 'error',
      error: { code: 502, reason: 'child_gone', model: 'crashing' },
    });
    expect(service.journal.of('start').filter(({ alias }) => alias === 'crashing')).toHaveLength(1);
  });
});

it.each([
  ['text', `Content-Length: 2\r\n\r\nhi`],
  ['JSON that is too long', `Content-Length: 300002\r\n\r\n"${'x'.repeat(300_000)}"`],
])(
  'a stream that was begun and to which the child answers %s fails, and not for its client',
  async (_, rest) => {
    const service = await serveFakes({
      models: { alpha: {} },
      llamaServer: oddChild(),
      args: ['--stream-ping-after', '0.2'],
    });
    const script = [1_000, `HTTP/1.1 200 OK\r\n${rest}`];
    const request = jsonPost({ model: 'alpha', stream: true, script });
    const headers = { ...request.headers, 'X-Request-Id': 'odd' };
    const { status, complete, body } = await rawRequest(`${service.url}/infill`, { ...request, headers });
    expect(status).toBe(200);
    expect(complete).toBe(false);
    const errors = sseEvents(body).filter(({ event }) => event === 'error');
    expect(errors).toHaveLength(1);
    expect(JSON.parse(errors[0]?.data ?? '')).toMatchObject({ error: { code: 502, reason: 'child_gone' } });
    const line = await eventually('its line', () =>
      service.supervisor.log().find(({ id, msg }) => id === 'odd' && msg === 'request'),
    );
    expect(line).toMatchObject({ status: 200, error: { reason: 'child_gone' } });
    expect(line).not.toHaveProperty('clientGone');
  },
);
