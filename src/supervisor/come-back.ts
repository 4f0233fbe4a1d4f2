import { RouterError, type ErrorCode } from '../errors.js';
import type { EventBus } from '../events/events.js';
import type { Catalog } from '../models/catalog.js';
import type { Logger } from '../observe/log.js';
import type { Scheduler } from '../scheduler/scheduler.js';

export interface ComeBackOptions {
  readonly events: EventBus;
  readonly catalog: () => Catalog;
  readonly scheduler: Pick<Scheduler, 'load' | 'pauseMs' | 'isClosed'>;
  readonly log: Logger;
}

/** Models that are on their way back. */
export interface ComingBack {
  /** Somebody wants it to stay away. Returns whether it was on its way. */
  callOff(model: string): boolean;
}

/** Refusals that say nothing about the model: there was no room for it, or it is too early. */
const passing: ReadonlySet<ErrorCode> = new Set([
  'queue_full',
  'queue_timeout',
  'model_failing',
  'model_changing',
]);

/** After such a refusal. Milliseconds. */
const againMs = 5_000;

/**
 * Models that are loaded from the start on are meant to be there: one that fails is loaded again by itself, as soon as it
 * may be. One that was stopped on purpose is not.
 */
export function comeBack({ events, catalog, scheduler, log }: ComeBackOptions): ComingBack {
  const coming = new Map<string, AbortController>();

  const callOff = (model: string): boolean => {
    coming.get(model)?.abort();
    return coming.delete(model);
  };
  const isWanted = (model: string): boolean => {
    const found = catalog().resolve(model);
    return found?.id === model && found.loadOnStartup && found.problem === undefined;
  };
  /** Returns why it did not come, when it may come later. */
  const load = async (model: string, signal: AbortSignal): Promise<ErrorCode | undefined> => {
    log.info({ model }, 'loading it again, as its load-on-startup says');
    try {
      await scheduler.load(model, signal, { anew: false });
      return undefined;
    } catch (error) {
      if (!(error instanceof RouterError)) throw error;
      // Somebody else has loaded it meanwhile; or it has failed, which begins this anew.
      return passing.has(error.code) ? error.code : undefined;
    }
  };
  const bringBack = async (model: string, { signal }: AbortController): Promise<void> => {
    // A failure is told before it is counted: for how long it pauses is known later.
    for (let waitMs = 0; ;) {
      await delay(waitMs, signal);
      if (signal.aborted || scheduler.isClosed || !isWanted(model)) return;
      waitMs = scheduler.pauseMs(model);
      if (waitMs > 0) continue;
      const reason = await load(model, signal);
      if (reason === undefined) return;
      log.debug({ model, reason }, 'could not be loaded yet');
      waitMs = againMs;
    }
  };

  events.subscribe((event) => {
    if (event.type !== 'model.unloaded' || !event.failed) return;
    const { model } = event;
    callOff(model);
    const controller = new AbortController();
    coming.set(model, controller);
    void bringBack(model, controller)
      .catch((error: unknown) => log.error({ model, err: error }, 'could not be loaded again'))
      .finally(() => {
        if (coming.get(model) === controller) coming.delete(model);
      });
  });
  return { callOff };
}

/** Settles after so long, or when it is called off. */
function delay(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms).unref();
    signal.addEventListener('abort', done);
  });
}
