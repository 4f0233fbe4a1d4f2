/**
 * What happens to models, said once: the log, the counters and (through the API) clients listen here.
 * A listener runs synchronously and must be quick; one that throws is dropped from that delivery only.
 */

export type SupervisorEvent =
  | {
      /** The list of models was made anew; empty lists say that it is as it was. */
      readonly type: 'catalog.changed';
      readonly added: readonly string[];
      readonly removed: readonly string[];
      /** Models that would be started differently now. */
      readonly changed: readonly string[];
      /** Models of which something new is wrong. */
      readonly broken: readonly {
        readonly model: string;
        readonly problem: string | undefined;
        readonly stale: string | undefined;
      }[];
      readonly warnings: readonly string[];
    }
  | { readonly type: 'model.queued'; readonly model: string; readonly position: number }
  | { readonly type: 'model.loading'; readonly model: string; readonly pid: number; readonly port: number }
  | { readonly type: 'model.progress'; readonly model: string; readonly progress: unknown }
  | { readonly type: 'model.loaded'; readonly model: string; readonly loadMs: number; readonly info: unknown }
  | { readonly type: 'model.sleeping'; readonly model: string }
  | { readonly type: 'model.waking'; readonly model: string; readonly progress: unknown }
  | { readonly type: 'model.awake'; readonly model: string }
  | { readonly type: 'model.stopping'; readonly model: string; readonly reason: string }
  | {
      readonly type: 'model.unloaded';
      readonly model: string;
      readonly reason: string;
      readonly failed: boolean;
      /** As the native router reports it, a death by a signal being 1; 0 for a stop that was asked for, 1 for a load given up. */
      readonly exitCode: number;
      readonly lastLines: readonly string[];
    }
  | {
      /** A load that has failed is tried once more, for who waits for it. */
      readonly type: 'model.retrying';
      readonly model: string;
      /** How it has failed. */
      readonly reason: string;
      /** Models that are stopped for it, because it ran out of memory. */
      readonly evicted: readonly string[];
    }
  | { readonly type: 'download.started'; readonly model: string }
  | {
      readonly type: 'download.progress';
      readonly model: string;
      /** All files so far, by URL. Bytes; `total` is 0 while it is not known. */
      readonly progress: Readonly<Record<string, { readonly done: number; readonly total: number }>>;
    }
  | { readonly type: 'download.finished'; readonly model: string }
  | {
      readonly type: 'download.failed';
      readonly model: string;
      /** An error code (`errors.ts`), or `cancelled`. */
      readonly reason: string;
      readonly message: string;
    }
  | {
      /** Deleted from the cache, because somebody asked for that. */
      readonly type: 'model.removed';
      readonly model: string;
      /** Those that have gone, and the bytes that this has freed; none of a download that was cancelled or forgotten. */
      readonly files?: { readonly removed: readonly string[]; readonly freedBytes: number };
    };

export type EventListener = (event: SupervisorEvent) => void;

export class EventBus {
  readonly #listeners = new Set<EventListener>();
  readonly #onListenerError: (error: unknown) => void;
  readonly #pending: SupervisorEvent[] = [];
  #delivering = false;

  constructor(onListenerError: (error: unknown) => void) {
    this.#onListenerError = onListenerError;
  }

  /** Returns the function that ends the subscription. */
  subscribe(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** What a listener emits is delivered after what it has heard, to everybody. */
  emit(event: SupervisorEvent): void {
    this.#pending.push(event);
    if (this.#delivering) return;
    this.#delivering = true;
    try {
      for (let next = this.#pending.shift(); next; next = this.#pending.shift()) this.#deliver(next);
    } finally {
      this.#delivering = false;
    }
  }

  #deliver(event: SupervisorEvent): void {
    for (const listener of this.#listeners) {
      try {
        listener(event);
      } catch (error) {
        this.#onListenerError(error);
      }
    }
  }
}
