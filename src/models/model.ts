import type { OptionValues } from '../config/option-table.js';

/** Where a model was found; the words are the wire's. */
export type ModelSource = 'cache' | 'models_dir' | 'preset';

/** A catalog entry a client can name. Immutable: a reload makes new ones. */
export interface Model {
  readonly id: string;
  /** Other names a request may use; sorted. */
  readonly aliases: readonly string[];
  /** Sorted. */
  readonly tags: readonly string[];
  readonly source: ModelSource;
  /**
   * Everything the child is started with, merged from all sources, besides where it listens and its name. Holds
   * preset-only keys too, which are never rendered into arguments.
   */
  readonly options: OptionValues;
  /** Whether all that the child would look up on the network is in the cache, so that it need not ask. */
  readonly offline: boolean;
  /** The GGUF file (the first shard) the child will load, where it is known. */
  readonly file: string | undefined;
  /** The projector it will load beside it, where it is known. */
  readonly mmproj: string | undefined;
  /** The model for speculative decoding that its options name, where its file is known. */
  readonly draft: string | undefined;
  /** Sizes and times of the files the child will load; changes when one is replaced. Undefined where not known. */
  readonly version: string | undefined;
  /** Why the model can not be served; undefined if nothing is known against it. */
  readonly problem: string | undefined;
  /** Whether that may pass by itself, as while a file is being written; its words then differ from look to look. */
  readonly transient: boolean;
  /** What is wrong with its section as it is on disk now, while the last good form of that is served. */
  readonly stale: string | undefined;
  /** Not listed, because a section with `dedup-cache-models` serves the same file; requests can name it. */
  readonly hidden: boolean;
  /** Whether `DELETE /models` may remove it. */
  readonly canRemove: boolean;
  /** How long its child may take to stop before it is killed. */
  readonly stopTimeoutMs: number;
  readonly loadOnStartup: boolean;
}
