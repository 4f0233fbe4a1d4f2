import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { findLlamaServer, noBinaryMessage, UnusableBinaryError } from './config/binary.js';
import { cacheDirectory } from './config/directories.js';
import { loadOptionTable } from './config/help.js';
import { inheritedSource } from './config/setting-source.js';
import { ROUTER_ROWS } from './config/settings.js';
import type { OptionTable } from './config/option-table.js';
import { parentDeathPrefix } from './instance/parent-death.js';
import { checkPreset, renderReport } from './models/presets/check-preset.js';
import { readNativeConfig } from './models/native-config.js';

/** Exit codes of `config check`, as those of other checkers: a program can tell a bad file from a check that failed. */
const EXIT_WRONG = 1;
const EXIT_UNCHECKED = 2;

/** The verbs besides `start`, which reads its own arguments. Ends the process on a wrong one. */
export async function runCommand(args: readonly string[]): Promise<void> {
  const program = new Command('llama-supervisor')
    .description(
      'Serves many GGUF models behind one OpenAI-compatible endpoint, a llama-server process each.',
    )
    .version(ownVersion())
    .showSuggestionAfterError()
    .showHelpAfterError('llama-supervisor help lists the commands')
    .configureOutput({ outputError: (text, write) => write(`llama-supervisor: ${text}`) });
  program
    .command('start')
    .description('serve the models; the verb when none is given')
    .helpOption(false)
    .configureHelp({ formatHelp: () => 'llama-supervisor start --help lists its options\n' });
  const config = program.command('config').description('look at files before they are used');
  config
    .command('check')
    .description('say all that is wrong with a file of --models-preset, with its place and what to do')
    .argument('<file>', 'the presets file')
    .option('--llama-server <path>', 'the llama-server whose options count; by default the one of start')
    .option('--models-dir <path>', 'directory of GGUF files whose models sections may name')
    .option('--json', 'print {file, ok, errors: [{line, section, message}], warnings: [...]}')
    .addHelpText('after', '\nExit code: 0 nothing is wrong, 1 something is, 2 the file could not be checked.')
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : EXIT_UNCHECKED))
    .action(checkConfig);
  await program.parseAsync(args, { from: 'user' });
}

interface CheckFlags {
  readonly llamaServer?: string;
  readonly modelsDir?: string;
  readonly json?: true;
}

async function checkConfig(file: string, { llamaServer, modelsDir, json }: CheckFlags): Promise<void> {
  const { env } = process;
  try {
    const found = findLlamaServer({ explicit: llamaServer, env });
    if (found === undefined) throw new UnusableBinaryError(noBinaryMessage());
    const { table } = await loadOptionTable(found.path, cacheDirectory(env), {
      env,
      commandPrefix: parentDeathPrefix(),
    });
    const directory = modelsDir ?? (await modelsDirOfStart(env, table));
    const modelsDirs = directory === undefined ? [] : [directory];
    const report = await checkPreset({ file, modelsDirs, env, table });
    process.stdout.write(json ? `${JSON.stringify(report, null, 2)}\n` : renderReport(report));
    process.exitCode = report.ok ? 0 : EXIT_WRONG;
  } catch (error) {
    process.stderr.write(`llama-supervisor: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = EXIT_UNCHECKED;
  }
}

/** The directory that `start` would take when its command line names none. */
async function modelsDirOfStart(env: NodeJS.ProcessEnv, table: OptionTable): Promise<string | undefined> {
  const option = table.find(ROUTER_ROWS.modelsDir.name)?.option;
  return option && inheritedSource(option, env, await readNativeConfig(env, table))?.text;
}

/** The version of this package. */
export function ownVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return String((manifest as { version: unknown }).version);
}
