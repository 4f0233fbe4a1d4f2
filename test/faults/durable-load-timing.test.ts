/** Who has to wait is told for how long, in `Server-Timing`. */
import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { sseData, sseEvents } from '../helpers/sse.js';
import { serveFakes, textOf, words, type FakeService } from '../http/serve-fakes.js';

const loadMs = 800;

/** What the header says, in milliseconds; fails when it is no `Server-Timing` of both. */
function timesIn(headers: Record<string, unknown>): { queue: number; load: number } {
  const [, queue, load] = /^queue;dur=(\d+), load;dur=(\d+)$/.exec(String(headers['server-timing'])) ?? [];
  expect(queue, String(headers['server-timing'])).toBeDefined();
  return { queue: Number(queue), load: Number(load) };
}

describe('the answer to a request that waited', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: {
        slow: { loadMs },
        broken: { loadMs, exitWhileLoading: { code: 3 } },
        refusing: { loadMs, errorStatus: 400 },
        resumed: { loadMs },
        streaming: { loadMs },
        busy: {},
      },
      args: ['--models-max', '0', '--in-flight-max', '1'],
    });
  });

  const ask = (model: string, { more = {}, headers = {} } = {}) => {
    const request = jsonPost({ model, ...more });
    const allHeaders = { ...request.headers, ...headers };
    return rawExchange(`${service.url}/v1/chat/completions`, { ...request, headers: allHeaders });
  };

  it('for a load says how long that took, and the next one, which waits for nothing, says nothing', async () => {
    const first = await ask('slow').ended;
    expect(first.status).toBe(200);
    // Timers may fire a millisecond early.
    expect(timesIn(first.headers).load).toBeGreaterThanOrEqual(loadMs - 10);
    const second = await ask('slow').ended;
    expect(second.status).toBe(200);
    expect(second.headers).not.toHaveProperty('server-timing');
  });

  it('for a place at its model says how long that took', async () => {
    expect((await ask('busy').ended).status).toBe(200);
    const stream = ask('busy', { more: { stream: true, max_tokens: -1 } });
    await stream.head;
    const second = ask('busy');
    await service.until('it waits', 'busy', ({ waiting }) => waiting === 1);
    stream.abort();
    const { queue, load } = timesIn((await second.ended).headers);
    expect(queue).toBeGreaterThan(0);
    expect(load).toBe(0);
  });

  it.each([
    ['is refused by us', 'broken', 503],
    ['is refused by its model', 'refusing', 400],
  ])('that %s says it, too', async (_, model, expected) => {
    const { status, headers } = await ask(model).ended;
    expect(status).toBe(expected);
    expect(timesIn(headers).load).toBeGreaterThanOrEqual(loadMs - 10);
  });

  it.each([
    ['that begins in time', 'streaming', {}],
    ['that can be resumed', 'resumed', { 'X-Conversation-Id': 'c' }],
  ])('says it at the head of a stream %s, and in nothing else of it', async (_, model, headers) => {
    const response = await ask(model, { more: { stream: true }, headers }).ended;
    expect(timesIn(response.headers).load).toBeGreaterThanOrEqual(loadMs - 10);
    expect(response.headers['x-accel-buffering']).toBe('no');
    expect(sseEvents(response.body).map((event) => Object.keys(event))).not.toContainEqual(['comment']);
    expect(textOf(sseData(response.body))).toBe(words(model, 5));
  });
});
