import { RouterError } from '../errors.js';
import type { Catalog } from '../models/catalog.js';
import type { Model } from '../models/model.js';
import type { ModelName } from './model-name/index.js';
import { queryValue } from './request-target.js';
import { requireName } from './require-name.js';

/**
 * The name of the model a POST is for: the one in its body. With a default model a request that names none, as
 * clients of a server of one model send it, may name it in its query, and else is for the default one.
 *
 * @param name what was found in the body
 * @param defaultModel `--default-model`: an id, an alias, or `auto`; undefined = every request must name its model
 * @throws RouterError model_missing, body_malformed
 */
export function nameForPost(
  name: ModelName,
  {
    catalog,
    defaultModel,
    url,
  }: { catalog: Catalog; defaultModel: string | undefined; url: string | undefined },
): string {
  if (name.kind !== 'missing' || defaultModel === undefined) return requireName(name);
  return queryValue(url, 'model') || defaultName(catalog, defaultModel);
}

/** The name of the model a GET is for: the one in its query, or the default one. */
export function nameForGet(
  url: string | undefined,
  { catalog, defaultModel }: { catalog: Catalog; defaultModel: string | undefined },
): string {
  const name = queryValue(url, 'model');
  if (name !== '') return name;
  return defaultModel === undefined ? requireName({ kind: 'missing' }) : defaultName(catalog, defaultModel);
}

/** The default model, if there is one; undefined also when it is not clear which it is. */
export function defaultModelOf(catalog: Catalog, defaultModel: string | undefined): Model | undefined {
  if (defaultModel === undefined) return undefined;
  if (defaultModel !== 'auto') return catalog.resolve(defaultModel);
  const served = catalog.listed.filter(({ problem }) => problem === undefined);
  return served.length === 1 ? served[0] : undefined;
}

function defaultName(catalog: Catalog, defaultModel: string): string {
  if (defaultModel !== 'auto') {
    if (catalog.resolve(defaultModel)) return defaultModel;
    const message = `model name is missing from the request, and there is no model '${defaultModel}' (--default-model)`;
    throw new RouterError('model_missing', message);
  }
  const only = defaultModelOf(catalog, defaultModel);
  if (only !== undefined) return only.id;
  const served = catalog.listed.filter(({ problem }) => problem === undefined).length;
  throw new RouterError(
    'model_missing',
    `model name is missing from the request, and --default-model auto needs exactly one model: there are ${served}`,
  );
}
