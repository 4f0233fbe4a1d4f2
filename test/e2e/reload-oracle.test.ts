import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import {
  endless,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeHubModel,
  writeModels,
  type KnownAnswers,
} from '../helpers/known-answer-models.js';
import { canListProcesses, descendants } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  errorIn,
  get,
  listModels,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
  type Answer,
  type ModelEntry,
} from '../helpers/supervisor-client.js';
import { intended } from './intended-differences.js';
import { OracleHome, startNative } from './native-oracle.js';

/** One of the two that are compared. */
interface Router {
  readonly name: 'native' | 'ours';
  readonly pid: number;
  readonly url: string;
}

let home: OracleHome;
let routers: readonly Router[];

beforeEach(() => {
  home = new OracleHome();
  mkdirSync(home.path('models'));
});

function writePresets(...lines: readonly string[]): void {
  writeFileSync(home.path('presets.ini'), `${lines.join('\n')}\n`);
}

async function addModels(models: Readonly<Record<string, KnownAnswers>>): Promise<void> {
  await writeModels(models, home.path('models'));
}

/** Starts both with the models directory, the cache and the presets of the home; ours does not look by itself. */
async function startBoth(): Promise<{ native: Router; ours: Router }> {
  const args = [
    '--models-dir',
    home.path('models'),
    '--models-preset',
    home.path('presets.ini'),
    '--offline',
  ];
  const [native, ours] = await Promise.all([
    startNative(home, { args: [...args, '--threads', '1'] }),
    startRealSupervisor({
      args: [...args, '--no-watch'],
      env: { LLAMA_CACHE: undefined, HF_HUB_CACHE: home.path('hub') },
    }),
  ]);
  const both = {
    native: { name: 'native', pid: native.pid, url: native.url },
    ours: { name: 'ours', pid: ours.pid, url: ours.url },
  } as const;
  routers = [both.native, both.ours];
  return both;
}

/** Does the same with both, one after the other, and expects the same of both. */
async function expectOfBoth<T>(what: (router: Router) => Promise<T>, expected: T): Promise<void> {
  for (const router of routers) expect([router.name, await what(router)]).toEqual([router.name, expected]);
}

function entriesIn({ status, text, json }: Answer): ModelEntry[] {
  if (status !== 200) throw new Error(`no list, but ${status}: ${text}`);
  return (json as { data: ModelEntry[] }).data;
}

function idsIn(answer: Answer): string[] {
  return entriesIn(answer).map(({ id }) => id);
}

async function reload({ url }: Router): Promise<ModelEntry[]> {
  return entriesIn(await get(url, '/models?reload=1'));
}

async function reloadedIds(router: Router): Promise<string[]> {
  return (await reload(router)).map(({ id }) => id);
}

async function refusedWith({ url }: Router, name: string): Promise<number> {
  return (await post(url, '/v1/chat/completions', question(name))).status;
}

function tagsOf(entry: object): string[] {
  return (entry as { tags: string[] }).tags;
}

/** The process that serves a model now. */
function childOf({ pid }: Router, id: string): { pid: number; command: string } | undefined {
  return descendants(pid).find(({ command }) => `${command} `.includes(` --alias ${id} `));
}

async function loadedChild(router: Router, id: string): Promise<number> {
  await chat(router.url, id, { max_tokens: 1 });
  const child = childOf(router, id);
  if (child === undefined) throw new Error(`${id} has no process`);
  return child.pid;
}

async function untilGone(router: Router, id: string, pid: number): Promise<void> {
  await eventually(`${router.name}: the process of ${id} is gone`, () => childOf(router, id)?.pid !== pid);
}

const someModels = () => addModels({ kept: sayingItsName('kept'), gone: sayingItsName('gone') });

describe('what a reload is asked with', () => {
  it.each<[query: string, looks: boolean]>([
    ['?reload=1', true],
    ['?reload=0', true],
    ['?reload=false', true],
    ['?reload=%20', true],
    ['?x=y&reload=true', true],
    ['', false],
    ['?reload', false],
    ['?reload=', false],
    ['?Reload=1', false],
    ['?reloads=1', false],
  ])('%j, at either path', async (query, looks) => {
    await addModels({ old: sayingItsName('old') });
    writePresets();
    await startBoth();
    const added: string[] = [];
    for (const path of ['/v1/models', '/models']) {
      added.push(`added-${added.length}`);
      await addModels(Object.fromEntries(added.map((name) => [name, sayingItsName(name)])));
      await expectOfBoth(
        async ({ url }) => idsIn(await get(url, path + query)),
        looks ? [...added, 'old'] : ['old'],
      );
    }
  });
});

describe.skipIf(!canListProcesses)('a reload does the same', () => {
  it('with models that appear: they are listed, served, and not started', async () => {
    writePresets();
    await startBoth();
    await expectOfBoth(reloadedIds, []);

    await addModels({ file: sayingItsName('file'), 'folder/m': sayingItsName('folder') });
    await writeHubModel(home.path('hub'), 'org/repo', 'm-Q4_0.gguf', sayingItsName('hub'));
    writePresets(
      '[section]',
      `model = ${home.path('models/file.gguf')}`,
      'alias = s',
      'load-on-startup = on',
    );
    // Of an empty list everything is new; after this one, something is there already.
    await expectOfBoth(reloadedIds, ['file', 'folder', 'org/repo:Q4_0', 'section']);
    await addModels({ later: sayingItsName('later') });
    await expectOfBoth(reloadedIds, ['file', 'folder', 'later', 'org/repo:Q4_0', 'section']);
    for (const router of routers) {
      for (const id of ['file', 'later', 'section']) expect(childOf(router, id)).toBeUndefined();
    }
    for (const [name, itself] of [
      ['file', 'file'],
      ['folder', 'folder'],
      ['later', 'later'],
      ['org/repo:Q4_0', 'hub'],
      ['s', 'file'],
    ] as const) {
      await expectOfBoth(({ url }) => chat(url, name), nameAnswer(itself));
    }
  });

  it('with a section that is new and wants to be loaded at the start: it is not', async () => {
    await someModels();
    writePresets();
    await startBoth();
    writePresets('[section]', `model = ${home.path('models/kept.gguf')}`, 'load-on-startup = on');
    await expectOfBoth(reloadedIds, ['gone', 'kept', 'section']);
    await expectOfBoth(async ({ url }) => (await modelEntry(url, 'section')).status.value, 'unloaded');
  });

  it('with models that went: they are unlisted and refused, and those that ran end', async () => {
    await someModels();
    await writeHubModel(home.path('hub'), 'org/repo', 'm-Q4_0.gguf', sayingItsName('hub'));
    writePresets('[section]', `model = ${home.path('models/kept.gguf')}`);
    await startBoth();
    const pids = new Map<Router, number>();
    for (const router of routers) pids.set(router, await loadedChild(router, 'gone'));
    rmSync(home.path('models/gone.gguf'));
    rmSync(home.path('hub'), { recursive: true });
    writePresets();
    await expectOfBoth(reloadedIds, ['kept']);
    for (const [router, pid] of pids) await untilGone(router, 'gone', pid);
    for (const name of ['gone', 'org/repo:Q4_0', 'section']) {
      await expectOfBoth((router) => refusedWith(router, name), 400);
    }
  });

  it('with changed options: a model that runs is stopped and starts anew with them, others go on', async () => {
    await addModels({
      kept: sayingItsName('kept'),
      changed: sayingItsName('changed'),
      idle: sayingItsName('idle'),
    });
    const sections = (size: number) => [
      '[changed]',
      `c = ${size}`,
      '[idle]',
      `c = ${size}`,
      '[kept]',
      'c = 512',
    ];
    writePresets(...sections(256));
    await startBoth();
    const before = new Map<Router, { kept: number; changed: number }>();
    for (const router of routers) {
      before.set(router, {
        kept: await loadedChild(router, 'kept'),
        changed: await loadedChild(router, 'changed'),
      });
    }
    writePresets(...sections(1024));
    await expectOfBoth(reloadedIds, ['changed', 'idle', 'kept']);
    for (const [router, { kept, changed }] of before) {
      await untilGone(router, 'changed', changed);
      await untilStatus(router.url, 'changed', 'unloaded');
      expect(childOf(router, 'kept')?.pid).toBe(kept);
      expect(childOf(router, 'idle')).toBeUndefined();
      await eventually(`${router.name} lists idle as it is now`, async () =>
        (await modelEntry(router.url, 'idle')).status.args.join(' ').includes(' --ctx-size 1024 '),
      );
      expect(await chat(router.url, 'changed')).toBe(nameAnswer('changed'));
      expect(childOf(router, 'changed')?.command).toContain(' --ctx-size 1024 ');
      expect(await chat(router.url, 'kept')).toBe(nameAnswer('kept'));
      expect(childOf(router, 'kept')?.pid).toBe(kept);
    }
  });

  it('with an option of [*]: it changes every model', async () => {
    await someModels();
    writePresets('[*]', 'c = 256');
    await startBoth();
    const pids = new Map<Router, number>();
    for (const router of routers) pids.set(router, await loadedChild(router, 'kept'));
    writePresets('[*]', 'c = 512');
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    for (const [router, pid] of pids) {
      await untilGone(router, 'kept', pid);
      for (const id of ['gone', 'kept']) {
        // The process is gone a moment before its last words are read, and the list tells of its end.
        await eventually(`${router.name} lists ${id} as it is now`, async () =>
          (await modelEntry(router.url, id)).status.args.join(' ').includes(' --ctx-size 512 '),
        );
      }
    }
  });

  it('with nothing changed: everything that runs goes on', async () => {
    await someModels();
    writePresets('[kept]', 'alias = k', 'tags = one', 'c = 256', 'stop-timeout = 3');
    await startBoth();
    const pids = new Map<Router, number>();
    for (const router of routers) pids.set(router, await loadedChild(router, 'kept'));
    // Another order and other spellings of the same.
    writePresets('[kept]', 'stop-timeout = 3', 'ctx-size = 256', 'tags = one', 'alias = k');
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    for (const [router, pid] of pids) expect(childOf(router, 'kept')?.pid).toBe(pid);
  });

  it('with names of models that do not run', async () => {
    await addModels({ kept: sayingItsName('kept'), later: sayingItsName('later') });
    writePresets('[kept]', 'alias = old, one', 'tags = t1', '[later]', 'tags = t3');
    await startBoth();
    writePresets('[kept]', 'alias = new, one', '[later]', 'alias = old', 'tags = t3, t2');
    await expectOfBoth(
      async (router) =>
        (await reload(router)).map(({ id, aliases, ...entry }) => [id, aliases, tagsOf(entry)]),
      [
        ['kept', ['new', 'one'], []],
        ['later', ['old'], ['t2', 't3']],
      ],
    );
    for (const [name, itself] of [
      ['old', 'later'],
      ['new', 'kept'],
      ['one', 'kept'],
    ] as const) {
      await expectOfBoth(({ url }) => chat(url, name), nameAnswer(itself));
    }
  });

  it('with a section that begins to hide what is in the cache', async () => {
    await writeHubModel(home.path('hub'), 'org/repo', 'm-Q4_0.gguf', sayingItsName('hub'));
    writePresets('[mine]', 'hf-repo = org/repo:Q4_0');
    await startBoth();
    await expectOfBoth(reloadedIds, ['mine', 'org/repo:Q4_0']);
    writePresets('[mine]', 'hf-repo = org/repo:Q4_0', 'dedup-cache-models = on');
    await expectOfBoth(reloadedIds, ['mine']);
    await expectOfBoth(({ url }) => chat(url, 'org/repo:Q4_0'), nameAnswer('hub'));
    writePresets();
    await expectOfBoth(reloadedIds, ['org/repo:Q4_0']);
  });

  it('with a load that failed: what mends it clears the failure', async () => {
    await someModels();
    writePresets('[kept]', 'ctx-size = nonsense');
    await startBoth();
    const failed = async ({ url }: Router) => (await modelEntry(url, 'kept')).status.failed === true;
    for (const router of routers) expect(await refusedWith(router, 'kept')).toBeGreaterThanOrEqual(500);
    await expectOfBoth(failed, true);
    writePresets('[kept]', 'ctx-size = 256');
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    await expectOfBoth(failed, false);
    await expectOfBoth(({ url }) => chat(url, 'kept'), nameAnswer('kept'));
  });
});

describe.skipIf(!canListProcesses)('a reload differs, as intended:', () => {
  it(intended('reload-names'), async () => {
    await someModels();
    writePresets('[kept]', 'alias = old');
    const { native, ours } = await startBoth();
    const pids = new Map<Router, number>();
    for (const router of routers) pids.set(router, await loadedChild(router, 'kept'));
    writePresets('[kept]', 'alias = new');
    const aliases = async (router: Router) => (await reload(router)).find(({ id }) => id === 'kept')?.aliases;
    expect(await aliases(native)).toEqual(['old']);
    expect(await aliases(ours)).toEqual(['new']);
    expect(await refusedWith(native, 'new')).toBe(400);
    expect(await refusedWith(ours, 'old')).toBe(400);
    expect(await chat(native.url, 'old')).toBe(nameAnswer('kept'));
    expect(await chat(ours.url, 'new')).toBe(nameAnswer('kept'));
    for (const [router, pid] of pids) expect(childOf(router, 'kept')?.pid).toBe(pid);
  });

  it.each([
    ['tags', 'tags = a', 'tags = b'],
    ['stop-timeout', 'stop-timeout = 3', 'stop-timeout = 4'],
    ['load-on-startup', 'load-on-startup = off', 'load-on-startup = on'],
  ])(`${intended('reload-of-no-matter')}: %s`, async (_, before, after) => {
    await someModels();
    writePresets('[kept]', before);
    const { native, ours } = await startBoth();
    const pids = [await loadedChild(native, 'kept'), await loadedChild(ours, 'kept')];
    writePresets('[kept]', after);
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    await untilStatus(native.url, 'kept', 'unloaded');
    expect(await chat(ours.url, 'kept')).toBe(nameAnswer('kept'));
    expect(childOf(ours, 'kept')?.pid).toBe(pids[1]);
  });

  it(intended('replaced-file'), async () => {
    await someModels();
    writePresets();
    const { native, ours } = await startBoth();
    const pids = [await loadedChild(native, 'kept'), await loadedChild(ours, 'kept')];
    const fresh = await writeModels({ kept: sayingItsName('fresh') });
    renameSync(`${fresh}/kept.gguf`, home.path('models/kept.gguf'));
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    expect(await chat(native.url, 'kept')).toBe(nameAnswer('kept'));
    expect(childOf(native, 'kept')?.pid).toBe(pids[0]);
    expect(await chat(ours.url, 'kept')).toBe(nameAnswer('fresh'));
    expect(childOf(ours, 'kept')?.pid).not.toBe(pids[1]);
  });

  it(intended('reload-failure'), async () => {
    await someModels();
    writePresets('[kept]', 'ctx-size = nonsense');
    const { native, ours } = await startBoth();
    for (const router of routers) expect(await refusedWith(router, 'kept')).toBeGreaterThanOrEqual(500);
    await expectOfBoth(reloadedIds, ['gone', 'kept']);
    expect((await modelEntry(native.url, 'kept')).status.failed).toBeUndefined();
    const { status } = await modelEntry(ours.url, 'kept');
    expect(status).toMatchObject({ failed: true, error: { reason: 'load_failed' } });
  });

  it(intended('reload-source'), async () => {
    await someModels();
    writePresets('[gone]', 'c = 256');
    const { native, ours } = await startBoth();
    writePresets('[kept]', 'c = 256');
    const sources = async (router: Router) => (await reload(router)).map(({ id, source }) => [id, source]);
    expect(await sources(native)).toEqual([
      ['gone', 'preset'],
      ['kept', 'models_dir'],
    ]);
    expect(await sources(ours)).toEqual([
      ['gone', 'models_dir'],
      ['kept', 'preset'],
    ]);
  });

  it(`${intended('reload-alias-conflict')}: of a model that was there`, async () => {
    await addModels({ a: sayingItsName('a'), b: sayingItsName('b') });
    writePresets('[b]', 'alias = x');
    const { native, ours } = await startBoth();
    writePresets('[a]', 'alias = x', '[b]', 'alias = x');
    const aliases = async (router: Router) => (await reload(router)).map((model) => model.aliases);
    expect(await aliases(native)).toEqual([[], ['x']]);
    expect(await aliases(ours)).toEqual([['x'], []]);
  });

  it(`${intended('reload-alias-conflict')}: of a new one`, async () => {
    await someModels();
    writePresets('[kept]', 'alias = x');
    const { native, ours } = await startBoth();
    await addModels({ late: sayingItsName('late') });
    writePresets('[kept]', 'alias = x', '[late]', 'alias = x');
    const { status, text } = await get(native.url, '/models?reload=1');
    expect(status).toBe(500);
    expect(errorIn(text).message).toMatch(/conflicts with alias of model 'kept'/);
    const loading = post(native.url, '/v1/chat/completions', question('kept'));
    loading.catch(() => undefined);
    await expect(withDeadline('the native router answers', loading, 1_000)).rejects.toThrow('not within');
    expect(await reloadedIds(ours)).toEqual(['gone', 'kept', 'late']);
    expect(await chat(ours.url, 'x')).toBe(nameAnswer('kept'));
    expect(await chat(ours.url, 'late')).toBe(nameAnswer('late'));
  });

  it(intended('broken-reload'), async () => {
    await someModels();
    writePresets('[kept]', 'c = 256');
    const { native, ours } = await startBoth();
    writePresets('[kept]', 'nonsense = 1', '[gone]', 'alias = g');
    const { status, text } = await get(native.url, '/models?reload=1');
    expect(status).toBe(500);
    expect(errorIn(text).message).toContain("option 'nonsense' not recognized in preset 'kept'");
    expect(await refusedWith(native, 'g')).toBe(400);
    const kept = (await reload(ours)).find(({ id }) => id === 'kept') as ModelEntry & { stale?: string };
    expect(kept.stale).toMatch(/presets\.ini:2: unknown option 'nonsense'/);
    expect(kept.status.args.join(' ')).toContain(' --ctx-size 256 ');
    expect(await chat(ours.url, 'g')).toBe(nameAnswer('gone'));
  });

  it(intended('lost-directory'), async () => {
    await someModels();
    writePresets('[section]', `model = ${home.path('elsewhere/kept.gguf')}`);
    const { native, ours } = await startBoth();
    renameSync(home.path('models'), home.path('elsewhere'));
    expect((await get(native.url, '/models?reload=1')).status).toBe(500);
    expect((await listModels(native.url)).map(({ id }) => id)).toEqual(['gone', 'kept', 'section']);
    expect(await reloadedIds(ours)).toEqual(['section']);
    expect(await chat(ours.url, 'section')).toBe(nameAnswer('kept'));
    renameSync(home.path('elsewhere'), home.path('models'));
    await expectOfBoth(reloadedIds, ['gone', 'kept', 'section']);
  });

  it(intended('busy-reload'), async () => {
    const talker = endless();
    await addModels({ talker });
    writePresets('[talker]', 'c = 8192', 'stop-timeout = 1');
    const { native, ours } = await startBoth();
    const count = 6000;
    const cut = streamChat(native.url, 'talker', { max_tokens: count });
    const whole = streamChat(ours.url, 'talker', { max_tokens: count });
    await Promise.all([cut.untilPieces(1), whole.untilPieces(1)]);
    writePresets('[talker]', 'c = 512', 'stop-timeout = 1');
    expect(await reloadedIds(ours)).toEqual(['talker']);
    expect(whole.pieces().length).toBeLessThan(count);
    expect(await reloadedIds(native)).toEqual(['talker']);
    await cut.ended();
    expect(cut.pieces().length).toBeLessThan(count);
    expect((await whole.ended()).complete).toBe(true);
    expect(whole.pieces()).toEqual(piecesOf(talker, count));
    for (const router of [native, ours]) {
      expect(await chat(router.url, 'talker', { max_tokens: 2 })).toBe('lap-1 lap-2');
      expect(childOf(router, 'talker')?.command).toContain(' --ctx-size 512 ');
    }
  });
});
