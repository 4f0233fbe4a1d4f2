import { EventSource, type ErrorEvent } from 'eventsource';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { inShort, type ModelEvent } from '../helpers/model-events.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, post, question } from '../helpers/supervisor-client.js';

interface Listener {
  readonly source: EventSource;
  /** What its `message` listeners were given. */
  readonly heard: ModelEvent[];
  readonly errors: ErrorEvent[];
  /** How often it was connected. */
  readonly opened: () => number;
}

/** The `eventsource` package as a page would use it, its messages heard with the default type only. */
function listen(url: string, key?: string): Listener {
  const source = new EventSource(`${url}/models/sse`, {
    fetch: (input, init) =>
      fetch(input, { ...init, headers: { ...init.headers, ...(key && { authorization: `Bearer ${key}` }) } }),
  });
  atEndOfTest(() => source.close());
  const heard: ModelEvent[] = [];
  const errors: ErrorEvent[] = [];
  let opened = 0;
  source.addEventListener('open', () => (opened += 1));
  source.addEventListener('message', ({ data }) => heard.push(JSON.parse(data as string) as ModelEvent));
  source.addEventListener('error', (error) => errors.push(error));
  return { source, heard, errors, opened: () => opened };
}

it('an EventSource with the key hears a model come and go', async () => {
  const key = 'sk-local';
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--api-key', key] });
  const { heard, errors, opened } = listen(url, key);
  await eventually('it is connected', () => opened() === 1);

  const headers = { authorization: `Bearer ${key}` };
  const { status } = await post(url, '/v1/chat/completions', question('alpha'), headers);
  expect(status).toBe(200);
  await post(url, '/models/unload', { model: 'alpha' }, headers);
  await eventually('it hears of the end', () => heard.some(({ data }) => data?.status === 'unloaded'));

  const story = heard.map(inShort);
  expect(story[0]).toBe('alpha model_status loading');
  expect(story.indexOf('alpha status_change loaded')).toBeGreaterThan(0);
  expect(story.at(-1)).toBe('alpha status_change unloaded 0');
  expect(errors).toEqual([]);
});

it('an EventSource without the key is refused, and does not try again', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--api-key', 'sk-local'] });
  const { source, errors } = listen(url);
  await eventually('it is refused', () => errors.length > 0);
  expect(errors[0]?.code).toBe(401);
  expect(source.readyState).toBe(EventSource.CLOSED);
});

it('an EventSource connects again by itself when the server has gone and is back', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const port = await freePort();
  const args = ['--models-dir', dir, '--port', String(port)];
  const first = await startRealSupervisor({ args });
  const { source, heard, opened } = listen(first.url);
  await eventually('it is connected', () => opened() === 1);
  // It ends at once although somebody listens.
  expect(await first.stop()).toMatchObject({ code: 0 });
  await eventually('it sees that', () => source.readyState === EventSource.CONNECTING);

  const second = await startRealSupervisor({ args });
  await eventually('it is connected again', () => opened() === 2, { deadlineMs: 15_000 });
  expect(await chat(second.url, 'alpha')).toBe(nameAnswer('alpha'));
  await eventually('it hears of the load', () => heard.some(({ data }) => data?.status === 'loaded'));
});
