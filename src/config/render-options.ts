import { isFalsey, type Option, type OptionValues } from './option-table.js';

/**
 * Keys a child never gets from anywhere: they are the router's own, or would make the child a router
 * (tools/server/server-models.cpp, `unset_reserved_args`). And one that the native router passes on: a child that
 * shares its port would share its requests with whoever takes the same port.
 */
export const RESERVED_KEYS: ReadonlySet<string> = new Set([
  'log-file',
  'ssl-key-file',
  'ssl-cert-file',
  'api-key',
  'api-key-file',
  'models-dir',
  'models-max',
  'models-preset',
  'models-autoload',
  'reuse-port',
]);

/** A copy of `values` without the options whose canonical key is in `keys`. */
export function withoutKeys(values: OptionValues, keys: ReadonlySet<string>): OptionValues {
  return new Map([...values].filter(([option]) => !keys.has(option.key)));
}

/**
 * The arguments that give a `llama-server` these options, in the order and spelling of the native router
 * (common/preset.cpp, `to_args`): sorted bytewise by first name, spelled by the last positive name, or by the
 * last negative one when the text of an option without value is false; without a negative such an option is left
 * out. Preset-only keys are not arguments.
 *
 * Unlike the native router, which refuses them, options with two values are rendered.
 * @throws Error when such an option does not hold exactly two values.
 */
export function renderArgs(values: OptionValues): string[] {
  return inNativeOrder(values).flatMap(([option, text]) =>
    option.presetOnly ? [] : renderOption(option, text),
  );
}

function renderOption(option: Option, text: string): string[] {
  const name = lastOf(option.positive);
  switch (option.valueCount) {
    case 0:
      if (isFalsey(text)) return option.negative.length === 0 ? [] : [lastOf(option.negative)];
      return [name];
    case 1:
      return [name, text];
    case 2: {
      const both = text.trim().split(/\s+/);
      if (both.length !== 2)
        throw new Error(`${name} takes two values with a blank between them, not '${text}'`);
      return [name, ...both];
    }
  }
}

/**
 * A presets section as the native router prints it in `status.preset` (common/preset.cpp, `to_ini`): the header,
 * one `key = value` line per option in native order, preset-only keys included, and a blank line.
 */
export function renderPreset(section: string, values: OptionValues): string {
  const lines = inNativeOrder(values).map(
    ([option, text]) => `${option.key} = ${text.replaceAll('\n', '\\\n')}\n`,
  );
  return `[${section}]\n${lines.join('')}\n`;
}

function inNativeOrder(values: OptionValues): [Option, string][] {
  return [...values].sort(([a], [b]) => (a.firstName < b.firstName ? -1 : a.firstName > b.firstName ? 1 : 0));
}

function lastOf(names: readonly string[]): string {
  return names.at(-1) ?? '';
}
