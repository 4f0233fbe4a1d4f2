import { isFalsey, isTruthy, normaliseSpelling, type Option } from './option-table.js';
import type { StartOptions } from './start-options.js';

/** What the arguments say, before any of it is judged. */
export interface ScannedArguments {
  /** Every text an option was given, in order; `1` or `0` for an option without a value. */
  readonly given: ReadonlyMap<Option, readonly string[]>;
  /** The binary's own options again, in the order and the form that the binary reads. */
  readonly nativeArgs: readonly string[];
  readonly problems: readonly string[];
}

/**
 * Assigns each argument to an option. What follows an option that takes a value is its value, whatever it looks
 * like (`-ngl -1`), as in the native parser.
 */
export function scanArguments(args: readonly string[], options: StartOptions): ScannedArguments {
  const given = new Map<Option, string[]>();
  const nativeArgs: string[] = [];
  const problems: string[] = [];
  let afterUnknown = false;

  for (let index = 0; index < args.length; index++) {
    const arg = args[index] ?? '';
    const { name, inline } = splitArgument(arg);
    const spelling = options.find(name);
    if (spelling === undefined) {
      // What follows an unknown option is most likely its value: one mistake is one line.
      if (arg.startsWith('-') || !afterUnknown) problems.push(unknownArgument(arg, name, options));
      afterUnknown = true;
      continue;
    }
    afterUnknown = false;

    const { option, negated } = spelling;
    const { valueCount } = option;
    if (valueCount === 0) {
      const text = switchedTo(inline, negated);
      if (text === undefined) {
        problems.push(`${name} is a switch: give it alone, or with =on or =off, not '=${inline ?? ''}'`);
        continue;
      }
      append(given, option, text);
      if (options.isNative(option)) nativeArgs.push(...nativeSwitch(option, name, inline, text));
      continue;
    }

    const missing = valueCount - (inline === undefined ? 0 : 1);
    const following = args.slice(index + 1, index + 1 + missing);
    index += following.length;
    if (following.length < missing) {
      problems.push(`${name} needs ${valueCount === 1 ? 'a value' : 'two values'} after it`);
      continue;
    }
    const values = inline === undefined ? following : [inline, ...following];
    append(given, option, values.join(' '));
    if (options.isNative(option)) nativeArgs.push(name, ...values);
  }
  return { given, nativeArgs, problems };
}

/**
 * `--name=value` in two, and the name as the native parser reads it, with `-` for `_`. The native parser knows no
 * `=`, so that nothing it accepts is read differently here.
 */
export function splitArgument(arg: string): { readonly name: string; readonly inline: string | undefined } {
  const equals = arg.startsWith('--') ? arg.indexOf('=') : -1;
  if (equals === -1) return { name: normaliseSpelling(arg), inline: undefined };
  return { name: normaliseSpelling(arg.slice(0, equals)), inline: arg.slice(equals + 1) };
}

function unknownArgument(arg: string, name: string, options: StartOptions): string {
  if (!arg.startsWith('-')) return `unexpected argument '${arg}': options begin with '-'`;
  const suggestion = options.nearest(name);
  return suggestion === undefined
    ? `unknown option ${name}: llama-supervisor start --help and llama-server --help list the known ones`
    : `unknown option ${name}: did you mean ${suggestion}?`;
}

/** `1` or `0`; undefined when what follows the `=` is neither on nor off. */
function switchedTo(inline: string | undefined, negated: boolean): '1' | '0' | undefined {
  if (inline === undefined || isTruthy(inline)) return negated ? '0' : '1';
  if (isFalsey(inline)) return negated ? '1' : '0';
  return undefined;
}

function nativeSwitch(option: Option, name: string, inline: string | undefined, text: '1' | '0'): string[] {
  if (inline === undefined) return [name];
  const equivalent = (text === '1' ? option.positive : option.negative).at(-1);
  return equivalent === undefined ? [] : [equivalent];
}

function append(given: Map<Option, string[]>, option: Option, text: string): void {
  const texts = given.get(option);
  if (texts === undefined) given.set(option, [text]);
  else texts.push(text);
}
