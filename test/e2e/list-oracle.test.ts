/** The list of models as text: every field of the native router in its order and spelling, and ours behind them. */
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeHubModel } from '../helpers/known-answer-models.js';
import { canListProcesses, sigkill } from '../helpers/processes.js';
import { chat, get, listModels, modelEntry, post, untilStatus } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';
import { additions, startPair, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';
import { atBoth, bringBack, bringInto, load, loadAndWait, processOf } from './model-states.js';

const loadable = [
  'id',
  'aliases',
  'tags',
  'object',
  'owned_by',
  'created',
  'status',
  'architecture',
  'source',
];
const nativeKeys = [...loadable, 'can_remove'];
const inStatus = ['value', 'args', 'preset'];

let pair: Pair;

beforeAll(async () => {
  const cache = tempDir();
  await writeHubModel(cache, 'some/cached', 'cached-Q8_0.gguf', sayingItsName('cached'));
  await writeHubModel(cache, 'some/hidden', 'hidden-Q8_0.gguf', sayingItsName('hidden'));
  pair = await startPair({
    models: {
      plain: sayingItsName('plain'),
      'Upper.Case': sayingItsName('upper'),
      'a-1': sayingItsName('a-1'),
      'a.1': sayingItsName('a.1'),
      broken: sayingItsName('broken'),
      heavy: { ...sayingItsName('heavy'), extraBytes: 300e6 },
      named: sayingItsName('named'),
      'folder/weights': sayingItsName('weights'),
      sleepy: sayingItsName('sleepy'),
      größer: sayingItsName('bigger'),
    },
    args: ['--offline', '--ctx-size', '512', '--temp', '0.5', '--no-slots', '--models-max', '0'],
    env: { LLAMA_CACHE: cache },
    presets: [
      '[*]',
      'top-k = 7',
      '[named]',
      'alias = zwo, eins, "drei"',
      'tags = slow, big, <small>',
      'ctx-size = 256',
      '[broken]',
      'device = nowhere',
      '[sleepy]',
      'sleep-idle-seconds = 1',
      '[shadow]',
      'hf-repo = some/hidden:Q8_0',
      'dedup-cache-models = true',
      'stop-timeout = 3',
    ].join('\n'),
  });
});

/** The text of a list without what differs from run to run: times, ports and addresses of models directories. */
async function listText(url: string, path = '/models'): Promise<string> {
  const { status, text } = await get(url, path);
  expect(status).toBe(200);
  return text.replaceAll(/"created":\d+/g, '"created":0').replaceAll(/"--port","\d+"/g, '"--port","PORT"');
}

/** The text of an entry; keys keep their order through `JSON.parse`, as none of them is a number. */
async function entryText(url: string, id: string): Promise<string> {
  const { data } = JSON.parse(await listText(url)) as { data: { id: string }[] };
  return JSON.stringify(data.find((entry) => entry.id === id));
}

/**
 * An entry of ours without what stands behind the native router's fields, in the entry and in its status; asserts that
 * nothing but what is known stands there.
 */
function withoutAdditions(ours: string, native: string): string {
  const cut = (own: object, theirs: object, known: ReadonlySet<string>): [string, unknown][] => {
    const count = Object.keys(theirs).length;
    const fields = Object.entries(own);
    const unknown = fields.slice(count).filter(([key]) => !known.has(key));
    expect(unknown).toEqual([]);
    return fields.slice(0, count);
  };
  const [own, theirs] = [ours, native].map((text) => JSON.parse(text) as { status: object });
  if (own === undefined || theirs === undefined) throw new Error('no entry');
  const status = Object.fromEntries(cut(own.status, theirs.status, new Set(['error'])));
  const known = new Set([...additions, 'meta']);
  const entry = cut(own, theirs, known).map(([key, value]) => [key, key === 'status' ? status : value]);
  return JSON.stringify(Object.fromEntries(entry));
}

/** Compares a model's entries as texts, key for key, and returns the native one's. */
async function sameEntry(id: string): Promise<Record<string, unknown> & { status: Record<string, unknown> }> {
  const { native, ours } = await atBoth(pair, (url) => entryText(url, id));
  expect(withoutAdditions(ours, native)).toBe(native);
  return JSON.parse(native) as Record<string, unknown> & { status: Record<string, unknown> };
}

describe('the whole list', () => {
  it('has the same models in the same order, and neither shows the hidden one', async () => {
    const { native, ours } = await atBoth(pair, async (url) => (await listModels(url)).map(({ id }) => id));
    expect(native).toEqual([
      ...['Upper.Case', 'a-1', 'a.1', 'broken', 'folder', 'größer', 'heavy', 'named', 'plain', 'shadow'],
      ...['sleepy', 'some/cached:Q8_0'],
    ]);
    expect(ours).toEqual(native);
  });

  it('is JSON without blanks or escapes that need not be, as there', async () => {
    for (const url of [pair.native, pair.ours]) {
      const { text, headers } = await get(url, '/models');
      expect(text).toBe(JSON.stringify(JSON.parse(text)));
      expect(text).toContain('größer');
      expect(headers['content-type']).toBe('application/json; charset=utf-8');
    }
  });

  it('begins with `data` and goes on with `object`; ours ends with `models`', async () => {
    const { native, ours } = await atBoth(pair, async (url) =>
      Object.keys(JSON.parse(await listText(url)) as object),
    );
    expect(native).toEqual(['data', 'object']);
    expect(ours).toEqual(['data', 'object', 'models']);
  });

  it('is the same at /v1/models', async () => {
    for (const url of [pair.native, pair.ours]) {
      // Ours says more of a model once its file has been read: only lists of one moment can be compared.
      const { first, between } = await eventually(`a list of ${url} that stays the same`, async () => {
        const first = await listText(url);
        const between = await listText(url, '/v1/models');
        return first === (await listText(url)) && { first, between };
      });
      expect(between).toBe(first);
    }
  });
});

describe('the entry of a model', () => {
  it.each(['plain', 'Upper.Case', 'folder', 'größer', 'named', 'broken', 'shadow', 'some/cached:Q8_0'])(
    'that was never loaded is the same: %s',
    async (id) => {
      const entry = await sameEntry(id);
      expect(Object.keys(entry)).toEqual(nativeKeys);
      expect(Object.keys(entry.status)).toEqual(inStatus);
      expect(entry.status).toMatchObject({ value: 'unloaded' });
    },
  );

  it('has the aliases and tags of its section, sorted', async () => {
    expect(await sameEntry('named')).toMatchObject({
      aliases: ['"drei"', 'eins', 'zwo'],
      tags: ['<small>', 'big', 'slow'],
      source: 'preset',
      can_remove: false,
    });
  });

  it('of the cache can be removed', async () => {
    expect(await sameEntry('some/cached:Q8_0')).toMatchObject({ source: 'cache', can_remove: true });
  });

  it.skipIf(!canListProcesses)('that is loading is the same', async () => {
    await atBoth(pair, async (url) => {
      const goOn = await bringInto('loading', url, 'heavy');
      return { goOn, text: await entryText(url, 'heavy') };
    }).then(({ native, ours }) => {
      native.goOn();
      ours.goOn();
      expect(withoutAdditions(ours.text, native.text)).toBe(native.text);
      expect(Object.keys(JSON.parse(native.text) as object)).toEqual(nativeKeys);
    });
  });

  it('that is loaded is the same, with `meta` in its place', async () => {
    await atBoth(pair, (url) => loadAndWait(url, 'plain'));
    const entry = await sameEntry('plain');
    expect(Object.keys(entry)).toEqual([...nativeKeys, 'meta']);
    expect(entry.status).toMatchObject({ value: 'loaded' });
  });

  it('that is loaded by its alias is the same', async () => {
    await atBoth(pair, async (url) => expect(await chat(url, 'zwo')).toBe(nameAnswer('named')));
    const entry = await sameEntry('named');
    expect(entry).toMatchObject({ id: 'named', status: { value: 'loaded' } });
    expect(entry['aliases']).toEqual(['"drei"', 'eins', 'zwo']);
  });

  it('that sleeps is the same', async () => {
    await atBoth(pair, (url) => bringInto('sleeping', url, 'sleepy'));
    const entry = await sameEntry('sleepy');
    expect(Object.keys(entry)).toEqual([...nativeKeys, 'meta']);
    expect(entry.status).toMatchObject({ value: 'sleeping' });
  });

  it('that was unloaded is the same as before its load, but for the port it had', async () => {
    await atBoth(pair, async (url) => {
      await loadAndWait(url, 'a-1');
      const { args } = (await modelEntry(url, 'a-1')).status;
      await bringBack(url, 'a-1');
      expect((await modelEntry(url, 'a-1')).status.args).toEqual(args);
    });
    const entry = await sameEntry('a-1');
    expect(Object.keys(entry)).toEqual(nativeKeys);
    expect(Object.keys(entry.status)).toEqual(inStatus);
  });

  it('that failed to load is the same, and ours says why behind it', async () => {
    await atBoth(pair, async (url) => {
      await load(url, 'broken');
      await eventually('it has failed', async () => (await modelEntry(url, 'broken')).status.failed);
    });
    const entry = await sameEntry('broken');
    expect(Object.keys(entry.status)).toEqual([...inStatus, 'exit_code', 'failed']);
    expect(entry.status).toMatchObject({ value: 'unloaded', exit_code: 1, failed: true });
    const own = JSON.parse(await entryText(pair.ours, 'broken')) as { status: object };
    expect(Object.keys(own.status).at(-1)).toBe('error');
  });

  it.skipIf(!canListProcesses)(
    'that crashed is the same, and again as any other once it is loaded anew',
    async () => {
      await atBoth(pair, async (url) => {
        await loadAndWait(url, 'a.1');
        sigkill(await processOf(url, 'a.1'));
        await untilStatus(url, 'a.1', 'unloaded');
      });
      expect((await sameEntry('a.1')).status).toMatchObject({ exit_code: 1, failed: true });
      await atBoth(pair, (url) => loadAndWait(url, 'a.1'));
      expect(Object.keys((await sameEntry('a.1')).status)).toEqual(inStatus);
    },
  );

  it('that is hidden is served all the same, and stays unlisted', async () => {
    await atBoth(pair, async (url) => {
      expect(await chat(url, 'some/hidden:Q8_0')).toBe(nameAnswer('hidden'));
      expect((await listModels(url)).map(({ id }) => id)).not.toContain('some/hidden:Q8_0');
      expect((await post(url, '/models/unload', { model: 'some/hidden:Q8_0' })).status).toBe(200);
    });
  });

  it(intended('entry-additions'), async () => {
    const { native, ours } = await atBoth(pair, async (url) => {
      await bringBack(url, 'Upper.Case');
      const unloaded = Object.keys(JSON.parse(await entryText(url, 'Upper.Case')) as object);
      await loadAndWait(url, 'Upper.Case');
      return { unloaded, loaded: Object.keys(JSON.parse(await entryText(url, 'Upper.Case')) as object) };
    });
    expect(native).toEqual({ unloaded: nativeKeys, loaded: [...nativeKeys, 'meta'] });
    const told = ['meta', 'path', 'facts'];
    expect(ours.unloaded).toEqual([...nativeKeys, ...told, 'in_flight', 'waiting']);
    expect(ours.loaded).toEqual([
      ...nativeKeys,
      ...told,
      ...['progress', 'pid', 'memory', 'last_used', 'in_flight', 'waiting'].filter((key) =>
        ours.loaded.includes(key),
      ),
    ]);
    for (const key of ['pid', 'last_used']) expect(ours.loaded).toContain(key);
  });
});
