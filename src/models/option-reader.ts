import type { Option, OptionTable, OptionValues } from '../config/option-table.js';

/** Looks an option up by any of its names. */
export interface OptionReader {
  /** The option; undefined if the binary has none of that name. */
  find(name: string): Option | undefined;
  /** Its value in `values`; undefined if it is absent or empty. */
  get(values: OptionValues, name: string): string | undefined;
}

/** A reader by the names that the binary of `table` knows. */
export function optionReader(table: OptionTable): OptionReader {
  const find = (name: string): Option | undefined => table.findKey(name)?.option;
  return {
    find,
    get(values, name) {
      const option = find(name);
      const value = option === undefined ? undefined : values.get(option);
      return value === '' ? undefined : value;
    },
  };
}
