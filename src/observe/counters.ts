import type { EventBus } from '../events/events.js';

/** Plain numbers that only grow, but for the gauges; the metrics page reads them. */
export class Counters {
  /** Requests by `route status`, counted when the answer has ended. */
  readonly requests = new Map<string, number>();
  /** Loads, failed loads and crashes, evictions: by model. */
  readonly loads = new Map<string, number>();
  readonly failures = new Map<string, number>();
  readonly evictions = new Map<string, number>();
  /** Requests refused for want of room: queue, body memory. */
  refused = 0;
  /** Clients that left before their answer had ended. */
  cancelled = 0;
  /** Gauge: requests being answered. */
  inFlight = 0;

  countRequest(route: string, status: number): void {
    increase(this.requests, `${route} ${status}`);
  }

  /** Counts what happens to models from their events. */
  listenTo(events: EventBus): void {
    events.subscribe((event) => {
      if (event.type === 'model.loaded') increase(this.loads, event.model);
      else if (event.type === 'model.unloaded' && event.failed) increase(this.failures, event.model);
      else if (event.type === 'model.unloaded' && event.reason === 'evicted') {
        increase(this.evictions, event.model);
      }
    });
  }
}

function increase(counter: Map<string, number>, key: string): void {
  counter.set(key, (counter.get(key) ?? 0) + 1);
}
