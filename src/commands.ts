import { readFileSync } from 'node:fs';
import { Command } from 'commander';
import { helpText } from './config/start-help.js';

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
    .description('serve the models; the verb when none is given (llama-supervisor start --help)')
    .helpOption(false)
    .configureHelp({ formatHelp: () => helpText() });
  await program.parseAsync(args, { from: 'user' });
}

/** The version of this package. */
export function ownVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return String((manifest as { version: unknown }).version);
}
