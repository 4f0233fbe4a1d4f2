import { stat } from 'node:fs/promises';
import type { OptionTable, OptionValues } from '../config/option-table.js';
import { withoutKeys } from '../config/render-options.js';
import { boundedMap } from './bounded-map.js';
import { buildCatalog, createCatalog, type Catalog } from './catalog.js';
import { failureCode, isGone } from './disk/directory.js';
import { flatCacheDirectories, scanFlatCache, type FlatCache } from './disk/flat-cache.js';
import { GgufChecks, type GgufCheck } from './gguf/gguf-file.js';
import { HubCache, hubCacheDirectory, passwdHome, scanHubCache } from './disk/hub-cache.js';
import { LastReadings } from './disk/last-readings.js';
import { isEmptied, keepLastGood, unreadablePreset } from './presets/last-good-preset.js';
import type { Model } from './model.js';
import { scanModelsDir, type ModelsDir } from './disk/models-dir.js';
import { optionReader, type OptionReader } from './option-reader.js';
import { fileProblems } from './presets/option-files.js';
import {
  mergePresets,
  parsePreset,
  presetFileError,
  readPreset,
  readPresetBytes,
  type Preset,
} from './presets/preset-file.js';
import { Source } from './source.js';

export interface DiscoveryOptions {
  /** Says where the caches are. */
  readonly env: NodeJS.ProcessEnv;
  /** Relative paths, here and in presets, are relative to the working directory and stay so. */
  readonly modelsDirs: readonly string[];
  /** Of what two say of one model the later file's word counts. */
  readonly presetFiles: readonly string[];
  /** The options of the command line that all models inherit, without what names one single model. */
  readonly base: OptionValues;
  readonly table: OptionTable;
  /** Where links to files whose names no argument can hold are made; without it such files are not listed. */
  readonly linksDirectory?: string | undefined;
}

/** How long a directory or file may take to answer; even a slow disk has told what is in it by then. */
const patienceMs = 30_000;
/** A presets file that was changed within this time may be half of what it is to be. */
const settlesAfterMs = 1_000;
/** What was silent, or changed too lately, is looked at again after this. */
const lookAgainMs = { silent: 5_000, unsettled: settlesAfterMs } as const;

/** What is known of the models' files. */
interface FileFindings {
  /** By path. */
  readonly checks: ReadonlyMap<string, GgufCheck>;
  /** What is wrong with the other files that a model's options name, by its id. */
  readonly faults: ReadonlyMap<string, string>;
}

const NOTHING_FOUND: FileFindings = { checks: new Map(), faults: new Map() };
/** Keys of the options whose files are checked with the model's own. */
const CHECKED_KEYS: ReadonlySet<string> = new Set(['model', 'mmproj', 'model-draft']);
const maxModelsChecked = 16;

export interface ScanOptions {
  /** Whether a presets file that was changed just now may wait for the next scan; not if somebody asked for this one. */
  readonly patient: boolean;
}

/** What a scan found. */
export interface Scan {
  readonly catalog: Catalog;
  /** When to look again, because something has not answered or is not finished; undefined if all is said. */
  readonly againMs: number | undefined;
}

/**
 * Finds all models, again and again. What was good before goes before what is broken now: a presets section that
 * can not be read keeps its last good form, and so does a directory that fails or is silent for a moment.
 */
export class Discovery {
  /** The directories of the caches, whether they exist or not. */
  readonly cacheDirectories: { readonly hub: string | undefined; readonly flat: readonly string[] };
  readonly #options: DiscoveryOptions;
  readonly #read: OptionReader;
  readonly #hub: Source<HubCache>;
  readonly #flat: readonly Source<FlatCache>[];
  readonly #modelsDirs: readonly Source<ModelsDir>[];
  readonly #presets: readonly Source<Preset>[];
  readonly #checks = new GgufChecks();
  readonly #files: Source<FileFindings>;
  #toCheck: readonly Model[] = [];
  #isPatient = false;
  #isUnsettled = false;

  constructor(options: DiscoveryOptions) {
    const { env, modelsDirs, presetFiles, table, linksDirectory } = options;
    const home = passwdHome();
    this.cacheDirectories = { hub: hubCacheDirectory(env, home), flat: flatCacheDirectories(env, home) };
    this.#options = options;
    this.#read = optionReader(table);
    const { hub, flat } = this.cacheDirectories;
    const hubReadings = new LastReadings();
    this.#hub = new Source(() => readHubCache(hub, hubReadings), patienceMs);
    this.#flat = flat.map((directory) => {
      const readings = new LastReadings();
      return new Source(() => scanFlatCache(directory, { linksDirectory, readings }), patienceMs);
    });
    this.#modelsDirs = modelsDirs.map((directory) => {
      const readings = new LastReadings();
      const scan = () => scanModelsDir(directory, { linksDirectory, readings });
      return new Source((previous) => readModelsDir(scan, previous), patienceMs);
    });
    this.#presets = presetFiles.map(
      (file) => new Source((previous) => this.#readPreset(file, previous), patienceMs),
    );
    this.#files = new Source(() => this.#checkFiles(this.#toCheck), patienceMs);
  }

  /**
   * Finds all models and checks their files. A model that can not be served is in the catalog with its problem.
   * Rejects, with a message for the user, only if a models directory or a presets file cannot be read at all and
   * never could; afterwards that is a warning. One scan at a time.
   */
  async scan({ patient }: ScanOptions = { patient: false }): Promise<Scan> {
    const { modelsDirs, presetFiles, base, table } = this.#options;
    this.#isPatient = patient;
    this.#isUnsettled = false;
    const silent: string[] = [];
    const read = async <T>(name: string, source: Source<T>, empty: T | undefined): Promise<T> => {
      const { value = empty, late } = await source.read();
      if (late) silent.push(`'${name}' does not answer; what it held last is used`);
      if (value === undefined) throw new Error(`'${name}' does not answer within ${patienceMs / 1000} s`);
      return value;
    };
    const { hub = '', flat } = this.cacheDirectories;
    const nothing = { models: [], warnings: [] };
    const [cache, flatCaches, dirs, presets] = await Promise.all([
      read(hub, this.#hub, new HubCache([], [])),
      Promise.all(this.#flat.map((source, at) => read(flat[at] ?? '', source, nothing))),
      Promise.all(this.#modelsDirs.map((source, at) => read(modelsDirs[at] ?? '', source, undefined))),
      Promise.all(this.#presets.map((source, at) => read(presetFiles[at] ?? '', source, undefined))),
    ]);
    const preset = mergePresets(presets);
    const { models, warnings } = buildCatalog({ cache, flatCaches, modelsDirs: dirs, preset, base, table });

    this.#toCheck = models;
    const { checks, faults } = await read('the files of the models', this.#files, NOTHING_FOUND);
    const withChecks = models.map((model): Model => {
      const found = this.#filesOf(model).flatMap((file) => checks.get(file) ?? []);
      return {
        ...model,
        version: versionOf(found),
        problem:
          model.problem ??
          found.find(({ problem }) => problem !== undefined)?.problem ??
          faults.get(model.id),
      };
    });
    return {
      catalog: createCatalog(withChecks, [...warnings, ...silent]),
      againMs: this.#againMs(silent.length > 0),
    };
  }

  #againMs(isSilent: boolean): number | undefined {
    if (this.#isUnsettled) return lookAgainMs.unsettled;
    return isSilent ? lookAgainMs.silent : undefined;
  }

  async #readPreset(file: string, earlier: Preset | undefined): Promise<Preset> {
    const { table } = this.#options;
    if (earlier === undefined) return await readPreset(file, table);
    try {
      const stats = await stat(file);
      // A pipe, as a shell's <(...) is one, gives its text once.
      if (!stats.isFile() && !stats.isDirectory()) return earlier;
      if (this.#isPatient && Math.abs(Date.now() - stats.mtimeMs) < settlesAfterMs) {
        this.#isUnsettled = true;
        return earlier;
      }
      const bytes = await readPresetBytes(file);
      if (isEmptied(earlier, bytes)) return unreadablePreset(earlier, `'${file}' is empty`);
      return keepLastGood(earlier, parsePreset(bytes, file, table));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === undefined) return unreadablePreset(earlier, messageOf(error));
      return unreadablePreset(earlier, messageOf(presetFileError(file, error)));
    }
  }

  /** Checks what the models load: the GGUF files by their headers, and what else their options name. */
  async #checkFiles(models: readonly Model[]): Promise<FileFindings> {
    const faults = new Map<string, string>();
    const [checks] = await Promise.all([
      this.#checks.checkAll(models.flatMap((model) => this.#filesOf(model))),
      boundedMap(models, maxModelsChecked, async ({ id, options }) => {
        const [fault] = await fileProblems(withoutKeys(options, CHECKED_KEYS), options, this.#read);
        if (fault !== undefined) faults.set(id, fault.message);
      }),
    ]);
    return { checks, faults };
  }

  /** The GGUF files of a model: its own, and those its child loads besides. */
  #filesOf({ file, mmproj, draft, options }: Model): string[] {
    // With a URL it names where to put what is downloaded.
    const projector = this.#read.get(options, 'mmproj-url') === undefined ? mmproj : undefined;
    return [file, projector, draft].filter((path) => path !== undefined);
  }
}

/** Finds all models once (`Discovery.scan`). */
export async function discoverCatalog(options: DiscoveryOptions): Promise<Catalog> {
  const { catalog } = await new Discovery(options).scan();
  return catalog;
}

function versionOf(checks: readonly GgufCheck[]): string | undefined {
  const versions = checks.flatMap(({ version }) => version ?? []);
  return versions.length === 0 ? undefined : versions.join(' ');
}

/** A directory that is gone has no models; one that fails has those it had. */
async function readModelsDir(
  scan: () => Promise<ModelsDir>,
  previous: ModelsDir | undefined,
): Promise<ModelsDir> {
  try {
    return await scan();
  } catch (error) {
    if (previous === undefined) throw error;
    const models = isGone(failureCode((error as Error).cause)) ? [] : previous.models;
    return { models, warnings: [messageOf(error)] };
  }
}

async function readHubCache(directory: string | undefined, readings: LastReadings): Promise<HubCache> {
  if (directory !== undefined) return await scanHubCache(directory, { readings });
  return new HubCache([], ['no model cache: neither HOME nor the user database names a home directory']);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
