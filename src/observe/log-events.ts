import type { EventBus, SupervisorEvent } from '../events/events.js';
import type { Logger } from './log.js';

type CatalogChanged = SupervisorEvent & { readonly type: 'catalog.changed' };

/** More than these in one catalog are counted, and only the first few are named. */
const maxNamed = 20;
const namedOfMore = 5;
/** A model whose files are touched again and again is said to have changed this often. */
const sayAgainAfterMs = 60_000;

/** Reasons to stop a model that lie in itself. */
const faults: ReadonlySet<string> = new Set(['hung', 'load deadline']);

/** Writes what happens to models into the log. */
export function logEvents(events: EventBus, log: Logger): void {
  const changes = new CatalogLog(log);
  events.subscribe((event) => {
    const { type, ...fields } = event;
    switch (event.type) {
      case 'catalog.changed':
        changes.write(event);
        return;
      case 'model.progress':
      case 'model.waking':
      case 'download.progress':
        log.debug(fields, type);
        return;
      case 'model.loaded':
        log.info({ model: event.model, loadMs: event.loadMs }, type);
        return;
      case 'model.unloaded':
        if (event.failed) log.error(fields, type);
        else log.info({ model: event.model, reason: event.reason }, type);
        return;
      case 'model.queued':
      case 'model.retrying':
      case 'model.loading':
      case 'model.sleeping':
      case 'model.awake':
      case 'download.started':
      case 'download.finished':
        log.info(fields, type);
        return;
      case 'model.stopping':
        if (faults.has(event.reason)) log.warn(fields, type);
        else log.info(fields, type);
        return;
      case 'model.removed': {
        const { model, files } = event;
        const gone = files && { removed: named(files.removed), freedBytes: files.freedBytes };
        log.info({ model, ...gone }, type);
        return;
      }
      case 'download.failed':
        if (event.reason === 'cancelled') log.info(fields, type);
        else log.warn(fields, type);
        return;
    }
  });
}

/** Says what is wrong in a catalog, where that is new: a line for each, or one for all when there are many. */
export function logFaults(
  { warnings, broken }: Pick<CatalogChanged, 'warnings' | 'broken'>,
  log: Logger,
): void {
  if (warnings.length > maxNamed) log.warn(shorten(warnings), 'there are many warnings');
  else for (const warning of warnings) log.warn(warning);
  if (broken.length > maxNamed) {
    log.warn(shorten(broken), 'many models cannot be served, or only in their last good form');
    return;
  }
  for (const { model, problem, stale } of broken) {
    if (problem !== undefined) log.warn({ model, problem, stale }, 'model cannot be served');
    else if (stale !== undefined) log.warn({ model, stale }, 'model is served in its last good form');
  }
}

/** Says how the catalog changes, and not too often that a model has changed. */
class CatalogLog {
  readonly #log: Logger;
  /** When each model was last said to have changed, if nothing else was said of it since; monotonic, in ms. */
  readonly #changedAt = new Map<string, number>();

  constructor(log: Logger) {
    this.#log = log;
  }

  write(event: CatalogChanged): void {
    const { type, added, removed, broken } = event;
    const changed = this.#worthSaying(event.changed);
    if (added.length + removed.length + changed.length > 0) {
      this.#log.info({ added: named(added), removed: named(removed), changed: named(changed) }, type);
    }
    if (changed.length < event.changed.length) this.#log.debug({ changed: named(event.changed) }, type);
    logFaults(event, this.#log);
    for (const model of removed) this.#changedAt.delete(model);
    for (const { model } of broken) this.#changedAt.delete(model);
  }

  #worthSaying(changed: readonly string[]): string[] {
    const now = performance.now();
    const worth = changed.filter(
      (model) => now - (this.#changedAt.get(model) ?? -Infinity) >= sayAgainAfterMs,
    );
    for (const model of worth) this.#changedAt.set(model, now);
    return worth;
  }
}

/** A list as it is, or shortened. */
function named<T>(list: readonly T[]): readonly T[] | Shortened<T> {
  return list.length > maxNamed ? shorten(list) : list;
}

interface Shortened<T> {
  readonly count: number;
  readonly first: readonly T[];
}

function shorten<T>(list: readonly T[]): Shortened<T> {
  return { count: list.length, first: list.slice(0, namedOfMore) };
}
