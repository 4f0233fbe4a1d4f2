/** The command line: the only file that knows arguments, environment, signals and exit codes. */
import { CommandLineError, parseCommandLine, scanForBinary } from './config/command-line.js';
import { findLlamaServer, noBinaryMessage, UnusableBinaryError } from './config/binary.js';
import { cacheDirectory } from './config/directories.js';
import { loadOptionTable } from './config/help.js';
import { helpText } from './config/start-help.js';
import { parentDeathPrefix } from './instance/parent-death.js';
import { runInPlace } from './instance/run-in-place.js';
import { configFileEnvironment } from './models/native-config.js';
import { createLog, type Logger } from './observe/log.js';
import { Supervisor } from './supervisor.js';
import { firstRequests } from './demo/first-requests.js';

/** How long the log's reader gets for its last lines. */
const lastLinesMs = 500;

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
  if (args.includes('--help') || args.includes('-h') || args.includes('--usage')) {
    process.stdout.write(helpText());
    return;
  }
  const found = findLlamaServer({ explicit: scanForBinary(args), env });
  if (args.includes('--version')) {
    const { ownVersion } = await import('./commands.js');
    process.stdout.write(`llama-supervisor ${ownVersion()}\n`);
    if (!found) return;
  }
  if (!found) throw new UnusableBinaryError(noBinaryMessage());
  const facts = await loadOptionTable(found.path, cacheDirectory(env), {
    env,
    commandPrefix: parentDeathPrefix(),
  });
  const { settings, childOptions, warnings, directModel, directQuery, nativeArgs } = parseCommandLine(
    args,
    facts.table,
    { ...(await configFileEnvironment(env, facts.table)), ...env },
  );
  if (directModel || directQuery) return await runInPlace(found.path, nativeArgs);

  const log = await createLog({ level: settings.logLevel, format: settings.logFormat });
  const { version, backends } = facts;
  log.info({ path: found.path, origin: found.origin, version, backends }, 'llama-server');
  for (const warning of warnings) log.warn(warning);

  const binary = found.path;
  const supervisor = await Supervisor.start({ settings, childOptions, binary, facts, env, log });
  endOnSignals(supervisor, log);
  if (settings.demo || process.stdout.isTTY) {
    process.stdout.write(
      firstRequests(supervisor.url, supervisor.catalog.models, settings.apiKeys.length > 0),
    );
  }
}

/** The first SIGTERM or SIGINT ends everything in order, the second at once. */
function endOnSignals(supervisor: Supervisor, log: Logger): void {
  let ending = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (ending) {
      log.warn({ signal }, 'ending at once');
      supervisor.killAll();
      exitAfterFlush(log, 1);
      return;
    }
    ending = true;
    log.info({ signal }, 'ending; once more ends at once');
    supervisor.shutdown().then(
      () => exitAfterFlush(log, 0),
      (error: unknown) => {
        log.fatal({ err: error }, 'shutdown failed');
        supervisor.killAll();
        exitAfterFlush(log, 1);
      },
    );
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, onSignal);
  const onFatal = (error: unknown): void => {
    log.fatal({ err: error }, 'internal error; ending');
    supervisor.killAll();
    exitAfterFlush(log, 1);
  };
  process.on('uncaughtException', onFatal);
  process.on('unhandledRejection', onFatal);
}

/** The last lines say how it ended; a stuck reader of the log must not keep it from ending. */
function exitAfterFlush(log: Logger, code: number): void {
  const exit = (): never => process.exit(code);
  setTimeout(exit, lastLinesMs);
  log.flush(exit);
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
