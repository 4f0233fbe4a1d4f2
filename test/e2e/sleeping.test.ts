import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { listenToModels, type ModelEvents } from '../helpers/model-events.js';
import { alive, sigkill } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  errorIn,
  get,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

interface Asleep {
  readonly url: string;
  readonly pid: number;
  /** What happens from then on. */
  readonly heard: ModelEvents;
}

/** A supervisor whose model `sleepy` was used once and has fallen asleep. */
async function asleep({ extraBytes = 0 } = {}): Promise<Asleep> {
  const dir = await writeModels({ sleepy: { ...sayingItsName('sleepy'), extraBytes } });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--sleep-idle-seconds', '1'] });
  expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
  const { pid = NaN } = await untilStatus(url, 'sleepy', 'sleeping');
  return { url, pid, heard: await listenToModels(url) };
}

const awake = ['sleepy status_change loading', 'sleepy status_change loaded'];

describe('a sleeping model', () => {
  it('is not woken by looking at it', async () => {
    const { url, pid, heard } = await asleep();
    for (const path of [
      '/models',
      '/v1/models',
      '/models?reload=1',
      '/health',
      '/props',
      '/props?model=sleepy',
      '/props?model=sleepy&autoload=true',
      '/metrics?model=sleepy',
    ]) {
      expect([path, (await get(url, path)).status]).toEqual([path, 200]);
    }
    expect(await modelEntry(url, 'sleepy')).toMatchObject({ pid, status: { value: 'sleeping' } });
    expect(heard.all()).toEqual([]);
  });

  it.each(['/slots', '/lora-adapters'])(
    'is not woken by GET %s, which its process would wake for, but with autoload=true',
    async (path) => {
      const { url, pid, heard } = await asleep();
      for (const query of ['', '&autoload=', '&autoload=false', '&autoload=0', '&autoload=yes']) {
        const { status, text } = await get(url, `${path}?model=sleepy${query}`);
        const { type, message } = errorIn(text);
        expect({ query, status, type, message }).toEqual({
          query,
          status: 400,
          type: 'invalid_request_error',
          message: 'model is not loaded',
        });
      }
      expect(heard.all()).toEqual([]);
      const { status, json } = await get(url, `${path}?model=sleepy&autoload=true`);
      expect({ status, isList: Array.isArray(json) }).toEqual({ status: 200, isList: true });
      await heard.until(...awake);
      expect((await modelEntry(url, 'sleepy')).pid).toBe(pid);
    },
  );

  it('is woken by a request, which it answers, by its process of before; also without autoload', async () => {
    const { url, pid, heard } = await asleep();
    const path = '/v1/chat/completions?autoload=false';
    expect(await post(url, path, question('sleepy'))).toMatchObject({
      status: 200,
      json: { choices: [{ message: { content: nameAnswer('sleepy') } }] },
    });
    await heard.until(...awake, 'sleepy status_change sleeping');
    expect((await post(url, '/tokenize', { model: 'sleepy', content: 'I am' })).status).toBe(200);
    await heard.until(...awake, 'sleepy status_change sleeping', ...awake);
    expect((await modelEntry(url, 'sleepy')).pid).toBe(pid);
  });

  it('answers requests that come while it wakes, and those that woke it together', async () => {
    // Waking takes long enough to ask meanwhile.
    const { url, pid, heard } = await asleep({ extraBytes: 200e6 });
    const first = Promise.all(Array.from({ length: 4 }, () => chat(url, 'sleepy')));
    await heard.until('sleepy status_change loading');
    expect(heard.story().at(-1)).toBe('sleepy status_change loading');
    const second = Promise.all(Array.from({ length: 4 }, () => chat(url, 'sleepy')));
    expect([...(await first), ...(await second)]).toEqual(Array(8).fill(nameAnswer('sleepy')));
    expect((await heard.until('sleepy status_change loaded')).slice(0, 2)).toEqual(awake);
    expect((await modelEntry(url, 'sleepy')).pid).toBe(pid);
  });

  it('is unloaded like any other, which is no failure, and loaded anew by the next request', async () => {
    const { url, pid, heard } = await asleep();
    expect(await post(url, '/models/load', { model: 'sleepy' })).toMatchObject({ status: 400 });
    expect(await post(url, '/models/unload', { model: 'sleepy' })).toMatchObject({ status: 200 });
    expect(await heard.until('sleepy status_change unloaded 0')).toHaveLength(1);
    expect(alive(pid)).toBe(false);
    expect((await modelEntry(url, 'sleepy')).status).not.toHaveProperty('failed');
    expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
    await heard.until('sleepy model_status loading', ...awake);
  });

  it('that is unloaded while it wakes answers the request that woke it', async () => {
    const { url, heard } = await asleep({ extraBytes: 200e6 });
    const answer = chat(url, 'sleepy');
    await heard.until('sleepy status_change loading');
    expect(await post(url, '/models/unload', { model: 'sleepy' })).toMatchObject({ status: 200 });
    expect(await answer).toBe(nameAnswer('sleepy'));
    expect(await heard.until('sleepy status_change unloaded 0')).toEqual([
      ...awake,
      'sleepy status_change unloaded 0',
    ]);
  });

  it('whose process dies is a crashed one, and is loaded anew by the next request', async () => {
    const { url, pid, heard } = await asleep();
    sigkill(pid);
    await heard.until('sleepy status_change unloaded 1');
    expect(await modelEntry(url, 'sleepy')).toMatchObject({
      status: { value: 'unloaded', failed: true, exit_code: 1, error: { reason: 'crashed' } },
    });
    expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
    expect((await modelEntry(url, 'sleepy')).pid).not.toBe(pid);
  });

  it('whose process dies while it wakes fails the request that woke it with a reason', async () => {
    const { url, pid, heard } = await asleep({ extraBytes: 200e6 });
    const answer = post(url, '/v1/chat/completions', question('sleepy'));
    await heard.until('sleepy status_change loading');
    sigkill(pid);
    const { status, text } = await answer;
    expect(status).toBe(502);
    expect(errorIn(text)).toMatchObject({ reason: 'child_gone', model: 'sleepy' });
    expect(await heard.until('sleepy status_change unloaded 1')).not.toContain('sleepy status_change loaded');
    expect(await chat(url, 'sleepy')).toBe(nameAnswer('sleepy'));
  });
});

it('a model that is looked at all the time falls asleep none the less', async () => {
  const dir = await writeModels({ sleepy: sayingItsName('sleepy') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--sleep-idle-seconds', '1'] });
  await chat(url, 'sleepy');
  const heard = await listenToModels(url);
  await eventually(
    'it sleeps',
    async () => {
      for (const path of ['/props?model=sleepy', '/metrics?model=sleepy', '/models', '/health']) {
        expect((await get(url, path)).status).toBe(200);
      }
      return heard.story().includes('sleepy status_change sleeping');
    },
    { intervalMs: 100 },
  );
});

it('a model that answers for longer than --sleep-idle-seconds does not fall asleep over it', async () => {
  // So large that it is slow, and its context not full before it has talked long enough.
  const dir = await writeModels({ talker: { ...endless(), extraBytes: 60e6 } });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--sleep-idle-seconds', '1'] });
  const answer = streamChat(url, 'talker');
  await answer.untilPieces(1);
  const heard = await listenToModels(url);
  const began = performance.now();
  await eventually('two seconds of answer', () => performance.now() - began > 2_000);
  const pieces = answer.pieces().length;
  await answer.untilPieces(pieces + 100);
  expect(heard.all()).toEqual([]);
  answer.abort();
  await heard.until('talker status_change sleeping');
});

describe('the place of a sleeping model in the order of last use', () => {
  /** Room for two; `sleepy` falls asleep after a second, the others never do. */
  async function startWithRoomForTwo(): Promise<string> {
    const dir = await writeModels({
      sleepy: sayingItsName('sleepy'),
      steady: sayingItsName('steady'),
      third: sayingItsName('third'),
    });
    const presets = join(tempDir(), 'presets.ini');
    writeFileSync(presets, '[sleepy]\nsleep-idle-seconds = 1\n');
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir, '--models-preset', presets, '--models-max', '2'],
    });
    return url;
  }

  async function useInTurn(url: string, models: readonly string[]): Promise<ModelEvents> {
    for (const model of models) expect(await chat(url, model)).toBe(nameAnswer(model));
    await untilStatus(url, 'sleepy', 'sleeping');
    return listenToModels(url);
  }

  it('is that of its last request: it makes room before one that was used after it', async () => {
    const url = await startWithRoomForTwo();
    const heard = await useInTurn(url, ['sleepy', 'steady']);
    expect(await chat(url, 'third')).toBe(nameAnswer('third'));
    expect((await heard.until('third status_change loaded'))[0]).toBe('sleepy status_change unloaded 0');
    expect((await modelEntry(url, 'steady')).status.value).toBe('loaded');
  });

  it('is that of its last request: it does not make room before one that was used before it', async () => {
    const url = await startWithRoomForTwo();
    const heard = await useInTurn(url, ['steady', 'sleepy']);
    const { pid } = await modelEntry(url, 'sleepy');
    expect(await chat(url, 'third')).toBe(nameAnswer('third'));
    expect((await heard.until('third status_change loaded'))[0]).toBe('steady status_change unloaded 0');
    expect(await modelEntry(url, 'sleepy')).toMatchObject({ pid, status: { value: 'sleeping' } });
  });

  it('is not changed by a look that wakes it', async () => {
    const url = await startWithRoomForTwo();
    const heard = await useInTurn(url, ['sleepy', 'steady']);
    expect((await get(url, '/slots?model=sleepy&autoload=true')).status).toBe(200);
    await heard.until(...awake);
    expect(await chat(url, 'third')).toBe(nameAnswer('third'));
    await heard.until('sleepy status_change unloaded 0', 'third model_status loading');
    expect((await modelEntry(url, 'steady')).status.value).toBe('loaded');
  });
});
