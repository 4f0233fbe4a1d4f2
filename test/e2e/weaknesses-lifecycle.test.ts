/** Where the native router fails for good, and what becomes of the same here: loads, reloads, downloads. */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses, sigkill } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { startStandInHub } from '../helpers/stand-in-hub.js';
import { chat, errorIn, get, listModels, modelEntry, post, question } from '../helpers/supervisor-client.js';
import type { SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { loadAndWait } from './model-states.js';

/** So soon an unrelated model is served, whatever else goes on: a load here takes a fraction of a second. Milliseconds. */
const soonMs = 10_000;

/** The model, made for an architecture that no llama-server has: only its process finds that out. */
async function writeBrokenModel(dir: string): Promise<void> {
  const bytes = await readFile(join(await writeModels({ good: sayingItsName('good') }), 'good.gguf'));
  bytes.write('llamb', bytes.indexOf('llama', bytes.indexOf('general.architecture')));
  await writeFile(join(dir, 'broken.gguf'), bytes);
}

async function servedSoon(url: string, model: string): Promise<void> {
  const answer = await withDeadline(`${model} answers soon`, chat(url, model), soonMs);
  expect(answer).toBe(nameAnswer(model));
}

describe('16 clients that ask for a model that never loads do not keep another one from loading', () => {
  const others = ['one', 'two'];
  let url: string;

  beforeAll(async () => {
    const dir = await writeModels(Object.fromEntries(others.map((name) => [name, sayingItsName(name)])));
    await writeBrokenModel(dir);
    // A load that fails takes the only slot each time.
    ({ url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] }));
  });

  function askBroken(conversation?: string): RawExchange {
    const { headers, ...request } = jsonPost(question('broken'));
    return rawExchange(`${url}/v1/chat/completions`, {
      ...request,
      headers: { ...headers, ...(conversation === undefined ? {} : { 'X-Conversation-Id': conversation }) },
    });
  }

  const untilRefused = async (at: number): Promise<number> => {
    const { status } = await withDeadline('a refusal', askBroken(`conversation-${at}`).ended, soonMs);
    return status;
  };
  const untilItLeaves = async (at: number): Promise<number> => {
    const exchange = askBroken();
    const left = exchange.ended.then(
      ({ status }) => status,
      () => 0,
    );
    // Some before the process has begun, some while it fails, some after that.
    await Promise.race([left, delay(10 + 10 * at)]);
    exchange.abort();
    return left;
  };

  it.each<[string, (at: number) => Promise<number>, number[]]>([
    ['with an X-Conversation-Id each, whose leaving the native router does not see', untilRefused, [503]],
    ['and leave at any moment, each replaced by the next', untilItLeaves, [0, 503]],
  ])('%s', async (_, askOnce, answers) => {
    let isOver = false;
    const clients = Array.from({ length: 16 }, async (_client, at) => {
      const statuses = [];
      while (!isOver) statuses.push(await askOnce(at));
      return statuses;
    });
    try {
      for (let round = 0; round < 3; round += 1) for (const model of others) await servedSoon(url, model);
    } finally {
      isOver = true;
    }
    const statuses = (await Promise.all(clients)).flat();
    expect(statuses.length).toBeGreaterThanOrEqual(16);
    expect(statuses.filter((status) => !answers.includes(status))).toEqual([]);
    // Nobody is left in line, and the next request is tried.
    await eventually('nobody waits', async () => (await modelEntry(url, 'broken')).waiting === 0);
    expect(await untilRefused(0)).toBe(503);
  });
});

describe('a section that names no model', () => {
  it('is no router of its own that never answers: its clients are refused at once, and others served', async () => {
    const dir = await writeModels({ good: sayingItsName('good') });
    const presets = join(dir, 'presets.ini');
    await writeFile(presets, '[nothing]\nctx-size = 512\n');
    const args = ['--models-dir', dir, '--models-preset', presets, '--models-max', '1'];
    const supervisor = await startRealSupervisor({ args });
    const { url } = supervisor;
    const refused = await withDeadline('a refusal', post(url, '/tokenize', { model: 'nothing' }), soonMs);
    expect(refused.status).toBe(503);
    expect(errorIn(refused.text)).toMatchObject({ reason: 'model_invalid', model: 'nothing' });
    expect((await post(url, '/models/load', { model: 'nothing' })).status).toBe(503);
    await servedSoon(url, 'good');
    await eventually('the one load is logged', () => {
      const begun = supervisor.log().filter(({ msg }) => msg === 'model.loading');
      expect(begun.map(({ model }) => model)).toEqual(['good']);
      return true;
    });
  });
});

describe('one slot, and many who want it', () => {
  const ids = ['a', 'b', 'c', 'd'];

  it('loads by hand and requests all have their turn: none is refused as "limit reached", none hangs', async () => {
    const dir = await writeModels(Object.fromEntries(ids.map((id) => [id, sayingItsName(id)])));
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    const rounds = Array.from({ length: 3 }, () => ids).flat();
    const loads = rounds.map((model) =>
      withDeadline(`the load of ${model}`, post(url, '/models/load', { model }), 30_000),
    );
    const answers = rounds.map((model) => withDeadline(`the answer of ${model}`, chat(url, model), 30_000));
    expect(await Promise.all(answers)).toEqual(rounds.map(nameAnswer));
    // A load of what is just running is a mistake, and the only one.
    for (const { status, text } of await Promise.all(loads)) {
      if (status !== 200) expect(errorIn(text).message).toBe('model is already running');
    }
    const entries = await listModels(url);
    expect(entries.map(({ waiting, in_flight }) => waiting + in_flight)).toEqual([0, 0, 0, 0]);
    expect(entries.filter(({ status }) => status.value !== 'unloaded')).toHaveLength(1);
  });

  it('a load by hand does not miss that its victim has gone when that is wanted again at once', async () => {
    const dir = await writeModels(Object.fromEntries(ids.map((id) => [id, sayingItsName(id)])));
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    await loadAndWait(url, 'a');
    let isOver = false;
    const askOn = async (): Promise<void> => {
      while (!isOver) await servedSoon(url, 'a');
    };
    const loadOthers = async (): Promise<void> => {
      try {
        for (const model of ['b', 'c', 'd']) {
          const load = withDeadline('the load', post(url, '/models/load', { model }), soonMs);
          expect((await load).json).toEqual({ success: true });
        }
      } finally {
        isOver = true;
      }
    };
    await Promise.all([askOn(), loadOthers()]);
  });
});

describe('a reload that the native router would not survive', () => {
  let supervisor: SupervisorProcess;
  let presets: string;

  beforeAll(async () => {
    const dir = await writeModels({ kept: sayingItsName('kept'), other: sayingItsName('other') });
    presets = join(dir, 'presets.ini');
    await writeFile(presets, '[kept]\nalias = x\n');
    const args = ['--models-dir', dir, '--models-preset', presets, '--no-watch'];
    supervisor = await startRealSupervisor({ args });
  });

  it.each<[string, string]>([
    ['an option with two values', '[kept]\nalias = x\n[other]\ncontrol-vector-layer-range = 1\n'],
    [
      'a new model with the alias of another',
      '[kept]\nalias = x\n[new]\nhf-repo = some/one:Q8_0\nalias = x\n',
    ],
    ['a new model whose id is an alias', '[kept]\nalias = x\n[x]\nhf-repo = some/one:Q8_0\n'],
    ['an unknown option', '[kept]\nalias = x\n[other]\nno-such-option = 1\n'],
    ['lines that are none', '[kept]\nalias = x\nwhat is this\n[other'],
  ])('leaves loads and requests as they were: %s', async (_, text) => {
    const { url } = supervisor;
    await writeFile(presets, text);
    expect((await get(url, '/models?reload=1')).status).toBe(200);
    await servedSoon(url, 'kept');
    expect((await post(url, '/models/unload', { model: 'kept' })).status).toBe(200);
    const reloaded = await withDeadline('a load', post(url, '/models/load', { model: 'kept' }), soonMs);
    expect(reloaded.json).toEqual({ success: true });
    await servedSoon(url, 'kept');
  });

  it('a later one that is well counts', async () => {
    const { url } = supervisor;
    await writeFile(presets, '[kept]\nalias = y\n[other]\nalias = z\n');
    expect((await get(url, '/models?reload=1')).status).toBe(200);
    expect(await chat(url, 'y')).toBe(nameAnswer('kept'));
    expect(await chat(url, 'z')).toBe(nameAnswer('other'));
  });
});

describe('a download', () => {
  const id = 'me/model:Q4_0';

  async function startWithHub(): Promise<{
    supervisor: SupervisorProcess;
    slow: (isSlow: boolean) => void;
    presets: string;
  }> {
    const hub = await startStandInHub();
    hub.publish('me/model', {
      'model-Q4_0.gguf': knownAnswerModel({ name: 'me', ...sayingItsName('me') }),
    });
    const dir = await writeModels({ local: sayingItsName('local') });
    const presets = join(tempDir(), 'presets.ini');
    await writeFile(presets, '[local]\nctx-size = 512\n');
    const supervisor = await startRealSupervisor({
      args: ['--models-dir', dir, '--models-preset', presets, '--no-watch'],
      env: { HF_ENDPOINT: hub.endpoint },
    });
    const slow = (isSlow: boolean): void =>
      hub.fault('resolve', isSlow ? { kind: 'trickle', pieceBytes: 1024, pauseMs: 100 } : undefined);
    return { supervisor, slow, presets };
  }

  async function downloadWord(url: string): Promise<string | undefined> {
    return (await listModels(url)).find((model) => model.id === id)?.status.value;
  }

  it('that ends while the presets file is broken makes no request fail, of this model or of another', async () => {
    const { supervisor, presets } = await startWithHub();
    const { url } = supervisor;
    await writeFile(presets, '[local]\nno-such-option = 1\n[unfinished');
    expect((await post(url, '/models', { model: id })).json).toEqual({ success: true });
    await eventually('it is there', async () => (await downloadWord(url)) === 'unloaded');
    await servedSoon(url, 'local');
    expect(await chat(url, id)).toBe(nameAnswer('me'));
    expect((await get(url, '/models')).status).toBe(200);
  });

  it.skipIf(!canListProcesses)(
    'whose worker dies is over: it can be removed or tried again, and the exit waits for nothing',
    async () => {
      const { supervisor, slow } = await startWithHub();
      const { url } = supervisor;
      slow(true);
      expect((await post(url, '/models', { model: id })).json).toEqual({ success: true });
      const [worker] = await eventually('a worker', () => {
        const workers = childrenOf(supervisor);
        return workers.length > 0 ? workers : undefined;
      });
      if (worker !== undefined) sigkill(worker.pid);
      const entry = await eventually('it has failed', async () => {
        const found = await modelEntry(url, id);
        return found.status.failed ? found : undefined;
      });
      expect(entry.status.value).toBe('unloaded');

      // Neither of these is answered by the native router, and it does not end either.
      const remove = rawRequest(`${url}/models?model=${encodeURIComponent(id)}`, { method: 'DELETE' });
      expect((await withDeadline('the removal', remove, soonMs)).status).toBe(200);
      expect(await downloadWord(url)).toBeUndefined();
      expect((await post(url, '/models', { model: id })).json).toEqual({ success: true });
      const [second] = await eventually('another worker', () => {
        const workers = childrenOf(supervisor);
        return workers.length > 0 ? workers : undefined;
      });
      if (second !== undefined) sigkill(second.pid);
      const unload = post(url, '/models/unload', { model: id });
      await withDeadline('the unload', unload, soonMs);
      expect((await supervisor.stop()).code).toBe(0);
    },
  );
});
