import { RouterError } from '../errors.js';
import type { ModelName } from './model-name/index.js';

/**
 * The name that was found in a request.
 *
 * @throws RouterError model_missing, body_malformed
 */
export function requireName(name: ModelName): string {
  switch (name.kind) {
    case 'found':
      return name.name;
    case 'missing':
      throw new RouterError('model_missing', 'model name is missing from the request');
    case 'malformed':
      throw new RouterError('body_malformed', name.reason);
  }
}
