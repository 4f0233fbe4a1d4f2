import { readFileSync } from 'node:fs';
import { Agent, type ClientRequestArgs } from 'node:http';
import type { Duplex } from 'node:stream';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData, sseEvents } from '../helpers/sse.js';
import { echoIn, serveFakes, textOf, words, type FakeService } from './serve-fakes.js';

const endless = { stream: true, max_tokens: -1 };

describe('a stream', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: { paced: { tokenIntervalMs: 50 }, late: { tokenIntervalMs: 1_500 }, fast: {} },
    });
  });

  it('begins before its first event', async () => {
    await service.use('late');
    const exchange = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'late', stream: true, max_tokens: 0 }),
    );
    const head = await exchange.head;
    expect(head.headers['content-type']).toBe('text/event-stream');
    expect(exchange.received()).toHaveLength(0);
    const response = await exchange.ended;
    expect(textOf(sseData(response.body))).toBe('late');
  });

  it('passes each event on while the next is still to come', async () => {
    const exchange = rawExchange(`${service.url}/v1/completions`, jsonPost({ model: 'paced', ...endless }));
    // It never ends, so that what arrives was not kept back until the end.
    await eventually('ten events have arrived', () => sseEvents(exchange.received()).length >= 10);
    expect(textOf(sseData(exchange.received()))).toMatch(/^paced 1 2 3 4 5 6 7 8 9/);
    exchange.abort();
  });

  it('arrives in the pieces in which the child sends it', async () => {
    const pieces: string[] = [];
    const response = await rawRequest(`${service.url}/v1/completions`, {
      ...jsonPost({ model: 'paced', stream: true, max_tokens: 20 }),
      onChunk: (piece) => pieces.push(piece.toString()),
    });
    expect(response.complete).toBe(true);
    // 50 ms lie between two events. Two of them may still meet on a busy machine; batches may not form.
    expect(pieces.length).toBeGreaterThan(11);
    expect(pieces.every((piece) => piece.endsWith('\n\n'))).toBe(true);
  });

  it.each(['/v1/completions', '/v1/chat/completions'])(
    'of 5,000 events at %s is whole and in order',
    async (path) => {
      const response = await rawRequest(
        `${service.url}${path}`,
        jsonPost({ model: 'fast', stream: true, max_tokens: 5_000 }),
      );
      expect(response.complete).toBe(true);
      const data = sseData(response.body);
      expect(data.at(-1)).toBe('[DONE]');
      expect(textOf(data)).toBe(words('fast', 5_000));
    },
  );

  it('one of fifty at once on two models gets the events of its own', async () => {
    const models = Array.from({ length: 50 }, (_, at) => (at % 2 === 0 ? 'fast' : 'paced'));
    const texts = await Promise.all(
      models.map(async (model, at) => {
        const request = jsonPost({ model, stream: true, max_tokens: at });
        return textOf(sseData((await rawRequest(`${service.url}/v1/completions`, request)).body));
      }),
    );
    expect(texts).toEqual(models.map((model, at) => words(model, at)));
  });
});

describe('a client that does not read', () => {
  it('makes the child stop producing, costs little memory, disturbs nobody, and loses nothing', async () => {
    const service = await serveFakes({ models: { alpha: {}, beta: {} } });
    await service.use('alpha');
    await service.use('beta');
    const residentBefore = residentMiB(service.supervisor.pid);

    const exchange = rawExchange(`${service.url}/v1/completions`, jsonPost({ model: 'alpha', ...endless }));
    exchange.pause();
    await exchange.head;

    let last = -1;
    const count = await eventually(
      'the child has stopped producing',
      async () => {
        const before = last;
        last = await wordsProduced(service, 'alpha');
        return last === before && last;
      },
      { deadlineMs: 40_000, intervalMs: 400 },
    );
    expect((await service.entry('alpha')).in_flight).toBe(1);
    // What the kernel keeps for both connections is not in the process.
    if (canListProcesses) expect(residentMiB(service.supervisor.pid) - residentBefore).toBeLessThan(64);

    for (const model of ['alpha', 'beta']) {
      const other = await rawRequest(
        `${service.url}/v1/completions`,
        jsonPost({ model, stream: true, max_tokens: 100 }),
      );
      expect(textOf(sseData(other.body))).toBe(words(model, 100));
    }

    exchange.resume();
    await eventually(
      'the child goes on',
      async () => (await wordsProduced(service, 'alpha')) > count + 1_000,
      {
        deadlineMs: 20_000,
      },
    );
    exchange.abort();
    const received = sseData(exchange.received());
    expect(received.length).toBeGreaterThan(100);
    expect(textOf(received)).toBe(words('alpha', received.length - 1));
  });

  it('for longer than --timeout is let go, and the child is told', async () => {
    const service = await serveFakes({ models: { alpha: {} }, args: ['--timeout', '1'] });
    const exchange = rawExchange(`${service.url}/v1/completions`, jsonPost({ model: 'alpha', ...endless }));
    exchange.pause();
    await exchange.head;
    await eventually('the child is told', () => service.journal.of('cancelled', 'alpha').length === 1, {
      deadlineMs: 40_000,
    });
    await service.until('its lease has ended', 'alpha', (entry) => entry.in_flight === 0);
    exchange.abort();
  });
});

describe('connections', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} } });
    await service.use('alpha');
  });

  it('of clients are kept for further requests, after errors, answers and streams', async () => {
    const agent = new CountingAgent({ keepAlive: true, maxSockets: 1 });
    atEndOfTest(() => {
      agent.destroy();
    });
    const ask = (path: string, body: unknown) =>
      rawRequest(`${service.url}${path}`, { ...jsonPost(body), agent });
    for (let round = 0; round < 3; round++) {
      expect((await ask('/infill', { model: 'alpha' })).status).toBe(200);
      expect((await ask('/v1/completions', { model: 'alpha', stream: true })).complete).toBe(true);
      expect((await ask('/infill', { model: 'nobody' })).status).toBe(400);
      expect((await ask('/nope', {})).status).toBe(404);
      expect((await rawRequest(`${service.url}/models`, { agent })).status).toBe(200);
    }
    expect(agent.connections).toBe(1);
  });

  it('of clients are announced to be kept for 75 s, which is longer than nginx keeps its own', async () => {
    const agent = new Agent({ keepAlive: true });
    atEndOfTest(() => {
      agent.destroy();
    });
    for (const path of ['/health', '/props?model=alpha']) {
      const { headers } = await rawRequest(`${service.url}${path}`, { agent });
      expect([headers['connection'], headers['keep-alive']]).toEqual(['keep-alive', 'timeout=75']);
    }
  });

  const connectionOf = async () =>
    echoIn(await rawRequest(`${service.url}/infill`, jsonPost({ model: 'alpha' }))).connection;

  it('to a child are used again after an answer of announced length', async () => {
    const first = await connectionOf();
    for (let further = 1; further <= 5; further++) {
      expect(await connectionOf()).toEqual({
        remotePort: first.remotePort,
        requests: first.requests + further,
      });
    }
  });

  it('to a child are not used again after a stream, since llama-server closes them then', async () => {
    const before = await connectionOf();
    await rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha', stream: true }));
    const after = await connectionOf();
    expect(after.remotePort).not.toBe(before.remotePort);
    expect(after.requests).toBe(1);
  });

  it('to a child that it closes, by number of requests or for idling, cost no request', async () => {
    const impatient = await serveFakes({
      models: { few: { requestsPerConnection: 2 }, short: { keepAliveMs: 30 } },
    });
    for (let request = 0; request < 12; request++) {
      await impatient.use('few');
      await impatient.use('short');
      await new Promise((resume) => setTimeout(resume, request * 8));
    }
    const asked = impatient.journal.of('request').filter(({ url }) => url === '/infill');
    expect(asked).toHaveLength(24);
  });
});

/** Counts the connections that it opens. */
class CountingAgent extends Agent {
  connections = 0;

  override createConnection(
    options: ClientRequestArgs,
    callback?: (error: Error | null, stream: Duplex) => void,
  ): Duplex | null | undefined {
    this.connections += 1;
    return super.createConnection(options, callback);
  }
}

async function wordsProduced(service: FakeService, model: string): Promise<number> {
  const metrics = (await rawRequest(`${service.url}/metrics?model=${model}`)).body.toString();
  return Number(/^llamacpp:tokens_predicted_total (\d+)$/m.exec(metrics)?.[1]);
}

/** Resident memory of a process, MiB. */
function residentMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}
