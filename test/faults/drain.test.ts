/** `POST /drain` and SIGTERM: no new work, what is in flight ends, then everything else. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { tempDir } from '../helpers/temp-dir.js';
import { jsonIn, serveFakes, textOf, words, type FakeService } from '../http/serve-fakes.js';

const sigterm = ({ supervisor }: FakeService): Promise<void> => {
  process.kill(supervisor.pid, 'SIGTERM');
  return Promise.resolve();
};

const postDrain = async ({ url }: FakeService): Promise<void> => {
  const answers = await Promise.all([1, 2, 3].map(() => rawRequest(`${url}/drain`, { method: 'POST' })));
  for (const answer of answers) expect(jsonIn(answer)).toEqual({ success: true });
};

/** An orchestrator asks first and then signals, or a person the other way round. */
const ways = [
  { way: 'SIGTERM', ends: [sigterm] },
  { way: 'POST /drain', ends: [postDrain] },
  { way: 'POST /drain, then SIGTERM', ends: [postDrain, sigterm] },
  { way: 'SIGTERM, then POST /drain', ends: [sigterm, postDrain] },
];

/** A service in the middle of an answer, which is being drained; the answer ends when it is told to. */
async function draining(ends: readonly ((service: FakeService) => Promise<void>)[], args: string[] = []) {
  const endStreamAtFile = join(tempDir(), 'end');
  const service = await serveFakes({
    models: { paced: { tokenIntervalMs: 20, endStreamAtFile }, other: {} },
    args,
  });
  const { url } = service;
  const answer = rawExchange(
    `${url}/v1/completions`,
    jsonPost({ model: 'paced', stream: true, max_tokens: -1 }),
  );
  answer.ended.catch(() => undefined);
  await eventually('the answer has begun', () => sseData(answer.received()).length > 0);
  expect((await rawRequest(`${url}/readyz`)).status).toBe(200);
  for (const end of ends) await end(service);
  await eventually(
    'it says that it is not ready',
    async () => (await rawRequest(`${url}/readyz`)).status === 503,
  );
  return { ...service, answer, endAnswer: () => writeFileSync(endStreamAtFile, '') };
}

describe.each(ways)('$way', ({ ends }) => {
  it('refuses new work, finishes what is in flight, and ends with 0', async () => {
    const { url, supervisor, answer, endAnswer } = await draining(ends);
    for (const path of ['/health', '/readyz']) {
      const { status, headers } = await rawRequest(url + path);
      expect(status).toBe(503);
      expect(Number(headers['retry-after'])).toBeGreaterThan(0);
    }
    expect((await rawRequest(`${url}/livez`)).status).toBe(200);
    for (const model of ['paced', 'other']) {
      const refused = await rawRequest(`${url}/v1/completions`, jsonPost({ model }));
      expect(refused.status).toBe(503);
      expect(jsonIn(refused)).toMatchObject({ error: { reason: 'shutting_down' } });
      expect(refused.headers.connection).toBe('close');
    }
    expect((await rawRequest(`${url}/models`)).status).toBe(200);
    endAnswer();
    const whole = await withDeadline('the answer ends', answer.ended, 20_000);
    expect(whole.complete).toBe(true);
    const data = sseData(whole.body);
    expect(data.at(-1)).toBe('[DONE]');
    // Its name and each number are an event each, and so are the end of the text and that of the stream.
    expect(textOf(data)).toBe(words('paced', data.length - 3));
    const { code } = await withDeadline('its end', supervisor.exited, 10_000);
    expect(code).toBe(0);
  });

  it('cuts what takes longer than --drain-timeout, and says which model that was', async () => {
    const { supervisor, answer } = await draining(ends, ['--drain-timeout', '3']);
    const cut = await withDeadline('the answer is cut', answer.ended, 30_000);
    expect(cut.complete).toBe(false);
    expect(cut.body.toString()).toContain('shutting_down');
    const { code } = await withDeadline('its end', supervisor.exited, 10_000);
    expect(code).toBe(0);
    expect(supervisor.log()).toContainEqual(
      expect.objectContaining({
        msg: 'not finished within --drain-timeout; cutting it',
        model: 'paced',
        inFlight: 1,
      }),
    );
  });
});

it('a page of another origin cannot drain a server without keys', async () => {
  const { url } = await serveFakes({ models: {} });
  const { status } = await rawRequest(`${url}/drain`, {
    method: 'POST',
    headers: { Origin: 'https://evil.example' },
  });
  expect(status).toBe(403);
  expect((await rawRequest(`${url}/readyz`)).status).toBe(200);
});

describe('an answer that is made, and slowly read', () => {
  /** Megabytes of list, of which the client has read the beginning, and a drain that has begun. */
  async function slowlyRead(...args: string[]) {
    const value = 'x'.repeat(100_000);
    const sections = Array.from(
      { length: 100 },
      (_, n) => `[model-${n}]\nmodel = ./m.gguf\nchat-template = ${value}`,
    );
    const { url, supervisor } = await serveFakes({ models: {}, presets: sections.join('\n\n'), args });
    const list = rawExchange(`${url}/models`);
    list.pause();
    await list.head;
    expect((await rawRequest(`${url}/drain`, { method: 'POST' })).status).toBe(200);
    return { list, supervisor };
  }

  it('is not cut by a drain that has nothing else to wait for', async () => {
    const { list, supervisor } = await slowlyRead();
    // Longer than what those get who are told that their answer was cut.
    await delay(1_500);
    list.resume();
    const { body, complete } = await list.ended;
    expect(complete).toBe(true);
    expect((JSON.parse(body.toString()) as { data: unknown[] }).data).toHaveLength(100);
    const { code } = await withDeadline('its end', supervisor.exited, 10_000);
    expect(code).toBe(0);
  });

  it('is cut when it takes longer than --drain-timeout, by name', async () => {
    const { list, supervisor } = await slowlyRead('--drain-timeout', '0.5');
    const { code } = await withDeadline('its end', supervisor.exited, 10_000);
    expect(code).toBe(0);
    list.resume();
    expect((await list.ended).complete).toBe(false);
    expect(supervisor.log()).toContainEqual(
      expect.objectContaining({
        msg: 'not read within --drain-timeout; cutting it',
        method: 'GET',
        path: '/models',
      }),
    );
  });
});
