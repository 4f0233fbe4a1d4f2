import type { OptionTable } from '../../config/option-table.js';
import { compareBytewise } from '../bytewise.js';
import { DEFAULT_SECTION, readPresetLines, type LineNote } from './preset-lines.js';
import { readSection, type SectionReading, type SuggestKey } from './preset-section.js';

/** One thing to say about a presets file. */
export interface PresetNote extends LineNote {
  /** The model's id, or `*`; undefined outside of all sections. */
  readonly section: string | undefined;
}

/** A presets file taken apart, with all that is to be said about it. */
export interface PresetReading {
  /** The sections that make a model, one for each, in the order of the file; their faults are the model's. */
  readonly sections: readonly SectionReading[];
  /** The section of what all models share. */
  readonly global: SectionReading | undefined;
  /** Faults that cost no model: before the first header, below one without a name, in a section that is replaced. */
  readonly strayFaults: readonly PresetNote[];
  /** What is lost, or means something else than it seems to, anywhere in the file. */
  readonly warnings: readonly PresetNote[];
}

const maxSuggestions = 300;

/** The name of the section that is no model. */
export const GLOBAL_SECTION = '*';

/** Takes the bytes of a presets file apart. Never throws: what is wrong is in the result. */
export function inspectPreset(bytes: Uint8Array, table: OptionTable): PresetReading {
  const suggest = suggestions(table);
  const readings = readPresetLines(bytes).blocks.map((block) => readSection(block, table, suggest));
  const [preamble] = readings;
  const warnings: PresetNote[] = [];
  const used = settleNames(readings, warnings);
  const global = used.find(({ name }) => name === GLOBAL_SECTION);
  const sections = used
    .filter((reading) => reading !== global && makesModel(reading))
    .sort((a, b) => a.line - b.line);
  const owners = new Set([global, ...sections]);

  const strayFaults: PresetNote[] = [];
  for (const reading of readings) {
    const isNobodys = reading.written === '' || (reading === preamble && !owners.has(reading));
    const section = isNobodys ? undefined : reading.name;
    // One by one: there may be more of them than a call can have arguments.
    for (const note of reading.warnings) warnings.push({ ...note, section });
    if (owners.has(reading)) continue;
    for (const note of reading.faults) strayFaults.push({ ...note, section });
  }
  for (const reading of sections) {
    const messages = nameWarnings(reading, reading === preamble);
    warnings.push(...messages.map((message) => ({ line: reading.line, section: reading.name, message })));
  }
  return { sections, global, strayFaults, warnings };
}

/**
 * Looks for what was meant by a key once, whatever the number of sections that have it, and of the first few hundred
 * only: to compare one with all options takes a millisecond, and a file of other contents has any number of them.
 */
function suggestions(table: OptionTable): SuggestKey {
  const found = new Map<string, string | undefined>();
  return (key) => {
    if (!found.has(key) && found.size < maxSuggestions) found.set(key, table.nearest(key));
    return found.get(key);
  };
}

/** Any name makes a model, and `default` only with an option in it. */
function makesModel({ name, values }: SectionReading): boolean {
  return name !== DEFAULT_SECTION || values.size > 0;
}

/**
 * The one section that counts for each model, in no order: of those with the same header the last, of headers that
 * spell one id differently the one that sorts last, as in the native router.
 */
function settleNames(readings: readonly SectionReading[], warnings: PresetNote[]): SectionReading[] {
  const [preamble] = readings;
  const byHeader = new Map<string, SectionReading>();
  for (const reading of readings) {
    const { written, name: section, line } = reading;
    if (written === '') continue;
    const earlier = byHeader.get(written);
    if (earlier !== undefined && earlier !== preamble) {
      const message = `section '${written}' is repeated and replaces the one in line ${earlier.line}`;
      warnings.push({ line, section, message });
    } else if (earlier !== undefined && earlier.values.size > 0) {
      const message = `section '${written}' replaces what stands before the first section`;
      warnings.push({ line, section, message });
    }
    byHeader.set(written, reading);
  }

  const byName = new Map<string, SectionReading>();
  for (const reading of [...byHeader.values()].sort((a, b) => compareBytewise(a.written, b.written))) {
    const loser = byName.get(reading.name);
    if (loser !== undefined) {
      const message =
        `section '${loser.written}' has no effect: '${reading.written}' in line ${reading.line} is the same model, ` +
        'and of several spellings the one that sorts last counts';
      warnings.push({ line: loser.line, section: loser.name, message });
    }
    byName.set(reading.name, reading);
  }
  return [...byName.values()];
}

/** What a model's id has become that its author may not expect. */
function nameWarnings({ written, name }: SectionReading, isPreamble: boolean): string[] {
  if (isPreamble) {
    return [
      `what stands before the first section makes a model called '${name}'; move what all models share below ` +
        `'[${GLOBAL_SECTION}]', and the rest below its model`,
    ];
  }
  const warnings = [];
  if (name === DEFAULT_SECTION) {
    warnings.push(
      `section '${name}' is a model, and gives nothing to the others; what all models share stands below ` +
        `'[${GLOBAL_SECTION}]', and a model gets this name without a warning by 'alias = ${name}'`,
    );
  }
  if (name !== written) {
    warnings.push(
      `section '${written}' is the model '${name}', because what follows the last colon is a quantisation tag; ` +
        `write '[${name}]', and 'alias = ${written}' if requests name it so`,
    );
  }
  if (/[ \t]$/.test(written)) {
    warnings.push(`the name of section '${name}' ends in a blank; write '[${name.trim()}]'`);
  }
  return warnings;
}
