import type { Model } from '../../../src/models/model.js';

/** A model that can be served; `fields` say what is particular about it. */
export function aModel(id: string, fields: Partial<Model> = {}): Model {
  return {
    id,
    aliases: [],
    tags: [],
    source: 'models_dir',
    options: new Map(),
    offline: false,
    file: `/models/${id}.gguf`,
    mmproj: undefined,
    draft: undefined,
    version: '24@1',
    problem: undefined,
    transient: false,
    stale: undefined,
    hidden: false,
    canRemove: false,
    stopTimeoutMs: 10_000,
    loadOnStartup: false,
    ...fields,
  };
}
