import { RouterError, type ErrorCode } from '../errors.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';

/**
 * The model of that id or alias.
 *
 * @param unknown the error's code for a name that no model has
 * @throws RouterError `unknown`; model_invalid, with the reason, when the model cannot be served
 */
export function findModel(catalog: Catalog, name: string, unknown: ErrorCode = 'model_unknown'): Model {
  const model = catalog.resolve(name);
  if (!model) throw unknownModel(name, unknown);
  if (model.problem !== undefined) throw invalidModel(model.id, model.problem);
  return model;
}

/** No model has this id or alias. */
export function unknownModel(name: string, code: ErrorCode = 'model_unknown'): RouterError {
  return new RouterError(code, `model '${name}' not found`, { model: name });
}

/** The model is known, and can not be served for this reason. */
export function invalidModel(id: string, problem: string): RouterError {
  return new RouterError('model_invalid', `model name=${id} cannot be served: ${problem}`, { model: id });
}
