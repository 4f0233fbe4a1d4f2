import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { Model } from '../models/model.js';
import type { Scheduler } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import type { Downloads } from './download-routes.js';
import { BodyBudget } from './body-budget.js';
import { findModel, invalidModel } from './find-model.js';
import { jsonAnswer } from './json-answer.js';
import { ModelList, type ModelListOptions } from './model-list.js';
import { modelScannerFor } from './model-name/index.js';
import { parseJson } from './parse-json.js';
import { requireName } from './require-name.js';
import { readBody, type BodyLimits } from './request-body.js';
import { queryValue } from './request-target.js';
import { sendWhole } from './whole-answer.js';

export interface ModelRoutesOptions extends ModelListOptions {
  readonly scheduler: Scheduler;
  readonly bodyLimits: BodyLimits;
  /** Longest time for which a client may not read; 0 = no bound. Milliseconds. */
  readonly slowReaderMs: number;
  /** Why a model that is not loaded can not be; looks into its files, if nobody has yet. */
  readonly vet: (model: Model) => Promise<string | undefined>;
  /** Looks for models again; settles when the catalog shows what is on disk. */
  readonly reload: () => Promise<void>;
  readonly downloads: Downloads;
  /** Keeps a model from being loaded again by itself after a failure. Returns whether it was about to be. */
  readonly callOff: (model: string) => boolean;
}

/** Of all lists together that clients have not read yet; each is held once for all who asked at the same time. */
const maxListBytes = 256 * 1024 * 1024;

/** The body of an unload says little; a longer one is read for its model only. */
const maxParsedBytes = 64 * 1024;

/**
 * `GET /models`: every model with its state, and in `models` what the list of a server of one model has besides, in the
 * same order. Looks, and changes nothing; `?reload=1` first looks for models again.
 */
export function listModels(options: ModelRoutesOptions) {
  const { reload, slowReaderMs } = options;
  const list = new ModelList(options);
  const budget = new BodyBudget(maxListBytes, 'lists that are being read');
  return async function listModelsHandler(c: Context<HttpEnv>): Promise<Response> {
    const { incoming, outgoing } = c.env;
    if (queryValue(incoming.url, 'reload')) await reload();
    const text = await list.text();
    const end = text.holdWithin(budget);
    await sendWhole(outgoing, text.bytes, { slowReaderMs }).finally(end);
    return RESPONSE_ALREADY_SENT;
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
  const { scheduler } = options;
  return async function unloadModelHandler(c: Context<HttpEnv>): Promise<Response> {
    const { name, force } = await unloadRequest(c, options.bodyLimits);
    if (options.downloads.cancel(name)) return jsonAnswer(c, { success: true });
    const model = options.catalog().resolve(name);
    if (!model) throw new RouterError('model_unknown_to_unload', 'model is not found', { model: name });
    const { id } = model;
    c.env.trace.model = id;
    const isCalledOff = options.callOff(id);
    if (!isCalledOff || scheduler.status(id).value !== 'unloaded') scheduler.unload(id, { force });
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
