import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { EventBus } from '../events/events.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import type { HttpEnv } from './app.js';
import { jsonAnswer } from './json-answer.js';
import { modelScannerFor } from './model-name/index.js';
import { readBody, type BodyLimits } from './request-body.js';
import { queryValue } from './request-target.js';

/** How far the download of one file is. Bytes; `total` is 0 while it is not known. */
export interface DownloadedBytes {
  readonly done: number;
  readonly total: number;
}

/** A download, as a list shows it. */
export type DownloadView = {
  /** `user/repo` or `user/repo:TAG`, as it was asked for. No model of the catalog has this name. */
  readonly id: string;
  /** All files so far, by URL. */
  readonly progress: Readonly<Record<string, DownloadedBytes>>;
  /** The worker's command line, which holds no secret. */
  readonly args: readonly string[];
} & (
  | { readonly state: 'downloading' }
  | {
      readonly state: 'failed';
      readonly error: {
        /** An error code (`errors.ts`). */
        readonly reason: string;
        readonly message: string;
        /** What the worker wrote last, oldest line first. */
        readonly lastLines: readonly string[];
        readonly at: Date;
      };
    }
);

/** Downloads into the hub cache. What becomes of one is told by events (`download.…`). */
export interface Downloads {
  /**
   * Begins a download; settles when it goes on in the background.
   *
   * @param signal its client has left; counts until then
   * @throws RouterError model_exists, hub_name_invalid, hub_offline, hub_not_found, hub_refused, hub_unreachable,
   *   disk_full, too_many_downloads, shutting_down, client_gone
   */
  start(name: string, signal: AbortSignal): Promise<void>;
  /** Ends a download that goes on and removes what has come of it; false if there is none of that name. */
  cancel(id: string): boolean;
  /** Those that go on, oldest first, then the last that failed. */
  list(): readonly DownloadView[];
  /** Cancels a download that goes on, and forgets one that failed; false if there is none of that name. */
  remove(id: string): Promise<boolean>;
  /**
   * Does `work` on the cached files of a model while none of its repository comes: downloads that are asked for
   * meanwhile begin after it.
   *
   * @throws RouterError model_downloading when one goes on
   */
  keepOut<T>(id: string, work: () => Promise<T>): Promise<T>;
}

export interface DownloadRoutesOptions {
  readonly downloads: Pick<Downloads, 'start'>;
  readonly bodyLimits: BodyLimits;
}

/** `POST /models`: answers when the hub has the model, the disk room for it, and the download has begun. */
export function startDownload({ downloads, bodyLimits }: DownloadRoutesOptions) {
  return async function startDownloadHandler(c: Context<HttpEnv>): Promise<Response> {
    const name = await nameInBody(c, bodyLimits);
    c.env.trace.model = name;
    const client = new AbortController();
    const { outgoing } = c.env;
    const onClose = (): void => client.abort();
    outgoing.once('close', onClose);
    if (outgoing.destroyed) onClose();
    try {
      await downloads.start(name, client.signal);
    } finally {
      outgoing.off('close', onClose);
    }
    return jsonAnswer(c, { success: true });
  };
}

export interface RemoveModelOptions {
  readonly downloads: Pick<Downloads, 'remove' | 'keepOut'>;
  readonly catalog: () => Catalog;
  /** Looks for models again; settles when the catalog shows what is on disk. */
  readonly reload: () => Promise<void>;
  /**
   * Takes a model out of service: no new request is taken, those in flight are given time to end. Settles when its
   * process is gone.
   *
   * @returns puts it back into service
   */
  readonly withdraw: (id: string) => Promise<() => void>;
  /**
   * Removes the files of a model from the caches; called for one model at a time.
   *
   * @throws RouterError
   */
  readonly removeFiles: (model: Model) => Promise<unknown>;
  readonly events: EventBus;
}

/**
 * `DELETE /models?model=ID`: removes a model from the cache, with its instance if it runs, or ends or forgets a download.
 * An alias is no ID here. Answers when it is done; requests for the same model share one removal.
 */
export function removeModel(options: RemoveModelOptions) {
  const { downloads, catalog, events } = options;
  const removals = new Map<string, Promise<void>>();
  let last: Promise<unknown> = Promise.resolve();
  const removeFiles = (model: Model): Promise<unknown> => {
    const turn = last.then(() => options.removeFiles(model));
    last = turn.catch(() => undefined);
    return turn;
  };

  const remove = async (id: string): Promise<void> => {
    const wasDownload = await downloads.remove(id);
    // A download that was ended too late has left a model.
    const model = modelOf(catalog(), id);
    if (model !== undefined) await removeOne(model, { ...options, removeFiles });
    else if (!wasDownload) throw unknownModel(id);
    events.emit({ type: 'model.removed', model: id });
  };

  return async function removeModelHandler(c: Context<HttpEnv>): Promise<Response> {
    const id = queryValue(c.env.incoming.url, 'model');
    if (id === '') throw nameMissing();
    c.env.trace.model = id;
    let removal = removals.get(id);
    if (removal === undefined) {
      removal = remove(id).finally(() => removals.delete(id));
      removals.set(id, removal);
    }
    await removal;
    return jsonAnswer(c, { success: true });
  };
}

async function removeOne(
  { id, canRemove }: Model,
  { downloads, catalog, withdraw, removeFiles, reload }: RemoveModelOptions,
): Promise<void> {
  if (!canRemove) throw notRemovable(id);
  await downloads.keepOut(id, async () => {
    const putBack = await withdraw(id);
    try {
      // The catalog may be another one since.
      const model = modelOf(catalog(), id);
      if (model === undefined) throw unknownModel(id);
      if (!model.canRemove) throw notRemovable(id);
      await removeFiles(model);
      await reload();
    } finally {
      putBack();
    }
  });
}

/** The model of that id; an alias names none. */
function modelOf(catalog: Catalog, id: string): Model | undefined {
  const model = catalog.resolve(id);
  return model?.id === id ? model : undefined;
}

/** Scanned like the body of any other request: one that is far too large must not stop the others. */
async function nameInBody({ env: { incoming } }: Context<HttpEnv>, limits: BodyLimits): Promise<string> {
  const scanner = modelScannerFor(undefined);
  const body = await readBody(incoming, limits, (chunk) => scanner.push(chunk));
  body.release();
  const name = scanner.end();
  switch (name.kind) {
    case 'found':
      return name.name;
    case 'missing':
      throw nameMissing();
    case 'malformed':
      throw new RouterError('body_malformed', name.reason);
  }
}

function nameMissing(): RouterError {
  return new RouterError('model_missing', 'model must be a non-empty string');
}

function unknownModel(id: string): RouterError {
  return new RouterError('model_unknown_to_remove', `model name=${id} is not found`, { model: id });
}

function notRemovable(id: string): RouterError {
  const message = `model name=${id} is not removable (not from cache)`;
  return new RouterError('model_not_removable', message, { model: id });
}
