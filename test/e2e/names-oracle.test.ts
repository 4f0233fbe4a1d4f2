import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { arrangeGguf, ggufToBuffer, type GgufValue } from '../../src/demo/gguf-writer.js';
import { eventually } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeHubModel, writeModels } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, errorIn, listModels, post, question } from '../helpers/supervisor-client.js';
import { intended } from './intended-differences.js';
import {
  expectTheSame,
  nativeModels,
  nativeRefusal,
  OracleHome,
  ourCatalog,
  ourModels,
  startNative,
  type ListedModel,
} from './native-oracle.js';

let home: OracleHome;

beforeEach(() => {
  home = new OracleHome();
});

async function presetArgs(...lines: readonly string[]): Promise<string[]> {
  return ['--models-preset', await home.write('presets.ini', `${lines.join('\n')}\n`)];
}

/** A native router and ours, with models that can be asked, and nothing on the network. */
async function startBoth(args: readonly string[]): Promise<{ native: string; ours: string }> {
  const common = [...args, '--models-max', '2', '--threads', '1', '--offline'];
  const [native, ours] = await Promise.all([
    startNative(home, { args: common }),
    startRealSupervisor({
      args: common,
      env: { LLAMA_CACHE: undefined, HF_HUB_CACHE: home.path('hub') },
    }),
  ]);
  return { native: native.url, ours: ours.url };
}

describe('a name means the same model', () => {
  let urls: { native: string; ours: string };

  beforeAll(async () => {
    home = new OracleHome();
    const hub = home.path('hub');
    await writeHubModel(hub, 'org/big', 'big-Q4_K_M.gguf', sayingItsName('q4'));
    await writeHubModel(hub, 'org/big', 'big-Q8_0.gguf', sayingItsName('q8'));
    await writeHubModel(hub, 'org/twin', 'twin-Q4_0.gguf', sayingItsName('twin'));
    await writeModels(
      { alpha: sayingItsName('alpha'), 'Beta.v1': sayingItsName('beta') },
      home.path('models'),
    );
    const own = await writeModels({ own: sayingItsName('own') });
    const args = await presetArgs(
      ...['[alpha]', 'alias = a, org/alias,  A b ,a', 'tags = fast, big'],
      ...['[own]', `model = ${own}/own.gguf`, 'alias = own, x:Y'],
      ...['[org/big:q8_0]', 'alias = big'],
      ...['[mine]', 'hf-repo = org/twin:Q4_0', 'dedup-cache-models = on', 'alias = the-twin'],
    );
    urls = await startBoth(['--models-dir', home.path('models'), ...args]);
  });

  /** Who answered, and under which name; or how the request was refused. */
  async function answerTo(url: string, name: string): Promise<unknown[]> {
    const { status, text, json } = await post(url, '/v1/chat/completions', question(name));
    if (status !== 200) return [status, errorIn(text).type];
    const { model, choices } = json as { model: string; choices: [{ message: { content: string } }] };
    return [model, choices[0].message.content];
  }

  it.each<[what: string, name: string, id: string, itself: string]>([
    ['an id', 'alpha', 'alpha', 'alpha'],
    ['an id with a dot', 'Beta.v1', 'Beta.v1', 'beta'],
    ['an alias', 'a', 'alpha', 'alpha'],
    ['an alias like a repository', 'org/alias', 'alpha', 'alpha'],
    ['an alias with a blank in it', 'A b', 'alpha', 'alpha'],
    ['an id that is an alias of itself', 'own', 'own', 'own'],
    ['an alias with a colon, which is no tag', 'x:Y', 'own', 'own'],
    ['an id of the cache', 'org/big:Q4_K_M', 'org/big:Q4_K_M', 'q4'],
    ['an id of the cache with a section', 'org/big:Q8_0', 'org/big:Q8_0', 'q8'],
    ['the alias of one', 'big', 'org/big:Q8_0', 'q8'],
    ['a section that serves what is in the cache', 'the-twin', 'mine', 'twin'],
    ['a model that such a section hides', 'org/twin:Q4_0', 'org/twin:Q4_0', 'twin'],
  ])('%s: %s', async (_, name, id, itself) => {
    expect(await answerTo(urls.native, name)).toEqual([id, nameAnswer(itself)]);
    expect(await answerTo(urls.ours, name)).toEqual([id, nameAnswer(itself)]);
  });

  it.each([
    ['another case of an id', 'ALPHA'],
    ['another case of an alias', 'BIG'],
    ['another case of a tag', 'org/big:q8_0'],
    ['blanks around an id', ' alpha '],
    ['blanks around an alias', ' A b'],
    ['a repository without a tag', 'org/big'],
    ['the name of a file', 'alpha.gguf'],
    ['a tag of the list', 'fast'],
    ['no name at all', ''],
  ])('none: %s, %j', async (_, name) => {
    const refusal = await answerTo(urls.native, name);
    expect(refusal[0]).toBe(400);
    expect(await answerTo(urls.ours, name)).toEqual(refusal);
  });

  it('and the lists show the same, without what is hidden', async () => {
    const names = async (url: string) =>
      (await listModels(url)).map(({ id, aliases, source }) => ({ id, aliases, source }));
    const listed = await names(urls.ours);
    expect(listed).toEqual(await names(urls.native));
    expect(listed.map(({ id }) => id)).toEqual([
      'Beta.v1',
      'alpha',
      'mine',
      'org/big:Q4_K_M',
      'org/big:Q8_0',
      'own',
    ]);
  });
});

describe('what dedup-cache-models hides is the same', () => {
  beforeEach(async () => {
    await home.writeHub('org/one', 'm-Q4_K_M.gguf');
    await home.writeHub('org/one', 'm-Q8_0.gguf');
    await home.writeHub('org/two', 'n-Q4_0.gguf');
  });
  const [Q4, Q8, TWO] = ['org/one:Q4_K_M', 'org/one:Q8_0', 'org/two:Q4_0'];

  it.each<[title: string, lines: readonly string[], ids: readonly string[]]>([
    ['off', ['[p]', `hf-repo = ${Q8}`, 'dedup-cache-models = off'], [Q4, Q8, TWO, 'p']],
    ['not said', ['[p]', `hf-repo = ${Q8}`], [Q4, Q8, TWO, 'p']],
    ['a word that is neither', ['[p]', `hf-repo = ${Q8}`, 'dedup-cache-models = yes'], [Q4, Q8, TWO, 'p']],
    ['the file of a tag', ['[p]', `hf-repo = ${Q8}`, 'dedup-cache-models = 1'], [Q4, TWO, 'p']],
    ['the file without a tag', ['[p]', 'hf-repo = org/one', 'dedup-cache-models = on'], [Q8, TWO, 'p']],
    [
      'a file by its name, whatever the tag',
      ['[p]', `hf-repo = ${Q4}`, 'hf-file = m-Q8_0.gguf', 'dedup-cache-models = true'],
      [Q4, TWO, 'p'],
    ],
    [
      'a file that is not there',
      ['[p]', `hf-repo = ${Q4}`, 'hf-file = other.gguf', 'dedup-cache-models = true'],
      [Q4, Q8, TWO, 'p'],
    ],
    [
      'a repository that is not there',
      ['[p]', 'hf-repo = org/none:Q8_0', 'dedup-cache-models = enabled'],
      [Q4, Q8, TWO, 'p'],
    ],
    [
      'the draft, too',
      ['[p]', `hf-repo = ${Q8}`, `hf-repo-draft = ${TWO}`, 'dedup-cache-models = on'],
      [Q4, 'p'],
    ],
    [
      'a draft by its file',
      ['[p]', `hf-repo = ${TWO}`, 'hfrd = org/one', 'md = m-Q8_0.gguf', 'dedup-cache-models = on'],
      [Q4, 'p'],
    ],
    [
      'not what has a section of its own',
      ['[p]', `hf-repo = ${Q8}`, 'dedup-cache-models = on', `[${Q8}]`, 'c = 1'],
      [Q4, Q8, TWO, 'p'],
    ],
    ['not the model of the section itself', [`[${Q8}]`, 'dedup-cache-models = on'], [Q4, Q8, TWO]],
    [
      'by [*]: what sections serve, and nothing else',
      ['[*]', 'dedup-cache-models = on', '[p]', `hf-repo = ${Q8}`],
      [Q4, TWO, 'p'],
    ],
    [
      'by [*], and not where a section says no',
      ['[*]', 'dedup-cache-models = on', '[p]', `hf-repo = ${Q8}`, 'dedup-cache-models = off'],
      [Q4, Q8, TWO, 'p'],
    ],
    [
      'a model by its path hides none',
      ['[p]', 'model = m-Q8_0.gguf', 'dedup-cache-models = on'],
      [Q4, Q8, TWO, 'p'],
    ],
  ])('%s', async (_, lines, ids) => {
    await expectTheSame(home, { args: await presetArgs(...lines) }, ids);
  });
});

describe(`${intended('alias-conflict')}: an alias in a section that is`, () => {
  beforeEach(async () => {
    await home.write('models/local.gguf');
    await home.writeHub('org/cached', 'm-Q4_0.gguf');
  });

  it.each<[string, string[], Record<string, string[]>]>([
    ['the id of a file', ['[p]', 'model = m', 'alias = local, p2'], { p: ['p2'] }],
    ['the id of a cached model', ['[a]', 'model = m', 'alias = org/cached:Q4_0'], { a: [] }],
    ['for all models', ['[*]', 'alias = everybody'], { local: ['everybody'] }],
  ])('%s', async (_, lines, expected) => {
    const args = ['--models-dir', home.path('models'), ...(await presetArgs(...lines))];
    expect(await nativeRefusal(home, { args })).toContain('conflicts with');
    const { models, warnings } = await ourCatalog(home, { args });
    const aliases = Object.fromEntries(models.map((model) => [model.id, model.aliases]));
    expect(aliases).toEqual({ local: [], 'org/cached:Q4_0': [], ...expected });
    expect(warnings.join('\n')).toMatch(/alias '.*' (belongs to|is the id of)/);
  });
});

describe('modalities', () => {
  /** The metadata of a projector, which is all that either router reads of it. */
  async function writeProjector(
    path: string,
    encoders: { vision?: boolean; audio?: boolean },
  ): Promise<void> {
    const pairs = new Map<string, GgufValue>([['general.architecture', { type: 'string', value: 'clip' }]]);
    for (const [encoder, value] of Object.entries(encoders)) {
      pairs.set(`clip.has_${encoder}_encoder`, { type: 'bool', value });
    }
    const file = home.path(path);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, ggufToBuffer(arrangeGguf(pairs, [])));
  }

  const snapshot = async (repo: string): Promise<string> => {
    const file = (await ourCatalog(home, {})).models.find(({ id }) => id.startsWith(`${repo}:`))?.file;
    const [directory] = /^.*\/snapshots\/[0-9a-f]{40}/.exec(file ?? '') ?? [];
    if (directory === undefined) throw new Error(`${repo} is not in the cache`);
    return directory.replace(`${home.directory}/`, '');
  };

  async function modalitiesOf(url: string): Promise<Record<string, string>> {
    type Entry = { architecture: { input_modalities: string[]; output_modalities: string[] } };
    return Object.fromEntries(
      (await listModels(url)).map((entry) => {
        const { input_modalities: input, output_modalities: output } = (entry as unknown as Entry)
          .architecture;
        return [entry.id, `${input.join('+')} -> ${output.join('+')}`];
      }),
    );
  }

  it(`${intended('modalities')}; after a moment they are the same`, async () => {
    const folders = ['none', 'eyes', 'ears', 'both', 'neither', 'silent', 'junk'];
    await writeModels(
      Object.fromEntries(folders.map((folder) => [`${folder}/m`, sayingItsName(folder)])),
      home.path('models'),
    );
    await writeProjector('models/eyes/mmproj.gguf', { vision: true });
    await writeProjector('models/ears/mmproj.gguf', { audio: true, vision: false });
    await writeProjector('models/both/mmproj.gguf', { audio: true, vision: true });
    await writeProjector('models/neither/mmproj.gguf', { audio: false, vision: false });
    await writeProjector('models/silent/mmproj.gguf', {});
    await home.write('models/junk/mmproj.gguf');

    const hub = home.path('hub');
    await writeHubModel(hub, 'org/beside', 'm-Q4_0.gguf', sayingItsName('beside'));
    await writeProjector(`${await snapshot('org/beside')}/mmproj-F16.gguf`, { vision: true });
    await writeHubModel(hub, 'org/nearer', 'deep/m-Q4_0.gguf', sayingItsName('nearer'));
    const nearer = await snapshot('org/nearer');
    await writeProjector(`${nearer}/mmproj-Q4_0.gguf`, { audio: true });
    await writeProjector(`${nearer}/deep/mmproj-F16.gguf`, { vision: true });
    await writeProjector(`${nearer}/other/mmproj-Q4_0.gguf`, { audio: true });
    await writeHubModel(hub, 'org/bits', 'm-Q8_0.gguf', sayingItsName('bits'));
    const bits = await snapshot('org/bits');
    await writeProjector(`${bits}/mmproj-F32.gguf`, { audio: true });
    await writeProjector(`${bits}/mmproj-Q6_K.gguf`, { vision: true });

    const eyes = home.path('models/eyes/mmproj.gguf');
    const args = await presetArgs(
      ...['[given]', `model = ${home.path('models/none/m.gguf')}`, `mmproj = ${eyes}`],
      ...['[cached-given]', 'hf-repo = org/bits:Q8_0', `mmproj = ${home.path('models/ears/mmproj.gguf')}`],
      ...['[cached-off]', 'hf-repo = org/bits:Q8_0', 'no-mmproj = on'],
      ...['[cached]', 'hf-repo = org/bits'],
      ...['[lost]', `model = ${home.path('models/none/m.gguf')}`, 'mmproj = nowhere.gguf'],
      ...['[download]', 'hf-repo = org/none:Q4_0'],
    );
    const { native, ours } = await startBoth(['--models-dir', home.path('models'), ...args]);
    const expected = await modalitiesOf(native);
    // Guards the comparison: were the projectors not read, all would be alike.
    expect(new Set(Object.values(expected)).size).toBe(4);
    await eventually('both list the same modalities', async () => {
      expect(await modalitiesOf(ours)).toEqual(expected);
      return true;
    });
  });

  it(intended('modalities-of-child'), async () => {
    const hub = home.path('hub');
    await writeHubModel(hub, 'org/two', 'a/m-Q4_0.gguf', sayingItsName('a'));
    await writeHubModel(hub, 'org/two', 'b/n-Q8_0.gguf', sayingItsName('b'));
    const two = await snapshot('org/two');
    await writeProjector(`${two}/a/mmproj.gguf`, { vision: true });
    await writeProjector(`${two}/b/mmproj.gguf`, { audio: true });
    const args = await presetArgs(
      ...['[by-file]', 'hf-repo = org/two:Q4_0', 'hf-file = b/n-Q8_0.gguf'],
      ...[
        '[given]',
        'hf-repo = org/two:Q4_0',
        'no-mmproj = on',
        `mmproj = ${home.path(two, 'b/mmproj.gguf')}`,
      ],
    );
    const { native, ours } = await startBoth(args);
    expect(await modalitiesOf(native)).toMatchObject({
      'by-file': 'text+image -> text',
      given: 'text -> text',
    });
    await eventually('the modalities of the projectors that the children load are listed', async () => {
      expect(await modalitiesOf(ours)).toMatchObject({
        'by-file': 'text+audio -> text',
        given: 'text+audio -> text',
      });
      return true;
    });
    // Neither child can load what is no whole projector, and says so of the one that is listed.
    for (const id of ['by-file', 'given']) {
      const { last_lines: words = [] } = errorIn(
        (await post(ours, '/v1/chat/completions', question(id))).text,
      );
      expect(words.join('\n')).toContain('/b/mmproj.gguf');
    }
  });
});

describe(intended('flat-cache'), () => {
  const HUB = 'org/hub';
  const FLAT = 'ggml-org/tiny-GGUF';

  it.each<[variable: string, directory: string, flat: string, hub: string]>([
    ['LLAMA_CACHE', 'cache', 'cache', 'cache'],
    ['XDG_CACHE_HOME', 'xdg', 'xdg/llama.cpp', 'xdg/huggingface/hub'],
    ['HOME', 'home', 'home/.cache/llama.cpp', 'home/.cache/huggingface/hub'],
  ])('below %s', async (variable, directory, flat, hub) => {
    await writeHubModel(home.path(hub), HUB, 'm-Q4_0.gguf', sayingItsName('hub'));
    // In both layouts, and listed once.
    await writeModels({ 'org_hub_m-Q4_0': sayingItsName('hub-again') }, home.path(flat));
    await writeModels(
      {
        'ggml-org_tiny-GGUF_tiny-Q8_0': sayingItsName('tiny'),
        'ggml-org_tiny-GGUF_sub_tiny-f16': sayingItsName('f16'),
      },
      home.path(flat),
    );
    const manifest = { ggufFile: { rfilename: 'tiny-Q8_0.gguf' } };
    await home.write(`${flat}/manifest=ggml-org=tiny-GGUF=latest.json`, JSON.stringify(manifest));
    const args = await presetArgs('[mine]', `hf-repo = ${FLAT}`);

    const places = { LLAMA_CACHE: undefined, HF_HUB_CACHE: undefined, XDG_CACHE_HOME: undefined };
    const env = { ...places, [variable]: home.path(directory) };
    const names = (models: readonly ListedModel[]) =>
      models.map(({ id, aliases, source }) => ({ id, aliases, source }));
    const common = [
      { id: 'mine', aliases: [], source: 'preset' },
      { id: `${HUB}:Q4_0`, aliases: [], source: 'cache' },
    ];
    expect(names(await nativeModels(home, { args, env }))).toEqual(common);
    expect(names(await ourModels(home, { args, env }))).toEqual([
      { id: `${FLAT}:F16`, aliases: [], source: 'cache' },
      { id: `${FLAT}:Q8_0`, aliases: [FLAT], source: 'cache' },
      ...common,
    ]);

    const { url } = await startRealSupervisor({ args, env });
    for (const [name, itself] of [
      [`${FLAT}:Q8_0`, 'tiny'],
      [FLAT, 'tiny'],
      [`${FLAT}:F16`, 'f16'],
      [`${HUB}:Q4_0`, 'hub'],
      ['mine', 'tiny'],
    ] as const) {
      expect([name, await chat(url, name)]).toEqual([name, nameAnswer(itself)]);
    }
  });
});
