import { isModelShortcut } from '../config/direct-options.js';
import { isFalsey, type OptionValues } from '../config/option-table.js';
import type { HubCache } from './disk/hub-cache.js';
import type { OptionReader } from './option-reader.js';

/** Options of which a child needs one that is not empty, or it would start as a router itself. */
export const MODEL_GIVING = ['model', 'hf-repo', 'model-url', 'docker-repo'] as const;

/** Where a child gets its model from. */
export interface Origin {
  /** The file on disk, where it is known before the start. */
  readonly file?: string;
  /** The projector it loads beside that: the one it is given, or the one it takes from the cache by itself. */
  readonly mmproj?: string;
  /** Whether the child needs nothing from the network, so that it may be told not to ask. */
  readonly offline: boolean;
  /** Why it would get none. */
  readonly problem?: string;
}

/**
 * Where a child with these options gets its model from: a repository goes before a URL, and that before a path
 * (common/arg.cpp, `common_models_handler_apply`).
 */
export function originOf(options: OptionValues, cache: HubCache, read: OptionReader): Origin {
  const hfRepo = read.get(options, 'hf-repo');
  if (hfRepo !== undefined) {
    const found = cache.resolve(hfRepo, read.get(options, 'hf-file'));
    switch (found.kind) {
      case 'file':
        return {
          file: found.file,
          ...projectorOf(options, read, found.mmproj),
          offline: !needsNetwork(options, cache, read),
        };
      case 'unusable':
        return { offline: false, problem: found.problem };
      case 'absent':
        return { offline: false };
    }
  }
  const path = read.get(options, 'model');
  if (read.get(options, 'model-url') !== undefined || read.get(options, 'docker-repo') !== undefined) {
    return { offline: false };
  }
  if (path !== undefined) return { file: path, ...projectorOf(options, read, undefined), offline: false };
  if ([...options].some(([option, value]) => isModelShortcut(option) && !isFalsey(value)))
    return { offline: false };
  const problem =
    `names no model: give it ${MODEL_GIVING.map((name) => `'${name}'`).join(', ')}, ` +
    'or name it exactly as a model of the cache or of --models-dir';
  return { offline: false, problem };
}

/** An explicit projector, or one on the network, goes before the one beside the model, unless that is not wanted. */
export function projectorOf(
  options: OptionValues,
  read: OptionReader,
  beside: string | undefined,
): { mmproj?: string } {
  const given = read.get(options, 'mmproj');
  if (given !== undefined) return { mmproj: given };
  const isOff = isFalsey(read.get(options, 'mmproj-auto') ?? '');
  const isRemote = read.get(options, 'mmproj-url') !== undefined;
  return beside === undefined || isOff || isRemote ? {} : { mmproj: beside };
}

/** The file of the model for speculative decoding; undefined if there is none, or none that is here. */
export function draftOf(options: OptionValues, cache: HubCache, read: OptionReader): string | undefined {
  const path = read.get(options, 'model-draft');
  const repo = read.get(options, 'hf-repo-draft');
  if (repo === undefined) return path;
  const found = cache.resolve(repo, path);
  return found.kind === 'file' ? found.file : undefined;
}

/** Whether something besides the model itself is to be fetched, which `--offline` would forbid. */
function needsNetwork(options: OptionValues, cache: HubCache, read: OptionReader): boolean {
  if (['model-url', 'docker-repo', 'mmproj-url'].some((name) => read.get(options, name) !== undefined))
    return true;
  const draft = read.get(options, 'hf-repo-draft');
  if (draft === undefined) return false;
  const found = cache.resolve(draft);
  return found.kind !== 'file' || found.isOutdated;
}
