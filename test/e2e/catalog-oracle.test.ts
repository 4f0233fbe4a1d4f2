import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, realpath, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import getPort from 'get-port';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { findLlamaServer, noBinaryMessage } from '../../src/config/binary.js';
import { parseCommandLine } from '../../src/config/command-line.js';
import { loadOptionTable } from '../../src/config/help.js';
import type { OptionTable } from '../../src/config/option-table.js';
import { modelArgs, modelPreset } from '../../src/models/argv.js';
import type { Catalog } from '../../src/models/catalog.js';
import { discoverCatalog } from '../../src/models/discover.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { tempDir } from '../helpers/temp-dir.js';

/** The native router lists models without looking into them, so any content will do here. */
const NO_GGUF = 'not a GGUF file';
const START_DEADLINE_MS = 30_000;
const API_KEY = 'secret';

interface NativeModel {
  readonly id: string;
  readonly aliases: readonly string[];
  readonly tags: readonly string[];
  readonly source: string;
  readonly can_remove: boolean;
  readonly status: { readonly args: readonly string[]; readonly preset: string };
}

let binary: string;
let table: OptionTable;
let directory: string;

beforeAll(async () => {
  const found = findLlamaServer({ explicit: undefined, env: process.env });
  if (found === undefined) throw new Error(noBinaryMessage());
  binary = await realpath(found.path);
  table = (await loadOptionTable(binary, tempDir())).table;
});

beforeEach(() => {
  directory = tempDir();
});

async function write(path: string, text = NO_GGUF): Promise<string> {
  const file = join(directory, path);
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, text);
  return file;
}

/** A file of a hub repository as the hub's own clients lay it out: a blob, and a link to it in the snapshot. */
async function writeHub(repo: string, file: string, ref = 'main', commit = 'a'.repeat(40)): Promise<void> {
  const folder = `hub/models--${repo.replaceAll('/', '--')}`;
  const blob = await write(`${folder}/blobs/${file.replaceAll('/', '_')}`);
  await write(`${folder}/refs/${ref}`, commit);
  const link = join(directory, folder, 'snapshots', commit, file);
  await mkdir(dirname(link), { recursive: true });
  await symlink(blob, link);
}

/** The environment of both routers: nothing of the user's own, and the cache under test. */
function testEnv(): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(?:LLAMA|HF|HUGGINGFACE|AIP)_/.test(name),
  );
  const home = { HOME: directory, XDG_CONFIG_HOME: join(directory, 'config') };
  return { ...Object.fromEntries(inherited), ...home, HF_HUB_CACHE: join(directory, 'hub') };
}

interface NativeProcess {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  readonly output: () => string;
}

/** A llama-server that is gone at the end of the test at the latest. */
function startNative(args: readonly string[]): NativeProcess {
  const child = spawn(binary, args, { env: testEnv(), stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const closed = once(child, 'close');
  atEndOfTest(async () => {
    child.kill('SIGKILL');
    await withDeadline('the native llama-server ends', closed, 10_000);
  });
  return { child, output: () => output };
}

async function nativeModels(args: readonly string[]): Promise<NativeModel[]> {
  const port = await getPort({ host: '127.0.0.1' });
  const { child, output } = startNative(['--port', String(port), ...args]);
  const answer = await eventually(
    'the native router lists its models',
    async () => {
      if (child.exitCode !== null) return 'exited';
      const headers = { Authorization: `Bearer ${API_KEY}` };
      const response = await fetch(`http://127.0.0.1:${port}/models`, { headers });
      return response.ok && ((await response.json()) as { data: NativeModel[] });
    },
    { deadlineMs: START_DEADLINE_MS },
  );
  if (answer === 'exited') throw new Error(`the native router ended: ${output()}`);
  return answer.data;
}

function discover(args: readonly string[]): Promise<Catalog> {
  const { settings, childOptions } = parseCommandLine(args, table, {});
  return discoverCatalog({
    env: testEnv(),
    modelsDirs: settings.modelsDir === undefined ? [] : [settings.modelsDir],
    presetFiles: settings.modelsPreset === undefined ? [] : [settings.modelsPreset],
    base: childOptions,
    table,
  });
}

/** What we make of the same command line, in the form in which the native router lists it. */
async function ourModels(args: readonly string[]): Promise<NativeModel[]> {
  const { models } = await discover(args);
  return models.map((model) => ({
    id: model.id,
    aliases: model.aliases,
    tags: model.tags,
    source: model.source,
    can_remove: model.canRemove,
    // The native router lists port 0 as long as a model was never loaded, and lets children use the network.
    status: {
      args: modelArgs({ ...model, offline: false }, binary, table, 0),
      preset: modelPreset(model, table),
    },
  }));
}

async function expectTheSame(args: readonly string[], ids: readonly string[]): Promise<void> {
  const native = await nativeModels(args);
  // Guards the comparison itself: two empty lists are the same, too.
  expect(native.map(({ id }) => id)).toEqual(ids);
  const compared = native.map(
    ({ id, aliases, tags, source, can_remove, status: { args: argv, preset } }) => ({
      id,
      aliases,
      tags,
      source,
      can_remove,
      status: { args: argv, preset },
    }),
  );
  expect(await ourModels(args)).toEqual(compared);
}

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
      await write(path);
    }
    await symlink(join(directory, 'elsewhere/linked.gguf'), join(directory, 'models/linked.gguf'));
    await symlink(join(directory, 'elsewhere'), join(directory, 'models/linked-directory'));

    await expectTheSame(
      [
        ...[
          '--models-dir',
          join(directory, 'models'),
          '-c',
          '512',
          '--temp',
          '0.5',
          '-ngl',
          '0',
          '--no-slots',
        ],
        ...['-np', '1', '--metrics', '--api-key', API_KEY, '--alias', 'base', '--tags', 'b, a', '--no-host'],
      ],
      ['.hidden', 'Beta.v2', 'alpha', 'drafted', 'linked', 'linked-directory', 'sharded', 'vision'],
    );
  });

  it('on the models of the hub cache', async () => {
    await writeHub('org/Plain-GGUF', 'Plain-Q4_K_M.gguf');
    await writeHub('org/Plain-GGUF', 'Plain-UD-q8_k_xl.gguf');
    await writeHub('org/Plain-GGUF', 'mmproj-F16.gguf');
    await writeHub('org/Plain-GGUF', 'README.md');
    await writeHub('org/Sharded', 'BF16/big-BF16-00001-of-00002.gguf');
    await writeHub('org/Sharded', 'BF16/big-BF16-00002-of-00002.gguf');
    await writeHub('org/Sharded', 'mmproj/vision-Q8_0.gguf');
    await writeHub('org/untagged', 'model.gguf');
    await writeHub('org/dotted.name', 'x.F32.gguf');
    await writeHub('org/other-ref', 'Qwen3-8B.gguf', 'v1');
    await writeHub('org/bad-commit', 'a-Q4_0.gguf', 'main', 'not-a-commit');
    await writeHub('no-owner', 'a-Q4_0.gguf');
    await writeHub('bad/.name', 'a-Q4_0.gguf');
    await writeHub('three/part/name', 'a-Q4_0.gguf');

    await expectTheSame(
      [],
      [
        'org/Plain-GGUF:Q4_K_M',
        'org/Plain-GGUF:Q8_K_XL',
        'org/Sharded:BF16',
        'org/dotted.name:F32',
        'org/other-ref:8B',
      ],
    );
  });

  it('on a presets file: precedence, spellings, literal values, comments, aliases and tags', async () => {
    await writeHub('org/cached', 'm-Q4_K_M.gguf');
    await write('models/alpha.gguf');
    await write('models/beta.gguf');
    const preset = await write(
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

    await expectTheSame(
      ['--models-preset', preset, '--models-dir', join(directory, 'models'), '--temp', '0.7', '--no-warmup'],
      ['alpha', 'beta', 'named.with.dots', 'org/cached:Q4_K_M', 'padded ', 'repeated'],
    );
  });

  it('on presets.example.ini', async () => {
    const example = await readFile(new URL('../../presets.example.ini', import.meta.url), 'utf8');
    // A load that begins at once would show its port in the arguments.
    const preset = await write(
      'presets.ini',
      example.replaceAll('load-on-startup = true', 'load-on-startup = false'),
    );
    await expectTheSame(
      ['--models-preset', preset],
      [
        'bge-m3',
        'bge-reranker',
        'gemma-vision',
        'ggml-org/gemma-3-1b-it-GGUF:Q4_K_M',
        'llama-70b',
        'qwen3-32b-fast',
        'qwen3-8b',
        'qwen3-8b-no-thinking',
      ],
    );
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
    await writeHub('org/several', file);
  }
  const model = (await discover([])).resolve('org/several:Q4_0');
  if (model?.file === undefined) throw new Error('the model or its file was not found');

  const [, ...args] = modelArgs(model, binary, table, await getPort({ host: '127.0.0.1' }));
  const { child, output } = startNative(args);
  await eventually('the child gives the junk file up', () => child.exitCode !== null, {
    deadlineMs: START_DEADLINE_MS,
  });
  expect(output()).toContain(`failed to load model, '${model.file}'`);
  // The reason that keeps such a child from being started at all.
  expect(model.problem).toBe(`'${model.file}' is not a GGUF file (starts with "not ")`);
});
