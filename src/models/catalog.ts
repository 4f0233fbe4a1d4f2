import { isTruthy, type Option, type OptionTable, type OptionValues } from '../config/option-table.js';
import { withoutKeys } from '../config/render-options.js';
import { settleAliases } from './aliases.js';
import { compareBytewise } from './bytewise.js';
import type { FlatCache } from './disk/flat-cache.js';
import type { FlatModel } from './disk/flat-models.js';
import { canonicalTag } from './disk/gguf-name.js';
import type { HubCache } from './disk/hub-cache.js';
import type { Model, ModelSource } from './model.js';
import { draftOf, MODEL_GIVING, originOf, projectorOf } from './model-origin.js';
import type { ModelsDir } from './disk/models-dir.js';
import { optionReader, type OptionReader } from './option-reader.js';
import type { Preset, PresetSection } from './presets/preset-file.js';
import { RESERVED_IN_PRESETS } from './presets/reserved-keys.js';
import { stopTimeoutMs } from './presets/stop-timeout.js';

/** Everything a catalog is made of. */
export interface CatalogSources {
  readonly cache: HubCache;
  /** The caches of earlier llama.cpp versions; what the hub cache holds, too, is taken from there. */
  readonly flatCaches: readonly FlatCache[];
  /** In the order given; of two models with one id the earlier directory's stays. */
  readonly modelsDirs: readonly ModelsDir[];
  readonly preset: Preset;
  /** The options of the command line that all models inherit, without what names one single model. */
  readonly base: OptionValues;
  readonly table: OptionTable;
}

/** The merged, immutable list of models. */
export interface Catalog {
  /** Sorted bytewise by id; hidden ones too. */
  readonly models: readonly Model[];
  /** Those a list shows. */
  readonly listed: readonly Model[];
  readonly warnings: readonly string[];
  /** The model of that id, else the one of that alias; case matters. */
  resolve(name: string): Model | undefined;
}

/**
 * Merges all sources into one catalog. Pure; nothing is fatal. Precedence per option, as in the native router
 * (tools/server/server-models.cpp, `load_models`): command line over section over what a scan found over `[*]`.
 */
export function buildCatalog(sources: CatalogSources): Catalog {
  const scans = [sources.cache, ...sources.flatCaches, ...sources.modelsDirs];
  // A directory that is both caches may be complained of twice.
  const ofScans = new Set(scans.flatMap((scan) => scan.warnings));
  const warnings = [...ofScans, ...sources.preset.warnings];
  const read = optionReader(sources.table);
  const flatModels = byIdAndAlias(sources.flatCaches);
  const found = findModels(sources, read, warnings);
  const sections = new Map(sources.preset.sections.map((section) => [section.name, section]));
  const ids = [...new Set([...found.keys(), ...sections.keys()])].sort(compareBytewise);

  const models = ids.map((id): Model => {
    const discovered = found.get(id);
    const section = sections.get(id);
    const merged = withoutKeys(
      new Map([
        ...sources.preset.global,
        ...(discovered?.options ?? []),
        ...(section === undefined ? [] : [...sources.preset.global, ...section.values]),
        ...sources.base,
      ]),
      RESERVED_IN_PRESETS,
    );
    const options = fromCachedFile(merged, flatModels, sources.cache, read);
    return describe({ id, options, discovered, section }, sources.cache, read);
  });
  const hidden = duplicates(models, sources, read);
  const marked = models.map((model) => (hidden.has(model.id) ? { ...model, hidden: true } : model));
  return createCatalog(settleAliases(marked, warnings), warnings);
}

/** A catalog of `models`, which are sorted and whose aliases do not conflict. */
export function createCatalog(models: readonly Model[], warnings: readonly string[]): Catalog {
  const byId = new Map(models.map((model) => [model.id, model]));
  const byAlias = new Map(models.flatMap((model) => model.aliases.map((alias) => [alias, model])));
  return {
    models,
    listed: models.filter(({ hidden }) => !hidden),
    warnings,
    resolve: (name) => byId.get(name) ?? byAlias.get(name),
  };
}

interface Discovered {
  readonly source: ModelSource;
  readonly options: OptionValues;
  readonly aliases: readonly string[];
  readonly canRemove: boolean;
}

/**
 * The models that scans found, with the options that name their files; models-dir goes before cache, and the hub's
 * layout before the flat one.
 */
function findModels(
  sources: CatalogSources,
  read: OptionReader,
  warnings: string[],
): Map<string, Discovered> {
  const found = new Map<string, Discovered>();
  for (const { id, aliases, isDownload, ...files } of sources.flatCaches.flatMap((cache) => cache.models)) {
    if (found.has(id)) continue;
    found.set(id, { source: 'cache', options: fileOptions(files, read), aliases, canRemove: isDownload });
  }
  for (const { id } of sources.cache.models) {
    const aliases = found.get(id)?.aliases ?? [];
    found.set(id, {
      source: 'cache',
      options: generatedOptions({ 'hf-repo': id }, read),
      aliases,
      canRemove: true,
    });
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
    const options = fileOptions({ file, mmproj, draft }, read);
    found.set(id, { source: 'models_dir', options, aliases: [], canRemove: false });
  }
  return found;
}

interface ModelFiles {
  readonly file: string;
  readonly mmproj: string | undefined;
  readonly draft: string | undefined;
}

function fileOptions({ file, mmproj, draft }: ModelFiles, read: OptionReader): OptionValues {
  return generatedOptions({ model: file, mmproj, 'model-draft': draft }, read);
}

function generatedOptions(values: Record<string, string | undefined>, read: OptionReader): OptionValues {
  return new Map(
    Object.entries(values).flatMap(([name, value]): [Option, string][] => {
      const option = read.find(name);
      return option === undefined || value === undefined ? [] : [[option, value]];
    }),
  );
}

function byIdAndAlias(caches: readonly FlatCache[]): ReadonlyMap<string, FlatModel> {
  const models = caches.flatMap((cache) => cache.models);
  return new Map(
    models.flatMap((model) => [model.id, ...model.aliases].map((name) => [name, model] as const)).reverse(),
  );
}

/**
 * The options, with the file instead of the repository where a child would not find that in the cache and download it
 * again: where only a flat cache holds it, whose layout a child does not know, or an older snapshot than the one that
 * is being downloaded. What goes with the repository's file goes with this one, too.
 */
function fromCachedFile(
  options: OptionValues,
  flatModels: ReadonlyMap<string, FlatModel>,
  cache: HubCache,
  read: OptionReader,
): OptionValues {
  const repo = read.get(options, 'hf-repo');
  if (repo === undefined) return options;
  const files = cachedFiles(repo, read.get(options, 'hf-file'), flatModels, cache);
  if (files === undefined) return options;
  // Of a draft's repository `model-draft` names a file.
  const draft = read.get(options, 'hf-repo-draft') === undefined ? files.draft : undefined;
  const { mmproj } = projectorOf(options, read, files.mmproj);
  return new Map([
    ...fileOptions({ file: files.file, mmproj, draft }, read),
    // A repository goes before all others that say where the model is.
    ...withoutKeys(options, new Set([...MODEL_GIVING, 'hf-file'])),
  ]);
}

/** The files of what a child would not find by itself; undefined of what it finds, and of what is not there. */
function cachedFiles(
  repo: string,
  hfFile: string | undefined,
  flatModels: ReadonlyMap<string, FlatModel>,
  cache: HubCache,
): ModelFiles | undefined {
  const found = cache.resolve(repo, hfFile);
  if (found.kind === 'file') return found.isOutdated ? { ...found, draft: undefined } : undefined;
  if (found.kind === 'absent' && hfFile === undefined) return flatModels.get(withCanonicalTag(repo));
  return undefined;
}

/** `user/repo:q4_0` as `user/repo:Q4_0`, in which form ids are; a child finds either. */
function withCanonicalTag(repo: string): string {
  const [name = '', ...tags] = repo.split(':');
  return tags.length === 0 ? name : `${name}:${canonicalTag(tags.at(-1) ?? '')}`;
}

/**
 * Ids of the cache's models that a section with `dedup-cache-models` serves, too: those that load the file of its
 * repository or of its draft's (tools/server/server-models.cpp, `load_models`).
 */
function duplicates(
  models: readonly Model[],
  { cache, flatCaches }: CatalogSources,
  read: OptionReader,
): ReadonlySet<string> {
  const flatFiles = new Set(flatCaches.flatMap((flat) => flat.models.map(({ file }) => file)));
  const served = new Set<string>();
  for (const { source, options, file } of models) {
    // In `[*]` the key reaches every model, but it speaks of sections: a model of the cache does not hide itself.
    if (source !== 'preset' || !isTruthy(read.get(options, 'dedup-cache-models') ?? '')) continue;
    if (file !== undefined && flatFiles.has(file)) served.add(file);
    for (const [repo, hfFile] of [
      [read.get(options, 'hf-repo'), read.get(options, 'hf-file')],
      [read.get(options, 'hf-repo-draft'), read.get(options, 'model-draft')],
    ]) {
      const found = repo === undefined ? undefined : cache.resolve(repo, hfFile);
      if (found?.kind === 'file') served.add(found.file);
    }
  }
  const hidden = models.filter(
    ({ source, file }) => source === 'cache' && file !== undefined && served.has(file),
  );
  return new Set(hidden.map(({ id }) => id));
}

interface Merged {
  readonly id: string;
  readonly options: OptionValues;
  readonly discovered: Discovered | undefined;
  readonly section: PresetSection | undefined;
}

function describe({ id, options, discovered, section }: Merged, cache: HubCache, read: OptionReader): Model {
  const origin = originOf(options, cache, read);
  const problems = [...(section?.problems ?? [])];
  if (origin.problem !== undefined) problems.push(origin.problem);
  const named = splitList(read.get(options, 'alias'));
  return {
    id,
    aliases: [...new Set([...named, ...(discovered?.aliases ?? [])])].sort(compareBytewise),
    tags: splitList(read.get(options, 'tags')),
    source: section === undefined ? (discovered?.source ?? 'preset') : 'preset',
    // The child's --alias is always the id; what the options say is in `aliases`.
    options: withoutKeys(options, new Set(['alias'])),
    offline: origin.offline,
    file: origin.file,
    mmproj: origin.mmproj,
    draft: draftOf(options, cache, read),
    version: undefined,
    problem: problems.length === 0 ? undefined : problems.join('; '),
    transient: false,
    stale: section?.stale,
    hidden: false,
    canRemove: section === undefined && discovered?.canRemove === true,
    stopTimeoutMs: stopTimeoutMs(read.get(options, 'stop-timeout')),
    loadOnStartup: isTruthy(read.get(options, 'load-on-startup') ?? ''),
  };
}

/** A comma list as a sorted list without blanks and repetitions. */
function splitList(text: string | undefined): string[] {
  const items = (text ?? '').split(',').map((item) => item.trim());
  return [...new Set(items.filter((item) => item !== ''))].sort(compareBytewise);
}
