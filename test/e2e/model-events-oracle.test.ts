import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { listenToModels, type ModelEvent, type ModelEvents } from '../helpers/model-events.js';
import { canListProcesses, descendants, sigkill } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, modelEntry, post, question, untilStatus } from '../helpers/supervisor-client.js';
import { intended } from './intended-differences.js';
import { OracleHome, startNative } from './native-oracle.js';

/** One of the two that are compared. */
interface Router {
  readonly pid: number;
  readonly url: string;
}

/** What is done to each of the two in the same way; it ends when the last event has been heard. */
type Script = (router: Router, heard: ModelEvents) => Promise<unknown>;

let home: OracleHome;

beforeEach(async () => {
  home = new OracleHome();
  mkdirSync(home.path('models'));
  await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') }, home.path('models'));
  writePresets();
});

function writePresets(...lines: readonly string[]): void {
  writeFileSync(home.path('presets.ini'), `${lines.join('\n')}\n`);
}

/** Both with the models and presets of the home; ours does not look by itself. */
async function startBoth(...options: readonly string[]): Promise<{ native: Router; ours: Router }> {
  const args = [
    ...['--models-dir', home.path('models'), '--models-preset', home.path('presets.ini')],
    ...['--offline', ...options],
  ];
  const [native, ours] = await Promise.all([
    startNative(home, { args: [...args, '--threads', '1'] }),
    startRealSupervisor({ args: [...args, '--no-watch'], env: { LLAMA_CACHE: undefined } }),
  ]);
  return { native, ours };
}

/** What each tells while the same is done to both. */
async function toldByBoth(
  routers: { native: Router; ours: Router },
  script: Script,
): Promise<{ native: ModelEvents; ours: ModelEvents }> {
  const native = await listenToModels(routers.native.url);
  await script(routers.native, native);
  const ours = await listenToModels(routers.ours.url);
  await script(routers.ours, ours);
  return { native, ours };
}

/**
 * The records as JSON, so that the order of keys counts, without what differs between two runs of one binary: times,
 * and how often a load tells how far it is.
 */
function comparable(heard: ModelEvents): string[] {
  const records = heard.all().flatMap((event) => {
    const progress = event.data?.progress?.['value'];
    if (typeof progress === 'number' && progress > 0 && progress < 1) return [];
    return [JSON.stringify(event, (key, value: unknown) => (key === 'created' ? 0 : value))];
  });
  // A child that is slow says where it is more often.
  return records.filter((record, at) => record !== records[at - 1]);
}

/** Without what we add, behind what the native router says. */
function withoutAdditions(records: readonly string[]): string[] {
  return records.map((record) => {
    const { data, ...event } = JSON.parse(record) as ModelEvent;
    if (data?.status !== 'unloaded') return record;
    const { reason, error, ...native } = data;
    expect([reason, error].filter((addition) => addition !== undefined)).toHaveLength(1);
    return JSON.stringify({ ...event, data: native });
  });
}

/** The process that runs a model now. */
function childOf({ pid }: Router, id: string): number {
  const child = descendants(pid).find(({ command }) => `${command} `.includes(` --alias ${id} `));
  if (child === undefined) throw new Error(`${id} has no process`);
  return child.pid;
}

function load({ url }: Router, model: string): Promise<{ status: number }> {
  return post(url, '/models/load', { model });
}

function unload({ url }: Router, model: string): Promise<{ status: number }> {
  return post(url, '/models/unload', { model });
}

function stopProcess(pid: number): void {
  process.kill(pid, 'SIGSTOP');
}

/** So large that a load of it can be held up before its end. */
async function addHeavyModel(): Promise<void> {
  await writeModels({ heavy: { ...sayingItsName('heavy'), extraBytes: 300e6 } }, home.path('models'));
}

/** Gives up a load of the heavy model. */
async function giveUpLoad(router: Router): Promise<void> {
  const model = 'heavy';
  await load(router, model);
  stopProcess(await eventually(`${model} has a process`, () => childOf(router, model)));
  expect((await modelEntry(router.url, model)).status.value).toBe('loading');
  await unload(router, model);
  await untilStatus(router.url, model, 'unloaded');
}

const loaded = ['alpha model_status loading', 'alpha status_change loading', 'alpha status_change loaded'];

const happenings: Record<string, { options?: string[]; presets?: string[]; script: Script }> = {
  'a load and an unload by hand': {
    script: async (router, heard) => {
      await load(router, 'alpha');
      await heard.until('alpha status_change loaded');
      await unload(router, 'alpha');
      await heard.until('alpha status_change unloaded 0');
    },
  },
  'a load by a request for an alias': {
    presets: ['[alpha]', 'alias = first', 'tags = one'],
    script: async ({ url }, heard) => {
      expect(await chat(url, 'first')).toBe(nameAnswer('alpha'));
      await heard.until('alpha status_change loaded');
    },
  },
  'one model making room for another and back': {
    options: ['--models-max', '1'],
    script: async ({ url }, heard) => {
      for (const model of ['alpha', 'beta', 'alpha']) expect(await chat(url, model)).toBe(nameAnswer(model));
      await heard.until('beta status_change unloaded 0', ...loaded);
    },
  },
  'sleep, wake, sleep, and an unload asleep': {
    options: ['--sleep-idle-seconds', '1'],
    script: async (router, heard) => {
      await chat(router.url, 'alpha');
      await heard.until('alpha status_change sleeping');
      await get(router.url, '/props?model=alpha&autoload=false');
      await chat(router.url, 'alpha');
      await heard.until(
        'alpha status_change sleeping',
        'alpha status_change loading',
        'alpha status_change loaded',
        'alpha status_change sleeping',
      );
      await unload(router, 'alpha');
      await heard.until('alpha status_change unloaded 0');
    },
  },
  'a crash, and the load after it': {
    script: async (router, heard) => {
      await chat(router.url, 'alpha');
      sigkill(childOf(router, 'alpha'));
      await heard.until('alpha status_change unloaded 1');
      await chat(router.url, 'alpha');
      await heard.until('alpha status_change unloaded 1', ...loaded);
    },
  },
  'a crash asleep': {
    options: ['--sleep-idle-seconds', '1'],
    script: async (router, heard) => {
      await chat(router.url, 'alpha');
      await heard.until('alpha status_change sleeping');
      sigkill(childOf(router, 'alpha'));
      await heard.until('alpha status_change unloaded 1');
    },
  },
  'a load that fails': {
    presets: ['[alpha]', 'ctx-size = nonsense'],
    script: async ({ url }, heard) => {
      expect((await post(url, '/v1/chat/completions', question('alpha'))).status).toBeGreaterThanOrEqual(500);
      await heard.until('alpha model_status loading', 'alpha status_change unloaded 1');
    },
  },
};

describe.skipIf(!canListProcesses)('the same is told of', () => {
  it.each(Object.entries(happenings))('%s', async (_, { options = [], presets = [], script }) => {
    writePresets(...presets);
    const told = await toldByBoth(await startBoth(...options), script);
    const native = comparable(told.native);
    expect(native.length).toBeGreaterThan(0);
    expect(withoutAdditions(comparable(told.ours))).toEqual(native);
  });

  it('an unload in the middle of a load', async () => {
    await addHeavyModel();
    const told = await toldByBoth(await startBoth(), async (router, heard) => {
      await giveUpLoad(router);
      await heard.until('heavy status_change unloaded 1');
    });
    // How far it had come is chance.
    const withoutProgress = (heard: ModelEvents) =>
      comparable(heard).filter((record) => !record.includes('"progress"'));
    const native = withoutProgress(told.native);
    expect(native).toHaveLength(2);
    expect(withoutAdditions(withoutProgress(told.ours))).toEqual(native);
  });

  it.each<[string, () => Promise<unknown>]>([
    ['a model more', () => writeModels({ late: sayingItsName('late') }, home.path('models'))],
    ['a model less', () => rm(home.path('models/beta.gguf'))],
    ['other options', () => writeFile(home.path('presets.ini'), '[beta]\nctx-size = 256\n')],
  ])('a reload that finds %s', async (_, change) => {
    const { native, ours } = await startBoth();
    const heard = [await listenToModels(native.url), await listenToModels(ours.url)];
    await change();
    for (const { url } of [native, ours]) {
      expect((await get(url, '/models?reload=1')).status).toBe(200);
      await chat(url, 'alpha');
    }
    for (const events of heard) {
      expect(await events.until('alpha status_change loaded')).toEqual(['* models_reload', ...loaded]);
    }
  });
});

it('the stream begins with the same headers that matter, and a whole end follows SIGTERM', async () => {
  const { native, ours } = await startBoth();
  for (const { url, pid } of [native, ours]) {
    const heard = await listenToModels(url);
    process.kill(pid, 'SIGTERM');
    const { status, headers, complete } = await heard.ended();
    expect({
      status,
      type: headers['content-type'],
      buffering: headers['x-accel-buffering'],
    }).toEqual({ status: 200, type: 'text/event-stream', buffering: 'no' });
    // The native router may be gone before it has sent the end.
    if (url === ours.url) expect(complete).toBe(true);
  }
});

describe.skipIf(!canListProcesses)('is told differently, as intended:', () => {
  it(intended('events-with-reasons'), async () => {
    const { native, ours } = await toldByBoth(await startBoth(), async (router, heard) => {
      await chat(router.url, 'alpha');
      await unload(router, 'alpha');
      await heard.until('alpha status_change unloaded 0');
      await chat(router.url, 'beta');
      sigkill(childOf(router, 'beta'));
      await heard.until('beta status_change unloaded 1');
    });
    const unloads = (heard: ModelEvents) =>
      heard.all().flatMap(({ data }) => (data?.status === 'unloaded' ? [data] : []));
    expect(unloads(native)).toEqual([
      { status: 'unloaded', exit_code: 0 },
      { status: 'unloaded', exit_code: 1 },
    ]);
    const [asked, crashed] = unloads(ours);
    expect(JSON.stringify(asked)).toBe('{"status":"unloaded","exit_code":0,"reason":"unloaded"}');
    expect(Object.keys(crashed ?? {})).toEqual(['status', 'exit_code', 'error']);
    expect(crashed?.error?.message).toBe('its process was ended by SIGKILL');
  });

  it(intended('forced-stop'), async () => {
    writePresets('[alpha]', 'stop-timeout = 1');
    const both = await startBoth();
    const hang: Script = async (router, heard) => {
      await chat(router.url, 'alpha');
      stopProcess(childOf(router, 'alpha'));
      await unload(router, 'alpha');
      await untilStatus(router.url, 'alpha', 'unloaded');
      await eventually('it is told', () => heard.all().at(-1)?.data?.status === 'unloaded');
    };
    const { native, ours } = await toldByBoth(both, hang);
    expect(native.story().at(-1)).toBe('alpha status_change unloaded 1');
    expect(ours.story().at(-1)).toBe('alpha status_change unloaded 0');
    expect((await modelEntry(both.native.url, 'alpha')).status.failed).toBe(true);
    expect((await modelEntry(both.ours.url, 'alpha')).status).not.toHaveProperty('failed');
  });

  it(intended('given-up-load'), async () => {
    await addHeavyModel();
    const both = await startBoth();
    for (const router of [both.native, both.ours]) {
      await giveUpLoad(router);
    }
    expect((await modelEntry(both.native.url, 'heavy')).status.failed).toBe(true);
    expect((await modelEntry(both.ours.url, 'heavy')).status).not.toHaveProperty('failed');
  });

  it(intended('reload-of-nothing'), async () => {
    const { native, ours } = await toldByBoth(await startBoth(), async ({ url }, heard) => {
      await get(url, '/models?reload=1');
      await chat(url, 'alpha');
      await heard.until('alpha status_change loaded');
    });
    expect(native.story()[0]).toBe('* models_reload');
    expect(ours.story()[0]).toBe('alpha model_status loading');
  });

  it(intended('reload-first'), async () => {
    const both = await startBoth();
    for (const { url } of [both.native, both.ours]) await chat(url, 'alpha');
    const native = await listenToModels(both.native.url);
    const ours = await listenToModels(both.ours.url);
    rmSync(home.path('models/alpha.gguf'));
    for (const { url } of [both.native, both.ours]) await get(url, '/models?reload=1');
    expect(await native.until('* models_reload')).toEqual([
      'alpha status_change unloaded 0',
      '* models_reload',
    ]);
    expect(await ours.until('alpha status_change unloaded 0')).toEqual([
      '* models_reload',
      'alpha status_change unloaded 0',
    ]);
  });
});
