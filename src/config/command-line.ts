import type { Option, OptionTable, OptionValues } from './option-table.js';
import { asksBinary, namesModel } from './direct-options.js';
import { entangledSettings, HELPER_ONLY_KEYS, helperArgsFrom } from './helper-options.js';
import { printable } from './printable.js';
import { readSettings } from './read-settings.js';
import { RESERVED_KEYS, withoutKeys } from './render-options.js';
import { scanArguments, splitArgument } from './scan-arguments.js';
import { inheritedSource, NO_CONFIG, type NativeConfig } from './setting-source.js';
import { OWN_ROWS, ROUTER_ROWS, type Settings } from './settings.js';
import { StartOptions } from './start-options.js';

/** What a command line means for `llama-supervisor start`. */
export interface CommandLine {
  readonly settings: Settings;
  /** The base of every model's options: from the command line alone, without what is the router's own. */
  readonly childOptions: OptionValues;
  /** Arguments of the helper child, which serves the web UI and tools: also from the command line alone. */
  readonly helperArgs: readonly string[];
  /** Nothing is wrong, but each is worth a line in the log. */
  readonly warnings: readonly string[];
  /** A model is named, by an option or its environment variable: the binary serves it itself, nothing is routed. */
  readonly directModel: boolean;
  /** The binary is only asked something (`--version`, `--list-devices`...). */
  readonly directQuery: boolean;
  /** The arguments without our own options, in the form the binary reads: for running it in our place. */
  readonly nativeArgs: readonly string[];
  /** What an option of the binary, by a spelling, is given on the command line, in the environment or in a config file. */
  readonly valueOf: (spelling: string) => string | undefined;
}

/** So much of a problem is shown: it may quote a value of any length. */
const maxShown = 1_000;

/** The command line or the environment is wrong. The message lists every problem, one per line. */
export class CommandLineError extends Error {
  override readonly name = 'CommandLineError';
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    super(problems.map(shown).join('\n'));
    this.problems = problems;
  }
}

function shown(problem: string): string {
  const text = printable(problem);
  return text.length > maxShown ? `${text.slice(0, maxShown)}…` : text;
}

/** True of one model only, so that all cannot inherit it; host and port are given to each child anew. */
const KEYS_OF_ONE_CHILD = ['model', 'mmproj', 'alias', 'hf-repo', 'host', 'port'];

/** Keys of options that the command line gives to no model. */
export const NOT_INHERITED_KEYS: ReadonlySet<string> = new Set([
  ...RESERVED_KEYS,
  ...HELPER_ONLY_KEYS,
  ...KEYS_OF_ONE_CHILD,
]);

/** Keys of options that are neither inherited nor obeyed, and what to do instead. */
export const DROPPED_WITH_ADVICE: ReadonlyMap<string, string> = new Map([
  ['log-file', 'redirect the output of llama-supervisor instead'],
  ['mmproj', 'set it in the section of its model in the --models-preset file'],
  ['alias', 'set it in the section of its model in the --models-preset file'],
]);

/**
 * Reads the arguments after `start`, and the environment and llama.cpp's config files for the settings they leave
 * open. Every option of ours and of the installed binary is accepted in any of its spellings, also as
 * `--name=value`; of a repeated one the last counts, except that API keys add up. Reads the key files that are named.
 * @throws CommandLineError with everything that is wrong.
 */
export function parseCommandLine(
  args: readonly string[],
  table: OptionTable,
  env: NodeJS.ProcessEnv,
  config: NativeConfig = NO_CONFIG,
): CommandLine {
  const options = new StartOptions(table);
  const scanned = scanArguments(args, options);
  const native: OptionValues = new Map(
    [...scanned.given]
      .filter(([option]) => options.isNative(option))
      .map(([option, texts]) => [option, texts.at(-1) ?? '']),
  );
  const directModel = namesModel(native, table, env, config);
  const directQuery = asksBinary(native);
  const { settings: each, problems } = readSettings(scanned.given, options, env, config);
  // The binary that runs in our place judges its values itself.
  const ours = directModel || directQuery ? [] : problems;
  if (scanned.problems.length + ours.length > 0) throw new CommandLineError([...scanned.problems, ...ours]);
  const { nativeArgs } = scanned;
  const settings = { ...each, ...entangledSettings({ nativeArgs, options, env, config }) };
  return {
    settings,
    childOptions: childOptionsFrom(native, table, settings),
    helperArgs: helperArgsFrom(nativeArgs, options, settings),
    warnings: [...config.warnings, ...warningsAbout(scanned.given, options)],
    directModel,
    directQuery,
    nativeArgs,
    valueOf: (spelling) => {
      const option = table.find(spelling)?.option;
      return option && (native.get(option) ?? inheritedSource(option, env, config)?.text);
    },
  };
}

/** The value of `--llama-server` in arguments that cannot be parsed yet: that takes the binary's own table. */
export function scanForBinary(args: readonly string[]): string | undefined {
  const found = args.flatMap((arg, index) => {
    const { name, inline } = splitArgument(arg);
    return name === OWN_ROWS.llamaServer.name ? [inline ?? args[index + 1]] : [];
  });
  return found.at(-1);
}

function childOptionsFrom(native: OptionValues, table: OptionTable, settings: Settings): OptionValues {
  const inherited = new Map(withoutKeys(native, NOT_INHERITED_KEYS));
  const timeout = table.find(ROUTER_ROWS.timeoutMs.name)?.option;
  // To a child 0 means that every byte must be there already, which breaks requests; a negative number is its
  // "none" (https://github.com/ggml-org/llama.cpp/issues/25396). LLAMA_ARG_TIMEOUT reaches it too, hence for both.
  if (settings.timeoutMs === 0 && timeout !== undefined) inherited.set(timeout, '-1');
  return inherited;
}

function warningsAbout(given: ReadonlyMap<Option, readonly string[]>, options: StartOptions): string[] {
  const addUp = new Set([ROUTER_ROWS.apiKeys, ROUTER_ROWS.apiKeyFile].map((row) => options.optionOf(row)));
  return [...given].flatMap(([option, texts]) => {
    const name = option.positive.at(-1) ?? option.firstName;
    const advice = options.isNative(option) ? DROPPED_WITH_ADVICE.get(option.key) : undefined;
    return [
      ...(texts.length > 1 && !addUp.has(option)
        ? [`${name} is given ${texts.length} times: the last one counts`]
        : []),
      ...(advice === undefined ? [] : [`${name} is not passed on to the models: ${advice}`]),
    ];
  });
}
