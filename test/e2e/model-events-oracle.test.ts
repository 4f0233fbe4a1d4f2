import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { listenToModels, type ModelEvent, type ModelEvents } from '../helpers/model-events.js';
import { canListProcesses, descendants, sigkill } from '../helpers/processes.js';
import { rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, modelEntry, post, question, untilStatus } from '../helpers/supervisor-client.js';
import type { IntendedDifference } from './intended-differences.js';
import { OracleHome, startNative } from './native-oracle.js';

const differences = {
  'events-with-reasons': {
    case: '`unloaded` in `GET /models/sse`',
    native: '`exit_code` alone',
    here: 'after it also `reason` (`evicted`, `unloaded`, `removed`, `changed`) or, of a failure, `error` with its last lines',
    why: 'nobody must search a log for it',
  },
  'forced-stop': {
    case: 'a model that is unloaded and does not exit within `stop-timeout`',
    native: '`exit_code` 1, listed as `failed`',
    here: '`exit_code` 0, not failed',
    why: 'it was asked for',
  },
  'given-up-load': {
    case: 'a model that is unloaded while it loads',
    native: 'listed as `failed`',
    here: 'listed as unloaded (the event has `exit_code` 1, too)',
    why: 'it was asked for',
  },
  'reload-of-nothing': {
    case: 'a reload that finds the models as they were',
    native: '`models_reload` in `GET /models/sse`',
    here: 'no event',
    why: 'no client has to read the list again',
  },
  'reload-first': {
    case: 'a reload that unloads a model, in `GET /models/sse`',
    native: '`unloaded`, then `models_reload`, for which the reload waits',
    here: '`models_reload`, then `unloaded`',
    why: 'a reload waits for no model to stop',
  },
} as const satisfies Record<string, IntendedDifference>;

function intended(id: keyof typeof differences): string {
  const { case: what, native, here } = differences[id];
  return `${what}: ${here} (native: ${native})`;
}

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
  return heard.all().flatMap((event) => {
    const progress = event.data?.progress?.['value'];
    if (typeof progress === 'number' && progress > 0 && progress < 1) return [];
    return [JSON.stringify(event, (key, value: unknown) => (key === 'created' ? 0 : value))];
  });
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

/** A load that will not come to its end by itself. */
async function loadForEver(router: Router, model: string): Promise<void> {
  await load(router, model);
  stopProcess(await eventually(`${model} has a process`, () => childOf(router, model)));
  expect((await modelEntry(router.url, model)).status.value).toBe('loading');
}

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
      await heard.until('beta status_change unloaded 0', 'alpha model_status loading');
      await heard.until('alpha status_change loading', 'alpha status_change loaded');
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
      await heard.until('alpha status_change unloaded 1', 'alpha model_status loading');
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
  'an unload in the middle of a load': {
    script: async (router, heard) => {
      await loadForEver(router, 'alpha');
      await unload(router, 'alpha');
      await heard.until('alpha status_change unloaded 1');
    },
  },
  'a reload that finds a model more': {
    script: async ({ url }, heard) => {
      // Made anew for the second of the two.
      rmSync(home.path('models/late.gguf'), { force: true });
      await get(url, '/models?reload=1');
      await writeModels({ late: sayingItsName('late') }, home.path('models'));
      await get(url, '/models?reload=1');
      await heard.until('* models_reload');
      expect(await chat(url, 'late')).toBe(nameAnswer('late'));
      await heard.until('late status_change loaded');
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
});

it('the stream begins with the same headers that matter, and a whole end follows SIGTERM within a second', async () => {
  const { native, ours } = await startBoth();
  for (const { url, pid } of [native, ours]) {
    const head = await rawRequest(`${url}/models/sse`, { method: 'HEAD' }).catch(() => undefined);
    // Native holds a HEAD open for ever; only ours is looked at there.
    if (url === ours.url) expect(head?.headers['content-type']).toBe('text/event-stream');
    const heard = await listenToModels(url);
    const began = performance.now();
    process.kill(pid, 'SIGTERM');
    const { status, headers, complete } = await heard.ended();
    expect({
      status,
      complete,
      type: headers['content-type'],
      buffering: headers['x-accel-buffering'],
    }).toEqual({ status: 200, complete: true, type: 'text/event-stream', buffering: 'no' });
    // The native router looks once in a second.
    expect(performance.now() - began).toBeLessThan(url === ours.url ? 1_000 : 3_000);
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
    const both = await startBoth();
    for (const router of [both.native, both.ours]) {
      await loadForEver(router, 'alpha');
      await unload(router, 'alpha');
      await untilStatus(router.url, 'alpha', 'unloaded');
    }
    expect((await modelEntry(both.native.url, 'alpha')).status.failed).toBe(true);
    expect((await modelEntry(both.ours.url, 'alpha')).status).not.toHaveProperty('failed');
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
