import { readFile } from 'node:fs/promises';
import {
  isFalsey,
  isTruthy,
  type Option,
  type OptionTable,
  type OptionValues,
} from '../config/option-table.js';
import { compareBytewise } from './bytewise.js';
import { failureCode } from './directory.js';
import { canonicalTag } from './gguf-name.js';
import { parseBody } from './preset-body.js';
import { readPresetLines, type LineNote, type PresetBlock, type PresetEntry } from './preset-lines.js';
import { RESERVED_IN_PRESETS } from './reserved-keys.js';
import { isStopTimeout } from './stop-timeout.js';

/** What one section says about one model. */
export interface PresetSection {
  /** The model's id, its tag in canonical form. */
  readonly name: string;
  readonly values: OptionValues;
  /** The line of its header, counted from 1. */
  readonly line: number;
  /** Why the model can not be served, each with file and line; empty if nothing is wrong. */
  readonly problems: readonly string[];
}

export interface Preset {
  readonly sections: readonly PresetSection[];
  /** What `[*]` gives to all models. */
  readonly global: OptionValues;
  readonly warnings: readonly string[];
}

const GLOBAL = '*';
const DEFAULT = 'default';
/** Reserved by llama-server for a version of the format; means nothing yet. */
const VERSION_KEY = 'version';

/** Reads and parses the presets file at `path`; rejects with a message for the user if it cannot be read. */
export async function readPreset(path: string, table: OptionTable): Promise<Preset> {
  let bytes;
  try {
    bytes = await readFile(path);
  } catch (error) {
    const code = failureCode(error);
    const reason = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`;
    throw new Error(`--models-preset '${path}' ${reason}`, { cause: error });
  }
  return parsePreset(bytes, path, table);
}

/** Several presets as one: a later section replaces an earlier one of its name, `[*]` values add up. */
export function mergePresets(presets: readonly Preset[]): Preset {
  const sections = presets.flatMap((preset) =>
    preset.sections.map((section) => [section.name, section] as const),
  );
  return {
    sections: [...new Map(sections).values()],
    global: new Map(presets.flatMap((preset) => [...preset.global])),
    warnings: presets.flatMap((preset) => preset.warnings),
  };
}

/**
 * Parses a presets file by llama-server's grammar (common/preset.cpp), except that a fault costs the section it
 * stands in and not the file. `path` is for the messages only.
 */
export function parsePreset(bytes: Uint8Array, path: string, table: OptionTable): Preset {
  const { blocks, warnings: lineWarnings } = readPresetLines(bytes);
  const warnings = [...lineWarnings];
  const sections = new Map<string, Section>();

  for (const block of blocks) {
    const section = readSection(block, table);
    warnings.push(...section.warnings);
    // What stands before the first header makes a model only if it gives one an option.
    const isPreamble = block === blocks[0];
    if (block.name === '' || ((isPreamble || section.name === DEFAULT) && section.values.size === 0)) {
      warnings.push(...section.faults);
      continue;
    }
    const earlier = sections.get(section.name);
    if (earlier !== undefined) {
      const message = `section '${section.name}' is repeated and replaces the one in line ${earlier.line}`;
      warnings.push({ line: block.line, message });
    }
    sections.set(section.name, section);
  }

  // In [*] a fault is nobody's own: it is told and skipped.
  const global = sections.get(GLOBAL);
  warnings.push(...(global?.faults ?? []));
  sections.delete(GLOBAL);

  const say = ({ line, message }: LineNote): string => `${path}:${line}: ${message}`;
  return {
    sections: [...sections.values()].map(({ name, values, line, faults }) => ({
      name,
      values,
      line,
      problems: faults.toSorted((a, b) => a.line - b.line).map(say),
    })),
    global: global?.values ?? new Map(),
    warnings: warnings.toSorted((a, b) => a.line - b.line).map(say),
  };
}

interface Section {
  readonly name: string;
  readonly line: number;
  readonly values: OptionValues;
  readonly faults: readonly LineNote[];
  readonly warnings: readonly LineNote[];
}

function readSection(block: PresetBlock, table: OptionTable): Section {
  const faults = [...block.faults];
  const warnings: LineNote[] = [];
  const values = new Map<Option, string>();
  const winners = new Map<Option, PresetEntry>();
  const body = parseBody(block.entries);
  const lines = new Map(block.entries.map(({ key, line }) => [key, line]));

  // Of several spellings of one option the native router keeps the one that sorts last, whatever their order.
  for (const [key, line] of [...lines].sort(([a], [b]) => compareBytewise(a, b))) {
    if (key === VERSION_KEY) continue;
    const value = body.get(key) ?? '';
    const spelling = table.findKey(key);
    if (spelling === undefined) {
      faults.push({ line, message: unknownOption(key, table) });
    } else if (spelling.option.valueCount === 2 && value.split(/[ \t]+/).length !== 2) {
      faults.push({ line, message: `'${key}' takes two values with a blank between them, not '${value}'` });
    } else if (RESERVED_IN_PRESETS.has(spelling.option.key)) {
      warnings.push({ line, message: `'${key}' is the router's own and is ignored here` });
    } else {
      values.set(spelling.option, spelling.negated ? negate(value) : value);
      winners.set(spelling.option, { key, value, line });
      warnings.push(...valueWarnings(key, value, spelling.option).map((message) => ({ line, message })));
    }
  }
  warnings.push(...overridden(block.entries, winners, table));
  return { name: canonicalName(block.name), line: block.line, values, faults, warnings };
}

/** `user/repo:ud-q4_k_xl` is `user/repo:Q4_K_XL`: what follows the last colon is a quantisation tag. */
function canonicalName(name: string): string {
  const colon = name.lastIndexOf(':');
  return colon === -1 ? name : name.slice(0, colon + 1) + canonicalTag(name.slice(colon + 1));
}

function unknownOption(key: string, table: OptionTable): string {
  const nearest = table.nearest(key)?.replace(/^-+/, '');
  return `unknown option '${key}'${nearest === undefined ? '' : `, did you mean '${nearest}'?`}`;
}

/** A negative spelling says the opposite; like the native router, only a truthy text counts as "yes". */
function negate(value: string): string {
  return isTruthy(value) ? 'false' : 'true';
}

function valueWarnings(key: string, value: string, option: Option): string[] {
  const isBoolean = option.valueCount === 0 || option.key === 'load-on-startup';
  if (isBoolean && !isTruthy(value) && !isFalsey(value)) {
    const meaning = option.valueCount === 0 ? 'on' : 'off';
    return [`'${value}' is neither true nor false; '${option.key}' is taken to be ${meaning}`];
  }
  if (option.key === 'stop-timeout' && !isStopTimeout(value)) {
    return [`'${key} = ${value}' is no number of seconds; the default is used`];
  }
  if (option.key === 'dedup-cache-models' && isTruthy(value)) {
    return [`'${key}' has no effect here: a cached model stays in the list beside this one`];
  }
  return [];
}

/** One note for each line whose value another line of the same section replaces. */
function overridden(
  entries: readonly PresetEntry[],
  winners: ReadonlyMap<Option, PresetEntry>,
  table: OptionTable,
): LineNote[] {
  return entries.flatMap(({ key, line }) => {
    const option = table.findKey(key)?.option;
    const winner = option === undefined ? undefined : winners.get(option);
    if (winner === undefined || winner.line === line) return [];
    return [
      {
        line,
        message: `'${key}' has no effect: '${winner.key}' in line ${winner.line} sets the same option`,
      },
    ];
  });
}
