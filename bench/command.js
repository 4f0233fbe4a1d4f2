/** What the programs of this folder have in common as commands. */
import { constants } from 'node:os';
import { parseArgs } from 'node:util';

/** What a person is told without a stack. */
export class BenchError extends Error {
  name = 'BenchError';
}

/**
 * Runs a program with the arguments of this process, and ends this process with the status it returns.
 *
 * @param {string} name in front of what a person is told
 * @param {(args: string[]) => Promise<number>} main
 */
export function runCommand(name, main) {
  main(process.argv.slice(2)).then(
    (exitCode) => process.exit(exitCode),
    (error) => {
      // An unusable binary that was named explicitly comes with a message for people, too.
      const isForPeople = error instanceof BenchError || error.name === 'UnusableBinaryError';
      console.error(isForPeople ? `${name}: ${error.message}` : error);
      process.exit(1);
    },
  );
}

/**
 * The values of the options among the arguments.
 *
 * @param {string[]} args
 * @param {import('node:util').ParseArgsConfig['options']} options
 * @param {string} help told with what is wrong with an argument
 */
export function optionValues(args, options, help) {
  try {
    return parseArgs({ args, options }).values;
  } catch (error) {
    throw new BenchError(`${error.message}\n\n${help}`);
  }
}

/** Settles with the exit status once a signal came; a second one ends this process at once. */
export function interruption() {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
      const status = 128 + constants.signals[signal];
      process.once(signal, () => {
        process.once(signal, () => process.exit(status));
        resolve(status);
      });
    }
  });
}
