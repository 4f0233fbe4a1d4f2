import { userInfo } from 'node:os';
import type { OptionTable, OptionValues } from '../config/option-table.js';
import { buildCatalog, createCatalog, type Catalog } from './catalog.js';
import { modelFileProblems } from './gguf-file.js';
import { HubCache, hubCacheDirectory, scanHubCache } from './hub-cache.js';
import { scanModelsDir } from './models-dir.js';
import { mergePresets, readPreset } from './preset-file.js';

export interface DiscoveryOptions {
  /** Says where the hub cache is. */
  readonly env: NodeJS.ProcessEnv;
  /** Relative paths, here and in presets, are relative to the working directory and stay so. */
  readonly modelsDirs: readonly string[];
  /** Of what two say of one model the later file's word counts. */
  readonly presetFiles: readonly string[];
  /** The options of the command line that all models inherit, without what names one single model. */
  readonly base: OptionValues;
  readonly table: OptionTable;
}

/**
 * Finds all models and checks their files. A model that can not be served is in the catalog with its problem.
 * Rejects, with a message for the user, only if a models directory or the presets file cannot be read at all.
 */
export async function discoverCatalog(options: DiscoveryOptions): Promise<Catalog> {
  const { env, modelsDirs, presetFiles, base, table } = options;
  const [cache, dirs, presets] = await Promise.all([
    readCache(env),
    Promise.all(modelsDirs.map((directory) => scanModelsDir(directory))),
    Promise.all(presetFiles.map((file) => readPreset(file, table))),
  ]);
  const { models, warnings } = buildCatalog({
    cache,
    modelsDirs: dirs,
    preset: mergePresets(presets),
    base,
    table,
  });

  const fileProblems = await modelFileProblems(models.flatMap(({ file }) => file ?? []));
  const checked = models.map((model) => {
    const problem = model.file === undefined ? undefined : fileProblems.get(model.file);
    return problem === undefined || model.problem !== undefined ? model : { ...model, problem };
  });
  return createCatalog(checked, warnings);
}

async function readCache(env: NodeJS.ProcessEnv): Promise<HubCache> {
  const directory = hubCacheDirectory(env, passwdHome());
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
