import { relative } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { modelArgs } from '../../src/models/argv.js';
import { nameAnswer, sayingItsName, writeHubModel } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat } from '../helpers/supervisor-client.js';
import { intended } from './intended-differences.js';
import {
  binary,
  expectTheSame,
  nativeModels,
  nativeRefusal,
  OracleHome,
  ourCatalog,
  ourModels,
  startNative,
  table,
  type ListedModel,
} from './native-oracle.js';

let home: OracleHome;

beforeEach(() => {
  home = new OracleHome();
});

const A = 'a'.repeat(40);
const B = 'b'.repeat(40);

/** What is on disk, in the lines of `OracleHome.plant`, and the ids that both must list. */
type Row = readonly [title: string, lines: readonly string[], ids: readonly string[]];

describe('the cache is looked for in the same place', () => {
  const PLACES = [
    ['LLAMA_CACHE', 'llama', 'llama'],
    ['HF_HUB_CACHE', 'hf-hub', 'hf-hub'],
    ['HUGGINGFACE_HUB_CACHE', 'huggingface', 'huggingface'],
    ['HF_HOME', 'hf', 'hf/hub'],
    ['XDG_CACHE_HOME', 'xdg', 'xdg/huggingface/hub'],
    ['HOME', 'home', 'home/.cache/huggingface/hub'],
  ] as const;
  type Variable = (typeof PLACES)[number][0];

  /** Each place with a repository that is named like its variable. */
  beforeEach(async () => {
    for (const [name, , directory] of PLACES) {
      const repo = `${directory}/models--org--${name}`;
      await home.plant([`${repo}/refs/main = ${A}`, `${repo}/snapshots/${A}/m-Q4_0.gguf`]);
    }
  });

  function environment(valueOf: (name: Variable, value: string, at: number) => string | undefined) {
    return Object.fromEntries(
      PLACES.map(([name, value], at) => [name, valueOf(name, home.path(value), at)] as const),
    );
  }

  it.each(PLACES.map(([name], at) => [name, at] as const))(
    '%s goes before those that come after it in the list, when those before it are empty',
    async (name, place) => {
      const env = environment((_, value, at) => (at < place ? '' : value));
      await expectTheSame(home, { env }, [`org/${name}:Q4_0`]);
    },
  );

  it.each(PLACES.map(([name], at) => [name, at] as const))(
    '%s counts when those before it are not set',
    async (name, place) => {
      const env = environment((_, value, at) => (at < place ? undefined : value));
      await expectTheSame(home, { env }, [`org/${name}:Q4_0`]);
    },
  );

  it('a place that does not exist is an empty cache; those after it are not asked', async () => {
    const env = environment((name, value) => (name === 'LLAMA_CACHE' ? `${value}/nowhere` : value));
    await expectTheSame(home, { env }, []);
  });

  it.each<[string, (path: string) => string]>([
    ['with a slash at the end', (path) => `${path}/`],
    ['relative to the working directory', (path) => relative(process.cwd(), path)],
  ])('a path %s', async (_, written) => {
    const env = environment((name, value) => (name === 'HF_HOME' ? written(value) : undefined));
    await expectTheSame(home, { env, cwd: process.cwd() }, ['org/HF_HOME:Q4_0']);
  });

  it(intended('unreadable-cache'), async () => {
    const env = environment((name, value) => (name === 'LLAMA_CACHE' ? `${value}.txt` : undefined));
    await home.write('llama.txt');
    expect(await nativeRefusal(home, { env })).toContain('cannot open directory');
    const { models, warnings } = await ourCatalog(home, { env });
    expect(models).toEqual([]);
    expect(warnings).toEqual([`'${home.path('llama.txt')}' cannot be read: ENOTDIR`]);
  });
});

describe('the layout of the hub is read the same', () => {
  const REPO = 'hub/models--u--r';
  const main = `${REPO}/refs/main = ${A}`;
  const inSnapshot = (file: string, commit = A): string => `${REPO}/snapshots/${commit}/${file}`;
  const Q4 = inSnapshot('m-Q4_0.gguf');
  const OLD = inSnapshot('old-Q8_0.gguf', B);

  function repositories(...folders: readonly string[]): string[] {
    return folders.flatMap((folder) => [
      `hub/${folder}/refs/main = ${A}`,
      `hub/${folder}/snapshots/${A}/m-Q4_0.gguf`,
    ]);
  }

  it.each<Row>([
    [
      'names of repositories',
      repositories('models--user--repo', 'models--U_1--_r_', 'models--a.b-c--d-e.f', 'models--0--1'),
      ['0/1:Q4_0', 'U_1/_r_:Q4_0', 'a.b-c/d-e.f:Q4_0', 'user/repo:Q4_0'],
    ],
    [
      'names that no repository has',
      repositories(
        ...['models--repo', 'models--a--b--c', 'models--a---b', 'models---a--b', 'models--a--b-'],
        ...['models--a--b.', 'models--a--.b', 'models--a.-b--c', 'models--a--b--', 'models----a--b'],
        ...['models--a--ü', 'models--a--b c', 'models--a--b+c', 'models--a--b@c', 'models--', 'models--a/b'],
        ...['models-a--b', 'Models--a--b', 'datasets--a--b', 'a--b', '.models--a--b', 'models--u--control'],
      ),
      ['u/control:Q4_0'],
    ],
    [
      'repositories that are files, links, or links to nowhere',
      [
        ...repositories('models--u--target'),
        'hub/models--u--file',
        'hub/models--u--link -> models--u--target',
        'hub/models--u--broken -> nowhere',
      ],
      ['u/link:Q4_0', 'u/target:Q4_0'],
    ],
    ['refs/main, whatever other refs say', [main, `${REPO}/refs/a = ${B}`, Q4, OLD], ['u/r:Q4_0']],
    ['another ref where there is no main', [`${REPO}/refs/v1 = ${B}`, Q4, OLD], ['u/r:Q8_0']],
    ...[
      '',
      `\n${A}`,
      'a'.repeat(39),
      'a'.repeat(41),
      `${A} `,
      ` ${A}`,
      `${A}\r\n`,
      'main',
      'g'.repeat(40),
    ].map((text): Row => [
      `another ref where main says ${JSON.stringify(text)}`,
      [`${REPO}/refs/main = ${text}`, `${REPO}/refs/v1 = ${B}`, Q4, OLD],
      ['u/r:Q8_0'],
    ]),
    [
      'another ref where main is a directory',
      [`${REPO}/refs/main/x = ${A}`, `${REPO}/refs/v1 = ${B}`, Q4, OLD],
      ['u/r:Q8_0'],
    ],
    ['the first line of a ref', [`${REPO}/refs/main = ${A}\n${B}\n`, Q4, OLD], ['u/r:Q4_0']],
    [
      'a commit in capitals',
      [`${REPO}/refs/main = ${'A'.repeat(40)}`, inSnapshot('m-Q4_0.gguf', 'A'.repeat(40)), OLD],
      ['u/r:Q4_0'],
    ],
    ['a ref that is a link', [`${REPO}/refs/main -> ../head`, `${REPO}/head = ${A}`, Q4, OLD], ['u/r:Q4_0']],
    ['refs below refs, which count for nothing', [`${REPO}/refs/pr/1 = ${A}`, Q4], []],
    ['no ref', [Q4], []],
    ['refs that are a file', [`${REPO}/refs = ${A}`, Q4], []],
    ['a commit without a snapshot', [main], []],
    ['no snapshots', [main, `${REPO}/blobs/m-Q4_0.gguf`], []],
    ['snapshots that are a file', [main, `${REPO}/snapshots`], []],
    ['a snapshot that is a file', [main, `${REPO}/snapshots/${A}`], []],
    [
      'a snapshot that is a link',
      [main, `${REPO}/snapshots/${A} -> ../elsewhere`, `${REPO}/elsewhere/m-Q4_0.gguf`],
      ['u/r:Q4_0'],
    ],
    [
      'files in folders, to any depth, hidden ones too',
      [
        main,
        ...[
          'a/m-Q2_K.gguf',
          'a/b/c/m-Q3_K.gguf',
          '.d/m-Q4_0.gguf',
          '.m-Q5_0.gguf',
          'm-Q6_K.gguf/m-Q8_0.gguf',
        ].map((file) => inSnapshot(file)),
      ],
      ['u/r:Q2_K', 'u/r:Q3_K', 'u/r:Q4_0', 'u/r:Q5_0', 'u/r:Q8_0'],
    ],
    [
      'links: to files, to nowhere, and to folders, which are not entered but may be named like a model',
      [
        main,
        `${REPO}/blobs/1`,
        `${REPO}/folder/m-Q2_K.gguf`,
        `${inSnapshot('m-Q4_0.gguf')} -> ../../blobs/1`,
        `${inSnapshot('m-Q5_0.gguf')} -> ../../blobs/gone`,
        `${inSnapshot('folder')} -> ../../folder`,
        `${inSnapshot('m-Q8_0.gguf')} -> ../../folder`,
      ],
      ['u/r:Q4_0', 'u/r:Q5_0', 'u/r:Q8_0'],
    ],
  ])('%s', async (_, lines, ids) => {
    await home.plant(lines);
    await expectTheSame(home, {}, ids);
  });

  it(intended('outdated-snapshot'), async () => {
    await home.plant([main, OLD]);
    expect(await nativeModels(home, {})).toEqual([]);
    expect((await ourModels(home, {})).map(({ id }) => id)).toEqual(['u/r:Q8_0']);
  });

  it('of several refs without main the first that the file system gives', async () => {
    await home.plant([
      ...['v1', 'v0', 'x'].map((ref, at) => `${REPO}/refs/${ref} = ${at === 1 ? B : A}`),
      Q4,
      OLD,
    ]);
    const native = await nativeModels(home, {});
    expect(native).toHaveLength(1);
    expect(await ourModels(home, {})).toEqual(native);
  });
});

describe('ids are made of the files of a repository in the same way', () => {
  async function plantRepo(files: readonly string[]): Promise<void> {
    const repo = 'hub/models--u--r';
    await home.plant([`${repo}/refs/main = ${A}`, ...files.map((file) => `${repo}/snapshots/${A}/${file}`)]);
  }
  const COMPANIONS = ['mmproj', 'mtp-', 'eagle3-', 'dflash-', 'dspark-'];

  it.each<[title: string, files: readonly string[], tags: readonly string[]]>([
    [
      'the last part of a name, in capitals, is the tag',
      ['Qwen3-8B.gguf', 'X-UD-Q4_K_XL.gguf', 'x.q8_0.gguf', 'a-b.c-iq2_xxs.gguf', '-F16.gguf', 'x-_.gguf'],
      ['8B', 'F16', 'IQ2_XXS', 'Q4_K_XL', 'Q8_0', '_'],
    ],
    [
      'a name without one is no model',
      [
        'model.gguf',
        'Q4_0.gguf',
        'Q4_0/model.gguf',
        'v1.0/model.gguf',
        'x-.gguf',
        'x-ü.gguf',
        'x-Q4 0.gguf',
        '.gguf',
      ],
      [],
    ],
    [
      'the ending is .gguf, and it is taken off once',
      ['a-Q2_K.GGUF', 'a-Q3_K.gguf.part', 'a-Q4_0.gguf.gguf', 'a-Q5_0gguf', 'a-Q6_K.Gguf'],
      ['GGUF'],
    ],
    [
      'of shards the first counts, whatever case its "of" has',
      [
        ...['a-Q2_K-00001-of-00002.gguf', 'a-Q2_K-00002-of-00002.gguf', 'a-Q3_K-00002-of-00002.gguf'],
        ...['a-Q4_0-00001-OF-00002.gguf', 'a-00001-of-00002.gguf', 'a-Q5_0-00000-of-00002.gguf'],
        'a-Q8_0-00001-of-00001.gguf',
      ],
      ['Q2_K', 'Q4_0', 'Q8_0'],
    ],
    [
      'what only looks like a shard is none',
      [
        'a-Q2_K-0001-of-0002.gguf',
        'a-Q3_K-00002-of-00002-x.gguf',
        'a-Q4_0_00002-of-00003.gguf',
        '-00002-of-00004.gguf',
      ],
      ['00003', '00004', '0002', 'X'],
    ],
    ['several files of one tag are one model', ['b-Q4_0.gguf', 'a-q4_0.gguf', 'c/x.Q4_0.gguf'], ['Q4_0']],
    [
      'companions are none, wherever the name or a folder has their mark',
      COMPANIONS.flatMap((mark) => [`${mark}a-Q2_K.gguf`, `a-${mark}b-Q3_K.gguf`, `${mark}d/a-Q4_0.gguf`]),
      [],
    ],
    [
      'the marks of companions have their case and their dash',
      [
        'MMPROJ-a-Q2_K.gguf',
        'Mtp-a-Q3_K.gguf',
        'mtp_a-Q4_0.gguf',
        'eagle3_a-Q5_0.gguf',
        'dflash.a-Q6_K.gguf',
      ],
      ['Q2_K', 'Q3_K', 'Q4_0', 'Q5_0', 'Q6_K'],
    ],
    ['the tag alone may be a mark', ['a-mmproj.gguf', 'a-mtp.gguf', 'a-eagle3.gguf'], ['EAGLE3', 'MTP']],
  ])('%s', async (_, files, tags) => {
    await plantRepo(files);
    await expectTheSame(
      home,
      {},
      tags.map((tag) => `u/r:${tag}`),
    );
  });

  it(`${intended('imatrix')}: in the cache`, async () => {
    await plantRepo(['a-Q4_0.gguf', 'imatrix-Q5_0.gguf', 'a.imatrix.gguf', 'a-imatrix-Q8_0.gguf']);
    const ids = (models: readonly ListedModel[]): string[] => models.map(({ id }) => id);
    expect(ids(await nativeModels(home, {}))).toEqual(['u/r:IMATRIX', 'u/r:Q4_0', 'u/r:Q5_0', 'u/r:Q8_0']);
    expect(ids(await ourModels(home, {}))).toEqual(['u/r:Q4_0']);
  });

  it('a section that names the repository with any tag of it is about that one', async () => {
    await plantRepo(['a-UD-Q4_0.gguf', 'a-Q8_0.gguf']);
    const preset = await home.write('presets.ini', '[u/r:ud-q4_0]\nc = 1\n[u/r]\nhf-repo = u/r\n');
    await expectTheSame(home, { args: ['--models-preset', preset] }, ['u/r', 'u/r:Q4_0', 'u/r:Q8_0']);
  });

  it(intended('offline'), async () => {
    await plantRepo(['a-Q4_0.gguf']);
    const [native] = await nativeModels(home, {});
    const model = (await ourCatalog(home, {})).resolve('u/r:Q4_0');
    if (native === undefined || model === undefined) throw new Error('the model is not listed');
    expect(native.status.args).not.toContain('--offline');
    expect(modelArgs(model, binary, table, 0)).toEqual([...native.status.args, '--offline']);
  });

  it(intended('cached-preset'), async () => {
    await plantRepo(['a-Q4_0.gguf', 'preset.ini']);
    await expectTheSame(home, {}, ['u/r:Q4_0']);
    expect((await ourCatalog(home, {})).resolve('u/r:Q4_0')?.problem).toMatch(/has a preset\.ini/);
  });
});

it('children of both take the same file for a tag', async () => {
  const repos: Record<string, string[]> = {
    'u/several': ['z-Q4_0.gguf', 'a-Q4_0.gguf', 'sub/b-Q4_0.gguf'],
    'u/case': ['m-ud-q4_0.gguf', 'm-Q8_0.gguf'],
    'u/within': ['m-IQ4_NL.gguf', 'm-Q4_NL.gguf', 'm-BF16.gguf', 'm-F16.gguf'],
    'u/folders': ['Q4_0.d/m-Q8_0.gguf', 'm-Q4_0.gguf'],
    'u/longer': ['m-Q4_K_M-v2.gguf', 'm-Q4_K_M.gguf'],
    'u/companions': ['mtp-m-Q4_0.gguf', 'eagle3-m-Q4_0.gguf', 'imatrix-Q4_0.gguf', 'm-Q4_0.gguf'],
    'u/shard': ['m-Q4_0-00001-of-00001.gguf'],
  };
  for (const [repo, files] of Object.entries(repos)) {
    for (const file of files)
      await writeHubModel(home.path('hub'), repo, file, sayingItsName(`${repo}/${file}`));
  }
  // Without a tag of its own: the first of the default ones.
  const preset = await home.write(
    'presets.ini',
    '[untagged]\nhf-repo = u/longer\n[named]\nhf-repo = u/several\nhf-file = sub/b-Q4_0.gguf\n',
  );
  const args = ['--models-preset', preset, '--models-max', '1', '--threads', '1'];
  const native = await startNative(home, { args: [...args, '--offline'] });
  const { url } = await startRealSupervisor({
    args,
    env: { LLAMA_CACHE: undefined, HF_HUB_CACHE: home.path('hub') },
  });

  const { models } = await ourCatalog(home, { args });
  expect(models.map(({ id }) => id)).toEqual((await nativeModels(home, { args })).map(({ id }) => id));
  expect(models.length).toBeGreaterThan(Object.keys(repos).length);
  for (const { id, file = '' } of models) {
    const [, repo = '', path = ''] = /models--(.*?)\/snapshots\/[0-9a-f]{40}\/(.*)$/.exec(file) ?? [];
    const answer = nameAnswer(`${repo.replace('--', '/')}/${path}`);
    expect([id, await chat(native.url, id)]).toEqual([id, answer]);
    expect([id, await chat(url, id)]).toEqual([id, answer]);
  }
});
