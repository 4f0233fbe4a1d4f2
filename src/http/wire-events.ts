import type { SupervisorEvent } from '../events/events.js';

/** One record of `GET /models/sse`, its keys in the native router's order. */
export interface WireEvent {
  /** `*` when it is about all of them. */
  readonly model: string;
  readonly event:
    | 'model_status'
    | 'status_change'
    | 'model_remove'
    | 'models_reload'
    | 'download_progress'
    | 'download_finished'
    | 'download_failed';
  readonly data?: Readonly<Record<string, unknown>>;
}

/**
 * An event as the native router tells it to its clients (tools/server/server-models.cpp, `notify_sse`). What we add
 * comes last in `data`: why a model was unloaded, or how it or a download failed. Keys that are undefined are none in
 * JSON. Undefined for what the native router does not tell: queueing, stopping, a list of models that is as it was.
 */
export function wireEvent(event: SupervisorEvent): WireEvent | undefined {
  switch (event.type) {
    case 'model.loading':
      return { model: event.model, event: 'model_status', data: { status: 'loading' } };
    case 'model.progress':
    case 'model.waking':
      return statusChange(event.model, { status: 'loading', progress: event.progress });
    case 'model.loaded':
      return statusChange(event.model, { status: 'loaded', info: event.info });
    case 'model.awake':
      return statusChange(event.model, { status: 'loaded' });
    case 'model.sleeping':
      return statusChange(event.model, { status: 'sleeping' });
    case 'model.unloaded':
      return statusChange(event.model, {
        status: 'unloaded',
        exit_code: event.exitCode,
        ...(event.failed ? { error: processFailure(event) } : { reason: event.reason }),
      });
    case 'download.started':
      return { model: event.model, event: 'model_status', data: { status: 'downloading' } };
    case 'download.progress':
      return { model: event.model, event: 'download_progress', data: { progress: event.progress } };
    case 'download.finished':
      return { model: event.model, event: 'download_finished' };
    case 'download.failed': {
      const { model, reason, message } = event;
      return { model, event: 'download_failed', data: { error: { reason, message } } };
    }
    case 'model.removed':
      return { model: event.model, event: 'model_remove' };
    case 'catalog.changed': {
      const { added, removed, changed, broken } = event;
      const isAsItWas = [added, removed, changed, broken].every(({ length }) => length === 0);
      return isAsItWas ? undefined : { model: '*', event: 'models_reload' };
    }
    case 'model.queued':
    case 'model.retrying':
    case 'model.stopping':
      return undefined;
  }
}

function statusChange(model: string, data: Readonly<Record<string, unknown>>): WireEvent {
  return { model, event: 'status_change', data };
}

/** In the words of the model's entry in `GET /models`. */
function processFailure({ reason, lastLines }: SupervisorEvent & { type: 'model.unloaded' }) {
  return { message: `its process ${reason}`, last_lines: lastLines };
}
