import { symlink } from 'node:fs/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { modelArgs } from '../../src/models/argv.js';
import { eventually } from '../helpers/eventually.js';
import { binary, expectTheSame, OracleHome, ourCatalog, spawnNative, table } from './native-oracle.js';
import { freePort } from '../helpers/free-port.js';

const API_KEY = 'secret';

let home: OracleHome;

beforeEach(() => {
  home = new OracleHome();
});

describe('the catalog and the native router agree', () => {
  it('on the models of a models directory, and on options of the command line in their arguments', async () => {
    for (const path of [
      'models/alpha.gguf',
      'models/Beta.v2.gguf.gguf',
      'models/mmproj-alpha.gguf',
      'models/mtp-alpha.gguf',
      'models/notes.txt',
      'models/upper.GGUF',
      'models/vision/model-Q4_K_M.gguf',
      'models/vision/mmproj-F16.gguf',
      'models/.hidden/model.gguf',
      'models/drafted/model.gguf',
      'models/drafted/dflash-model.gguf',
      'models/sharded/big-00001-of-00002.gguf',
      'models/sharded/big-00002-of-00002.gguf',
      'models/empty/readme.md',
      'models/deep/below/model.gguf',
      'elsewhere/linked.gguf',
    ]) {
      await home.write(path);
    }
    await symlink(home.path('elsewhere/linked.gguf'), home.path('models/linked.gguf'));
    await symlink(home.path('elsewhere'), home.path('models/linked-directory'));

    const args = [
      ...['--models-dir', home.path('models'), '-c', '512', '--temp', '0.5', '-ngl', '0', '--no-slots'],
      ...['-np', '1', '--metrics', '--api-key', API_KEY, '--alias', 'base', '--tags', 'b, a', '--no-host'],
    ];
    await expectTheSame(
      home,
      { args },
      ['.hidden', 'Beta.v2', 'alpha', 'drafted', 'linked', 'linked-directory', 'sharded', 'vision'],
      { Authorization: `Bearer ${API_KEY}` },
    );
  });

  it('on the models of the hub cache', async () => {
    await home.writeHub('org/Plain-GGUF', 'Plain-Q4_K_M.gguf');
    await home.writeHub('org/Plain-GGUF', 'Plain-UD-q8_k_xl.gguf');
    await home.writeHub('org/Plain-GGUF', 'mmproj-F16.gguf');
    await home.writeHub('org/Plain-GGUF', 'README.md');
    await home.writeHub('org/Sharded', 'BF16/big-BF16-00001-of-00002.gguf');
    await home.writeHub('org/Sharded', 'BF16/big-BF16-00002-of-00002.gguf');
    await home.writeHub('org/Sharded', 'mmproj/vision-Q8_0.gguf');
    await home.writeHub('org/untagged', 'model.gguf');
    await home.writeHub('org/dotted.name', 'x.F32.gguf');
    await home.writeHub('org/other-ref', 'Qwen3-8B.gguf', 'v1');
    await home.writeHub('org/bad-commit', 'a-Q4_0.gguf', 'main', 'not-a-commit');
    await home.writeHub('no-owner', 'a-Q4_0.gguf');
    await home.writeHub('bad/.name', 'a-Q4_0.gguf');
    await home.writeHub('three/part/name', 'a-Q4_0.gguf');

    await expectTheSame(home, {}, [
      'org/Plain-GGUF:Q4_K_M',
      'org/Plain-GGUF:Q8_K_XL',
      'org/Sharded:BF16',
      'org/dotted.name:F32',
      'org/other-ref:8B',
    ]);
  });

  it('on a presets file: precedence, spellings, literal values, comments, aliases and tags', async () => {
    await home.writeHub('org/cached', 'm-Q4_K_M.gguf');
    await home.write('models/alpha.gguf');
    await home.write('models/beta.gguf');
    const preset = await home.write(
      'presets.ini',
      [
        'version = 1',
        '[*]',
        'c = 1024 ; for all',
        'jinja = true',
        'stop-timeout = 3',
        '[alpha]',
        'ctx-size = 2048',
        'c = 4096',
        'LLAMA_ARG_N_PARALLEL=2',
        'load-on-startup = false',
        'alias = second, first ,second',
        'tags = big,  fast',
        'api-key = secret',
        'host = 0.0.0.0',
        '[named.with.dots]   # a comment',
        'model = /nowhere/"quoted".gguf',
        'no-kv-offload = true',
        'no-mmproj = off',
        'no-slots = false',
        'chat-template-kwargs = {"enable_thinking": false}',
        'grammar =  spaced  name\t',
        'cpu-moe =',
        '[org/cached:ud-q4_k_m]',
        'temp = 0.1',
        '[ padded ]',
        'hf-repo = org/other:Q8_0',
        'repack = no',
        '[repeated]',
        'model = a',
        'c = 1',
        '[repeated]',
        'model = b',
      ].join('\r\n'),
    );

    const args = [
      ...['--models-preset', preset, '--models-dir', home.path('models')],
      ...['--temp', '0.7', '--no-warmup'],
    ];
    await expectTheSame(home, { args }, [
      'alpha',
      'beta',
      'named.with.dots',
      'org/cached:Q4_K_M',
      'padded ',
      'repeated',
    ]);
  });
});

it('a child takes the file of the hub cache that we checked, where several fit its tag', async () => {
  for (const file of [
    'z-Q4_0.gguf',
    'a-Q4_0.gguf',
    'sub/b-Q4_0.gguf',
    'm-Q4_0.x.gguf',
    'imatrix-Q4_0.gguf',
  ]) {
    await home.writeHub('org/several', file);
  }
  const model = (await ourCatalog(home, {})).resolve('org/several:Q4_0');
  if (model?.file === undefined) throw new Error('the model or its file was not found');

  const [, ...args] = modelArgs(model, binary, table, await freePort());
  const { child, output } = spawnNative(home, { args });
  await eventually('the child gives the junk file up', () => child.exitCode !== null, {
    deadlineMs: 30_000,
  });
  expect(output()).toContain(`failed to load model, '${model.file}'`);
  // The reason that keeps such a child from being started at all.
  expect(model.problem).toBe(`'${model.file}' is not a GGUF file (starts with "not ")`);
});
