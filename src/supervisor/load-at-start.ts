import type { LiveCatalog } from '../models/live-catalog.js';
import type { Logger } from '../observe/log.js';
import type { OwnLoads } from './own-loads.js';

export interface LoadAtStartOptions {
  readonly catalog: LiveCatalog;
  readonly loads: OwnLoads;
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
  /** Id of a model to load before all others. */
  readonly first: string | undefined;
  /** Ids of models to load before those that say `load-on-startup`. */
  readonly restored: readonly string[];
  readonly log: Logger;
}

/** Loads the models that are to be loaded at the start. More than slots would only evict each other: the first are. */
export function loadAtStart(options: LoadAtStartOptions): void {
  const { catalog, loads, modelsMax, first, restored, log } = options;
  const onStartup = catalog.current.models.filter(({ loadOnStartup }) => loadOnStartup).map(({ id }) => id);
  const order = new Set([...(first === undefined ? [] : [first]), ...restored, ...onStartup]);
  const wanted = [...order].filter((id) => {
    const model = catalog.current.resolve(id);
    return model?.id === id && model.problem === undefined;
  });
  const loaded = modelsMax === 0 ? wanted : wanted.slice(0, modelsMax);
  const left = wanted.slice(loaded.length);
  if (left.length > 0)
    log.warn({ models: left, modelsMax }, 'not loaded at start-up: --models-max is too small');

  void loads.inOrder(loaded, (model, err) => log.error({ model, err }, 'could not be loaded at start-up'));
}
