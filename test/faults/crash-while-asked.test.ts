/** Processes that die just as requests come: what had not been sent is served by the next one, and nothing twice. */
import { readdirSync } from 'node:fs';
import { Agent } from 'node:http';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { alive, sigkill } from '../helpers/processes.js';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseData } from '../helpers/sse.js';
import { chat, modelEntry } from '../helpers/supervisor-client.js';
import { oddChild, scripted, type Script } from '../http/odd-child.js';
import { serveFakes, textOf, words, type WireError } from '../http/serve-fakes.js';

/** Crashes in one run of the test, and clients that ask meanwhile as fast as they can. */
const crashes = 12;
const clients = 24;

/** Words of an answer; a crash in the middle of it is likely. */
const length = 4;

type Ask = ReturnType<typeof askOf>;

/** A request that no other is like, so that it can be found in the journal. */
function askOf(client: number, count: number) {
  const stream = count % 3 !== 0;
  return { model: 'alpha', stream, max_tokens: length, prompt: `client ${client}, request ${count}` };
}

/** Whether it is the whole right answer, or an error that can be seen; anything else fails the test. */
function verdictOn(ask: Ask, { status, headers, body, complete }: RawResponse): 'right' | 'error' {
  const said = `${ask.prompt}: ${status}, ${complete ? 'whole' : 'broken off'}: ${body.toString()}`;
  if (status !== 200) {
    expect(complete, said).toBe(true);
    expect(['child_gone', 'load_failed', 'model_failing'], said).toContain(errorIn(body.toString()).reason);
    return 'error';
  }
  if (!ask.stream) {
    // Of an answer in one piece a part can be lost only so that its client sees it.
    if (!complete) return 'error';
    const { choices } = JSON.parse(body.toString()) as { choices: [{ text: string }] };
    expect(choices[0].text, said).toBe(words('alpha', length));
    return 'right';
  }
  expect(headers['content-type'], said).toMatch(/^text\/event-stream/);
  const data = sseData(body);
  if (complete) {
    expect(data.at(-1), said).toBe('[DONE]');
    expect(textOf(data), said).toBe(words('alpha', length));
    return 'right';
  }
  expect(errorIn(data.pop() ?? '').reason, said).toBe('child_gone');
  // What came before is a part of the right answer, and nothing came twice; its last event may be cut.
  const part = textOf(data.filter(isWhole));
  expect(words('alpha', length).startsWith(part), said).toBe(true);
  return 'error';
}

function errorIn(text: string): WireError {
  return (JSON.parse(text) as { error: WireError }).error;
}

function isWhole(event: string): boolean {
  try {
    JSON.parse(event);
    return true;
  } catch {
    return false;
  }
}

it('each request gets its right answer or an error that can be seen, and no answer is generated twice', async () => {
  const service = await serveFakes({
    models: { alpha: { tokenIntervalMs: 2, nonStreamMs: 4 }, bystander: { tokenIntervalMs: 2 } },
    args: ['--models-max', '0'],
  });
  const { url, journal } = service;
  await service.use('alpha');
  let over = false;
  const verdicts: ('right' | 'error')[] = [];
  const asked: Ask[] = [];

  const client = async (name: number): Promise<void> => {
    // One that stays connected, and one that comes anew each time.
    const agent = name % 2 === 0 ? new Agent({ keepAlive: true, maxSockets: 1 }) : undefined;
    for (let count = 0; !over; count += 1) {
      const ask = askOf(name, count);
      asked.push(ask);
      const answer = rawRequest(`${url}/v1/completions`, { ...jsonPost(ask), ...(agent && { agent }) });
      verdicts.push(verdictOn(ask, await withDeadline(ask.prompt, answer, 30_000)));
    }
    agent?.destroy();
  };
  const undisturbed = rawRequest(
    `${url}/v1/completions`,
    jsonPost({ model: 'bystander', stream: true, max_tokens: 200 }),
  );
  const all = Promise.all(Array.from({ length: clients }, (_, name) => client(name)));
  try {
    for (let crash = 1; crash <= crashes; crash += 1) {
      const before = verdicts.filter((verdict) => verdict === 'right').length;
      // More than were on their way at the crash before: crashes in a row would only pause the model.
      const answers = eventually(`answers before crash ${crash}`, () => {
        return verdicts.filter((verdict) => verdict === 'right').length > before + clients;
      });
      // These end now only because one of them has met something else.
      await Promise.race([answers, all]);
      sigkill((await service.entry('alpha')).pid ?? NaN);
    }
  } finally {
    over = true;
  }
  await withDeadline('all clients have their answers', all, 40_000);

  expect(verdicts).toHaveLength(asked.length);
  // Neither would say much if it were the only one.
  expect(new Set(verdicts)).toEqual(new Set(['right', 'error']));
  expect(journal.of('start', 'alpha').length).toBeGreaterThanOrEqual(crashes);
  const generated = journal.of('request', 'alpha').filter(({ url: path }) => path === '/v1/completions');
  const bodies = generated.map(({ body }) => body.sha256);
  expect(bodies.length).toBeGreaterThan(0);
  expect(new Set(bodies).size).toBe(bodies.length);

  const { body, complete } = await undisturbed;
  expect(complete).toBe(true);
  expect(textOf(sseData(body))).toBe(words('bystander', 200));
  expect(await service.entry('alpha')).toMatchObject({ in_flight: 0, waiting: 0 });
});

it('requests that come in the moment of a crash, over connections that were kept, are all served by the next process', async () => {
  const dir = await writeModels({ alpha: sayingItsName('alpha') });
  const { url, pid: supervisor } = await startRealSupervisor({ args: ['--models-dir', dir] });
  // Answers in one piece: their connections to the process are kept for the next requests.
  const ask = () => chat(url, 'alpha');
  await Promise.all(Array.from({ length: 8 }, ask));
  const { pid = NaN } = await modelEntry(url, 'alpha');

  // The supervisor learns of the death and of the requests at once.
  process.kill(supervisor, 'SIGSTOP');
  atEndOfTest(() => void process.kill(supervisor, 'SIGCONT'));
  sigkill(pid);
  await eventually('the process is dead', () => !alive(pid));
  // Its connections are there for as long as any of its threads is; nobody has waited for it yet.
  await eventually('so are its threads', () => readdirSync(`/proc/${pid}/task`).length === 1);
  const answers = Array.from({ length: 20 }, ask);
  process.kill(supervisor, 'SIGCONT');
  expect(new Set(await Promise.all(answers))).toEqual(new Set([nameAnswer('alpha')]));
  expect((await modelEntry(url, 'alpha')).pid).not.toBe(pid);
});

it('requests that a dying process takes no more are served by the next one, each once', async () => {
  const service = await serveFakes({ models: { alpha: {} }, llamaServer: oddChild() });
  const ask = (script: Script) => rawRequest(`${service.url}/infill`, scripted(script));
  // Of no announced length: its connection is not kept, and the next requests need new ones.
  const answer = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n';
  await ask([answer]);
  const { pid } = await service.entry('alpha');
  await ask([{ end: 'leaving' }, answer]);
  const answers = await Promise.all(Array.from({ length: 10 }, () => ask([answer])));
  expect(answers.map(({ status, body }) => `${status} ${body.toString()}`)).toEqual(Array(10).fill('200 ok'));
  expect((await service.entry('alpha')).pid).not.toBe(pid);
});
