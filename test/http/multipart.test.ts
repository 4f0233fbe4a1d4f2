import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import OpenAI, { toFile } from 'openai';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import type { FakeBehaviour } from '../helpers/fake-llama-server.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange, type RawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';
import { bodyOf, piecesOf, sha256 } from './payload.js';
import { openSocket } from './raw-socket.js';
import { echoIn, serveFakes, wireError, type Echo, type FakeService } from './serve-fakes.js';

const KiB = 1024;
const MiB = 1024 * KiB;

const boundary = '----an-odd.boundary_of:ours';
const path = '/v1/audio/transcriptions';

/** A form as clients send it: a file of random bytes, and behind it the field that names the model. */
function formOf(fileBytes: number, model: string): Buffer {
  return formAround(randomBytes(fileBytes), model);
}

function formAround(file: Buffer, model: string): Buffer {
  return Buffer.concat([
    Buffer.from(
      `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="talk.wav"\r\n` +
        'Content-Type: audio/wav\r\n\r\n',
    ),
    file,
    Buffer.from(
      `\r\n--${boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n${model}` +
        `\r\n--${boundary}--\r\n`,
    ),
  ]);
}

function formPost(body: NonNullable<RawRequest['body']>): RawRequest {
  const headers = { 'content-type': `multipart/form-data; boundary="${boundary}"` };
  return { method: 'POST', headers, body };
}

function send(service: FakeService, body: NonNullable<RawRequest['body']>): RawExchange {
  const exchange = rawExchange(`${service.url}${path}`, formPost(body));
  atEndOfTest(() => {
    exchange.abort();
  });
  return exchange;
}

/** What the child got of a request, which must have been answered. */
async function echoOf({ ended }: RawExchange): Promise<Echo> {
  const response = await ended;
  expect(response.status, response.body.toString()).toBe(200);
  return echoIn(response);
}

/** How many bodies the supervisor has on the disk: their files have no names, but it has them open. */
function bodiesOnDisk({ supervisor }: FakeService): number {
  const handles = `/proc/${supervisor.pid}/fd`;
  return readdirSync(handles).filter((handle) => {
    try {
      return /\/llama-supervisor-[^/]+\.body/.test(readlinkSync(join(handles, handle)));
    } catch {
      return false; // Closed since it was listed.
    }
  }).length;
}

async function leavesNoFile(service: FakeService, directory: string): Promise<void> {
  await eventually('no file is open any more', () => bodiesOnDisk(service) === 0);
  expect(readdirSync(directory)).toEqual([]);
}

interface Gate {
  service: FakeService;
  /** Where the bodies are kept. */
  directory: string;
  /** The requests that wait for the model `wanted`. */
  waiting: (count: number) => Promise<unknown>;
  /** Lets the model be loaded. */
  open: () => void;
}

/** A service whose one place is taken, so that what is sent for the model `wanted` waits until the gate is opened. */
async function serveGated(args: string[] = [], wanted: FakeBehaviour = {}): Promise<Gate> {
  const directory = tempDir();
  const service = await serveFakes({
    models: { busy: { tokenIntervalMs: 50 }, wanted },
    args: ['--models-max', '1', ...args],
    env: { TMPDIR: directory },
  });
  const stream = rawExchange(
    `${service.url}/v1/completions`,
    jsonPost({ model: 'busy', stream: true, max_tokens: -1 }),
  );
  atEndOfTest(() => {
    stream.abort();
  });
  await stream.head;
  return {
    service,
    directory,
    waiting: (count) =>
      service.until(`${count} wait`, 'wanted', ({ waiting }: { waiting: number }) => waiting === count),
    open: () => {
      stream.abort();
    },
  };
}

describe('a form reaches the child of the model that its field names, byte for byte', () => {
  const directory = tempDir();
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {}, beta: {} }, env: { TMPDIR: directory } });
    await service.use('alpha');
    await service.use('beta');
  });

  it.each([0, 100, 60 * KiB, MiB - 400, MiB, MiB + 1, 5 * MiB, 90 * MiB])(
    'with a file of %i bytes, sent with a Content-Length and in chunks',
    async (fileBytes) => {
      const sent = formOf(fileBytes, 'beta');
      for (const body of [sent, piecesOf(sent, 512 * KiB)]) {
        const echo = await echoOf(send(service, body));
        expect(echo).toMatchObject({ alias: 'beta', url: path, body: sha256(sent) });
        expect(echo.headers['content-length']).toBe(String(sent.length));
        expect(echo.headers['content-type']).toBe(`multipart/form-data; boundary="${boundary}"`);
        expect(echo.headers).not.toHaveProperty('transfer-encoding');
      }
      if (canListProcesses) await leavesNoFile(service, directory);
    },
  );

  it('with 5,000 chunks of one byte at its start', async () => {
    const sent = formOf(3 * MiB, 'alpha');
    async function* pieces(): AsyncGenerator<Buffer> {
      yield* piecesOf(sent.subarray(0, 5_000), 1);
      yield* piecesOf(sent.subarray(5_000), 300_000);
    }
    expect(await echoOf(send(service, pieces()))).toMatchObject({ alias: 'alpha', body: sha256(sent) });
  });

  it('when its file is full of boundaries that are none', async () => {
    const sent = formAround(
      Buffer.from(`\r\n-${boundary}\r\n--${boundary.slice(1)}`.repeat(40_000)),
      'alpha',
    );
    expect(await echoOf(send(service, sent))).toMatchObject({ alias: 'alpha', body: sha256(sent) });
  });

  it('when many come at once, each to its own request', async () => {
    const forms = Array.from({ length: 12 }, (_, at) => formOf(at * 300 * KiB, at % 2 ? 'alpha' : 'beta'));
    const echoes = await Promise.all(forms.map((form) => echoOf(send(service, form))));
    expect(echoes.map(({ body }) => body)).toEqual(forms.map(sha256));
    expect(echoes.map(({ alias }) => alias)).toEqual(forms.map((_, at) => (at % 2 ? 'alpha' : 'beta')));
  });

  it('as the openai package sends it', async () => {
    const openai = new OpenAI({ baseURL: `${service.url}/v1`, apiKey: 'none', maxRetries: 0 });
    const file = await toFile(randomBytes(3 * MiB), 'talk.wav');
    const echo: unknown = await openai.audio.transcriptions.create({ file, model: 'beta' });
    expect(echo).toMatchObject({ alias: 'beta', url: path });
  });

  it('again when the child has closed the connection that was kept for it', async () => {
    const impatient = await serveFakes({
      models: { few: { requestsPerConnection: 1 }, short: { keepAliveMs: 30 } },
    });
    const forms = { few: formOf(2 * MiB, 'few'), short: formOf(2 * MiB, 'short') };
    for (let request = 0; request < 10; request++) {
      for (const form of [forms.few, forms.short]) {
        expect((await echoOf(send(impatient, form))).body).toEqual(sha256(form));
      }
      await new Promise((resume) => setTimeout(resume, request * 8));
    }
  });

  it('that cannot be read is refused: 400 with what is wrong, and no child is asked', async () => {
    const before = service.journal.of('request').length;
    const form = formOf(2 * MiB, 'alpha');
    const response = await send(service, form.subarray(0, form.length - 10)).ended;
    const error = wireError(response, 400, 'invalid_request_error');
    expect(error).toMatchObject({ reason: 'body_malformed' });
    expect(error.message).toContain('ends before its closing boundary');
    expect(service.journal.of('request')).toHaveLength(before);
    if (canListProcesses) await leavesNoFile(service, directory);
  });
});

describe('forms that wait for their model', () => {
  it.skipIf(!canListProcesses)(
    'eight of 60 MB take little of the memory (VmHWM in /proc), and reach their child whole',
    async () => {
      const { service, directory, waiting, open } = await serveGated(['--body-memory-max', '100MiB']);
      const { pid } = service.supervisor;
      const before = peakMiB(pid);
      const form = formOf(60 * MiB, 'wanted');
      const uploads = Array.from({ length: 8 }, () => send(service, form));
      await waiting(8);
      expect(bodiesOnDisk(service)).toBe(8);
      // What has no name cannot be opened by anybody else, nor be left behind by a crash.
      expect(readdirSync(directory)).toEqual([]);
      open();
      for (const upload of uploads) expect((await echoOf(upload)).body).toEqual(sha256(form));
      expect(peakMiB(pid) - before).toBeLessThan(120);
      await leavesNoFile(service, directory);
    },
  );

  it('do so too while it is loading, and their clients may leave', async () => {
    const directory = tempDir();
    const service = await serveFakes({ models: { slow: { neverReady: true } }, env: { TMPDIR: directory } });
    const uploads = Array.from({ length: 3 }, () => send(service, formOf(4 * MiB, 'slow')));
    await service.until('it is loading, and all wait', 'slow', (entry) => {
      return entry.status.value === 'loading' && entry.waiting === 3;
    });
    if (canListProcesses) expect(bodiesOnDisk(service)).toBe(3);
    for (const upload of uploads) upload.abort();
    await service.until('nobody waits', 'slow', (entry) => entry.waiting === 0);
    if (canListProcesses) await leavesNoFile(service, directory);
  });

  it('fill sixteen times --body-max of the disk at most: 503 with Retry-After, until one has gone', async () => {
    const { service, waiting, open } = await serveGated(['--body-max', '2MiB']);
    const form = formOf(2 * MiB - 400, 'wanted');
    const uploads = Array.from({ length: 16 }, () => send(service, form));
    await waiting(16);
    const refusal = await send(service, form).ended;
    const error = wireError(refusal, 503, 'unavailable_error');
    expect(error.reason).toBe('body_memory_full');
    expect(error.message).toContain('16 times --body-max');
    expect(Number(refusal.headers['retry-after'])).toBeGreaterThanOrEqual(1);

    uploads[0]?.abort();
    await waiting(15);
    const late = send(service, form);
    await waiting(16);
    open();
    for (const upload of [...uploads.slice(1), late]) {
      expect((await echoOf(upload)).body).toEqual(sha256(form));
    }
  });

  it('are not counted for --body-memory-max, but up to a mebibyte', async () => {
    const { service, waiting, open } = await serveGated(['--body-max', '8MiB', '--body-memory-max', '8MiB']);
    const form = formOf(6 * MiB, 'wanted');
    const uploads = Array.from({ length: 6 }, () => send(service, form));
    await waiting(6);
    open();
    for (const upload of uploads) expect((await echoOf(upload)).body).toEqual(sha256(form));
  });
});

describe.skipIf(!canListProcesses)('a client that leaves (files of a process in /proc)', () => {
  const directory = tempDir();
  const form = formOf(3 * MiB, 'alpha');
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {}, deaf: { hangs: [path] }, dying: { dieOnRequest: true } },
      args: ['--body-max', '4MiB'],
      env: { TMPDIR: directory },
    });
    await service.use('alpha');
    await service.use('deaf');
  });

  it('while it sends takes its file along, and its share of the disk', async () => {
    // All together would not fit.
    for (let round = 0; round < 3; round++) {
      const clients = Array.from({ length: 12 }, () => {
        const client = openSocket(service.supervisor.port);
        client.send(
          `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary="${boundary}"\r\n` +
            `Content-Length: ${form.length}\r\n\r\n`,
        );
        client.send(form.subarray(0, 2 * MiB));
        return client;
      });
      await eventually('all are on the disk', () => bodiesOnDisk(service) === clients.length);
      for (const { socket } of clients) socket.resetAndDestroy();
      await leavesNoFile(service, directory);
    }
    expect((await echoOf(send(service, form))).body).toEqual(sha256(form));
  });

  it('at any moment does so', async () => {
    for (let round = 0; round < 30; round++) {
      const exchange = send(service, piecesOf(form, 256 * KiB));
      await new Promise((resume) => setTimeout(resume, round));
      exchange.abort();
    }
    await leavesNoFile(service, directory);
    await service.until('the child is free', 'alpha', (entry) => entry.in_flight === 0);
  });

  it('while the child does not answer does so, and the child is told', async () => {
    const exchange = send(service, formOf(3 * MiB, 'deaf'));
    await eventually('the child has it', () =>
      service.journal.of('request', 'deaf').some(({ url }) => url === path),
    );
    exchange.abort();
    await eventually('the child is told', () => service.journal.of('cancelled', 'deaf').length === 1);
    await leavesNoFile(service, directory);
  });

  it('needs not leave for it: a child that dies on a request, too, leaves no file', async () => {
    const response = await send(service, formOf(3 * MiB, 'dying')).ended;
    expect(wireError(response, 502, 'server_error').reason).toBe('child_gone');
    await leavesNoFile(service, directory);
  });
});

describe('a disk that does not take it', () => {
  it('for want of a directory: 500 with its path and the remedy; all else is served', async () => {
    const missing = join(tempDir(), 'not-there');
    const service = await serveFakes({ models: { alpha: {} }, env: { TMPDIR: missing } });
    await service.use('alpha');
    const form = formOf(20 * MiB, 'alpha');
    for (const body of [form, piecesOf(form, 512 * KiB)]) {
      const error = wireError(await send(service, body).ended, 500, 'server_error');
      expect(error.reason).toBe('internal');
      expect(error.message).toContain(missing);
      expect(error.message).toContain('TMPDIR');
    }
    const small = formOf(MiB / 2, 'alpha');
    expect((await echoOf(send(service, small))).body).toEqual(sha256(small));
    const json = bodyOf(5 * MiB, 'alpha');
    const response = await rawRequest(`${service.url}/infill`, { method: 'POST', body: json });
    expect(echoIn(response).body).toEqual(sha256(json));

    mkdirSync(missing);
    expect((await echoOf(send(service, form))).body).toEqual(sha256(form));
    rmdirSync(missing);
  });

  it('for being full: 507 with its path and the remedy; what is on it already goes on', async (context) => {
    const directory = await smallDisk('6m');
    if (directory === undefined) return context.skip('a small disk needs user namespaces');
    const service = await serveFakes({
      models: { busy: { tokenIntervalMs: 50 }, wanted: {} },
      args: ['--models-max', '1'],
      env: { TMPDIR: directory },
    });
    const stream = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'busy', stream: true, max_tokens: -1 }),
    );
    await stream.head;
    const form = formOf(3 * MiB, 'wanted');
    const first = send(service, form);
    await service.until('it waits', 'wanted', ({ waiting }) => waiting === 1);
    expect(bodiesOnDisk(service)).toBe(1);

    for (let round = 0; round < 3; round++) {
      const large = formOf(20 * MiB, 'wanted');
      for (const body of [large, piecesOf(large, 512 * KiB)]) {
        const error = wireError(await send(service, body).ended, 507, 'server_error');
        expect(error.reason).toBe('disk_full');
        expect(error.message).toContain(directory);
        expect(error.message).toContain('TMPDIR');
      }
    }
    // The refused have given back what they took.
    const second = send(service, formOf(2 * MiB, 'wanted'));
    await service.until('it waits, too', 'wanted', ({ waiting }) => waiting === 2);
    stream.abort();
    expect((await echoOf(first)).body).toEqual(sha256(form));
    expect((await echoOf(second)).alias).toBe('wanted');
    await eventually('no file is left', () => bodiesOnDisk(service) === 0);
  });
});

/** Highest resident memory of a process so far, MiB. */
function peakMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024;
}

/**
 * An empty directory on a disk of this size, which lives in the mounts of a process of its own and goes with it.
 *
 * @returns undefined where processes may not have mounts of their own
 */
async function smallDisk(size: string): Promise<string | undefined> {
  const mountPoint = tempDir();
  const script = `mount -t tmpfs -o size=${size} tmpfs "$1" && echo ready && exec cat`;
  const holder = spawn(
    'unshare',
    ['--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh', mountPoint],
    {
      stdio: ['pipe', 'pipe', 'ignore'],
    },
  );
  const ended = new Promise<void>((resolve) => {
    holder.once('error', () => resolve()).once('exit', () => resolve());
  });
  atEndOfTest(async () => {
    holder.stdin.end();
    await withDeadline('the holder of the small disk ends', ended, 5_000);
  });
  const isReady = await withDeadline(
    'a small disk',
    Promise.race([once(holder.stdout, 'data').then(() => true), ended.then(() => false)]),
    5_000,
  );
  return isReady ? `/proc/${holder.pid}/root${mountPoint}` : undefined;
}
