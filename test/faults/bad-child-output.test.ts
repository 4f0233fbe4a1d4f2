/** Children that print what they should not: nobody else is disturbed, and what they say of themselves stays readable. */
import { describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { serveFakes, textOf, wireError, words, type FakeService } from '../http/serve-fakes.js';
import { figuresOf, watchMemory } from './process-figures.js';

const MiB = 1024 * 1024;
const prefix = 'cmd_child_to_router:state:';
const state = (name: string, payload: unknown): string =>
  `${prefix}${JSON.stringify({ state: name, payload })}`;
const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth);

/** A machine with more to do takes many times as long. */
const patience = { deadlineMs: 45_000 };

/** A stream of a model that goes on until it is told to stop; then it must have been whole up to there. */
function counting(service: FakeService, model: string) {
  const exchange = rawExchange(
    `${service.url}/v1/completions`,
    jsonPost({ model, stream: true, max_tokens: -1 }),
  );
  atEndOfTest(() => exchange.abort());
  const said = () => textOf(sseData(exchange.received()).slice(0, -1)).split(' ');
  return {
    flows: () => eventually(`${model} answers`, () => exchange.received().length > 500, patience),
    /** Waits for more of it, and checks all of it. */
    goesOn: async () => {
      const before = exchange.received().length;
      await eventually(`${model} goes on`, () => exchange.received().length > before, patience);
      const heard = said();
      expect(heard.join(' ')).toBe(words(model, heard.length - 1));
    },
  };
}

it.skipIf(!canListProcesses)(
  'a child that prints 100 MB without a newline and dies costs next to no memory, and its last words are told',
  async () => {
    const service = await serveFakes({
      models: {
        alpha: { tokenIntervalMs: 5 },
        flood: {
          printWithoutNewline: 100 * MiB,
          exitWhileLoading: { code: 7, lines: ['a line before', 'the last of its words'] },
        },
      },
      // Every line of a child is in the log, and must be bounded there, too.
      args: ['--log-level', 'debug'],
    });
    const stream = counting(service, 'alpha');
    await stream.flows();
    const before = figuresOf(service.supervisor.pid).residentMiB;
    const watched = watchMemory(service.supervisor.pid);
    const refused = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'flood' }));
    expect(watched.stop() - before).toBeLessThan(64);

    const error = wireError(refused, 503, 'unavailable_error');
    expect(error.reason).toBe('load_failed');
    const lines = error['last_lines'] as string[];
    expect(lines.slice(-2)).toEqual(['a line before', 'the last of its words']);
    for (const line of lines) expect(line.length).toBeLessThanOrEqual(501);
    await stream.goesOn();
  },
);

it('what a child prints in no encoding is shown as text, with its last words behind it', async () => {
  const rubbish = Buffer.from(Array.from({ length: 20_000 }, (_, at) => (at * 7 + (at >> 8)) & 0xff));
  const service = await serveFakes({
    models: {
      alpha: { tokenIntervalMs: 5 },
      noise: {
        printBytes: { base64: rubbish.toString('base64'), each: 997 },
        exitWhileLoading: { code: 1, lines: ['\u001b[31mred\u001b[0m', 'last'] },
      },
    },
  });
  const stream = counting(service, 'alpha');
  await stream.flows();
  const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'noise' }));
  const error = wireError(response, 503, 'unavailable_error');
  expect(error['last_lines']).toEqual(expect.arrayContaining(['last']));
  // What it says is text in JSON, whatever it was.
  expect(Buffer.from(response.body.toString()).equals(response.body)).toBe(true);
  expect((await service.entry('noise')).status.error?.last_lines?.at(-1)).toBe('last');
  await stream.goesOn();
});

describe('state lines', () => {
  it('arrive whole when each byte comes by itself, and with a carriage return', async () => {
    const line = `text\n${state('loading', { value: 0.25, stages: ['é🦙'] })}\r\n`;
    const service = await serveFakes({
      models: {
        alpha: { printBytes: { base64: Buffer.from(line).toString('base64'), each: 1 }, neverReady: true },
      },
    });
    const feed = rawExchange(`${service.url}/models/sse`);
    atEndOfTest(() => feed.abort());
    await feed.head;
    const load = rawExchange(`${service.url}/infill`, jsonPost({ model: 'alpha' }));
    atEndOfTest(() => load.abort());
    const told = await eventually(
      'the progress is told',
      () => sseData(feed.received()).find((data) => data.includes('0.25')),
      patience,
    );
    expect(JSON.parse(told)).toMatchObject({
      model: 'alpha',
      event: 'status_change',
      data: { status: 'loading', progress: { value: 0.25, stages: ['é🦙'] } },
    });
  });

  it('that are out of order, unknown, forged or broken change nothing for a model that is ready', async () => {
    const service = await serveFakes({
      models: {
        alpha: {
          tokenIntervalMs: 5,
          printWhenReady: [
            state('ready', { id: 'other', meta: null }),
            state('loading', { value: 0.5 }),
            state('dancing', {}),
            state('__proto__', { ready: true }),
            ` ${state('sleeping', null)}`,
            `0.00.1 I srv ${state('sleeping', null)}`,
            `${prefix}{"state":"sleeping"`,
            `${prefix}[]`,
            `${prefix}null`,
            prefix,
            `${prefix}{"state":"sleeping","payload":${nested(30_000)}}`,
            `${prefix}{"state":"sleeping","payload":"${'x'.repeat(70_000)}"}`,
            'the end of it',
          ],
        },
        beta: {},
      },
      args: ['--log-level', 'debug'],
    });
    const stream = counting(service, 'alpha');
    await stream.flows();
    await eventually(
      'all of it is read',
      () => service.supervisor.output().includes('the end of it'),
      patience,
    );
    const entry = await service.entry('alpha');
    expect(entry.status.value).toBe('loaded');
    expect(entry['progress']).toBeUndefined();
    expect(entry.id).toBe('alpha');
    await stream.goesOn();
    expect((await service.use('beta')).alias).toBe('beta');
  });

  it('cannot speak for what is ours in the list: id, status, source, paths', async () => {
    const service = await serveFakes({
      models: {
        alpha: {
          loadMs: 60_000,
          printWhileLoading: [
            `${prefix}{"state":"ready","payload":{"id":"evil","status":{"value":"x"},"source":"evil","path":"/evil",` +
              `"pid":-1,"in_flight":99,"__proto__":{"polluted":1},"constructor":1,"can_remove":true,"meta":{"n_ctx":7}}}`,
          ],
        },
      },
    });
    const load = rawExchange(`${service.url}/infill`, jsonPost({ model: 'alpha' }));
    atEndOfTest(() => load.abort());
    const entry = await service.until(
      'it counts as loaded',
      'alpha',
      ({ status }) => status.value === 'loaded',
    );
    expect(entry).toMatchObject({ id: 'alpha', source: 'models_dir', can_remove: false, meta: { n_ctx: 7 } });
    expect(entry['path']).toMatch(/alpha\.gguf$/);
    expect(entry.pid).toBeGreaterThan(0);
    expect(entry.in_flight).toBeLessThanOrEqual(1);
    expect(entry).not.toHaveProperty('polluted');
  });

  // Every list, of all models, and every event failed: what JSON.parse reads, JSON.stringify need not be able to write.
  it.each(['loading', 'ready'])('nested too deeply are lines of the log: %s', async (name) => {
    const service = await serveFakes({
      models: {
        alpha: {},
        deep: {
          neverReady: true,
          printWhileLoading: [
            `${prefix}{"state":"${name}","payload":{"x":${nested(25_000)}}}`,
            state('loading', { value: 0.75 }),
          ],
        },
      },
    });
    const feed = rawExchange(`${service.url}/models/sse`);
    atEndOfTest(() => feed.abort());
    await feed.head;
    const load = rawExchange(`${service.url}/infill`, jsonPost({ model: 'deep' }));
    atEndOfTest(() => load.abort());
    await eventually('what comes behind it is heard', () => feed.received().includes('0.75'), patience);
    const list = await rawRequest(`${service.url}/models`);
    expect(list.status, list.body.toString().slice(0, 500)).toBe(200);
    expect((await service.entry('deep')).status.value).toBe('loading');
    expect(service.supervisor.output()).not.toContain('call stack');
  });

  it.skipIf(!canListProcesses)('by the thousand hold up nobody and fill no memory', async () => {
    const many = Array.from({ length: 20 }, (_, at) =>
      state('loading', { value: at / 20, x: 'y'.repeat(2_000) }),
    );
    const service = await serveFakes({
      models: {
        alpha: { tokenIntervalMs: 5 },
        flood: { printWhileLoading: Array<string[]>(250).fill(many).flat() },
      },
    });
    const stream = counting(service, 'alpha');
    await stream.flows();
    // One that hears all of it, and one that never reads.
    const listeners = [0, 1].map(() => rawExchange(`${service.url}/models/sse`));
    atEndOfTest(() => listeners.forEach((listener) => listener.abort()));
    for (const { head } of listeners) await head;
    listeners[1]?.pause();
    const before = figuresOf(service.supervisor.pid).residentMiB;
    const watched = watchMemory(service.supervisor.pid);
    expect((await service.use('flood')).alias).toBe('flood');
    expect(watched.stop() - before).toBeLessThan(96);
    await stream.goesOn();
  });
});
