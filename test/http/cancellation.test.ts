import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { bodyOf } from './payload.js';
import { openSocket } from './raw-socket.js';
import { echoIn, serveFakes, type FakeService } from './serve-fakes.js';

const endless = { stream: true, max_tokens: -1 };

/** How soon a child must learn that nobody wants its answer any more, in milliseconds. */
const soon = { deadlineMs: 2_000 };

/** What both sides must look like once nobody wants anything of the model. */
async function isIdle(service: FakeService, model: string): Promise<void> {
  await service.until(`${model} is idle`, model, (entry) => entry.in_flight === 0 && entry.waiting === 0);
}

function complete(service: FakeService, request: Record<string, unknown>): RawExchange {
  return rawExchange(`${service.url}/v1/completions`, jsonPost(request));
}

describe('a client that leaves', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { paced: { tokenIntervalMs: 20 }, slow: { nonStreamMs: 60_000 } } });
    await service.use('paced');
    await service.use('slow');
  });

  it('within a stream ends the work of the child', async () => {
    const exchange = complete(service, { model: 'paced', ...endless });
    await eventually('the stream runs', () => exchange.received().length > 500);
    exchange.abort();
    const cancelled = await eventually(
      'the child is told',
      () => service.journal.of('cancelled', 'paced')[0],
      soon,
    );
    expect(cancelled).toMatchObject({ url: '/v1/completions', status: 200 });
    await isIdle(service, 'paced');
  });

  it('before an answer in one piece ends the work of the child', async () => {
    const exchange = complete(service, { model: 'slow' });
    await service.until('the child is at work', 'slow', (entry) => entry.in_flight === 1);
    await eventually('the child has the request', () =>
      service.journal.of('request', 'slow').some(({ url }) => url === '/v1/completions'),
    );
    exchange.abort();
    await eventually('the child is told', () => service.journal.of('cancelled', 'slow').length === 1, soon);
    await isIdle(service, 'slow');
  });

  it('of many ends the work for itself alone', async () => {
    const others = Array.from({ length: 5 }, () =>
      complete(service, { model: 'paced', stream: true, max_tokens: 60 }),
    );
    const leaving = complete(service, { model: 'paced', ...endless });
    await service.until('all are at work', 'paced', (entry) => entry.in_flight === 6);
    leaving.abort();
    await service.until('one has gone', 'paced', (entry) => entry.in_flight === 5);
    for (const other of others) {
      const { complete: whole, body } = await other.ended;
      expect([whole, body.toString().includes(' 60"')]).toEqual([true, true]);
    }
    await isIdle(service, 'paced');
  });

  it.each([
    ['with a Content-Length', 'Content-Length: 1000000\r\n\r\n{"model":"paced",'],
    ['in chunks', 'Transfer-Encoding: chunked\r\n\r\n10\r\n{"model":"paced"\r\n'],
  ])('while it sends its body, %s, reaches no child', async (_how, rest) => {
    const before = service.journal.of('request').length;
    const client = openSocket(service.supervisor.port);
    client.send(`POST /infill HTTP/1.1\r\nHost: x\r\nX-Request-Id: leaver-${before}\r\n${rest}`);
    // The request must have begun there before it breaks off: the next one on another connection is served after it.
    await rawRequest(`${service.url}/health`);
    client.socket.resetAndDestroy();
    const line = await eventually('its end is logged', () =>
      service.supervisor.log().find(({ id }) => id === `leaver-${before}`),
    );
    expect(line).toMatchObject({ msg: 'request', clientGone: true });
    expect(service.journal.of('request')).toHaveLength(before);
    await isIdle(service, 'paced');
  });

  it('again and again, at any moment, leaves nothing behind', async () => {
    const body = bodyOf(200_000, 'paced');
    for (let round = 0; round < 40; round++) {
      const exchange = rawExchange(`${service.url}/v1/completions`, {
        ...jsonPost({ model: 'paced', ...endless }),
        ...(round % 3 === 0 ? { body } : {}),
      });
      await new Promise((resume) => setTimeout(resume, round));
      exchange.abort();
    }
    await isIdle(service, 'paced');
    await eventually('the child has heard the end of each', () => {
      const { journal } = service;
      const begun = journal.of('request', 'paced').length;
      return journal.of('answered', 'paced').length + journal.of('cancelled', 'paced').length >= begun;
    });
    expect(await service.use('paced')).toMatchObject({ alias: 'paced' });
  });
});

describe('a client that leaves while it waits', () => {
  it('in the queue waits no more: its model is not loaded, and the busy one goes on', async () => {
    const service = await serveFakes({
      models: { busy: { tokenIntervalMs: 20 }, wanted: {}, other: {} },
      args: ['--models-max', '1'],
    });
    const stream = complete(service, { model: 'busy', stream: true, max_tokens: 100 });
    await stream.head;
    const request = complete(service, { model: 'wanted' });
    const load = rawExchange(`${service.url}/models/load`, jsonPost({ model: 'other' }));
    await service.until('it is queued', 'wanted', (entry) => entry.waiting === 1);
    await service.until('the explicit load is queued', 'other', (entry) => entry.waiting === 1);
    request.abort();
    load.abort();
    await service.until('it waits no more', 'wanted', (entry) => entry.waiting === 0);
    await service.until('the explicit load waits no more', 'other', (entry) => entry.waiting === 0);

    expect((await stream.ended).complete).toBe(true);
    await service.use('busy');
    expect(service.journal.of('start').map(({ alias }) => alias)).toEqual(['busy']);
  });

  it('for a load stops nobody else from being served', async () => {
    const service = await serveFakes({ models: { alpha: { loadMs: 1_000 } } });
    const leaving = complete(service, { model: 'alpha' });
    const staying = complete(service, { model: 'alpha' });
    await service.until('both wait', 'alpha', (entry) => entry.waiting === 2 && entry.pid !== undefined);
    leaving.abort();
    await service.until('one waits', 'alpha', (entry) => entry.waiting === 1);
    expect((await staying.ended).status).toBe(200);
    const asked = service.journal.of('request').filter(({ url }) => url === '/v1/completions');
    expect(asked).toHaveLength(1);
    expect(service.journal.of('start')).toHaveLength(1);
  });

  it('for a load, alone, is not answered for by the child', async () => {
    const service = await serveFakes({ models: { alpha: { loadMs: 1_000 } } });
    const leaving = complete(service, { model: 'alpha' });
    await service.until('it waits', 'alpha', (entry) => entry.waiting === 1 && entry.pid !== undefined);
    leaving.abort();
    await service.until('nobody waits', 'alpha', (entry) => entry.waiting === 0);
    await service.use('alpha');
    const asked = service.journal.of('request').filter(({ method }) => method === 'POST');
    expect(asked.map(({ url }) => url)).toEqual(['/infill']);
  });
});

describe('a client with X-Conversation-Id that leaves', () => {
  const conversation = (request: Record<string, unknown>) => {
    const post = jsonPost(request);
    return { ...post, headers: { ...post.headers, 'X-Conversation-Id': 'c1::alpha' } };
  };

  it('within its answer: the answer goes on to its end, and the model stays until then', async () => {
    const service = await serveFakes({
      models: { alpha: { tokenIntervalMs: 25 }, beta: {} },
      args: ['--models-max', '1'],
    });
    const exchange = rawExchange(
      `${service.url}/v1/completions`,
      conversation({ model: 'alpha', stream: true, max_tokens: 60 }),
    );
    await eventually('the stream runs', () => exchange.received().length > 500);
    exchange.abort();
    const beta = await service.use('beta');
    expect(beta.alias).toBe('beta');

    const events = service.journal.all().map(({ event, alias }) => `${event} ${alias}`);
    expect(service.journal.of('cancelled')).toEqual([]);
    const answered = service.journal.of('answered', 'alpha').find(({ url }) => url === '/v1/completions');
    expect(answered?.chunks).toBe(61);
    expect(events.indexOf('start beta')).toBeGreaterThan(events.indexOf('stopping alpha'));
    expect(events.indexOf('stopping alpha')).toBeGreaterThan(events.lastIndexOf('answered alpha'));
  });

  it('having read nothing of it: the answer goes on all the same', async () => {
    const service = await serveFakes({ models: { alpha: {} } });
    const exchange = rawExchange(
      `${service.url}/v1/completions`,
      conversation({ model: 'alpha', stream: true, max_tokens: 120_000 }),
    );
    exchange.pause();
    await exchange.head;
    expect((await service.entry('alpha')).in_flight).toBe(1);
    exchange.abort();
    const answered = await eventually(
      'it was answered whole',
      () => service.journal.of('answered').find(({ url }) => url === '/v1/completions'),
      { deadlineMs: 40_000 },
    );
    expect(answered.chunks).toBe(120_001);
    await isIdle(service, 'alpha');
  });

  it('while its model loads: the child gets the request all the same', async () => {
    const service = await serveFakes({ models: { alpha: { loadMs: 800 } } });
    const exchange = rawExchange(`${service.url}/v1/completions`, conversation({ model: 'alpha' }));
    await service.until('it waits', 'alpha', (entry) => entry.waiting === 1);
    exchange.abort();
    await eventually('it was answered', () =>
      service.journal.of('answered').some(({ url }) => url === '/v1/completions'),
    );
    await isIdle(service, 'alpha');
  });

  it('stays connected and gets its answer like any other', async () => {
    const service = await serveFakes({ models: { alpha: {} } });
    const response = await rawRequest(`${service.url}/infill`, conversation({ model: 'alpha' }));
    expect(echoIn(response).headers['x-conversation-id']).toBe('c1::alpha');
    expect(response.complete).toBe(true);
  });
});
