import { rename } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { writeKnownAnswerModel } from '../../src/demo/known-answer-model.js';
import { nameAnswer, sayingItsName } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, listModels, post, question } from '../helpers/supervisor-client.js';
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

/** What is in the directory, and the ids that both must list. */
type Row = readonly [title: string, lines: readonly string[], ids: readonly string[]];

function modelOf({ status: { args } }: ListedModel): string | undefined {
  const at = args.indexOf('--model');
  return at === -1 ? undefined : args[at + 1];
}

describe('a models directory is read the same', () => {
  /** Lines of what is in the directory; those that begin with `/` are of the home. */
  async function plantModels(lines: readonly string[]): Promise<string[]> {
    await home.plant([
      'models/',
      ...lines.map((line) => (line.startsWith('/') ? line.slice(1) : `models/${line}`)),
    ]);
    return ['--models-dir', home.path('models')];
  }

  it.each<Row>([
    ['an empty one', [], []],
    [
      'files, by their names without the ending',
      ['b.gguf', 'a-Q4_0.gguf', 'c.v1.5.gguf'],
      ['a-Q4_0', 'b', 'c.v1.5'],
    ],
    [
      '.gguf within a name, which goes, too',
      ['a.gguf.gguf', 'b.gguf.v2.gguf', 'c.gg.ggufuf.gguf', 'd.gguff.gguf'],
      ['a', 'b.v2', 'c.gguf', 'df'],
    ],
    [
      'other endings, which are none',
      ['a.GGUF', 'b.Gguf', 'c.gguf.part', 'd.gguf~', 'e', 'gguf', 'f.bin'],
      [],
    ],
    ['hidden files and directories', ['.a.gguf', '.d/m.gguf'], ['.a', '.d']],
    [
      'companions at the top, by the beginnings of their names, and mmproj anywhere',
      [
        ...[
          'mmproj.gguf',
          'a-mmproj-F16.gguf',
          'xmmprojx.gguf',
          'mtp-a.gguf',
          'dspark-a.gguf',
          'dflash-a.gguf',
        ],
        ...['MMPROJ-a.gguf', 'a-mtp-b.gguf', 'Mtp-a.gguf', 'mtp_a.gguf', 'mtp.gguf'],
      ],
      ['MMPROJ-a', 'Mtp-a', 'a-mtp-b', 'mtp', 'mtp_a'],
    ],
    [
      'directories, by their own names, with what lies beside the model',
      [
        ...['eyes/x-Q4_0.gguf', 'eyes/x-mmproj-F16.gguf'],
        ...['mtp/x.gguf', 'mtp/mtp-x.gguf', 'dspark/x.gguf', 'dspark/dspark-x.gguf'],
        ...['dflash/x.gguf', 'dflash/dflash-x.gguf'],
        ...['all/x.gguf', 'all/mmproj.gguf', 'all/mtp-mmproj.gguf.txt', 'all/mtp-x.gguf', 'all/readme.md'],
        ...['not.beginning/x-mtp-y.gguf', 'a.gguf/x.gguf'],
      ],
      ['a.gguf', 'all', 'dflash', 'dspark', 'eyes', 'mtp', 'not.beginning'],
    ],
    [
      'directories of shards, which go before another model, with what lies beside them',
      [
        ...['s/m-00001-of-00003.gguf', 's/m-00002-of-00003.gguf', 's/m-00003-of-00003.gguf', 's/mmproj.gguf'],
        ...['t/a.gguf', 't/m-00001-of-00002.gguf', 't/m-00002-of-00002.gguf', 't/z.gguf', 't/mtp-m.gguf'],
      ],
      ['s', 't'],
    ],
    [
      'directories without a model, which are none',
      [
        'empty/',
        'text/readme.md',
        'projector/mmproj.gguf',
        'draft/mtp-x.gguf',
        'capitals/x.GGUF',
        'bin/model.bin',
      ],
      [],
    ],
    [
      'one level, and nothing below it',
      ['deep/er/m.gguf', 'both/m.gguf', 'both/below/n.gguf', 'deep/mmproj/p.gguf'],
      ['both'],
    ],
    [
      'links to files and directories, at the top and in a directory, over other links, and in circles',
      [
        '/elsewhere/far.gguf',
        '/elsewhere/dir/near.gguf',
        'file.gguf -> ../elsewhere/far.gguf',
        'again.gguf -> file.gguf',
        'directory -> ../elsewhere/dir',
        'inside/m.gguf -> ../../elsewhere/far.gguf',
        'inside/mmproj.gguf -> ../../elsewhere/far.gguf',
        'gone -> ../elsewhere/gone',
        'self -> self',
        'named.gguf -> ../elsewhere/dir',
      ],
      ['again', 'directory', 'file', 'inside', 'named.gguf'],
    ],
    [
      'names of any characters',
      [
        'a b.gguf',
        'ü–漢.gguf',
        'a:b.gguf',
        'a,b.gguf',
        'q\'".gguf',
        '[x].gguf',
        '-c.gguf',
        '#1;/m.gguf',
        'n\nl.gguf',
        '%20.gguf',
      ],
      ['#1;', '%20', '-c', '[x]', 'a b', 'a,b', 'a:b', 'n\nl', 'q\'"', 'ü–漢'],
    ],
  ])('%s', async (_, lines, ids) => {
    await expectTheSame(home, { args: await plantModels(lines) }, ids);
  });

  it.each<[string, (directory: string) => string]>([
    ['relative to the working directory', (directory) => relative(process.cwd(), directory)],
    ['relative with a dot', (directory) => `./${relative(process.cwd(), directory)}`],
    ['with a slash at the end', (directory) => `${directory}/`],
    ['with two', (directory) => `${directory}//`],
    ['over the directory above', (directory) => `${directory}/../models`],
    ['of a link', (directory) => join(directory, '..', 'link')],
  ])('a path %s, as it was given', async (_, written) => {
    await plantModels(['a.gguf', 'd/m.gguf', 'd/mmproj.gguf', '/link -> models']);
    const args = ['--models-dir', written(home.path('models'))];
    await expectTheSame(home, { args, cwd: process.cwd() }, ['a', 'd']);
  });

  it.each([
    ['that does not exist', 'nowhere', /does not exist/],
    ['that is a file', 'models/a.gguf', /is not a directory/],
  ])('one %s keeps both from starting', async (_, path, words) => {
    await plantModels(['a.gguf']);
    const args = ['--models-dir', home.path(path)];
    expect(await nativeRefusal(home, { args })).toContain('does not exist or is not a directory');
    await expect(ourCatalog(home, { args })).rejects.toThrow(words);
  });

  it('beside the cache', async () => {
    const args = await plantModels(['u.gguf']);
    await home.writeHub('u/r', 'm-Q4_0.gguf');
    await expectTheSame(home, { args }, ['u', 'u/r:Q4_0']);
  });

  describe('but for', () => {
    /** What both list of the same directory: ids with the model files of their arguments. */
    async function bothLists(lines: readonly string[]) {
      const args = await plantModels(lines);
      const files = (models: readonly ListedModel[]): [string, string | undefined][] =>
        models.map((model) => [model.id, modelOf(model)?.replace(`${home.path('models')}/`, '')]);
      const { models, warnings } = await ourCatalog(home, { args });
      return {
        native: files(await nativeModels(home, { args })),
        ours: files(await ourModels(home, { args })),
        problem: (id: string) => models.find((model) => model.id === id)?.problem,
        warnings: warnings.join('\n'),
      };
    }

    it(intended('top-shards'), async () => {
      const { native, ours } = await bothLists(['m-00001-of-00002.gguf', 'm-00002-of-00002.gguf']);
      expect(native.map(([id]) => id)).toEqual(['m-00001-of-00002', 'm-00002-of-00002']);
      expect(ours).toEqual([['m', 'm-00001-of-00002.gguf']]);
    });

    it.each([
      ['Q4_K_M', ['m-Q8_0.gguf', 'm-Q4_K_M.gguf', 'm-F16.gguf'], 'm-Q4_K_M.gguf', ['d:F16', 'd:Q8_0']],
      ['then Q8_0', ['m-Q2_K.gguf', 'm-Q8_0.gguf', 'm-F16.gguf'], 'm-Q8_0.gguf', ['d:F16', 'd:Q2_K']],
      ['then the first', ['n-Q6_K.gguf', 'm-Q5_0.gguf'], 'm-Q5_0.gguf', ['d:Q6_K']],
    ])(`${intended('several-models')}: %s`, async (_, files, chosen, others) => {
      const { native, ours } = await bothLists(files.map((file) => `d/${file}`));
      expect(native.map(([id]) => id)).toEqual(['d']);
      expect(files.map((file) => `d/${file}`)).toContain(native[0]?.[1]);
      expect(ours.map(([id]) => id)).toEqual(['d', ...others]);
      expect(ours[0]).toEqual(['d', `d/${chosen}`]);
    });

    it(intended('several-companions'), async () => {
      const args = await plantModels(
        [
          'm-Q8_0.gguf',
          'mmproj-F16.gguf',
          'mmproj-Q8_0.gguf',
          'mmproj-F32.gguf',
          'mtp-Q4_0.gguf',
          'mtp-Q8_0.gguf',
          'mtp-F16.gguf',
        ].map((file) => `d/${file}`),
      );
      const [native] = await nativeModels(home, { args });
      const valueOf = (model: ListedModel | undefined, name: string): string => {
        const all = model?.status.args ?? [];
        return all[all.indexOf(name) + 1] ?? '';
      };
      expect(valueOf(native, '--mmproj')).toMatch(/\/d\/mmproj-/);
      expect(valueOf(native, '--model-draft')).toMatch(/\/d\/mtp-/);
      const [ours] = await ourModels(home, { args });
      expect(valueOf(ours, '--mmproj')).toBe(home.path('models/d/mmproj-Q8_0.gguf'));
      expect(valueOf(ours, '--model-draft')).toBe(home.path('models/d/mtp-Q8_0.gguf'));
    });

    it(`${intended('imatrix')}: in --models-dir`, async () => {
      const { native, ours } = await bothLists([
        'imatrix-m.gguf',
        'm.imatrix.gguf',
        'd/imatrix.gguf',
        'e/m-imatrix-Q4_0.gguf',
      ]);
      expect(native.map(([id]) => id)).toEqual(['d', 'e', 'imatrix-m', 'm.imatrix']);
      expect(ours).toEqual([['e', 'e/m-imatrix-Q4_0.gguf']]);
    });

    it(intended('eagle-drafts'), async () => {
      const { native, ours } = await bothLists([
        'eagle3-m.gguf',
        'd/eagle3-m.gguf',
        'e/eagle3-m.gguf',
        'e/m.gguf',
      ]);
      expect(native.map(([id]) => id)).toEqual(['d', 'e', 'eagle3-m']);
      expect(ours).toEqual([['e', 'e/m.gguf']]);
    });

    it(intended('dangling-link'), async () => {
      const { native, ours, problem } = await bothLists(['top.gguf -> nowhere', 'd/m.gguf -> nowhere']);
      expect(native).toEqual([]);
      expect(ours).toEqual([
        ['d', 'd/m.gguf'],
        ['top', 'top.gguf'],
      ]);
      for (const id of ['d', 'top']) expect(problem(id)).toMatch(/is a link to a file that does not exist/);
    });

    it(intended('file-beside-folder'), async () => {
      const { native, ours, warnings } = await bothLists(['x.gguf', 'x/m.gguf']);
      expect(native).toHaveLength(1);
      expect(['x.gguf', 'x/m.gguf']).toContain(native[0]?.[1]);
      expect(ours).toEqual([['x', 'x/m.gguf']]);
      expect(warnings).toMatch(/x\.gguf' is not listed: .*x\/m\.gguf' has the id 'x' already/);
    });

    it(intended('lost-first-shard'), async () => {
      const { native, ours, problem } = await bothLists([
        'd/m-00002-of-00002.gguf',
        'top-00002-of-00002.gguf',
      ]);
      expect(native).toEqual([
        ['d', 'd/m-00002-of-00002.gguf'],
        ['top-00002-of-00002', 'top-00002-of-00002.gguf'],
      ]);
      expect(ours).toEqual([
        ['d', 'd/m-00001-of-00002.gguf'],
        ['top', 'top-00001-of-00002.gguf'],
      ]);
      for (const id of ['d', 'top'])
        expect(problem(id)).toMatch(/-00001-of-00002\.gguf' \(shard 1 of 2\) does not exist/);
    });

    it(intended('nameless-file'), async () => {
      const { native, ours, warnings } = await bothLists(['.gguf', 'm.gguf']);
      expect(native.map(([id]) => id)).toEqual(['', 'm']);
      expect(ours.map(([id]) => id)).toEqual(['m']);
      expect(warnings).toMatch(/\.gguf' is not listed: its name leaves no model id/);
    });

    it(intended('odd-names'), async (context) => {
      const args = [...(await plantModels([])), '--threads', '1'];
      const odd = Buffer.concat([Buffer.from(home.path('models/')), Buffer.from('caf\xe9.gguf', 'latin1')]);
      await writeKnownAnswerModel(home.path('even.gguf'), { name: 'even', ...sayingItsName('odd') });
      try {
        await rename(home.path('even.gguf'), odd);
      } catch {
        context.skip('this file system takes names of UTF-8 only');
      }
      const native = await startNative(home, { args });
      expect((await listModels(native.url)).map(({ id }) => id)).toEqual(['caf\u{FFFD}']);
      for (const name of ['caf\u{FFFD}', 'caf%E9']) {
        expect((await post(native.url, '/v1/chat/completions', question(name))).status).toBe(400);
      }
      const { url } = await startRealSupervisor({ args });
      expect((await listModels(url)).map(({ id }) => id)).toEqual(['caf%E9']);
      expect(await chat(url, 'caf%E9')).toBe(nameAnswer('odd'));
    });
  });
});
