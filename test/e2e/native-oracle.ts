/**
 * The native router as the oracle of ours: the same files, arguments and environment for both, and the list of models
 * that each makes of them.
 */
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, realpath, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { expect } from 'vitest';
import { parseCommandLine, type CommandLine } from '../../src/config/command-line.js';
import { loadOptionTable } from '../../src/config/help.js';
import { modelArgs, modelPreset } from '../../src/models/argv.js';
import type { Catalog } from '../../src/models/catalog.js';
import { discoverCatalog } from '../../src/models/discover.js';
import { readNativeConfig } from '../../src/models/native-config.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { killTree, runMarker } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { tempDir } from '../helpers/temp-dir.js';

/** The native router lists models without looking into them, so any content will do. */
export const NO_GGUF = 'not a GGUF file';
const START_DEADLINE_MS = 30_000;
const listeningLine = 'listening on http';

export const binary = await realpath(realLlamaServer());
export const { table, help } = await loadOptionTable(binary, tempDir());

/** How both are started. */
export interface Start {
  readonly args?: readonly string[];
  /** On top of an environment that names no option and no model of this user's. */
  readonly env?: NodeJS.ProcessEnv;
  /**
   * Where the native router runs: the home unless told otherwise. Ours is asked within this process, so relative paths
   * mean the same to both only with the directory that this process runs in.
   */
  readonly cwd?: string;
}

/** What `GET /models` of the native router says of a model that was never loaded. */
export interface ListedModel {
  readonly id: string;
  readonly aliases: readonly string[];
  readonly tags: readonly string[];
  readonly source: string;
  readonly can_remove: boolean;
  readonly status: { readonly args: readonly string[]; readonly preset: string };
}

/** A directory with all that both read: `models`, `hub`, `config/llama.cpp/config.ini`, and what a test puts there. */
export class OracleHome {
  readonly directory = tempDir();

  path(...parts: readonly string[]): string {
    return join(this.directory, ...parts);
  }

  async write(path: string, content: string | Uint8Array = NO_GGUF): Promise<string> {
    const file = this.path(path);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, content);
    return file;
  }

  /**
   * Makes what each line says: `a/b` a file, `a/b/` a directory, `a/b = text` a file of that text, and `a/b -> c` a
   * symbolic link that says `c`.
   */
  async plant(lines: readonly string[]): Promise<void> {
    for (const line of lines) {
      const [, path = '', mark, rest = ''] = /^(.+?)(?: (=|->) (.*))?$/s.exec(line) ?? [];
      if (mark === '->') {
        await mkdir(dirname(this.path(path)), { recursive: true });
        await symlink(rest, this.path(path));
      } else if (path.endsWith('/')) {
        await mkdir(this.path(path), { recursive: true });
      } else {
        await this.write(path, mark === '=' ? rest : NO_GGUF);
      }
    }
  }

  writeConfig(...lines: readonly string[]): Promise<string> {
    return this.write('config/llama.cpp/config.ini', `${lines.join('\n')}\n`);
  }

  /** A file of a hub repository as the hub's own clients lay it out: a blob, and a link to it in the snapshot. */
  async writeHub(repo: string, file: string, ref = 'main', commit = 'a'.repeat(40)): Promise<void> {
    const folder = `hub/models--${repo.replaceAll('/', '--')}`;
    const blob = await this.write(`${folder}/blobs/${file.replaceAll('/', '_')}`);
    await this.write(`${folder}/refs/${ref}`, commit);
    const link = this.path(folder, 'snapshots', commit, file);
    await mkdir(dirname(link), { recursive: true });
    await symlink(blob, link);
  }

  environment({ env = {} }: Start = {}): NodeJS.ProcessEnv {
    const inherited = Object.entries(process.env).filter(
      ([name]) => name === runMarker || !/^(?:LLAMA|HF|HUGGINGFACE|AIP|XDG)_/.test(name),
    );
    return {
      ...Object.fromEntries(inherited),
      HOME: this.directory,
      XDG_CONFIG_HOME: this.path('config'),
      HF_HUB_CACHE: this.path('hub'),
      ...env,
    };
  }
}

export interface NativeProcess {
  readonly child: ChildProcessByStdio<null, Readable, Readable>;
  /** All it wrote so far. */
  readonly output: () => string;
}

/** A llama-server that is gone at the end of the test at the latest, and all it has started with it. */
export function spawnNative(
  home: OracleHome,
  { args = [], env = {}, cwd = home.directory }: Start,
): NativeProcess {
  const child = spawn(binary, args, {
    cwd,
    env: home.environment({ env }),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const closed = once(child, 'close');
  atEndOfTest(async () => {
    if (child.pid !== undefined && child.exitCode === null) killTree(child.pid);
    await withDeadline('the native llama-server ends', closed, 10_000);
  });
  return { child, output: () => output };
}

export interface NativeRouter {
  readonly pid: number;
  /** Its address, without a slash at the end. */
  readonly url: string;
  readonly get: (path: string, headers?: Record<string, string>) => Promise<Response>;
}

/** A native router that serves. Rejects with its output if it ends instead. */
export async function startNative(home: OracleHome, start: Start, port?: number): Promise<NativeRouter> {
  const { args = [] } = start;
  const chosen = port ?? (await freePort());
  const { child, output } = spawnNative(home, {
    ...start,
    args: port === undefined ? [...args, '--port', String(chosen)] : args,
  });
  const url = `http://127.0.0.1:${chosen}`;
  const get = (path: string, headers = {}) => fetch(url + path, { headers });
  await eventually(
    'the native router answers',
    async () => {
      if (child.exitCode !== null) return true;
      return output().includes(listeningLine) && (await get('/health')).status !== 503;
    },
    { deadlineMs: START_DEADLINE_MS },
  );
  if (child.exitCode !== null) throw new Error(`the native router ended: ${output()}`);
  return { pid: child.pid ?? NaN, url, get };
}

/** What the native router writes when it does not start. Rejects if it serves. */
export async function nativeRefusal(home: OracleHome, start: Start): Promise<string> {
  const port = await freePort();
  const { args = [] } = start;
  const { child, output } = spawnNative(home, { ...start, args: [...args, '--port', String(port)] });
  await eventually(
    'the native router ends or listens',
    () => {
      return child.exitCode !== null || output().includes(listeningLine);
    },
    { deadlineMs: START_DEADLINE_MS },
  );
  expect(child.exitCode, output()).toBe(1);
  return output();
}

export async function nativeModels(
  home: OracleHome,
  start: Start,
  headers: Record<string, string> = {},
): Promise<ListedModel[]> {
  const { get } = await startNative(home, start);
  const { data } = (await (await get('/models', headers)).json()) as { data: ListedModel[] };
  return data.map(({ id, aliases, tags, source, can_remove, status: { args, preset } }) => ({
    id,
    aliases,
    tags,
    source,
    can_remove,
    status: { args, preset },
  }));
}

/** What we make of the arguments, the environment and the config file. */
export async function ourCommandLine(home: OracleHome, start: Start): Promise<CommandLine> {
  const env = home.environment(start);
  return parseCommandLine(start.args ?? [], table, env, await readNativeConfig(env, table));
}

export async function ourCatalog(home: OracleHome, start: Start): Promise<Catalog> {
  const { settings, childOptions } = await ourCommandLine(home, start);
  return discoverCatalog({
    env: home.environment(start),
    modelsDirs: settings.modelsDir === undefined ? [] : [settings.modelsDir],
    presetFiles: settings.modelsPreset === undefined ? [] : [settings.modelsPreset],
    base: childOptions,
    table,
    linksDirectory: home.path('links'),
  });
}

/** What we make of the same start, in the form in which the native router lists it. */
export async function ourModels(home: OracleHome, start: Start): Promise<ListedModel[]> {
  const { models } = await ourCatalog(home, start);
  const env = home.environment(start);
  const listed = models.filter(({ hidden }) => !hidden);
  return listed.map((model) => ({
    id: model.id,
    aliases: model.aliases,
    tags: model.tags,
    source: model.source,
    can_remove: model.canRemove,
    // The native router lists port 0 as long as a model was never loaded, and lets children use the network.
    status: {
      args: modelArgs({ ...model, offline: false }, binary, table, 0, env),
      preset: modelPreset(model, table),
    },
  }));
}

/** Compares both lists whole, and asserts that they are of the models `ids`. */
export async function expectTheSame(
  home: OracleHome,
  start: Start,
  ids: readonly string[],
  headers: Record<string, string> = {},
): Promise<void> {
  const native = await nativeModels(home, start, headers);
  // Guards the comparison itself: two empty lists are the same, too.
  expect(native.map(({ id }) => id)).toEqual(ids);
  expect(await ourModels(home, start)).toEqual(native);
}
