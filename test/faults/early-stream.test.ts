/** Streams that are begun, with comments, while their answers are waited for. */
import { describe, expect, it } from 'vitest';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { sseEvents } from '../helpers/sse.js';
import type { FakeBehaviour } from '../helpers/fake-llama-server.js';
import { serveFakes, textOf } from '../http/serve-fakes.js';

const soon = ['--stream-ping-after', '0.3', '--stream-ping-interval', '0.2'];

interface Ask {
  path?: string;
  headers?: Record<string, string>;
  more?: object;
}

/** A request for a model with this behaviour, at a supervisor with these options. */
async function ask(
  behaviour: FakeBehaviour,
  args: string[],
  { path = '/v1/chat/completions', headers = {}, more = { stream: true } }: Ask = {},
): Promise<RawResponse & { comments: string[]; data: string[]; names: string[] }> {
  const { url } = await serveFakes({ models: { slow: behaviour }, args });
  const request = jsonPost({ model: 'slow', ...more });
  const response = await rawRequest(url + path, { ...request, headers: { ...request.headers, ...headers } });
  const events = sseEvents(response.body);
  return {
    ...response,
    comments: events.flatMap(({ comment }) => comment ?? []),
    data: events.flatMap(({ data }) => data ?? []),
    names: events.flatMap(({ event }) => event ?? []),
  };
}

describe('a stream whose model takes long to load', () => {
  it('is begun with comments that say how far it is, and goes on with its answer', async () => {
    const { status, headers, complete, comments, data } = await ask({ loadMs: 1_500 }, soon);
    expect(status).toBe(200);
    expect(headers['content-type']).toBe('text/event-stream');
    expect(headers['x-accel-buffering']).toBe('no');
    expect(comments.length).toBeGreaterThan(2);
    for (const comment of comments) expect(comment).toMatch(/^slow (is loading(: \d+ %)?|has the request)/);
    expect(complete).toBe(true);
    expect(textOf(data)).toBe('slow 1 2 3 4 5');
  });

  it('that then fails ends with an error event and a cut connection', async () => {
    const lines = ['error: the weights are of rubber'];
    const { status, complete, names, data } = await ask(
      { loadMs: 1_000, exitWhileLoading: { code: 3, lines } },
      soon,
    );
    expect(status).toBe(200);
    expect(complete).toBe(false);
    expect(names).toEqual(['error']);
    expect(JSON.parse(data[0] ?? '')).toMatchObject({
      type: 'error',
      error: {
        code: 503,
        reason: 'load_failed',
        model: 'slow',
        last_lines: expect.arrayContaining(lines) as string[],
      },
    });
  });

  it('has its real status and no comments when that is known in time', async () => {
    const failed = await ask({ exitWhileLoading: { code: 3 } }, ['--stream-ping-after', '20']);
    expect(failed.status).toBe(503);
    const served = await ask({ loadMs: 300 }, ['--stream-ping-after', '20']);
    expect(served.status).toBe(200);
    expect(served.comments).toEqual([]);
  });

  it('has its real status however late it is known with 0', async () => {
    const { status } = await ask({ loadMs: 1_000, exitWhileLoading: { code: 3 } }, [
      '--stream-ping-after',
      '0',
    ]);
    expect(status).toBe(503);
  });

  it('has nothing of ours in it when it belongs to a conversation', async () => {
    const { comments, status } = await ask({ loadMs: 1_000, exitWhileLoading: { code: 3 } }, soon, {
      headers: { 'X-Conversation-Id': 'c' },
    });
    expect(status).toBe(503);
    expect(comments).toEqual([]);
  });
});

it.each([
  { what: 'is no stream', more: {} },
  { what: 'says that it wants none', more: { stream: false } },
  { what: 'says it as text', more: { stream: 'true' } },
  { what: 'says it of something else', more: { a: { stream: true } } },
])('an answer that $what is never begun early', async ({ more }) => {
  const { status } = await ask({ loadMs: 1_000, exitWhileLoading: { code: 3 } }, soon, { more });
  expect(status).toBe(503);
});

it('a route that never streams is never begun early', async () => {
  const { status } = await ask({ loadMs: 1_000, exitWhileLoading: { code: 3 } }, soon, {
    path: '/v1/embeddings',
  });
  expect(status).toBe(503);
});

it('what the child refuses when the stream is begun is an error event', async () => {
  const { status, names, data, complete } = await ask({ loadMs: 1_000, errorStatus: 400 }, soon);
  expect(status).toBe(200);
  expect(names).toEqual(['error']);
  expect(JSON.parse(data[0] ?? '')).toMatchObject({ type: 'error', error: { code: 400 } });
  expect(complete).toBe(false);
});

it('comments go on while the child has the request and is silent', async () => {
  const { comments, data } = await ask({ tokenIntervalMs: 10, beforeStreamMs: 1_200 }, soon);
  expect(comments.filter((comment) => comment.includes('has the request')).length).toBeGreaterThan(1);
  expect(textOf(data)).toBe('slow 1 2 3 4 5');
});
