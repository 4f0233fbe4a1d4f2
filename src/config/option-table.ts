import { helpEntries, type HelpEntry } from './help-entries.js';
import { nearest } from './nearest.js';

/** One option of the installed `llama-server`, as its `--help` describes it. */
export interface Option {
  /**
   * The canonical name: the last positive spelling without its dashes. The native router prints it in
   * `status.preset` and spells it so when it starts a child.
   */
  readonly key: string;
  /** The first spelling, with dashes: what native rendering sorts by, bytewise. */
  readonly firstName: string;
  /** Spellings with dashes, in the order of the help. */
  readonly positive: readonly string[];
  /** Spellings that turn the option off; empty for one that cannot be turned off. */
  readonly negative: readonly string[];
  readonly env: string | undefined;
  readonly valueCount: 0 | 1 | 2;
  /** True for keys that only a presets file knows: they are never arguments. */
  readonly presetOnly: boolean;
  /** The help's words on one line, without the environment name. */
  readonly description: string;
}

/** An option by one of its names; `negated` when that name turns it off. */
export interface Spelling {
  readonly option: Option;
  readonly negated: boolean;
}

/**
 * Options with the text each was given, as it was given: `1` or `0` for an option without a value on a
 * command line, any text in a presets file, and both values with a blank between them for the few options
 * that take two.
 */
export type OptionValues = ReadonlyMap<Option, string>;

/** What the native router means by a true value; case counts (common/arg.cpp, `is_truthy`). */
export function isTruthy(text: string): boolean {
  return text === 'on' || text === 'enabled' || text === 'true' || text === '1';
}

/** What the native router means by a false value; case counts (common/arg.cpp, `is_falsey`). */
export function isFalsey(text: string): boolean {
  return text === 'off' || text === 'disabled' || text === 'false' || text === '0';
}

/** Keys that a presets file may hold besides the options of the binary (common/arg.cpp). */
export const PRESET_ONLY_KEYS: readonly Option[] = [
  presetOnly('load-on-startup', 'Load this model when the router starts.'),
  presetOnly('stop-timeout', 'Seconds a stopping model gets before it is killed.'),
  presetOnly('dedup-cache-models', 'Hide the cached model that resolves to the same file as this preset.'),
];

function presetOnly(key: string, description: string): Option {
  return {
    key,
    firstName: key,
    positive: [key],
    negative: [],
    env: undefined,
    valueCount: 1,
    presetOnly: true,
    description,
  };
}

/**
 * The name of the variable whose presence turns an option off, or undefined where there is none. Only options with
 * a negative spelling and an `LLAMA_ARG_` name have one (common/arg.cpp, `get_value_from_env`).
 */
export function negatedEnv({ env, negative }: Option): string | undefined {
  if (env?.startsWith('LLAMA_ARG_') !== true || negative.length === 0) return undefined;
  return env.replace('LLAMA_ARG_', 'LLAMA_ARG_NO_');
}

/** Every option of one `llama-server` binary, by every name it has. */
export class OptionTable {
  readonly options: readonly Option[];
  readonly #bySpelling = new Map<string, Spelling>();
  readonly #byKey = new Map<string, Spelling>();

  private constructor(options: readonly Option[]) {
    this.options = options;
    for (const option of options) this.#addSpellings(option);
    for (const option of [...options, ...PRESET_ONLY_KEYS]) this.#addKeys(option);
  }

  /** Reads the text of `llama-server --help`. Lines that describe no option are passed over. */
  static parse(help: string): OptionTable {
    return new OptionTable(helpEntries(help).map(optionOf));
  }

  /** An option by a command line spelling: `-c`, `--ctx-size`, `--ctx_size`, `--no-slots`. */
  find(spelling: string): Spelling | undefined {
    return this.#bySpelling.get(normaliseSpelling(spelling));
  }

  /**
   * An option by a key of a presets file: any spelling without its dashes, or its environment name. Exact, as in
   * the native router; the `LLAMA_ARG_NO_X` form is accepted and, as there, does not invert the value.
   */
  findKey(key: string): Spelling | undefined {
    return this.#byKey.get(key);
  }

  /** The known spelling (or, for text without dashes, presets key) closest to an unknown one. */
  nearest(text: string, candidates?: Iterable<string>): string | undefined {
    return nearest(text, candidates ?? (text.startsWith('-') ? this.#bySpelling : this.#byKey).keys());
  }

  #addSpellings(option: Option): void {
    for (const name of option.positive) this.#bySpelling.set(name, { option, negated: false });
    for (const name of option.negative) this.#bySpelling.set(name, { option, negated: true });
  }

  #addKeys(option: Option): void {
    for (const env of [option.env, negatedEnv(option)]) {
      if (env !== undefined) this.#byKey.set(env, { option, negated: false });
    }
    for (const name of option.positive) this.#byKey.set(withoutDashes(name), { option, negated: false });
    for (const name of option.negative) this.#byKey.set(withoutDashes(name), { option, negated: true });
  }
}

/** A long spelling with `_` written as `-`, as the native parser reads it; short ones stay as they are. */
export function normaliseSpelling(spelling: string): string {
  return spelling.startsWith('--') ? spelling.replaceAll('_', '-') : spelling;
}

function withoutDashes(name: string): string {
  return name.replace(/^-+/, '');
}

function optionOf({ names, placeholder, paragraphs, env }: HelpEntry): Option {
  const valueCount = countValues(placeholder);
  const negativesFrom = valueCount === 0 ? firstNegative(names) : names.length;
  const positive = names.slice(0, negativesFrom);
  return {
    key: withoutDashes(positive.at(-1) ?? ''),
    firstName: positive[0] ?? '',
    positive,
    negative: names.slice(negativesFrom),
    env,
    valueCount,
    presetOnly: false,
    description: paragraphs.join(' '),
  };
}

/** `START END` is two values; `<tensor name pattern>=<buffer type>,...` is one, in spite of its blanks. */
function countValues(placeholder: string): 0 | 1 | 2 {
  if (placeholder === '') return 0;
  const words = placeholder.replaceAll(/<[^>]*>|\[[^\]]*\]|\{[^}]*\}/g, 'X').split(/\s+/);
  return words.length === 1 ? 1 : 2;
}

/**
 * The help lists negative spellings last and does not mark them. An option has some when one of its names is
 * `--no-` before an earlier name; they start at its first `-n…` or `--no-…` (`--repack, -nr, --no-repack`), which
 * is never the first name (`--no-host` stands alone and is positive).
 */
function firstNegative(names: readonly string[]): number {
  const negatesEarlier = names.some((name, index) => {
    const base = name.startsWith('--no-') ? `--${name.slice('--no-'.length)}` : undefined;
    return base !== undefined && names.slice(0, index).includes(base);
  });
  if (!negatesEarlier) return names.length;
  return names.findIndex((name, index) => index > 0 && /^(?:-n|--no-)/.test(name));
}
