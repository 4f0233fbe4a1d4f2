import type { EventBus, SupervisorEvent } from '../events/events.js';
import type { Logger } from './log.js';

/** Writes what happens to models into the log. */
export function logEvents(events: EventBus, log: Logger): void {
  events.subscribe((event) => {
    const { type, ...fields } = event;
    switch (event.type) {
      case 'catalog.changed':
        logCatalog(event, log);
        return;
      case 'model.progress':
      case 'model.waking':
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
      case 'model.loading':
      case 'model.sleeping':
      case 'model.awake':
      case 'model.stopping':
        log.info(fields, type);
        return;
    }
  });
}

function logCatalog(event: SupervisorEvent & { type: 'catalog.changed' }, log: Logger): void {
  const { type, added, removed, changed, broken, warnings } = event;
  if (added.length + removed.length + changed.length > 0) log.info({ added, removed, changed }, type);
  for (const warning of warnings) log.warn(warning);
  for (const { model, problem, stale } of broken) {
    if (problem !== undefined) log.warn({ model, problem, stale }, 'model cannot be served');
    else if (stale !== undefined) log.warn({ model, stale }, 'model is served in its last good form');
  }
}
