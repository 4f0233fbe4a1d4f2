import type { EventBus } from '../events/events.js';
import type { Logger } from './log.js';

/** Writes what happens to models into the log. */
export function logEvents(events: EventBus, log: Logger): void {
  events.subscribe((event) => {
    const { type, ...fields } = event;
    switch (event.type) {
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
