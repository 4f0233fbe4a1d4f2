/** More clients that listen to events than may, children that flood their log, and nobody who reads ours. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeLlamaServer, writeFakeModel } from '../helpers/fake-llama-server.js';
import { freePort } from '../helpers/free-port.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { tempDir } from '../helpers/temp-dir.js';
import { serveFakes, wireError } from '../http/serve-fakes.js';
import { figuresOf, watchMemory } from './process-figures.js';

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 60_000 };
vi.setConfig({ testTimeout: 240_000 });

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

const filesToSpare = 16;

it.skipIf(!canListProcesses)(
  'a thousand clients may listen to events; one more is told when to come back, and all hear of a load',
  async () => {
    const listeners = 1_000;
    const kibPerListener = 64;
    const service = await serveFakes({
      models: { alpha: {}, beta: {} },
      args: ['--connections-max', '1500'],
    });
    await service.use('alpha');
    const { pid } = service.supervisor;
    const before = figuresOf(pid);
    const memory = watchMemory(pid);
    const listen = () => {
      const stream = rawExchange(`${service.url}/models/sse`);
      atEndOfTest(() => stream.abort());
      return stream;
    };
    const crowd = Array.from({ length: listeners }, listen);
    for (const { head } of crowd) expect((await head).status).toBe(200);
    const late = await listen().ended;
    expect(wireError(late, 429, 'overloaded_error').reason).toBe('too_many_listeners');
    expect(Number(late.headers['retry-after'])).toBeGreaterThanOrEqual(1);

    await service.use('beta');
    await eventually(
      'all have heard that it is loaded',
      () => crowd.every((stream) => sseData(stream.received()).some((data) => /"beta".*"loaded"/.test(data))),
      patience,
    );
    expect(memory.stop() - before.residentMiB).toBeLessThan((listeners * kibPerListener) / 1024 + 32);
    for (const stream of crowd) stream.abort();
    await eventually(
      'their descriptors are closed',
      () => figuresOf(pid).files <= before.files + filesToSpare,
      patience,
    );
    expect((await listen().head).status).toBe(200);
  },
);

it.skipIf(!canListProcesses)(
  'a child that floods its log, while nobody reads ours, fills no memory and keeps nobody waiting',
  async () => {
    const home = tempDir();
    const models = tempDir();
    writeFakeModel(models, 'flood', { chatty: 20_000 });
    writeFakeModel(models, 'endless-line', { printWithoutNewline: 64 * 1024 * 1024 });
    const port = await freePort();
    const child = spawn(
      process.execPath,
      [
        ...[script, 'start', '--port', String(port), '--log-format', 'json', '--log-level', 'debug'],
        ...['--llama-server', fakeLlamaServer, '--models-dir', models],
      ],
      {
        env: {
          ...process.env,
          LLAMA_CACHE: join(home, 'models'),
          XDG_CACHE_HOME: home,
          XDG_RUNTIME_DIR: home,
        },
        // Nobody reads: the pipe holds 64 KiB.
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    atEndOfTest(() => void child.kill('SIGKILL'));
    const url = `http://127.0.0.1:${port}`;
    const health = async () => (await rawRequest(`${url}/health`).catch(() => undefined))?.status === 200;
    await eventually('it answers', health, patience);
    const { pid } = child;
    if (pid === undefined) throw new Error('the supervisor was not started');
    const memory = watchMemory(pid);
    const { residentMiB } = figuresOf(pid);
    for (const model of ['flood', 'endless-line']) {
      const answer = await rawRequest(`${url}/v1/completions`, jsonPost({ model, max_tokens: 2 }));
      expect(answer.status, answer.body.toString()).toBe(200);
    }
    // Each is a line of the log, some 80 MB in all.
    const lines = 5_000;
    const path = 'x'.repeat(16_000);
    for (let sent = 0; sent < lines; sent += 20) {
      const answers = Array.from({ length: 20 }, () => rawRequest(`${url}/${path}`, { method: 'POST' }));
      for (const { status } of await Promise.all(answers)) expect(status).toBe(404);
    }
    expect(await health()).toBe(true);
    const bound = 100;
    expect(memory.stop() - residentMiB).toBeLessThan(bound);

    const exited = new Promise((resolve) => child.once('exit', (code) => resolve(code)));
    child.kill('SIGTERM');
    expect(await withDeadline('it has ended', exited, 15_000)).toBe(0);
  },
);
