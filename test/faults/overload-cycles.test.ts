/** What adds up over many requests, loads and unloads. */
import { chmodSync, writeFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';
import { jsonIn, serveFakes, words } from '../http/serve-fakes.js';
import { liveMemory } from './live-memory.js';
import { figuresOf } from './process-figures.js';

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 60_000 };
vi.setConfig({ testTimeout: 240_000 });

/** Descriptors that come and go by themselves: a connection to a child, a probe. */
const filesToSpare = 16;

/** What the memory of a process may grow by without a leak: pages that the allocators keep for the next time. */
const growthMiB = 64;

/** What a load and unload may leave on the heap: code that is compiled late, tables that grow by leaps. */
const leftPerCycleKiB = 5;

it.skipIf(!canListProcesses)('ten thousand requests leave no descriptor and no memory behind', async () => {
  const service = await serveFakes({ models: { alpha: {}, beta: {} } });
  const { pid } = service.supervisor;
  const agent = new Agent({ keepAlive: true, maxSockets: 16 });
  atEndOfTest(() => agent.destroy());
  let next = 0;
  const asked = async (): Promise<void> => {
    const model = next % 2 === 0 ? 'alpha' : 'beta';
    const last = 1 + (next % 5);
    const kind = next % 10;
    next += 1;
    if (kind === 0) {
      // A client with a connection of its own, which it closes.
      expect(await service.use(model)).toMatchObject({ alias: model });
    } else if (kind === 1) {
      const { status } = await rawRequest(`${service.url}/infill`, {
        ...jsonPost({ model: 'nobody' }),
        agent,
      });
      expect(status).toBe(400);
    } else {
      const request = { ...jsonPost({ model, max_tokens: last, stream: kind === 2 }), agent };
      const answer = await rawRequest(`${service.url}/v1/completions`, request);
      expect(answer.status).toBe(200);
      if (kind !== 2) expect(jsonIn(answer)).toMatchObject({ choices: [{ text: words(model, last) }] });
    }
  };
  const ask = async (count: number): Promise<void> => {
    const end = next + count;
    const lane = async () => {
      while (next < end) await asked();
    };
    await Promise.all(Array.from({ length: 16 }, lane));
  };
  await ask(3_000);
  const before = figuresOf(pid);
  await ask(10_000);
  agent.destroy();
  await eventually(
    'the descriptors are closed',
    () => figuresOf(pid).files <= before.files + filesToSpare,
    patience,
  );
  expect(figuresOf(pid).residentMiB - before.residentMiB).toBeLessThan(growthMiB);
  for (const { in_flight, waiting } of await service.list())
    expect({ in_flight, waiting }).toEqual({ in_flight: 0, waiting: 0 });
});

/** A llama-server that is ready at once and goes when it is told: no other takes as little time to start. */
function quickLlamaServer(): string {
  const path = join(tempDir(), 'quick-llama-server');
  const ready = JSON.stringify({ state: 'ready', payload: { id: 'quick', meta: {} } });
  writeFileSync(
    path,
    `#!/bin/sh
case "$1" in --help | --version | --list-devices) exec ${fakeLlamaServer} "$@" ;; esac
printf '\\ncmd_child_to_router:state:%s\\n' '${ready}'
while read -r line; do case "$line" in *cmd_router_to_child:exit*) exit 0 ;; esac; done
`,
  );
  chmodSync(path, 0o755);
  return path;
}

it.skipIf(!canListProcesses)(
  'three hundred loads and unloads leave no descriptor, no listener and no memory behind',
  async () => {
    const models = ['a', 'b', 'c'];
    const memory = liveMemory();
    const service = await serveFakes({
      models: Object.fromEntries(models.map((model) => [model, {}])),
      args: ['--models-max', '2'],
      llamaServer: quickLlamaServer(),
      env: memory.env,
    });
    const { pid } = service.supervisor;
    const cycle = async (model: string): Promise<void> => {
      const loaded = await rawRequest(`${service.url}/models/load`, jsonPost({ model }));
      expect(jsonIn(loaded)).toEqual({ success: true });
      await service.until('it is loaded', model, ({ status }) => status.value === 'loaded');
      const unloaded = await rawRequest(`${service.url}/models/unload`, jsonPost({ model }));
      expect(jsonIn(unloaded)).toEqual({ success: true });
      await service.until('it is unloaded', model, ({ status }) => status.value === 'unloaded');
    };
    const cycles = async (count: number): Promise<void> => {
      for (let done = 0; done < count; done++) await cycle(models[done % models.length] ?? '');
    };
    await cycles(50);
    const before = figuresOf(pid);
    const usedBefore = await memory.usedMiB(pid);
    await cycles(300);
    await eventually(
      'the descriptors are closed',
      () => figuresOf(pid).files <= before.files + filesToSpare,
      patience,
    );
    expect(((await memory.usedMiB(pid)) - usedBefore) * 1024).toBeLessThan(300 * leftPerCycleKiB);
    expect(service.supervisor.log().filter(({ level }) => Number(level) >= 40)).toEqual([]);
  },
);
