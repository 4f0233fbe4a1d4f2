import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import { compareBytewise } from '../models/bytewise.js';
import type { Catalog } from '../models/catalog.js';
import type { ModelFacts } from '../models/gguf/gguf-facts.js';
import type { Model } from '../models/model.js';
import type { ModelStatus, Scheduler } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import type { Downloads } from './download-routes.js';
import { findModel, invalidModel } from './find-model.js';
import { jsonAnswer } from './json-answer.js';
import { downloadEntry, listEntry, type LaunchDescription } from './model-entry.js';
import { modelScannerFor } from './model-name/index.js';
import { parseJson } from './parse-json.js';
import { requireName } from './require-name.js';
import { readBody, type BodyLimits } from './request-body.js';
import { queryValue } from './request-target.js';
import { singleModelEntry } from './single-model-list.js';

export interface ModelRoutesOptions {
  readonly catalog: () => Catalog;
  readonly scheduler: Scheduler;
  readonly bodyLimits: BodyLimits;
  /** Why a model that is not loaded can not be; looks into its files, if nobody has yet. */
  readonly vet: (model: Model) => Promise<string | undefined>;
  /** What is known of the files of a model by now. */
  readonly facts: (model: Model) => ModelFacts | undefined;
  /** Looks for models again; settles when the catalog shows what is on disk. */
  readonly reload: () => Promise<void>;
  readonly downloads: Downloads;
  /** How much memory each of these processes holds, in bytes, where that is known. Never rejects. */
  readonly memoryOf: (pids: readonly number[]) => Promise<ReadonlyMap<number, number>>;
  /** How a model is or would be started, for its list entry. */
  readonly describeLaunch: (model: Model, status: ModelStatus) => LaunchDescription;
}

/** The body of an unload says little; a longer one is read for its model only. */
const maxParsedBytes = 64 * 1024;

/**
 * `GET /models`: every model with its state, and in `models` what the list of a server of one model has besides, in the
 * same order. Looks, and changes nothing; `?reload=1` first looks for models again.
 */
export function listModels(options: ModelRoutesOptions) {
  const { catalog, scheduler, downloads, describeLaunch, memoryOf, facts, reload } = options;
  return async function listModelsHandler(c: Context<HttpEnv>): Promise<Response> {
    if (queryValue(c.env.incoming.url, 'reload')) await reload();
    const memory = await memoryOf(scheduler.pids);
    const now = Math.floor(Date.now() / 1000);
    const coming = downloads.list();
    // A model that is being downloaded once more, because its files are not whole, is listed as what it will be.
    const replaced = new Set(coming.map(({ id }) => id));
    const listed = catalog().listed.filter(({ id }) => !replaced.has(id));
    const entries = listed.map((model) => {
      const status = scheduler.status(model.id);
      const known = facts(model);
      const entry = listEntry({
        model,
        status,
        launch: describeLaunch(model, status),
        facts: known,
        memoryBytes: status.pid === undefined ? undefined : memory.get(status.pid),
        now,
      });
      return { id: model.id, entry, single: singleModelEntry(model, known) };
    });
    if (coming.length > 0) {
      for (const download of coming) {
        const { id } = download;
        const single = singleModelEntry({ id, tags: [], mmproj: undefined }, undefined);
        entries.push({ id, entry: downloadEntry(download, now), single });
      }
      entries.sort((a, b) => compareBytewise(a.id, b.id));
    }
    const data = entries.map(({ entry }) => entry);
    const models = entries.map(({ single }) => single);
    return jsonAnswer(c, { data, object: 'list', models });
  };
}

/** `POST /models/load`: answers when the model's child is spawned; takes its turn in the queue. */
export function loadModel(options: ModelRoutesOptions) {
  return async function loadModelHandler(c: Context<HttpEnv>): Promise<Response> {
    const name = await modelName(c, options.bodyLimits);
    const model = findModel(options.catalog(), name, {
      unknown: 'model_unknown_to_load',
      downloads: () => options.downloads.list(),
    });
    c.env.trace.model = model.id;
    const client = new AbortController();
    const { outgoing } = c.env;
    const onClose = (): void => client.abort();
    outgoing.once('close', onClose);
    if (outgoing.destroyed) onClose();
    try {
      const problem = await options.vet(model);
      if (problem !== undefined) throw invalidModel(model.id, problem);
      await options.scheduler.load(model.id, client.signal);
    } finally {
      outgoing.off('close', onClose);
    }
    return jsonAnswer(c, { success: true });
  };
}

/**
 * `POST /models/unload`: answers at once; the model's requests in flight are given time to end, unless `force` is true in
 * the body or the query.
 */
export function unloadModel(options: ModelRoutesOptions) {
  return async function unloadModelHandler(c: Context<HttpEnv>): Promise<Response> {
    const { name, force } = await unloadRequest(c, options.bodyLimits);
    if (options.downloads.cancel(name)) return jsonAnswer(c, { success: true });
    const model = options.catalog().resolve(name);
    if (!model) throw new RouterError('model_unknown_to_unload', 'model is not found', { model: name });
    c.env.trace.model = model.id;
    options.scheduler.unload(model.id, { force });
    return jsonAnswer(c, { success: true });
  };
}

async function unloadRequest(
  c: Context<HttpEnv>,
  limits: BodyLimits,
): Promise<{ readonly name: string; readonly force: boolean }> {
  const start: Buffer[] = [];
  let bytes = 0;
  const name = await modelName(c, limits, (chunk) => {
    bytes += chunk.length;
    if (bytes <= maxParsedBytes) start.push(chunk);
  });
  const asked = parseJson(Buffer.concat(start));
  const inBody = typeof asked === 'object' && asked !== null && 'force' in asked && asked.force === true;
  return { name, force: inBody || ['true', '1'].includes(queryValue(c.env.incoming.url, 'force')) };
}

/** Scanned like the body of any other request: one that is far too large must not stop the others. */
async function modelName(
  { env: { incoming } }: Context<HttpEnv>,
  limits: BodyLimits,
  onChunk: (chunk: Buffer) => void = () => undefined,
): Promise<string> {
  const scanner = modelScannerFor(undefined);
  const body = await readBody(incoming, limits, (chunk) => {
    scanner.push(chunk);
    onChunk(chunk);
  });
  body.release();
  return requireName(scanner.end());
}
