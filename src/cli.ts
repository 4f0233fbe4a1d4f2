/** The command line: the only file that knows arguments, environment, signals and exit codes. */
import { isatty } from 'node:tty';
import { appCommand } from './config/app-command.js';
import { findLlamaServer, noBinaryMessage, UnusableBinaryError } from './config/binary.js';
import {
  CommandLineError,
  parseCommandLine,
  scanForBinary,
  type CommandLine,
} from './config/command-line.js';
import { cacheDirectory } from './config/directories.js';
import { loadOptionTable, type LlamaServerFacts } from './config/help.js';
import { isTruthy } from './config/option-table.js';
import { helpText, type NativeHelp } from './config/start-help.js';
import { readVertexSettings } from './config/vertex-settings.js';
import { firstRequests } from './demo/first-requests.js';
import { childEnvironment } from './instance/child-environment.js';
import { runDownloadWorker } from './instance/download-worker.js';
import { OrphanGuard } from './instance/orphan-guard.js';
import { parentDeathPrefix } from './instance/parent-death.js';
import { runInPlace } from './instance/run-in-place.js';
import { readNativeConfig } from './models/native-config.js';
import { findRemotePreset, type RemotePreset } from './models/presets/remote-preset.js';
import { createLog, type Logger } from './observe/log.js';
import { Supervisor } from './supervisor.js';

/** How long nothing may be heard of the download of a preset.ini, which is a few kilobytes. */
const downloadSilenceMs = 60_000;

const HELP: readonly string[] = ['--help', '-h', '--usage'];

/** How long the log's reader gets for its last lines. */
const lastLinesMs = 500;
/** How long what is being read gets to end. */
const lastReadMs = 1_000;
const looks = 10;

/**
 * Runs one command to its end. `start` is the verb when the first argument is absent or is an option.
 *
 * @param args without the interpreter and the script
 */
export async function main(args: readonly string[]): Promise<void> {
  const [verb, ...rest] = args;
  if (verb === undefined || verb.startsWith('-')) {
    await start(args);
  } else if (verb === 'start') {
    await start(rest);
  } else {
    const { runCommand } = await import('./commands.js');
    await runCommand(args);
  }
}

async function start(args: readonly string[]): Promise<void> {
  try {
    await startSupervisor(args);
  } catch (error) {
    fail(error);
  }
}

async function startSupervisor(args: readonly string[]): Promise<void> {
  const { env } = process;
  if (args.some((arg) => HELP.includes(arg))) {
    process.stdout.write(helpText(await nativeHelp(args, env), process.stdout.columns));
    return;
  }
  const found = findLlamaServer({ explicit: scanForBinary(args), env });
  if (args.includes('--version')) {
    const { ownVersion } = await import('./commands.js');
    process.stdout.write(`llama-supervisor ${ownVersion()}\n`);
    if (!found) return;
  }
  if (!found) throw new UnusableBinaryError(noBinaryMessage());
  // Until it has started there is nothing to be read again, and by default this signal would end it.
  const onHangup = (): void => undefined;
  if (!hasTerminal()) process.on('SIGHUP', onHangup);
  const facts = await loadOptionTable(found.path, cacheDirectory(env), {
    env,
    commandPrefix: parentDeathPrefix(),
  });
  const config = await readNativeConfig(env, facts.table);
  const commandLine = parseCommandLine(args, facts.table, env, config);
  const { settings, childOptions, helperArgs, warnings, directModel, directQuery, nativeArgs } = commandLine;
  const remote = directModel ? await remotePreset(commandLine, found.path, facts, env) : undefined;
  if ((directModel && remote?.kind !== 'preset') || directQuery) {
    process.off('SIGHUP', onHangup);
    for (const warning of remote?.warnings ?? []) process.stderr.write(`llama-supervisor: ${warning}\n`);
    return await runInPlace(found.path, [...appCommand(env), ...nativeArgs]);
  }

  const log = await createLog({ level: settings.logLevel, format: settings.logFormat });
  const { version, backends } = facts;
  log.info({ path: found.path, origin: found.origin, version, backends }, 'llama-server');
  for (const warning of [...warnings, ...(remote?.warnings ?? [])]) log.warn(warning);

  const vertex = readVertexSettings(env);
  if (vertex !== undefined && vertex.port !== settings.port) {
    log.warn(
      `AIP_MODE is PREDICTION: AIP_HTTP_PORT ${vertex.port} takes the place of --port ${settings.port}`,
    );
  }
  // Until it has started a signal ends it at once.
  let onDrain = (): void => void process.kill(process.pid, 'SIGTERM');
  const supervisor = await Supervisor.start({
    settings: {
      ...settings,
      ...(remote?.kind === 'preset' ? { modelsPreset: remote.file } : {}),
      ...(vertex === undefined ? {} : { port: vertex.port }),
    },
    childOptions,
    helperArgs,
    binary: found.path,
    facts,
    env,
    log,
    loadFirst: remote?.kind === 'preset' ? remote.section : undefined,
    vertex,
    onDrain: () => onDrain(),
    fakeTiming: (env['LLAMA_SERVER_DEBUG_FAKE_TIMING'] ?? '') !== '',
  });
  onDrain = endOnSignals(supervisor, log);
  process.off('SIGHUP', onHangup);
  if (settings.demo || process.stdout.isTTY) {
    process.stdout.write(
      firstRequests(supervisor.endpoint, supervisor.catalog.models, settings.apiKeys.length > 0),
    );
  }
}

/** What stands behind `--hf-repo`; undefined where the one model is named otherwise. */
async function remotePreset(
  { valueOf, directQuery }: CommandLine,
  binary: string,
  { buildInfo }: LlamaServerFacts,
  env: NodeJS.ProcessEnv,
): Promise<RemotePreset | undefined> {
  const hfRepo = valueOf('--hf-repo') ?? '';
  if (hfRepo === '' || directQuery) return undefined;
  // Here nobody can cancel: a signal ends us, and the worker with us.
  const { signal } = new AbortController();
  const token = valueOf('--hf-token');
  const guard = new OrphanGuard(await createLog({ level: 'silent', format: 'json' }));
  try {
    return await findRemotePreset({
      hfRepo,
      offline: isTruthy(valueOf('--offline') ?? ''),
      token,
      env,
      userAgent: `llama-cpp/${buildInfo}`,
      signal,
      download: (repo) =>
        runDownloadWorker({
          binary,
          hfRepo: repo,
          environment: childEnvironment(env),
          token,
          guard,
          silenceTimeoutMs: downloadSilenceMs,
          signal,
        }),
    });
  } finally {
    guard.close();
  }
}

/** What the binary says of its options, for our help; that must come without one, too. */
async function nativeHelp(args: readonly string[], env: NodeJS.ProcessEnv): Promise<NativeHelp> {
  try {
    const found = findLlamaServer({ explicit: scanForBinary(args), env });
    if (!found) return { obstacle: noBinaryMessage() };
    const options = { env, commandPrefix: parentDeathPrefix() };
    return await loadOptionTable(found.path, cacheDirectory(env), options);
  } catch (error) {
    return { obstacle: error instanceof Error ? error.message : String(error) };
  }
}

/**
 * The first SIGTERM or SIGINT ends everything in order, the second at once. SIGHUP has the disk looked at.
 *
 * @returns ends everything in order, too; a signal after it is the first one still
 */
function endOnSignals(supervisor: Supervisor, log: Logger): () => void {
  let isEnding = false;
  let isSignalled = false;
  const end = (): void => {
    if (isEnding) return;
    isEnding = true;
    supervisor.shutdown().then(
      () => exitAfterFlush(log, 0),
      (error: unknown) => {
        log.fatal({ err: error }, 'shutdown failed');
        supervisor.killAll();
        exitAfterFlush(log, 1);
      },
    );
  };
  const onSignal = (signal: NodeJS.Signals): void => {
    if (isSignalled) {
      log.warn({ signal }, 'ending at once');
      supervisor.killAll();
      exitAfterFlush(log, 1);
      return;
    }
    isSignalled = true;
    log.info({ signal }, 'ending; once more ends at once');
    end();
  };
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, onSignal);
  const onTerminal = hasTerminal();
  process.on('SIGHUP', () => {
    // A terminal that is closed says the same as somebody who wants the files to be read again.
    if (onTerminal && !hasTerminal()) onSignal('SIGHUP');
    else supervisor.reload().catch((error: unknown) => log.error({ err: error }, 'reloading failed'));
  });
  const onFatal = (error: unknown): void => {
    log.fatal({ err: error }, 'internal error; ending');
    supervisor.killAll();
    exitAfterFlush(log, 1);
  };
  process.on('uncaughtException', onFatal);
  process.on('unhandledRejection', onFatal);
  return end;
}

/** Whether a standard stream is a terminal that is still there. */
function hasTerminal(): boolean {
  return [0, 1, 2].some((descriptor) => isatty(descriptor));
}

let isExiting = false;

/**
 * The last lines say how it ended; a stuck reader of the log must not keep it from ending, and neither must a file that
 * gives no answer (on a network file system that is gone). What was asked for first counts.
 */
function exitAfterFlush(log: Logger, code: number): void {
  if (isExiting) return;
  isExiting = true;
  const isReading = (): boolean => process.getActiveResourcesInfo().some((kind) => kind.startsWith('FSReq'));
  const exit = (looksLeft: number): void => {
    if (!isReading()) process.exit(code);
    // The exit would wait for it for ever.
    if (looksLeft === 0) process.kill(process.pid, 'SIGKILL');
    setTimeout(() => exit(looksLeft - 1), lastReadMs / looks);
  };
  let isFlushed = false;
  const onFlushed = (): void => {
    if (!isFlushed) exit(looks);
    isFlushed = true;
  };
  setTimeout(onFlushed, lastLinesMs);
  log.flush(() => setImmediate(onFlushed));
}

/** What the user can mend is said in its own words, without a stack. */
function fail(error: unknown): void {
  const expected = error instanceof CommandLineError || error instanceof UnusableBinaryError;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`llama-supervisor: ${message}\n`);
  if (!expected && process.env['DEBUG'] !== undefined && error instanceof Error) {
    process.stderr.write(`${error.stack ?? ''}\n`);
  }
  process.exitCode = 1;
}
