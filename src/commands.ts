import { Command } from 'commander';
import { helpText } from './config/start-help.js';

/** The verbs besides `start`, which reads its own arguments. Ends the process on a wrong one. */
export async function runCommand(args: readonly string[]): Promise<void> {
  const program = new Command('llama-supervisor')
    .description(
      'Serves many GGUF models behind one OpenAI-compatible endpoint, a llama-server process each.',
    )
    .showSuggestionAfterError();
  program
    .command('start')
    .description('serve the models; the verb when none is given (llama-supervisor start --help)')
    .helpOption(false)
    .action(() => {
      process.stdout.write(helpText());
    });
  await program.parseAsync(args, { from: 'user' });
}
