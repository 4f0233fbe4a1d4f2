import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { EventBus } from '../events/events.js';
import type { Catalog } from '../models/catalog.js';
import type { Removed } from '../models/disk/removal.js';
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
  /** `user/repo` or `user/repo:TAG`, as it was asked for. A model of the catalog that has this name cannot be served. */
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
   *   disk_full, too_many_downloads, shutting_down, client_gone, model_unloaded_meanwhile
   */
  start(name: string, signal: AbortSignal): Promise<void>;
  /**
   * Ends a download that goes on, or is about to begin, and removes what has come of it; false if there is none of that
   * name.
   */
  cancel(id: string): boolean;
  /** Those that go on, oldest first, then the last that failed. */
  list(): readonly DownloadView[];
  /**
   * Cancels a download that goes on or is about to begin, and forgets one that failed; undefined if there is none of that
   * name.
   */
  remove(id: string): Promise<RemovedDownload | undefined>;
  /**
   * Does `work` on the cached files of a model while none of its repository comes: downloads that are asked for
   * meanwhile begin after it, and such work waits for it.
   *
   * @param work may end before its files are let go: downloads wait for what it gives to `hold`, too, and such work is
   *   refused until then
   * @throws RouterError model_downloading when one goes on, remove_failed when earlier work holds the files
   */
  keepOut<T>(id: string, work: (hold: Hold) => Promise<T>): Promise<T>;
}

/** Keeps a repository out until that settles. */
export type Hold = (until: Promise<unknown>) => void;

export interface RemovedDownload {
  /** Id of the model that it has brought, because it ended before it could be cancelled. */
  readonly brought: string | undefined;
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
   * Looks what of a model is to go from the caches, and whether it may; changes nothing and settles, if late, with a refusal.
   *
   * @returns removes that; called for one model at a time, as long as the caches answer
   * @throws RouterError
   */
  readonly planRemoval: (model: Model) => Promise<() => Promise<Removed>>;
  /** Told of a removal that failed after its request was answered. */
  readonly onLateRemovalFailure: (id: string, error: unknown) => void;
  /** How long removing the files may take before the request is answered that it goes on. */
  readonly removeTimeoutMs?: number;
  readonly events: EventBus;
}

const defaultRemoveTimeoutMs = 30_000;

/**
 * `DELETE /models?model=ID`: removes a model from the cache, with its instance if it runs, or ends or forgets a download.
 * An alias is no ID here. Answers when it is done, with what has gone, or when the cache does not answer; requests for
 * the same model share one removal.
 */
export function removeModel(options: RemoveModelOptions) {
  const { downloads, catalog, events } = options;
  const removals = new Map<string, Promise<Removed | undefined>>();
  const removal = new ModelRemoval(options);

  const remove = async (id: string): Promise<Removed | undefined> => {
    const download = await downloads.remove(id);
    // One that was ended too late has left a model.
    const model = modelOf(catalog(), download?.brought ?? id);
    if (model !== undefined) return await removal.of(model);
    if (download === undefined) throw unknownModel(id);
    events.emit({ type: 'model.removed', model: id });
    return undefined;
  };

  return async function removeModelHandler(c: Context<HttpEnv>): Promise<Response> {
    const id = queryValue(c.env.incoming.url, 'model');
    if (id === '') throw nameMissing();
    c.env.trace.model = id;
    let answer = removals.get(id);
    if (answer === undefined) {
      answer = remove(id).finally(() => removals.delete(id));
      removals.set(id, answer);
    }
    const files = await answer;
    return jsonAnswer(c, {
      success: true,
      ...(files === undefined ? {} : { removed: files.removed, freed_bytes: files.freedBytes }),
    });
  };
}

/** Removes models from the caches: refused before they are stopped, or else stopped and then removed. */
class ModelRemoval {
  readonly #options: RemoveModelOptions;
  /** Settles when the next may look at the files and remove them; never rejects. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: RemoveModelOptions) {
    this.#options = options;
  }

  async of({ id, canRemove }: Model): Promise<Removed> {
    const { downloads, withdraw } = this.#options;
    if (!canRemove) throw notRemovable(id);
    return await downloads.keepOut(id, async (hold) => {
      // 1. Whoever is refused is not stopped.
      await this.#plan(id);
      // 2. The catalog and the disk may be others when it has stopped.
      const putBack = await withdraw(id);
      return await this.#inTurn(async () => {
        const carryOut = await this.#plan(id).catch((error: unknown) => {
          putBack();
          throw error;
        });
        // 3. From here on there is no way back, however long the disk takes.
        const carriedOut = this.#carryOut(id, carryOut).finally(putBack);
        return await this.#answer(id, carriedOut, hold);
      });
    });
  }

  async #plan(id: string): Promise<() => Promise<Removed>> {
    const { catalog, planRemoval } = this.#options;
    const model = modelOf(catalog(), id);
    if (model === undefined) throw unknownModel(id);
    if (!model.canRemove) throw notRemovable(id);
    return await planRemoval(model);
  }

  async #carryOut(id: string, removeFiles: () => Promise<Removed>): Promise<Removed> {
    const { reload, events } = this.#options;
    const { removed, freedBytes } = await removeFiles();
    await reload();
    events.emit({ type: 'model.removed', model: id, files: { removed, freedBytes } });
    return { removed, freedBytes };
  }

  /** Nobody waits longer for it than `removeTimeoutMs`; it goes on, and holds the files. */
  async #answer(id: string, carriedOut: Promise<Removed>, hold: Hold): Promise<Removed> {
    const { onLateRemovalFailure, removeTimeoutMs = defaultRemoveTimeoutMs } = this.#options;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        hold(carriedOut);
        carriedOut.catch((error: unknown) => onLateRemovalFailure(id, error));
        reject(notAnswering(id));
      }, removeTimeoutMs);
    });
    try {
      return await Promise.race([carriedOut, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work);
    this.#last = turn.catch(() => undefined);
    return await turn;
  }
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

function notAnswering(id: string): RouterError {
  const message =
    `model name=${id} is not removed yet: the cache does not answer; its removal goes on when it does, ` +
    'and the model is not served until then';
  return new RouterError('remove_failed', message, { model: id });
}
