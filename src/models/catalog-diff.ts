import type { Catalog } from './catalog.js';
import type { Model } from './model.js';
import { sameLaunch } from './same-launch.js';

/** What is different in a new catalog. */
export interface CatalogDiff {
  readonly added: readonly string[];
  readonly removed: readonly string[];
  /** Models that would be started differently now, or that can be served now and could not; no failed one that stays so. */
  readonly changed: readonly string[];
  /** Models against which something new is known: why they cannot be served, or what is wrong with their section. */
  readonly broken: readonly Model[];
  /** Warnings that the old catalog did not have. */
  readonly warnings: readonly string[];
}

/** Compares two catalogs; every list is in the order of the new one, `removed` in that of the old. */
export function diffCatalogs(before: Catalog, after: Catalog): CatalogDiff {
  const old = new Map(before.models.map((model) => [model.id, model]));
  const now = new Set(after.models.map(({ id }) => id));
  const known = new Set(before.warnings);
  const diff = { added: [] as string[], changed: [] as string[], broken: [] as Model[] };
  for (const model of after.models) {
    const earlier = old.get(model.id);
    // The same object is the common case in a catalog of thousands.
    if (earlier === model) continue;
    if (earlier === undefined) diff.added.push(model.id);
    else if (earlier.problem === undefined ? !sameLaunch(earlier, model) : model.problem === undefined) {
      diff.changed.push(model.id);
    }
    const isStale = model.stale !== undefined && model.stale !== earlier?.stale;
    if (isStale || hasNewProblem(model, earlier)) diff.broken.push(model);
  }
  return {
    ...diff,
    removed: before.models.flatMap(({ id }) => (now.has(id) ? [] : [id])),
    warnings: after.warnings.filter((warning) => !known.has(warning)),
  };
}

/** What a file that is being written lacks is told once, not at each of its steps. */
function hasNewProblem(model: Model, earlier: Model | undefined): boolean {
  if (model.problem === undefined || model.problem === earlier?.problem) return false;
  return !(model.transient && earlier?.transient === true);
}
