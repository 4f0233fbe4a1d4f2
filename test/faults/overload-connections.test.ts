/** More clients than may be connected, and more than the system has descriptors for. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { openSocket, type RawSocket } from '../http/raw-socket.js';
import { serveFakes, type FakeService } from '../http/serve-fakes.js';
import { connectionsAtHand, figuresOf } from './process-figures.js';

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 60_000 };
vi.setConfig({ testTimeout: 240_000 });

const fullLine =
  'as many clients are connected as may be (--connections-max): idle ones are let go, then new ones refused';
const notAcceptedLine = 'a connection could not be accepted';

/** Descriptors that come and go by themselves: a connection to a child, a probe. */
const filesToSpare = 16;

const linesOf = ({ supervisor }: FakeService, msg: string) =>
  supervisor.log().filter((line) => line.msg === msg);

/** Streams that do not end, each on a connection of its own, once all of them run. */
async function streams(service: FakeService, count: number) {
  const begun = Array.from({ length: count }, () => {
    const stream = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'paced', stream: true, max_tokens: -1 }),
    );
    atEndOfTest(() => stream.abort());
    return stream;
  });
  await eventually(
    'the streams run',
    () => begun.every((stream) => sseData(stream.received()).length > 0),
    patience,
  );
  return begun;
}

/** A client that sends nothing. */
function silent(service: FakeService): RawSocket {
  return openSocket(service.supervisor.port);
}

describe('--connections-max', () => {
  it('one client more than may be is refused at once: 503 with Retry-After, whatever it sends; those who are in are served', async () => {
    const service = await serveFakes({
      models: { paced: { tokenIntervalMs: 20 } },
      args: ['--connections-max', '20'],
    });
    await service.use('paced');
    // None of them is ever idle: who is gives way after a second.
    const begun = await streams(service, 20);

    const sent = [
      '',
      'GET /health HTTP/1.1\r\nHost: x\r\n\r\n',
      `POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n${'x'.repeat(100_000)}`,
      'no HTTP at all\r\n\r\n',
    ];
    for (const bytes of [...sent, ...sent]) {
      const client = silent(service);
      client.send(bytes);
      const answer = await client.closed('its refusal');
      expect(answer).toMatch(/^HTTP\/1\.1 503 Service Unavailable\r\n/);
      expect(answer).toMatch(/^retry-after: [1-9]\d*\r$/im);
      expect(answer).toMatch(/^content-type: application\/json; charset=utf-8\r$/im);
      expect(answer).toMatch(/^connection: close\r$/im);
      expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({
        error: { code: 503, type: 'unavailable_error', reason: 'too_many_connections' },
      });
    }
    const words = begun.map((stream) => sseData(stream.received()).length);
    await eventually(
      'all streams go on',
      () => begun.every((stream, at) => sseData(stream.received()).length > (words[at] ?? 0)),
      patience,
    );

    begun[0]?.abort();
    await eventually(
      'there is room for another',
      async () => {
        const answer = await rawRequest(`${service.url}/livez`);
        return answer.status === 200;
      },
      patience,
    );
    expect(linesOf(service, fullLine)).toMatchObject([{ level: 40, connectionsMax: 20, times: 1 }]);
  });

  it.skipIf(!canListProcesses)(
    'a thousand that are refused leave no descriptor, also when they do not close their side',
    async () => {
      const service = await serveFakes({
        models: { paced: { tokenIntervalMs: 20 } },
        args: ['--connections-max', '5'],
      });
      await service.use('paced');
      await streams(service, 5);
      const before = figuresOf(service.supervisor.pid).files;
      const clients = Array.from({ length: 1_000 }, () => silent(service));
      // A client of ours closes its side when the other is closed: what is paused does not notice.
      for (const { socket } of clients.slice(0, 500)) socket.pause();
      await eventually(
        'half of them are told',
        () => clients.slice(500).every((client) => client.received().startsWith('HTTP/1.1 503 ')),
        patience,
      );
      await eventually(
        'their descriptors are closed',
        () => figuresOf(service.supervisor.pid).files <= before,
        patience,
      );
    },
  );

  it.skipIf(!canListProcesses)(
    'five thousand idle connections keep nobody out: those that have been idle longest give way',
    async () => {
      const count = connectionsAtHand(5_000);
      const service = await serveFakes({ models: { alpha: {} }, args: ['--connections-max', String(count)] });
      await service.use('alpha');
      const before = figuresOf(service.supervisor.pid);
      const idle: RawSocket[] = [];
      while (idle.length < count) {
        const more = Array.from({ length: Math.min(250, count - idle.length) }, () => silent(service));
        for (const [at, client] of more.entries()) {
          if (at % 3 === 0) client.send('GET /livez HTTP/1.1\r\nHost: x\r\n\r\n');
          if (at % 3 === 1) client.send('GET /livez HTTP/1.1\r\nHost: x\r\nX-Sl');
        }
        await eventually(
          'they are in',
          () =>
            more.every(
              (client, at) => !client.socket.connecting && (at % 3 !== 0 || client.received() !== ''),
            ),
          patience,
        );
        idle.push(...more);
      }
      await eventually(
        'all of them hold a descriptor',
        () => {
          const missing = count - (figuresOf(service.supervisor.pid).files - before.files);
          if (missing > filesToSpare) throw new Error(`of ${count} there is none for ${missing}`);
          return true;
        },
        patience,
      );
      const { residentMiB } = figuresOf(service.supervisor.pid);
      expect(residentMiB - before.residentMiB).toBeLessThan((count * 48) / 1024 + 32);

      await eventually(
        'the first have been idle for a second',
        async () => {
          const answer = await rawRequest(`${service.url}/livez`);
          return answer.status === 200;
        },
        patience,
      );
      for (let request = 0; request < 20; request++) {
        expect(await service.use('alpha')).toMatchObject({ alias: 'alpha' });
      }
      const closed = () => idle.filter(({ socket }) => socket.closed).length;
      await eventually('some have given way', () => closed() > 0, patience);
      expect(closed()).toBeLessThan(count / 2);
      for (const { socket } of idle) socket.destroy();
      await eventually(
        'their descriptors are closed',
        () => figuresOf(service.supervisor.pid).files <= before.files + 4,
        patience,
      );
    },
  );
});

/** Sets the soft limit on open files of a running process. */
function setOpenFilesMax(pid: number, files: number): void {
  execFileSync('prlimit', ['--pid', String(pid), `--nofile=${files}:`]);
}

function hasPrlimit(): boolean {
  try {
    execFileSync('prlimit', ['--version'], { stdio: 'ignore' });
    return canListProcesses;
  } catch {
    return false;
  }
}

/** Processor time that a process has had, in seconds. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(') ') + 2).split(' ');
  const clockTicks = 100;
  return (Number(fields[11]) + Number(fields[12])) / clockTicks;
}

describe.skipIf(!hasPrlimit())('a supervisor without a descriptor left (needs prlimit)', () => {
  it('goes on for those who are in, spares the log and the processor, and recovers', async () => {
    const service = await serveFakes({ models: { paced: { tokenIntervalMs: 20 } } });
    const { supervisor, url } = service;
    await service.use('paced');
    const [stream] = await streams(service, 1);
    const inside = new Agent({ keepAlive: true, maxSockets: 1 });
    atEndOfTest(() => inside.destroy());
    const serveInside = async () => (await rawRequest(`${url}/livez`, { agent: inside })).status;
    expect(await serveInside()).toBe(200);

    const { files } = figuresOf(supervisor.pid);
    setOpenFilesMax(supervisor.pid, files + 2);
    const outside = Array.from({ length: 200 }, () => silent(service));
    // Node takes and drops them without a word, or tells of each: that depends on its version.
    await eventually(
      'those for whom there is none are let go',
      () => outside.filter(({ socket }) => socket.closed).length >= outside.length / 2,
      patience,
    );
    const wordsBefore = sseData(stream?.received() ?? Buffer.alloc(0)).length;
    const cpuBefore = cpuSeconds(supervisor.pid);
    await delay(1_000);
    expect(cpuSeconds(supervisor.pid) - cpuBefore).toBeLessThan(0.7);
    expect(await serveInside()).toBe(200);
    await eventually(
      'the stream goes on',
      () => sseData(stream?.received() ?? Buffer.alloc(0)).length > wordsBefore,
      patience,
    );
    expect(linesOf(service, notAcceptedLine).length).toBeLessThanOrEqual(1);

    for (const { socket } of outside) socket.destroy();
    setOpenFilesMax(supervisor.pid, files + 200);
    await eventually(
      'new clients are served',
      async () => (await service.use('paced')).alias === 'paced',
      patience,
    );
  });
});
