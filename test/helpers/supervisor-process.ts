import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline } from './eventually.js';
import { fakeLlamaServer } from './fake-llama-server.js';
import { describeProcess, sigkill, processesWithEnv, runMarker, type ProcessInfo } from './processes.js';
import { tempDir } from './temp-dir.js';

const supervisorScript = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

/** Marks every process below one supervisor, so that orphans are found when their parent has gone. */
const familyMarker = 'TEST_SUPERVISOR_FAMILY';

/** How long children may outlive their supervisor, in milliseconds: "within a few seconds". */
const orphanGraceMs = 5_000;

export interface SupervisorOptions {
  /** What follows `start --host 127.0.0.1 --port 0 --log-format json --llama-server …`; repeated options win. */
  args?: string[];
  /** On top of an environment without LLAMA_…, HF_…, AIP_… and XDG_… names; undefined removes one. */
  env?: Record<string, string | undefined>;
  /** The llama-server binary to give. Default: the fake one. */
  llamaServer?: string;
  /** XDG_CACHE_HOME, for tests that need the built binary or demo models. Default: an empty directory. */
  cacheHome?: string;
  cwd?: string;
  /** How long it may take to listen, in milliseconds. Default 20 s. */
  listenMs?: number;
  /** Whether it is to meet an error that nobody handles, of which the end of the test complains otherwise. */
  meetsInternalError?: boolean;
  /** The script to run with Node. Default: bin/llama-supervisor.js. */
  script?: string;
}

export interface SupervisorExit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A supervisor that was launched, listening or not. It is killed at the end of the test at the latest. */
export interface LaunchedSupervisor {
  pid: number;
  /** The root of its temporary XDG directories: `config`, `state`, `runtime`, `cache`, and `models` as LLAMA_CACHE. */
  home: string;
  /** All it wrote so far, stdout and stderr as they came. */
  output(): string;
  /** The JSON lines of its log so far. */
  log(): LogLine[];
  hasExited(): boolean;
  /** Its end; by then `output()` is whole. */
  exited: Promise<SupervisorExit>;
  /** Sends a signal and waits for the exit, 15 s at most. */
  stop(signal?: NodeJS.Signals): Promise<SupervisorExit>;
  /** SIGKILL: what a crash looks like to its children. */
  kill(): Promise<SupervisorExit>;
  /** The processes it started, directly or not, that still run; found also after it has gone. */
  family(): ProcessInfo[];
}

export interface SupervisorProcess extends LaunchedSupervisor {
  /** Its address, without a slash at the end. */
  url: string;
  port: number;
}

export type LogLine = Record<string, unknown> & { level?: unknown; msg?: unknown };

/** Launches a supervisor and waits until its log says that it listens. Rejects with its output when it does not. */
export async function startSupervisor(options: SupervisorOptions = {}): Promise<SupervisorProcess> {
  const launched = launchSupervisor(options);
  const deadlineMs = options.listenMs ?? 20_000;
  const addressOrExit = async () => {
    const url = await eventually(
      'the supervisor listens',
      () => {
        const line = launched.log().find(({ msg }) => msg === 'listening');
        if (typeof line?.['url'] === 'string') return line['url'];
        return launched.hasExited() ? 'exited' : undefined;
      },
      { deadlineMs },
    );
    if (url === 'exited') throw new Error('the supervisor exited before it listened');
    return url.replace(/\/$/, '');
  };
  try {
    const url = await addressOrExit();
    return { ...launched, url, port: Number(new URL(url).port) };
  } catch (error) {
    throw new Error(`${(error as Error).message}; it wrote:\n${launched.output()}`, { cause: error });
  }
}

/** Launches a supervisor without waiting for anything: for refusals, and starts that are cut short. */
export function launchSupervisor(options: SupervisorOptions = {}): LaunchedSupervisor {
  const { args = [], llamaServer = fakeLlamaServer, script = supervisorScript } = options;
  const home = tempDir();
  const family = randomUUID();
  const env = { ...cleanEnv(home, options.cacheHome), ...options.env, [familyMarker]: family };
  const fixed = ['--host', '127.0.0.1', '--port', '0', '--log-format', 'json', '--llama-server', llamaServer];
  const child = spawn(process.execPath, [script, 'start', ...withoutRepeated(fixed, args), ...args], {
    cwd: options.cwd ?? home,
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });

  let output = '';
  const collect = (chunk: string) => (output += chunk);
  child.stdout.setEncoding('utf8').on('data', collect);
  child.stderr.setEncoding('utf8').on('data', collect);
  const closed = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const exited = new Promise<SupervisorExit>((resolve) => {
    child.once('exit', (code, signal) => {
      // The last output comes after the exit. An orphan that holds the pipes must not look like a supervisor that does
      // not end, so the wait for it is short.
      void Promise.race([closed, delay(1_000)]).then(() => resolve({ code, signal }));
    });
  });
  child.once('error', (error) => (output += error.message));
  const { pid } = child;
  if (pid === undefined) throw new Error(`cannot run ${process.execPath}`);

  const stop = async (signal: NodeJS.Signals = 'SIGTERM') => {
    child.kill(signal);
    return withDeadline(`the supervisor exits after ${signal}`, exited, 15_000);
  };
  const launched: LaunchedSupervisor = {
    pid,
    home,
    output: () => output,
    log: () => jsonLines(output),
    hasExited: () => child.exitCode !== null || child.signalCode !== null,
    exited,
    stop,
    kill: () => stop('SIGKILL'),
    family: () => processesWithEnv(familyMarker, family).filter((member) => member.pid !== pid),
  };
  atEndOfTest(() => finish(launched, options));
  return launched;
}

/**
 * The first sign in a supervisor's output that something went wrong which nobody handled: an uncaught error, an
 * unhandled rejection, a leak of listeners, a fatal log line. Undefined when there is none.
 */
export function uncaughtErrorIn(output: string): string | undefined {
  const patterns = [
    /^.*uncaught ?(exception|error).*$/im,
    /^.*unhandled ?(promise)? ?rejection.*$/im,
    /^.*MaxListenersExceededWarning.*$/m,
    // Node prints its version last when an error ends it.
    /^Node\.js v\d+.*$/m,
  ];
  const pinoFatal = 60;
  for (const pattern of patterns) {
    const found = pattern.exec(output);
    if (found) return found[0];
  }
  const fatal = jsonLines(output).find(({ level }) => level === pinoFatal || level === 'fatal');
  return fatal && JSON.stringify(fatal);
}

/** Whatever the test did, nothing of this supervisor is left after it, and nothing it left goes unreported. */
async function finish(
  supervisor: LaunchedSupervisor,
  { meetsInternalError = false }: SupervisorOptions,
): Promise<void> {
  const complaints: string[] = [];
  if (!supervisor.hasExited()) {
    try {
      await supervisor.stop('SIGTERM');
    } catch (error) {
      complaints.push((error as Error).message);
      await supervisor.kill();
    }
  }
  try {
    await eventually('its children have ended', () => supervisor.family().length === 0, {
      deadlineMs: orphanGraceMs,
    });
  } catch {
    const orphans = supervisor.family();
    complaints.push(`it left processes behind:\n${orphans.map(describeProcess).join('\n')}`);
    for (const { pid } of orphans) sigkill(pid);
  }
  const uncaught = meetsInternalError ? undefined : uncaughtErrorIn(supervisor.output());
  if (uncaught !== undefined) complaints.push(`it met an error that nobody handled: ${uncaught}`);
  if (complaints.length > 0) {
    throw new Error(
      `supervisor ${supervisor.pid}: ${complaints.join('; ')}\nIts output:\n${supervisor.output()}`,
    );
  }
}

/** The environment of this process without what would change a supervisor or reach this user's own models. */
function cleanEnv(home: string, cacheHome: string | undefined): NodeJS.ProcessEnv {
  const foreign = /^(LLAMA|HF|HUGGINGFACE|AIP|XDG|STATE|RUNTIME|NOTIFY|FAKE|WATCHDOG|LISTEN)_/;
  const kept = Object.entries(process.env).filter(([name]) => name === runMarker || !foreign.test(name));
  const own = Object.fromEntries(
    ['config', 'state', 'runtime', 'cache', 'models'].map((name) => [name, join(home, name)]),
  );
  for (const path of Object.values(own)) mkdirSync(path, { mode: 0o700 });
  return {
    ...Object.fromEntries(kept),
    XDG_CONFIG_HOME: own['config'],
    XDG_STATE_HOME: own['state'],
    XDG_RUNTIME_DIR: own['runtime'],
    XDG_CACHE_HOME: cacheHome ?? own['cache'],
    LLAMA_CACHE: own['models'],
  };
}

/** Drops the default of each option that the test gives itself: a repeat would be a warning in the log. */
function withoutRepeated(defaults: string[], args: string[]): string[] {
  const pairs = Array.from({ length: defaults.length / 2 }, (_, at) => defaults.slice(at * 2, at * 2 + 2));
  return pairs.filter(([name]) => !args.includes(name ?? '')).flat();
}

function jsonLines(text: string): LogLine[] {
  return text.split('\n').flatMap((line) => {
    if (!line.startsWith('{')) return [];
    try {
      return [JSON.parse(line) as LogLine];
    } catch {
      return []; // Cut off, or not of the log: the whole output is shown when a test fails.
    }
  });
}
