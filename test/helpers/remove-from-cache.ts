import type { Model } from '../../src/models/model.js';
import type { Removed } from '../../src/models/disk/removal.js';
import { planRemoval, type CacheDirectories } from '../../src/models/disk/remove-cached.js';

/** Plans the removal of `model` and carries it out, with nothing between. */
export async function removeFromCache(
  model: Model,
  caches: CacheDirectories,
  others: readonly Model[],
): Promise<Removed> {
  const carryOut = await planRemoval(model, caches, others);
  return await carryOut();
}
