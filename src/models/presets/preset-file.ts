import { readFile, stat } from 'node:fs/promises';
import type { OptionTable, OptionValues } from '../../config/option-table.js';
import { readPipe } from '../../config/pipe-file.js';
import { failureCode } from '../disk/directory.js';
import type { LineNote } from './preset-lines.js';
import { inspectPreset } from './preset-reading.js';

/** What one section says about one model. */
export interface PresetSection {
  /** The model's id, its tag in canonical form. */
  readonly name: string;
  readonly values: OptionValues;
  /** The line of its header, counted from 1. */
  readonly line: number;
  /** Why the model can not be served, each with file and line; empty if nothing is wrong. */
  readonly problems: readonly string[];
  /** What is wrong with the section as it is on disk, where `values` are those of an earlier, good form of it. */
  readonly stale: string | undefined;
}

export interface Preset {
  readonly sections: readonly PresetSection[];
  /** What `[*]` gives to all models. */
  readonly global: OptionValues;
  /** The faults of `[*]`, each with file and line; the lines at fault are skipped. They are in `warnings`, too. */
  readonly globalProblems: readonly string[];
  /** What is wrong with `[*]` as it is on disk, where `global` is that of an earlier, good form of it. */
  readonly globalStale: string | undefined;
  readonly warnings: readonly string[];
}

/** A hundred thousand models do not fill this; what is larger was not meant. */
const maxPresetBytes = 16 * 1024 * 1024;
/** So many lines at fault are named of one section. */
const maxProblems = 20;

/** Reads and parses the presets file at `path`; rejects with a message for the user if it cannot be read. */
export async function readPreset(path: string, table: OptionTable): Promise<Preset> {
  return parsePreset(await readPresetBytes(path), path, table);
}

/** The presets file at `path`; rejects with a message for the user if it cannot be read. */
export async function readPresetBytes(path: string): Promise<Uint8Array> {
  try {
    return await readPresetsFile(path);
  } catch (error) {
    throw presetFileError(path, error);
  }
}

/** The bytes at `path`, which may be a pipe at a start; rejects with the system's error, or other words on the cause. */
export async function readPresetsFile(path: string): Promise<Uint8Array> {
  const stats = await stat(path);
  if (!stats.isFile() && !stats.isDirectory()) return readPipe(path);
  if (stats.size > maxPresetBytes) throw new Error(`it is over ${maxPresetBytes} bytes`);
  return await readFile(path);
}

/** What the user is told when the system refuses the presets file at `path`. */
export function presetFileError(path: string, cause: unknown): Error {
  const code = failureCode(cause);
  const reason = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`;
  return new Error(`--models-preset '${path}' ${reason}`, { cause });
}

/** Several presets as one: a later section replaces an earlier one of its name, `[*]` values add up. */
export function mergePresets(presets: readonly Preset[]): Preset {
  const sections = presets.flatMap((preset) =>
    preset.sections.map((section) => [section.name, section] as const),
  );
  const stale = presets.flatMap(({ globalStale }) => globalStale ?? []);
  return {
    sections: [...new Map(sections).values()],
    global: new Map(presets.flatMap((preset) => [...preset.global])),
    globalProblems: presets.flatMap((preset) => preset.globalProblems),
    globalStale: stale.length === 0 ? undefined : stale.join('; '),
    warnings: presets.flatMap((preset) => preset.warnings),
  };
}

/**
 * Parses a presets file by llama-server's grammar (common/preset.cpp), except that a fault costs the section it
 * stands in and not the file. `path` is for the messages only.
 */
export function parsePreset(bytes: Uint8Array, path: string, table: OptionTable): Preset {
  const { sections, global, strayFaults, warnings } = inspectPreset(bytes, table);
  const say = (notes: readonly LineNote[]): string[] =>
    notes.toSorted((a, b) => a.line - b.line).map(({ line, message }) => `${path}:${line}: ${message}`);
  const globalFaults = global?.faults ?? [];
  return {
    sections: sections.map(({ name, values, line, faults }) => ({
      name,
      values,
      line,
      problems: shorten(say(faults)),
      stale: undefined,
    })),
    global: global?.values ?? new Map(),
    globalProblems: shorten(say(globalFaults)),
    globalStale: undefined,
    warnings: say([...warnings, ...strayFaults, ...globalFaults]),
  };
}

/** What every refusal of a model repeats has to have an end. */
function shorten(problems: readonly string[]): readonly string[] {
  if (problems.length <= maxProblems) return problems;
  return [...problems.slice(0, maxProblems), `and ${problems.length - maxProblems} more lines are at fault`];
}
