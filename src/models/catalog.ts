import { isTruthy, type Option, type OptionTable, type OptionValues } from '../config/option-table.js';
import { withoutKeys } from '../config/render-options.js';
import { settleAliases } from './aliases.js';
import { compareBytewise } from './bytewise.js';
import type { HubCache } from './hub-cache.js';
import type { Model, ModelSource } from './model.js';
import { originOf } from './model-origin.js';
import type { ModelsDir } from './models-dir.js';
import { optionReader, type OptionReader } from './option-reader.js';
import type { Preset, PresetSection } from './preset-file.js';
import { RESERVED_IN_PRESETS } from './reserved-keys.js';
import { stopTimeoutMs } from './stop-timeout.js';

/** Everything a catalog is made of. */
export interface CatalogSources {
  readonly cache: HubCache;
  /** In the order given; of two models with one id the earlier directory's stays. */
  readonly modelsDirs: readonly ModelsDir[];
  readonly preset: Preset;
  /** The options of the command line that all models inherit, without what names one single model. */
  readonly base: OptionValues;
  readonly table: OptionTable;
}

/** The merged, immutable list of models. */
export interface Catalog {
  /** Sorted bytewise by id. */
  readonly models: readonly Model[];
  readonly warnings: readonly string[];
  /** The model of that id, else the one of that alias; case matters. */
  resolve(name: string): Model | undefined;
}

/**
 * Merges all sources into one catalog. Pure; nothing is fatal. Precedence per option, as in the native router
 * (tools/server/server-models.cpp, `load_models`): command line over section over what a scan found over `[*]`.
 */
export function buildCatalog(sources: CatalogSources): Catalog {
  const warnings = [...sources.cache.warnings, ...sources.modelsDirs.flatMap((dir) => dir.warnings)];
  warnings.push(...sources.preset.warnings);
  const read = optionReader(sources.table);
  const found = findModels(sources, read, warnings);
  const sections = new Map(sources.preset.sections.map((section) => [section.name, section]));
  const ids = [...new Set([...found.keys(), ...sections.keys()])].sort(compareBytewise);

  const models = ids.map((id): Model => {
    const discovered = found.get(id);
    const section = sections.get(id);
    const options = withoutKeys(
      new Map([
        ...sources.preset.global,
        ...(discovered?.options ?? []),
        ...(section === undefined ? [] : [...sources.preset.global, ...section.values]),
        ...sources.base,
      ]),
      RESERVED_IN_PRESETS,
    );
    const source = section === undefined ? (discovered?.source ?? 'preset') : 'preset';
    return describe(id, source, section, options, sources.cache, read);
  });
  return createCatalog(settleAliases(models, warnings), warnings);
}

/** A catalog of `models`, which are sorted and whose aliases do not conflict. */
export function createCatalog(models: readonly Model[], warnings: readonly string[]): Catalog {
  const byId = new Map(models.map((model) => [model.id, model]));
  const byAlias = new Map(models.flatMap((model) => model.aliases.map((alias) => [alias, model])));
  return { models, warnings, resolve: (name) => byId.get(name) ?? byAlias.get(name) };
}

interface Discovered {
  readonly source: ModelSource;
  readonly options: OptionValues;
}

/** The models that scans found, with the options that name their files; models-dir goes before cache. */
function findModels(
  sources: CatalogSources,
  read: OptionReader,
  warnings: string[],
): Map<string, Discovered> {
  const generated = (values: Record<string, string | undefined>): OptionValues =>
    new Map(
      Object.entries(values).flatMap(([name, value]): [Option, string][] => {
        const option = read.find(name);
        return option === undefined || value === undefined ? [] : [[option, value]];
      }),
    );
  const found = new Map<string, Discovered>();
  for (const { id } of sources.cache.models) {
    found.set(id, { source: 'cache', options: generated({ 'hf-repo': id }) });
  }
  const files = new Map<string, string>();
  for (const { id, file, mmproj, draft } of sources.modelsDirs.flatMap((dir) => dir.models)) {
    const earlier = files.get(id);
    if (earlier !== undefined) {
      if (earlier !== file) {
        warnings.push(`'${file}' is not listed: '${earlier}' has the id '${id}' already; rename one of them`);
      }
      continue;
    }
    files.set(id, file);
    found.set(id, {
      source: 'models_dir',
      options: generated({ model: file, mmproj, 'model-draft': draft }),
    });
  }
  return found;
}

function describe(
  id: string,
  source: ModelSource,
  section: PresetSection | undefined,
  options: OptionValues,
  cache: HubCache,
  read: OptionReader,
): Model {
  const origin = originOf(options, cache, read);
  const problems = [...(section?.problems ?? [])];
  if (origin.problem !== undefined) problems.push(origin.problem);
  return {
    id,
    aliases: splitList(read.get(options, 'alias')),
    tags: splitList(read.get(options, 'tags')),
    source,
    // The child's --alias is always the id; what the options say is in `aliases`.
    options: withoutKeys(options, new Set(['alias'])),
    offline: origin.offline,
    file: origin.file,
    problem: problems.length === 0 ? undefined : problems.join('; '),
    canRemove: source === 'cache',
    stopTimeoutMs: stopTimeoutMs(read.get(options, 'stop-timeout')),
    loadOnStartup: isTruthy(read.get(options, 'load-on-startup') ?? ''),
  };
}

/** A comma list as a sorted list without blanks and repetitions. */
function splitList(text: string | undefined): string[] {
  const items = (text ?? '').split(',').map((item) => item.trim());
  return [...new Set(items.filter((item) => item !== ''))].sort(compareBytewise);
}
