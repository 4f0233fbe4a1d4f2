import { RouterError } from '../../errors.js';
import type { Removal } from './removal.js';

/** What is to go from one cache with one model. */
export interface RemovalPlan {
  /** Where all of it lies, without links in it. */
  readonly root: Buffer;
  /** Those from which something is to go. */
  readonly directories: readonly Buffer[];
  /** Its own files, all shards. */
  readonly files: readonly Buffer[];
  /** Projectors and drafts that no other model of the cache takes; one that the catalog names elsewhere stays. */
  readonly companions: readonly Buffer[];
  /** Whether the model `id` has other files for its name, should it have been found to load one of these. */
  readonly hasOwnFiles: (id: string) => boolean;
  /**
   * Removes the files, those of the companions that are in `companions`, and what is of no use without them. First goes
   * what makes the model one that a scan finds: whatever ends this in the middle leaves no half of a model in the list.
   */
  readonly remove: (removal: Removal, companions: readonly Buffer[]) => Promise<void>;
}

/** The refusal to remove the model `id`, in the native router's words; `why` goes on after "is not removable". */
export function notRemovable(id: string, why: string): RouterError {
  return new RouterError('model_not_removable', `model name=${id} is not removable${why}`, { model: id });
}

/** The refusal to remove the model `id`, of which somebody has put `file` into a cache: it may be their only copy. */
export function notDownloaded(id: string, file: string): RouterError {
  return notRemovable(id, `: no download left '${file}' in the cache; remove it yourself`);
}
