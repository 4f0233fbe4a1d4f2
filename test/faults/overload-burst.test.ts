/** Far more requests at once than two slots can take. */
import { Agent } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it, vi } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { jsonIn, serveFakes, textOf, words } from '../http/serve-fakes.js';
import { connectionsAtHand, figuresOf, watchMemory } from './process-figures.js';

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 60_000 };
vi.setConfig({ testTimeout: 240_000 });

const requests = 10_000;
/** So many of them have a connection at any one time. */
const connections = 4_000;
const queueMax = 1_024;

/** What a connection with a request that waits may cost: its socket, parser, request and answer, and the waiter. */
const kibPerRequest = 64;

/** A health check takes at most this part of the time of a request that waits for its turn: it is not in line. */
const healthCheckPart = 1 / 4;

/** Descriptors that come and go by themselves: a connection to a child, a probe, a timer of the runtime. */
const filesToSpare = 16;

it.skipIf(!canListProcesses)(
  'ten thousand requests at once on two slots: each is answered right or told when to come back, and nothing is left of them',
  async () => {
    const models = ['a', 'b', 'c', 'd'];
    const service = await serveFakes({
      models: {
        streaming: { tokenIntervalMs: 20 },
        ...Object.fromEntries(models.map((model) => [model, {}])),
      },
      args: [
        ...['--models-max', '2', '--queue-max', String(queueMax), '--fair-after', '600'],
        ...['--connections-max', String(connections + 100)],
      ],
    });
    const { url, supervisor } = service;
    const warmUp = () => rawRequest(`${url}/v1/completions`, jsonPost({ model: 'a', max_tokens: 1 }));
    expect((await warmUp()).status).toBe(200);
    const stream = rawExchange(
      `${url}/v1/completions`,
      jsonPost({ model: 'streaming', stream: true, max_tokens: -1 }),
    );
    atEndOfTest(() => stream.abort());
    await eventually('the stream runs', () => sseData(stream.received()).length > 0, patience);
    const before = figuresOf(supervisor.pid);

    const atOnce = connectionsAtHand(connections);
    const crowd = new Agent({ keepAlive: true, maxSockets: atOnce });
    const doctor = new Agent({ keepAlive: true, maxSockets: 1 });
    atEndOfTest(() => {
      crowd.destroy();
      doctor.destroy();
    });
    const memory = watchMemory(supervisor.pid);
    const end = new AbortController();
    const wordsBefore = sseData(stream.received()).length;
    const healthChecks = (async () => {
      const took: number[] = [];
      while (!end.signal.aborted) {
        const asked = performance.now();
        const health = await rawRequest(`${url}/health`, { agent: doctor });
        expect(health.status).toBe(200);
        took.push(performance.now() - asked);
        await delay(20);
      }
      return took;
    })();
    // It is asked for its outcome only when all answers have come.
    healthChecks.catch(() => undefined);
    const answers = await Promise.all(
      Array.from({ length: requests }, async (_, at) => {
        const model = models[at % models.length] ?? '';
        const last = 1 + (at % 7);
        const request = { ...jsonPost({ model, max_tokens: last }), agent: crowd };
        const asked = performance.now();
        const answer = await rawRequest(`${url}/v1/completions`, request);
        return { answer, expected: words(model, last), took: performance.now() - asked };
      }),
    );
    end.abort();
    const served = answers.filter(({ answer }) => answer.status === 200);
    expect(median(await healthChecks)).toBeLessThan(healthCheckPart * median(served.map(({ took }) => took)));
    const mostMiB = memory.stop();

    const statuses = new Map<number, number>();
    for (const { answer, expected } of answers) {
      statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1);
      checkAnswer(answer, expected);
    }
    // Those for whom there was a place to wait have been served, and there was not one for everybody.
    expect(statuses.get(200) ?? 0).toBeGreaterThanOrEqual(queueMax);
    if (atOnce > 2 * queueMax) expect(statuses.get(429) ?? 0).toBeGreaterThan(0);
    expect(mostMiB - before.residentMiB).toBeLessThan((atOnce * kibPerRequest) / 1024);

    // The model that was loaded has gone on answering.
    const said = sseData(stream.received());
    expect(said.length).toBeGreaterThan(wordsBefore);
    expect(textOf(said)).toBe(words('streaming', said.length - 1));
    stream.abort();

    crowd.destroy();
    doctor.destroy();
    await eventually(
      'nothing waits and nothing is in flight',
      async () => (await service.list()).every(({ in_flight, waiting }) => in_flight === 0 && waiting === 0),
      patience,
    );
    await eventually(
      'the descriptors are closed',
      () => figuresOf(supervisor.pid).files <= before.files + filesToSpare,
      patience,
    );
    expect((await warmUp()).status).toBe(200);
  },
);

function median(figures: number[]): number {
  return figures.toSorted((one, other) => one - other)[figures.length >> 1] ?? Number.NaN;
}

function checkAnswer(answer: RawResponse, expected: string): void {
  if (answer.status === 200) {
    expect(jsonIn(answer)).toMatchObject({ choices: [{ text: expected }] });
    return;
  }
  expect([429, 503], answer.body.toString()).toContain(answer.status);
  expect(Number(answer.headers['retry-after'])).toBeGreaterThanOrEqual(1);
  expect(jsonIn(answer)).toMatchObject({ error: { code: answer.status } });
}
