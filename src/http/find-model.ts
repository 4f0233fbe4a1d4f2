import { RouterError, type ErrorCode } from '../errors.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import type { DownloadView } from './download-routes.js';

export interface FindModelOptions {
  /** The error's code for a name that no model has. */
  readonly unknown?: ErrorCode;
  /** Models that are on their way, or that have not arrived. */
  readonly downloads?: () => readonly DownloadView[];
}

/**
 * The model of that id or alias.
 *
 * @throws RouterError `unknown`; model_downloading; model_invalid, with the reason, when the model cannot be served
 */
export function findModel(
  catalog: Catalog,
  name: string,
  { unknown = 'model_unknown', downloads = () => [] }: FindModelOptions = {},
): Model {
  const model = catalog.resolve(name);
  if (!model) {
    const download = downloads().find(({ id }) => id === name);
    throw download === undefined ? unknownModel(name, unknown) : notArrived(download, unknown);
  }
  if (model.problem !== undefined) throw invalidModel(model.id, model.problem);
  return model;
}

/** No model has this id or alias. */
export function unknownModel(name: string, code: ErrorCode = 'model_unknown'): RouterError {
  return new RouterError(code, `model '${name}' not found`, { model: name });
}

function notArrived(download: DownloadView, unknown: ErrorCode): RouterError {
  const { id, progress } = download;
  if (download.state === 'failed') {
    const text = `model '${id}' not found: its download failed: ${download.error.message}`;
    return new RouterError(unknown, text, { model: id });
  }
  const files = Object.values(progress);
  const done = files.reduce((sum, file) => sum + file.done, 0);
  const total = files.reduce((sum, file) => sum + file.total, 0);
  const share = total > 0 ? `, ${Math.floor((100 * done) / total)} % of what has begun` : '';
  const text = `model name=${id} is not running: it is being downloaded${share}`;
  return new RouterError('model_downloading', text, { model: id, retryAfterS: 10 });
}

/** The model is known, and can not be served for this reason. */
export function invalidModel(id: string, problem: string): RouterError {
  return new RouterError('model_invalid', `model name=${id} cannot be served: ${problem}`, { model: id });
}
