/** Clients that read slowly, send slowly, or drop what they begin. */
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { openSocket, type RawSocket } from '../http/raw-socket.js';
import { serveFakes, type FakeService } from '../http/serve-fakes.js';
import { figuresOf, watchMemory } from './process-figures.js';

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 60_000 };
vi.setConfig({ testTimeout: 240_000 });

/** Descriptors that come and go by themselves: a connection to a child, a probe, a timer of the runtime. */
const filesToSpare = 16;

function isFree(service: FakeService): () => Promise<boolean> {
  return async () =>
    (await service.list()).every(({ in_flight, waiting }) => in_flight === 0 && waiting === 0);
}

describe.skipIf(!canListProcesses)('clients that do not read', () => {
  const clients = 10;
  /** What may be on its way for each: in the buffers of undici, of ours, and of streams between them. */
  const kibPerClient = 1_024;

  it('of streams without an end keep no memory and nobody else, and --timeout cuts them', async () => {
    const service = await serveFakes({
      models: { endless: {}, other: {} },
      args: ['--timeout', '3', '--in-flight-max', '0'],
    });
    await service.use('endless');
    await service.use('other');
    const { pid } = service.supervisor;
    const before = figuresOf(pid);
    const memory = watchMemory(pid);
    const stuck = Array.from({ length: clients }, () => {
      const stream = rawExchange(
        `${service.url}/v1/completions`,
        jsonPost({ model: 'endless', stream: true, max_tokens: -1 }),
      );
      atEndOfTest(() => stream.abort());
      stream.pause();
      return stream;
    });
    await service.until('all are being answered', 'endless', ({ in_flight }) => in_flight === clients);
    for (let request = 0; request < 20; request++) {
      expect(await service.use('other')).toMatchObject({ alias: 'other' });
      expect((await rawRequest(`${service.url}/health`)).status).toBe(200);
    }
    await eventually('they are cut', isFree(service), patience);
    expect(memory.stop() - before.residentMiB).toBeLessThan((clients * kibPerClient) / 1024 + 32);
    for (const stream of stuck) stream.resume();
    const ends = await Promise.all(stuck.map(({ ended }) => ended));
    expect(ends.filter(({ complete }) => complete)).toEqual([]);
    await eventually(
      'their descriptors are closed',
      () => figuresOf(pid).files <= before.files + filesToSpare,
      patience,
    );
  });
});

describe.skipIf(!canListProcesses)('clients that do not read a list of 20 MB', () => {
  it('keep no more of it than its bound, hold up nobody, and are cut by --timeout', async () => {
    const value = 'x'.repeat(100_000);
    const sections = Array.from(
      { length: 100 },
      (_, n) => `[m-${n}]\nmodel = ./m.gguf\nchat-template = ${value}`,
    );
    const service = await serveFakes({
      models: { alpha: {} },
      presets: sections.join('\n\n'),
      args: ['--timeout', '3'],
    });
    await service.use('alpha');
    const { url, supervisor } = service;
    const memory = watchMemory(supervisor.pid);
    const before = figuresOf(supervisor.pid);
    const askForList = (): void => {
      const client = openSocket(supervisor.port);
      client.socket.pause();
      client.send('GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    };
    // Those who ask at the same time share one; the others ask one after the other.
    for (let n = 0; n < 40; n += 1) askForList();
    for (let n = 0; n < 40; n += 1) {
      askForList();
      expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
      expect((await rawRequest(`${url}/health`)).status).toBe(200);
    }
    await eventually(
      'they are cut',
      () => figuresOf(supervisor.pid).files <= before.files + filesToSpare,
      patience,
    );
    await eventually(
      'the list is to be had again',
      async () => (await rawRequest(`${url}/models`)).status === 200,
      patience,
    );
    // Each of those who asked one after the other would have taken 20 MB for itself, and its text as much again.
    expect(memory.stop() - before.residentMiB).toBeLessThan(600);
  });
});

describe('clients that send slowly', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, args: ['--connections-max', '400'] });
    await service.use('alpha');
  });

  /** So many clients that send `head`, and then a byte now and then. */
  function slowClients(count: number, head: string): RawSocket[] {
    const clients = Array.from({ length: count }, () => openSocket(service.supervisor.port));
    for (const client of clients) client.send(head);
    const trickle = setInterval(() => {
      for (const client of clients) if (client.socket.writable) client.send('x');
    }, 100);
    atEndOfTest(() => clearInterval(trickle));
    return clients;
  }

  it.each([
    ['their headers', 'GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: '],
    ['their first line', 'GET /'],
  ])('%s: they hold up nobody, and give way to others when there is no room left', async (_, head) => {
    const slow = slowClients(400, head);
    await eventually('all are connected', () => slow.every(({ socket }) => !socket.connecting), patience);
    await eventually(
      'there is room after a second',
      async () => {
        const { status } = await rawRequest(`${service.url}/health`);
        return status === 200;
      },
      patience,
    );
    for (let request = 0; request < 20; request++) {
      expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
    }
    const gone = () => slow.filter(({ socket }) => socket.closed).length;
    await eventually('some are gone', () => gone() > 0, patience);
    expect(gone()).toBeLessThan(100);
    for (const { socket } of slow) socket.destroy();
    await eventually('the others are served at once again', isFree(service), patience);
  });

  it('their bodies: they hold up nobody and take no model', async () => {
    const slow = slowClients(
      300,
      'POST /infill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"model":"alpha",',
    );
    await eventually('all are connected', () => slow.every(({ socket }) => !socket.connecting), patience);
    for (let request = 0; request < 50; request++) {
      expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
      const { in_flight, waiting } = await service.entry('alpha');
      expect({ in_flight, waiting }).toEqual({ in_flight: 0, waiting: 0 });
    }
    expect(slow.filter(({ socket }) => socket.closed)).toEqual([]);
  });
});

describe.skipIf(!canListProcesses)('clients that open and drop as fast as they can', () => {
  const rounds = 60;
  const perRound = 50;

  it('leave nothing behind, and others are served meanwhile', async () => {
    const service = await serveFakes({ models: { paced: { tokenIntervalMs: 5 }, cold: { loadMs: 200 } } });
    await service.use('paced');
    const { pid, port } = service.supervisor;
    const before = figuresOf(pid);
    const stream = (model: string) => {
      const body = JSON.stringify({ model, stream: true, max_tokens: 1_000 });
      return `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
    };
    const beginnings = [
      '',
      'GET /heal',
      'GET /health HTTP/1.1\r\nHost: x\r\n\r\n',
      stream('paced'),
      stream('cold'),
      stream('paced').slice(0, -10),
      stream('paced') + stream('cold'),
      'GET /models/sse HTTP/1.1\r\nHost: x\r\n\r\n',
    ];
    for (let round = 0; round < rounds; round++) {
      const clients = Array.from({ length: perRound }, (_, at) => {
        const client = openSocket(port);
        client.send(beginnings[(round + at) % beginnings.length] ?? '');
        return client;
      });
      // Some leave before they are connected, some in the middle of an answer.
      if (round % 3 > 0) expect((await rawRequest(`${service.url}/health`)).status).toBe(200);
      if (round % 10 === 0) expect(await service.use('paced')).toMatchObject({ alias: 'paced' });
      for (const [at, { socket }] of clients.entries()) {
        if (at % 2 === 0 && !socket.connecting) socket.resetAndDestroy();
        else socket.destroy();
      }
    }
    await eventually('nothing is in flight', isFree(service), patience);
    await eventually(
      'the descriptors are closed',
      () => figuresOf(pid).files <= before.files + filesToSpare,
      patience,
    );
    expect(figuresOf(pid).residentMiB - before.residentMiB).toBeLessThan(150);
    expect(await service.use('paced')).toMatchObject({ alias: 'paced' });
    expect(await service.use('cold')).toMatchObject({ alias: 'cold' });
  });
});
