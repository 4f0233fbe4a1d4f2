import { readFileSync } from 'node:fs';
import { OptionTable, type Option } from '../../../src/config/option-table.js';

const help = new URL('../../fixtures/llama-server-help-v0.5.0.txt', import.meta.url);

/** The options of the pinned llama-server. */
export const table = OptionTable.parse(readFileSync(help, 'utf8'));

/** The option of that name; throws if there is none, so that a test cannot pass by a misspelling. */
export function option(name: string): Option {
  const found = table.findKey(name)?.option;
  if (found === undefined) throw new Error(`no option '${name}' in the table`);
  return found;
}

/** Options and their values from names and values. */
export function values(byName: Readonly<Record<string, string>>): Map<Option, string> {
  return new Map(Object.entries(byName).map(([name, value]) => [option(name), value]));
}

/** Values by canonical key, for comparing. */
export function byKey(options: ReadonlyMap<Option, string>): Record<string, string> {
  return Object.fromEntries([...options].map(([{ key }, value]) => [key, value]));
}
