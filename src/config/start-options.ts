import { nearest } from './nearest.js';
import type { Option, OptionTable, Spelling } from './option-table.js';
import { OWN_ROWS, ROUTER_ROWS, type SettingRow } from './settings.js';

/**
 * Every option that `start` knows, by any spelling: ours, then those of the installed binary, then the options a
 * router obeys that this binary does not list.
 */
export class StartOptions {
  readonly #table: OptionTable;
  readonly #ours = new Map<string, Spelling>();
  readonly #unlisted = new Map<string, Spelling>();

  constructor(table: OptionTable) {
    this.#table = table;
    for (const row of Object.values(OWN_ROWS)) add(this.#ours, optionFor(row));
    for (const row of Object.values(ROUTER_ROWS)) {
      if (table.find(row.name) === undefined) add(this.#unlisted, optionFor(row));
    }
  }

  find(spelling: string): Spelling | undefined {
    return this.#ours.get(spelling) ?? this.#table.find(spelling) ?? this.#unlisted.get(spelling);
  }

  /** The option that a setting is given by. */
  optionOf(row: SettingRow<unknown>): Option {
    const spelling = this.find(row.name);
    if (spelling === undefined) throw new Error(`${row.name} is in no table of settings`);
    return spelling.option;
  }

  /** True for an option of the installed binary, which can be passed on to it. */
  isNative(option: Option): boolean {
    return this.#table.find(option.firstName)?.option === option;
  }

  /** The known spelling closest to an unknown one. */
  nearest(spelling: string): string | undefined {
    const native = this.#table.options.flatMap(({ positive, negative }) => [...positive, ...negative]);
    return nearest(spelling, [...this.#ours.keys(), ...native, ...this.#unlisted.keys()]);
  }
}

function optionFor(row: SettingRow<unknown>): Option {
  const isSwitch = row.kind.placeholder === undefined;
  return {
    key: row.name.slice('--'.length),
    firstName: row.name,
    positive: [row.name],
    negative: isSwitch ? [row.name.replace('--', '--no-')] : [],
    env: row.env,
    valueCount: isSwitch ? 0 : 1,
    presetOnly: false,
    description: row.help,
  };
}

function add(to: Map<string, Spelling>, option: Option): void {
  for (const name of option.positive) to.set(name, { option, negated: false });
  for (const name of option.negative) to.set(name, { option, negated: true });
}
