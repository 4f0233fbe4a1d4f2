import {
  isFalsey,
  isTruthy,
  negatedEnv,
  type Option,
  type OptionTable,
  type OptionValues,
} from '../../config/option-table.js';
import { compareBytewise } from '../bytewise.js';
import { canonicalTag } from '../disk/gguf-name.js';
import { parseBody } from './preset-body.js';
import { DEFAULT_SECTION, type LineNote, type PresetBlock, type PresetEntry } from './preset-lines.js';
import { RESERVED_IN_PRESETS } from './reserved-keys.js';
import { stopTimeoutWarning } from './stop-timeout.js';

/** One section of a presets file by the options of one binary. */
export interface SectionReading {
  /** As written in the header. */
  readonly written: string;
  /** The model's id: the written name, its tag in canonical form. */
  readonly name: string;
  /** The line of the header. */
  readonly line: number;
  readonly values: OptionValues;
  /** The line that gave each of the values. */
  readonly origins: ReadonlyMap<Option, PresetEntry>;
  /** What keeps a model with this section from being served. */
  readonly faults: readonly LineNote[];
  /** What is lost, or means something else than it seems to. */
  readonly warnings: readonly LineNote[];
}

/** Reserved by llama-server for a version of the format; means nothing yet. */
const VERSION_KEY = 'version';
/** What the help says of an option that llama-server refuses since it is gone, before what to use instead. */
const REMOVED = 'the argument has been removed.';

/** The known key that was most likely meant by an unknown one. */
export type SuggestKey = (key: string) => string | undefined;

/** Reads a section by the rules of llama-server (common/preset.cpp, `load_from_ini`). */
export function readSection(block: PresetBlock, table: OptionTable, suggest: SuggestKey): SectionReading {
  const faults = [...block.faults];
  const warnings = [...block.warnings];
  const values = new Map<Option, string>();
  const origins = new Map<Option, PresetEntry>();
  const body = parseBody(block.entries);
  const lines = new Map(block.entries.map(({ key, line }) => [key, line]));
  const unknown = new Map<string, string>();

  // Of several spellings of one option the native router keeps the one that sorts last, whatever their order.
  for (const [key, line] of [...lines].sort(([a], [b]) => compareBytewise(a, b))) {
    const value = body.get(key) ?? '';
    const spelling = table.findKey(key);
    if (key === VERSION_KEY) {
      if (block.name === DEFAULT_SECTION) continue;
      warnings.push({ line, message: `'version' means nothing in a section; write it before the first one` });
    } else if (spelling === undefined) {
      unknown.set(key, unknownOption(key, suggest(key)));
    } else if (spelling.option.description.startsWith(REMOVED)) {
      faults.push({ line, message: removedOption(key, spelling.option) });
    } else if (spelling.option.valueCount === 2 && value.split(/[ \t]+/).length !== 2) {
      faults.push({ line, message: `'${key}' takes two values with a blank between them, not '${value}'` });
    } else if (isReserved(spelling.option.key)) {
      warnings.push({ line, message: `'${key}' is the router's own and is ignored here` });
    } else {
      values.set(spelling.option, spelling.negated ? negate(value) : value);
      origins.set(spelling.option, { key, value, line });
      warnings.push(...valueWarnings(key, value, spelling.option).map((message) => ({ line, message })));
    }
  }
  for (const entry of block.entries) {
    const message = unknown.get(entry.key);
    if (message !== undefined) faults.push({ line: entry.line, message });
  }
  const { name: written, line } = block;
  const name = canonicalName(written);
  const notes = [...warnings, ...overridden(block.entries, origins, table)];
  return { written, name, line, values, origins, faults, warnings: notes };
}

/** One prefix is in front of all routes, ours and the children's: a child with another would not be found. */
function isReserved(key: string): boolean {
  return RESERVED_IN_PRESETS.has(key) || key === 'api-prefix';
}

/** `user/repo:ud-q4_k_xl` is `user/repo:Q4_K_XL`: what follows the last colon is a quantisation tag. */
function canonicalName(name: string): string {
  const colon = name.lastIndexOf(':');
  return colon === -1 ? name : name.slice(0, colon + 1) + canonicalTag(name.slice(colon + 1));
}

function unknownOption(key: string, nearest: string | undefined): string {
  return `unknown option '${key}'${nearest === undefined ? '' : `, did you mean '${nearest.replace(/^-+/, '')}'?`}`;
}

function removedOption(key: string, { description }: Option): string {
  const advice = description.slice(REMOVED.length).trim().replaceAll('--', '');
  return `'${key}' has been removed from llama-server${advice === '' ? '' : `: ${advice}`}`;
}

/** A negative spelling says the opposite; like the native router, only a truthy text counts as "yes". */
function negate(value: string): string {
  return isTruthy(value) ? 'false' : 'true';
}

function valueWarnings(key: string, value: string, option: Option): string[] {
  if (option.key === 'stop-timeout') {
    const warning = stopTimeoutWarning(value);
    return warning === undefined ? [] : [`'${key} = ${value}' ${warning}`];
  }
  const isSwitch = option.valueCount === 0;
  if (!isSwitch && !option.presetOnly) return [];

  const warnings = [];
  // An argument without a value is given unless it is denied; a key of the router counts only if it is affirmed.
  const isOn = isSwitch ? !isFalsey(value) : isTruthy(value);
  if (!isTruthy(value) && !isFalsey(value)) {
    const meaning = isOn ? 'on' : 'off';
    warnings.push(`'${value}' is neither true nor false; '${option.key}' is taken to be ${meaning}`);
  }
  if (key === negatedEnv(option)) {
    const [meaning, opposite] = isOn ? ['on', 'false'] : ['off', 'true'];
    warnings.push(
      `'${key}' does not negate in a presets file: it turns '${option.key}' ${meaning}; ` +
        `write '${option.key} = ${opposite}' for the opposite`,
    );
  }
  return warnings;
}

/** One note for each line whose value another line of the same section replaces. */
function overridden(
  entries: readonly PresetEntry[],
  origins: ReadonlyMap<Option, PresetEntry>,
  table: OptionTable,
): LineNote[] {
  return entries.flatMap(({ key, line }) => {
    const option = table.findKey(key)?.option;
    const winner = option === undefined ? undefined : origins.get(option);
    if (winner === undefined || winner.line === line) return [];
    const why = winner.line < line ? ', and of several spellings the one that sorts last counts' : '';
    const message = `'${key}' has no effect: '${winner.key}' in line ${winner.line} sets the same option${why}`;
    return [{ line, message }];
  });
}
