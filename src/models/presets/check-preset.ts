import { isFalsey, type OptionTable, type OptionValues } from '../../config/option-table.js';
import { printable } from '../../config/printable.js';
import type { Catalog } from '../catalog.js';
import { failureCode } from '../disk/directory.js';
import { discoverCatalog } from '../discover.js';
import { fileProblems } from './option-files.js';
import { optionReader, type OptionReader } from '../option-reader.js';
import { GLOBAL_SECTION, inspectPreset, type PresetNote, type PresetReading } from './preset-reading.js';
import { readPresetsFile } from './preset-file.js';
import type { SectionReading } from './preset-section.js';

/** One thing that is wrong with a presets file. */
export interface PresetFinding {
  /** Counted from 1. */
  readonly line: number;
  /** The model's id, or `*`; null outside of all sections. */
  readonly section: string | null;
  /** What is wrong, and what to do about it. */
  readonly message: string;
}

/**
 * All that is wrong with a presets file. `JSON.stringify` of it is what `config check --json` prints, for programs to
 * read: fields may be added, and none of these goes or changes its meaning.
 */
export interface PresetReport {
  /** As it was given. */
  readonly file: string;
  /** Whether both lists are empty. */
  readonly ok: boolean;
  /** What keeps a model from being served, or a line from being read. In the order of their lines. */
  readonly errors: readonly PresetFinding[];
  /** What is lost, or means something else than it seems to. In the order of their lines. */
  readonly warnings: readonly PresetFinding[];
}

export interface CheckOptions {
  readonly file: string;
  /** Sections may name the models of these, and of the caches that `env` says. */
  readonly modelsDirs: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  /** The options of the llama-server that is to run the models. */
  readonly table: OptionTable;
}

/**
 * Checks a presets file as a start would read it. Changes nothing and asks no network, so that it does not know
 * whether what is to be downloaded is there.
 *
 * @throws with a message for the user if the file, or a directory of models, cannot be read
 */
export async function checkPreset({ file, modelsDirs, env, table }: CheckOptions): Promise<PresetReport> {
  const reading = inspectPreset(await readBytes(file), table);
  const read = optionReader(table);
  const [catalog, files] = await Promise.all([
    discoverCatalog({ env, modelsDirs, presetFiles: [file], base: new Map(), table }),
    fileFindings(reading, read),
  ]);
  const errors = [...faultFindings(reading), ...files, ...modelFindings(reading, catalog, read, files)];
  const warnings = [...reading.warnings.map(toFinding), ...aliasFindings(reading, catalog, read)];
  return {
    file,
    ok: errors.length + warnings.length === 0,
    errors: byLine(errors),
    warnings: byLine(warnings),
  };
}

/** The report as text: `FILE:LINE: error: …` for each finding, and a line that sums them up. */
export function renderReport({ file, ok, errors, warnings }: PresetReport): string {
  const say =
    (kind: string) =>
    ({ line, section, message }: PresetFinding) => ({
      line,
      text: `${file}:${line}: ${kind}: ${section === null ? '' : `[${section}] `}${message}`,
    });
  const findings = [...errors.map(say('error')), ...warnings.map(say('warning'))].sort(
    (a, b) => a.line - b.line,
  );
  const summary = ok
    ? 'nothing is wrong'
    : `${count(errors.length, 'error')}, ${count(warnings.length, 'warning')}`;
  return (
    [...findings.map(({ text }) => text), `${file}: ${summary}`]
      // The file's text is quoted in them.
      .map((line) => `${printable(line)}\n`)
      .join('')
  );
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

async function readBytes(file: string): Promise<Uint8Array> {
  try {
    return await readPresetsFile(file);
  } catch (error) {
    const code = failureCode(error);
    const reason = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`;
    throw new Error(`'${file}' ${reason}`, { cause: error });
  }
}

function toFinding({ line, section, message }: PresetNote): PresetFinding {
  return { line, section: section ?? null, message };
}

function byLine(findings: readonly PresetFinding[]): PresetFinding[] {
  return findings.toSorted((a, b) => a.line - b.line);
}

/** `[*]`, where there is one, and the sections of models. */
function allSections({ global, sections }: PresetReading): SectionReading[] {
  return [...(global === undefined ? [] : [global]), ...sections];
}

function faultFindings(reading: PresetReading): PresetFinding[] {
  const own = allSections(reading).flatMap(({ name: section, faults }) =>
    faults.map((fault) => ({ ...fault, section })),
  );
  return [...own, ...reading.strayFaults].map(toFinding);
}

/** Files that options name, at the line that does. */
async function fileFindings(reading: PresetReading, read: OptionReader): Promise<PresetFinding[]> {
  const found = allSections(reading).map(async ({ name: section, line, values, origins }) => {
    const problems = await fileProblems(values, withShared(reading, values), read);
    return problems.map(({ option, message }) => ({
      line: origins.get(option)?.line ?? line,
      section,
      message,
    }));
  });
  return (await Promise.all(found)).flat();
}

function withShared({ global }: PresetReading, values: OptionValues): OptionValues {
  return new Map([...(global?.values ?? []), ...values]);
}

/** What keeps the catalog's models from being served besides what has been found: no model, or a bad one. */
function modelFindings(
  { sections }: PresetReading,
  catalog: Catalog,
  read: OptionReader,
  found: readonly PresetFinding[],
): PresetFinding[] {
  // Of a section with faults nothing more is said: the line at fault may be the one that names its model.
  return sections
    .filter(({ faults }) => faults.length === 0)
    .flatMap((section) => {
      const model = catalog.resolve(section.name);
      const problem = model?.problem ?? (model && offlineProblem(model.options, model.file, read));
      if (problem === undefined || found.some(({ message }) => message.includes(problem))) return [];
      const origin = ['hf-repo', 'model']
        .map((name) => read.find(name))
        .flatMap((option) => (option && section.origins.get(option)) ?? [])[0];
      return [{ line: origin?.line ?? section.line, section: section.name, message: problem }];
    });
}

function offlineProblem(
  options: OptionValues,
  file: string | undefined,
  read: OptionReader,
): string | undefined {
  const repo = read.get(options, 'hf-repo');
  const offline = read.find('offline');
  const isOffline = offline !== undefined && options.has(offline) && !isFalsey(options.get(offline) ?? '');
  if (repo === undefined || file !== undefined || !isOffline) return undefined;
  return `'${repo}' is not in the cache, and 'offline' keeps it from being downloaded; download it before, or leave 'offline' out`;
}

/** Names that the file gives to a model and that another one has. */
function aliasFindings(reading: PresetReading, catalog: Catalog, read: OptionReader): PresetFinding[] {
  const option = read.find('alias');
  return allSections(reading).flatMap(({ name: section, origins }) => {
    const origin = option && origins.get(option);
    if (origin === undefined) return [];
    const model = catalog.resolve(section);
    const aliases = new Set(origin.value.split(',').map((alias) => alias.trim()));
    return [...aliases].flatMap((alias) => {
      const owner = catalog.resolve(alias);
      if (owner === undefined) return [];
      const isFree =
        section === GLOBAL_SECTION ? catalog.models.length === 1 : model?.aliases.includes(alias);
      if (isFree) return [];
      const meaning = owner.id === alias ? 'is the id of a model' : `belongs to '${owner.id}'`;
      const where = section === GLOBAL_SECTION ? 'all others' : `'${section}'`;
      return [
        {
          line: origin.line,
          section,
          message: `alias '${alias}' ${meaning} and is ignored for ${where}; choose another`,
        },
      ];
    });
  });
}
