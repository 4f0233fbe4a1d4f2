import { userInfo } from 'node:os';
import type { OptionTable, OptionValues } from '../config/option-table.js';
import { buildCatalog, createCatalog, type Catalog } from './catalog.js';
import { failureCode } from './disk/directory.js';
import { flatCacheDirectories, scanFlatCache, type FlatCache } from './disk/flat-cache.js';
import { GgufChecks, type GgufCheck } from './gguf/gguf-file.js';
import { HubCache, hubCacheDirectory, scanHubCache } from './disk/hub-cache.js';
import { isEmptied, keepLastGood, unreadablePreset } from './presets/last-good-preset.js';
import type { Model } from './model.js';
import { scanModelsDir, type ModelsDir } from './disk/models-dir.js';
import { optionReader, type OptionReader } from './option-reader.js';
import { mergePresets, parsePreset, readPresetBytes, type Preset } from './presets/preset-file.js';

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

/**
 * Finds all models, again and again. What was good before goes before what is broken now: a presets section that
 * can not be read keeps its last good form, and so does a directory that fails for a moment.
 */
export class Discovery {
  readonly #options: DiscoveryOptions;
  readonly #read: OptionReader;
  readonly #checks = new GgufChecks();
  readonly #presets = new Map<string, Preset>();
  readonly #modelsDirs = new Map<string, ModelsDir>();

  constructor(options: DiscoveryOptions) {
    this.#options = options;
    this.#read = optionReader(options.table);
  }

  /** The directories of the caches, whether they exist or not. */
  get cacheDirectories(): { readonly hub: string | undefined; readonly flat: readonly string[] } {
    const { env } = this.#options;
    const home = passwdHome();
    return { hub: hubCacheDirectory(env, home), flat: flatCacheDirectories(env, home) };
  }

  /**
   * Finds all models and checks their files. A model that can not be served is in the catalog with its problem.
   * Rejects, with a message for the user, only if a models directory or a presets file cannot be read at all and
   * never could; afterwards that is a warning.
   */
  async scan(): Promise<Catalog> {
    const { modelsDirs, presetFiles, base, table, linksDirectory } = this.#options;
    const { hub, flat } = this.cacheDirectories;
    const [cache, flatCaches, dirs, presets] = await Promise.all([
      readHubCache(hub),
      Promise.all(flat.map((directory) => scanFlatCache(directory, { linksDirectory }))),
      Promise.all(modelsDirs.map((directory) => this.#scanModelsDir(directory))),
      Promise.all(presetFiles.map((file) => this.#readPreset(file))),
    ]);
    const preset = mergePresets(presets);
    const sources = { cache, flatCaches: flatCaches satisfies FlatCache[], modelsDirs: dirs };
    const { models, warnings } = buildCatalog({ ...sources, preset, base, table });

    const companions = models.map((model) => this.#companionsOf(model));
    const checked = await this.#checks.checkAll([
      ...models.flatMap(({ file }) => file ?? []),
      ...companions.flat(),
    ]);
    const withChecks = models.map((model, index): Model => {
      const files = [model.file, ...(companions[index] ?? [])].filter((file) => file !== undefined);
      const checks = files.map((file) => checked.get(file)).filter((check) => check !== undefined);
      return {
        ...model,
        version: versionOf(checks),
        problem: model.problem ?? checks.find(({ problem }) => problem !== undefined)?.problem,
      };
    });
    return createCatalog(withChecks, warnings);
  }

  async #scanModelsDir(directory: string): Promise<ModelsDir> {
    const earlier = this.#modelsDirs.get(directory);
    const { linksDirectory } = this.#options;
    try {
      const found = await scanModelsDir(directory, { linksDirectory });
      this.#modelsDirs.set(directory, found);
      return found;
    } catch (error) {
      if (earlier === undefined) throw error;
      const isGone = failureCode((error as Error).cause) === 'ENOENT';
      return { models: isGone ? [] : earlier.models, warnings: [messageOf(error)] };
    }
  }

  async #readPreset(file: string): Promise<Preset> {
    const earlier = this.#presets.get(file);
    let preset;
    try {
      const bytes = await readPresetBytes(file);
      const next = parsePreset(bytes, file, this.#options.table);
      if (earlier === undefined) preset = next;
      else if (isEmptied(earlier, bytes)) preset = unreadablePreset(earlier, `'${file}' is empty`);
      else preset = keepLastGood(earlier, next);
    } catch (error) {
      if (earlier === undefined) throw error;
      preset = unreadablePreset(earlier, messageOf(error));
    }
    this.#presets.set(file, preset);
    return preset;
  }

  /** The files a child loads besides its model. */
  #companionsOf({ options, mmproj }: Model): string[] {
    const named = (name: string): string | undefined => this.#read.get(options, name);
    // Of a draft's repository it names a file in there; with a URL, where to put what is downloaded.
    const draft = named('hf-repo-draft') === undefined ? named('model-draft') : undefined;
    const projector = named('mmproj-url') === undefined ? mmproj : undefined;
    return [projector, draft].filter((file) => file !== undefined);
  }
}

/** Finds all models once (`Discovery.scan`). */
export async function discoverCatalog(options: DiscoveryOptions): Promise<Catalog> {
  return await new Discovery(options).scan();
}

function versionOf(checks: readonly GgufCheck[]): string | undefined {
  const versions = checks.flatMap(({ version }) => version ?? []);
  return versions.length === 0 ? undefined : versions.join(' ');
}

async function readHubCache(directory: string | undefined): Promise<HubCache> {
  if (directory !== undefined) return await scanHubCache(directory);
  return new HubCache([], ['no model cache: neither HOME nor the user database names a home directory']);
}

/** The home directory of the user database; a container's arbitrary user may have none. */
function passwdHome(): string | undefined {
  try {
    return userInfo().homedir;
  } catch {
    return undefined;
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
