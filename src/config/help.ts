import { createHash, randomUUID } from 'node:crypto';
import { mkdir, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { devNull } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { execa, type Result } from 'execa';
import { appCommand } from './app-command.js';
import { UnusableBinaryError } from './binary.js';
import { OptionTable } from './option-table.js';

/** What a `llama-server` binary says about itself. */
export interface LlamaServerFacts {
  /** The text of its `--help`. */
  readonly help: string;
  /** The same, understood. */
  readonly table: OptionTable;
  /** As printed, for example `0.5.0-dev (build 1, commit de3ff81)`; `unknown` when it does not say. */
  readonly version: string;
  /** In the form of `/props`, for example `b1-de3ff81`; `unknown` when it does not say. */
  readonly buildInfo: string;
  /** Families of the devices it can use, as it calls them (`CUDA`, `Vulkan`, `MTL`), then `CPU`. */
  readonly backends: readonly string[];
}

export interface AskOptions {
  /** The environment to run the binary in, before what would change its answers is taken out. */
  readonly env?: NodeJS.ProcessEnv;
  /** Put before the command, to have it end with us: a binary that hangs must not outlive a supervisor that is ended. */
  readonly commandPrefix?: readonly string[];
  /** How long each question may take. */
  readonly timeoutMs?: number;
}

/** What the binary printed, kept as text so that a better parser needs no new cache. */
interface Answers {
  readonly help: string;
  readonly version: string;
  readonly devices: string;
}

/** The help is about 60 kB; ten times that is no help text of a llama-server. */
const OUTPUT_LIMIT_BYTES = 1024 * 1024;

/** Room for a cold start from a slow disk: a CUDA build is hundreds of megabytes. */
const ASK_TIMEOUT_MS = 30_000;

/**
 * Asks a `llama-server` for its options, version and devices, or takes them from `cacheDir`/help when this file
 * (path, size, modification time) was asked before. A cache that cannot be read or written costs only time.
 * @throws UnusableBinaryError when it cannot be run, fails, hangs, or is no llama-server.
 */
export async function loadOptionTable(
  binary: string,
  cacheDir: string,
  options: AskOptions = {},
): Promise<LlamaServerFacts> {
  const { env = process.env } = options;
  const cache = await CacheEntry.of(binary, appCommand(env), join(cacheDir, 'help'));
  const cached = await cache.read();
  if (cached !== undefined && isLlamaServer(OptionTable.parse(cached.help))) {
    const answers = await withDevices(cached, binary, options);
    if (answers !== cached) await cache.write(answers);
    return factsOf(answers);
  }

  const answers = await askAll(binary, options);
  const facts = factsOf(answers);
  if (!isLlamaServer(facts.table)) {
    const found = facts.table.options.length === 0 ? 'no options' : 'other options than a llama-server';
    throw new UnusableBinaryError(
      `${binary} --help lists ${found}: name a llama-server program of llama.cpp, not another one.`,
    );
  }
  await cache.write(answers);
  return facts;
}

async function askAll(binary: string, options: AskOptions): Promise<Answers> {
  const [help, version, devices] = await Promise.all([
    ask(binary, '--help', options),
    ask(binary, '--version', options),
    ask(binary, DEVICES, options),
  ]);
  if (help.failure !== undefined) throw new UnusableBinaryError(`${binary} --help ${help.failure}`);
  return { help: help.stdout, version: `${version.stdout}\n${version.stderr}`, devices: devices.stdout };
}

/** A driver that was not ready at boot must not be remembered as "no devices". */
async function withDevices(cached: Answers, binary: string, options: AskOptions): Promise<Answers> {
  if (deviceFamilies(cached.devices).length > 0) return cached;
  const { stdout: devices } = await ask(binary, DEVICES, options);
  return devices === cached.devices ? cached : { ...cached, devices };
}

function factsOf({ help, version, devices }: Answers): LlamaServerFacts {
  return {
    help,
    table: OptionTable.parse(help),
    ...versionOf(version),
    backends: [...deviceFamilies(devices), 'CPU'],
  };
}

interface Answer {
  readonly stdout: string;
  readonly stderr: string;
  /** Continues "BINARY --help …"; undefined when it went well. */
  readonly failure: string | undefined;
}

const DEVICES = '--list-devices';

/**
 * llama.cpp reads its config file before anything else, and refuses everything when it is broken; that is said
 * elsewhere, with the line. Drivers may keep settings of their own there, so devices are listed as ever.
 */
const NO_CONFIG_FILE = { XDG_CONFIG_HOME: devNull };

/** Runs `binary question` in its own process group, so that what a wrapper started ends with it. */
async function ask(binary: string, question: string, options: AskOptions): Promise<Answer> {
  const { env = process.env, timeoutMs = ASK_TIMEOUT_MS, commandPrefix = [] } = options;
  const [file, ...args] = [...commandPrefix, binary, ...appCommand(env), question];
  const subprocess = execa(file, args, {
    env: { ...withoutOurVariables(env), ...(question === DEVICES ? {} : NO_CONFIG_FILE) },
    extendEnv: false,
    detached: true,
    reject: false,
    stdin: 'ignore',
    maxBuffer: OUTPUT_LIMIT_BYTES,
  });
  const deadline = new AbortController();
  const answered = subprocess.then((result) => ({
    stdout: result.stdout,
    stderr: result.stderr,
    failure: failureOf(result),
  }));
  const overdue = delay(timeoutMs, undefined, { signal: deadline.signal }).then(
    () => {
      if (subprocess.pid !== undefined) killGroup(subprocess.pid);
      return {
        stdout: '',
        stderr: '',
        failure: `gave no answer within ${timeoutMs / 1000} s and was stopped`,
      };
    },
    // Aborted: the answer came first and has won the race.
    () => answered,
  );
  try {
    return await Promise.race([answered, overdue]);
  } finally {
    deadline.abort();
  }
}

type Ended = Pick<Result<{ reject: false }>, 'failed' | 'isMaxBuffer' | 'exitCode' | 'signal' | 'code'> & {
  readonly stderr: string;
};

function failureOf({ failed, isMaxBuffer, exitCode, signal, code, stderr }: Ended): string | undefined {
  if (!failed) return undefined;
  if (isMaxBuffer) return `printed more than ${OUTPUT_LIMIT_BYTES / 1024} KiB: it is not a llama-server`;
  const lastWords = stderr.trim().split('\n').slice(-5).join('\n') || 'it said nothing';
  if (exitCode !== undefined) return `ended with exit code ${exitCode}: ${lastWords}`;
  if (signal !== undefined) return `was ended by ${signal}: ${lastWords}`;
  return `could not be run (${code ?? 'unknown cause'}): is it an executable for this machine?`;
}

function killGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // The group has ended.
  }
}

/** Options in the environment change what the help says, and a bad one fails it. */
function withoutOurVariables(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !/^(?:LLAMA|AIP)_/.test(name)));
}

function isLlamaServer(table: OptionTable): boolean {
  return ['--model', '--host', '--port'].every((spelling) => table.find(spelling) !== undefined);
}

/** `version: 0.5.0-dev (build 1, commit de3ff81)`, or `version: 6123 (de3ff81)` from older binaries. */
function versionOf(printed: string): { version: string; buildInfo: string } {
  const version = /^version: (.+)$/m.exec(printed)?.[1]?.trim() ?? 'unknown';
  const [, build, commit] =
    /\(build (\d+), commit (\w+)\)$/.exec(version) ?? /^(\d+) \((\w+)\)$/.exec(version) ?? [];
  return { version, buildInfo: build === undefined ? 'unknown' : `b${build}-${commit ?? ''}` };
}

/** Lines such as `  CUDA0: NVIDIA GeForce RTX 3090 (24576 MiB, 23000 MiB free)`. */
function deviceFamilies(devices: string): string[] {
  const families = [...devices.matchAll(/^ +([A-Za-z]+)\d*[^\s:]*: .*MiB/gm)].map(
    ([, family = '']) => family,
  );
  return [...new Set(families)];
}

/** One file per binary path and subcommand; it holds the size and time it is true for. */
class CacheEntry {
  readonly #file: string;
  readonly #identity: { readonly path: string; readonly size: number; readonly mtimeMs: number };

  private constructor(
    directory: string,
    command: readonly string[],
    identity: { path: string; size: number; mtimeMs: number },
  ) {
    this.#identity = identity;
    const name = createHash('sha256')
      .update([identity.path, ...command].join('\0'))
      .digest('hex')
      .slice(0, 16);
    this.#file = join(directory, `${name}.json`);
  }

  static async of(binary: string, command: readonly string[], directory: string): Promise<CacheEntry> {
    try {
      const path = await realpath(binary);
      const { size, mtimeMs } = await stat(path);
      return new CacheEntry(directory, command, { path, size, mtimeMs });
    } catch (error) {
      throw new UnusableBinaryError(`${binary} cannot be read: does it exist?`, { cause: error });
    }
  }

  async read(): Promise<Answers | undefined> {
    try {
      const entry: unknown = JSON.parse(await readFile(this.#file, 'utf8'));
      return isEntry(entry) && this.#isAbout(entry) ? entry.answers : undefined;
    } catch {
      return undefined;
    }
  }

  async write(answers: Answers): Promise<void> {
    const unfinished = `${this.#file}.${randomUUID()}`;
    try {
      await mkdir(join(this.#file, '..'), { recursive: true });
      await writeFile(unfinished, JSON.stringify({ ...this.#identity, answers }));
      await rename(unfinished, this.#file);
    } catch {
      // A read-only or full cache: the next start asks the binary again.
      await rm(unfinished, { force: true }).catch(() => undefined);
    }
  }

  #isAbout(entry: { path: string; size: number; mtimeMs: number }): boolean {
    const { path, size, mtimeMs } = this.#identity;
    return entry.path === path && entry.size === size && entry.mtimeMs === mtimeMs;
  }
}

type StoredEntry = { path: string; size: number; mtimeMs: number; answers: Answers };

function isEntry(value: unknown): value is StoredEntry {
  if (typeof value !== 'object' || value === null) return false;
  const { path, size, mtimeMs, answers } = value as Partial<Record<keyof StoredEntry, unknown>>;
  if (typeof path !== 'string' || typeof size !== 'number' || typeof mtimeMs !== 'number') return false;
  if (typeof answers !== 'object' || answers === null) return false;
  const { help, version, devices } = answers as Partial<Record<keyof Answers, unknown>>;
  return [help, version, devices].every((text) => typeof text === 'string');
}
