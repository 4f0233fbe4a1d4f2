import { isTruthy, type Option, type OptionTable, type OptionValues } from '../config/option-table.js';
import { withoutKeys } from '../config/render-options.js';
import { compareBytewise } from './bytewise.js';
import type { HubCache } from './hub-cache.js';
import type { Model, ModelSource } from './model.js';
import type { ModelsDir } from './models-dir.js';
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

/** Options of which a child needs one that is not empty, or it would start as a router itself. */
const MODEL_GIVING = ['model', 'hf-repo', 'model-url', 'docker-repo'] as const;

/** Options like `--fim-qwen-7b-spec` or `--gpt-oss-20b-default`, each of which stands for a repository. */
function isModelShortcut(option: Option): boolean {
  return option.valueCount === 0 && /^fim-|-default$/.test(option.key) && option.key !== 'spec-default';
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

/** Looks an option up by any of its names. */
interface OptionReader {
  /** The option; undefined if the binary has none of that name. */
  find(name: string): Option | undefined;
  /** Its value in `values`; undefined if it is absent or empty. */
  get(values: OptionValues, name: string): string | undefined;
}

function optionReader(table: OptionTable): OptionReader {
  const find = (name: string): Option | undefined => table.findKey(name)?.option;
  return {
    find,
    get(values, name) {
      const option = find(name);
      const value = option === undefined ? undefined : values.get(option);
      return value === '' ? undefined : value;
    },
  };
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

interface Origin {
  readonly file?: string;
  readonly offline: boolean;
  readonly problem?: string;
}

/** Where the child will get its model from: a repository goes before a URL, and that before a path. */
function originOf(options: OptionValues, cache: HubCache, read: OptionReader): Origin {
  const hfRepo = read.get(options, 'hf-repo');
  if (hfRepo !== undefined) {
    const found = cache.resolve(hfRepo, read.get(options, 'hf-file'));
    switch (found.kind) {
      case 'file':
        return { file: found.file, offline: !needsNetwork(options, cache, read) };
      case 'unusable':
        return { offline: false, problem: found.problem };
      case 'absent':
        return { offline: false };
    }
  }
  const path = read.get(options, 'model');
  if (read.get(options, 'model-url') !== undefined || read.get(options, 'docker-repo') !== undefined) {
    return { offline: false };
  }
  if (path !== undefined) return { file: path, offline: false };
  if ([...options].some(([option, value]) => isModelShortcut(option) && value !== ''))
    return { offline: false };
  const problem =
    `names no model: give it ${MODEL_GIVING.map((name) => `'${name}'`).join(', ')}, ` +
    'or name it exactly as a model of the cache or of --models-dir';
  return { offline: false, problem };
}

/** Whether something besides the model itself is to be fetched, which `--offline` would forbid. */
function needsNetwork(options: OptionValues, cache: HubCache, read: OptionReader): boolean {
  if (['model-url', 'docker-repo', 'mmproj-url'].some((name) => read.get(options, name) !== undefined))
    return true;
  const draft = read.get(options, 'hf-repo-draft');
  return draft !== undefined && cache.resolve(draft).kind !== 'file';
}

/** A comma list as a sorted list without blanks and repetitions. */
function splitList(text: string | undefined): string[] {
  const items = (text ?? '').split(',').map((item) => item.trim());
  return [...new Set(items.filter((item) => item !== ''))].sort(compareBytewise);
}

/** Gives each alias to one model: an id goes before an alias, and of two aliases the first model's stays. */
function settleAliases(models: readonly Model[], warnings: string[]): Model[] {
  const ids = new Set(models.map(({ id }) => id));
  const owners = new Map<string, string>();
  const losers = new Map<string, string[]>();
  const settled = models.map((model) => {
    const aliases = model.aliases.filter((alias) => {
      if (alias === model.id) return true;
      const owner = ids.has(alias) ? alias : owners.get(alias);
      if (owner === undefined) {
        owners.set(alias, model.id);
        return true;
      }
      losers.set(alias, [...(losers.get(alias) ?? []), model.id]);
      return false;
    });
    return { ...model, aliases };
  });
  for (const [alias, without] of losers) {
    const owner = owners.get(alias);
    const meaning = owner === undefined ? 'is the id of a model' : `belongs to '${owner}'`;
    warnings.push(`alias '${alias}' ${meaning}; it is ignored for ${some(without)}`);
  }
  return settled;
}

/** The first few of a list of names, and how many more there are: an alias in `[*]` reaches every model. */
function some(names: readonly string[]): string {
  const shown = names.slice(0, 3).map((name) => `'${name}'`);
  const more = names.length - shown.length;
  return shown.join(', ') + (more > 0 ? ` and ${more} more` : '');
}
