import type { LiveCatalog } from '../models/live-catalog.js';
import type { Model } from '../models/model.js';
import type { Logger } from '../observe/log.js';
import type { Scheduler } from '../scheduler/scheduler.js';

export interface LoadAtStartOptions {
  readonly catalog: LiveCatalog;
  readonly scheduler: Scheduler;
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
  /** Id of a model to load before all others. */
  readonly first: string | undefined;
  readonly log: Logger;
}

/** Loads the models that are to be loaded at the start. More than slots would only evict each other: the first are. */
export function loadAtStart({ catalog, scheduler, modelsMax, first, log }: LoadAtStartOptions): void {
  const wanted = catalog.current.models
    .filter(({ id, loadOnStartup, problem }) => (loadOnStartup || id === first) && problem === undefined)
    .sort((a, b) => Number(b.id === first) - Number(a.id === first));
  const loaded = modelsMax === 0 ? wanted : wanted.slice(0, modelsMax);
  const left = wanted.slice(loaded.length).map(({ id }) => id);
  if (left.length > 0)
    log.warn({ models: left, modelsMax }, 'not loaded at start-up: --models-max is too small');

  void loadInOrder(loaded, { catalog, scheduler, log });
}

/** Each takes its place in the queue when the one before has. */
async function loadInOrder(
  models: readonly Model[],
  { catalog, scheduler, log }: Pick<LoadAtStartOptions, 'catalog' | 'scheduler' | 'log'>,
): Promise<void> {
  for (const model of models) {
    const onError = (error: unknown): void => {
      log.error({ model: model.id, err: error }, 'could not be loaded at start-up');
    };
    const problem = await catalog.vet(model).catch(onError);
    if (problem === undefined) scheduler.load(model.id, new AbortController().signal).catch(onError);
  }
}
