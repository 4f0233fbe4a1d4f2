/**
 * What `GET /models` of a llama-server that was started with one model says besides what the router says (llama.cpp,
 * tools/server/server-context.cpp, `get_res_models` and `get_res_model_info`), so that its clients find it here too.
 */
import type { ModelFacts } from '../models/gguf/gguf-facts.js';
import type { Model } from '../models/model.js';

/** An entry of `models`, in the form of Ollama's list, its keys in llama-server's order. */
export interface SingleModelEntry {
  readonly name: string;
  readonly model: string;
  readonly modified_at: '';
  /** Bytes, in decimal digits. */
  readonly size: string;
  readonly digest: '';
  readonly type: 'model';
  readonly description: string;
  readonly tags: readonly string[];
  readonly capabilities: readonly string[];
  readonly parameters: '';
  readonly details: {
    readonly parent_model: '';
    readonly format: 'gguf';
    readonly family: string;
    readonly families: readonly string[];
    /** Such as `8.0B`. */
    readonly parameter_size: string;
    readonly quantization_level: string;
  };
}

/**
 * The entry of a model in `models`, loaded or not. llama-server leaves most of it empty; what the model's file says is
 * filled in here, without changing the type of any value: a client that reads llama-server's `size` reads a string.
 *
 * The web UI takes the entry of `models` and that of `data` at the same place for one model, so both lists have to be
 * of the same models in the same order.
 *
 * @param facts undefined while its file has not been read
 */
export function singleModelEntry(
  { id, tags, mmproj }: Pick<Model, 'id' | 'tags' | 'mmproj'>,
  facts: ModelFacts | undefined,
): SingleModelEntry {
  const family = facts?.architecture ?? '';
  return {
    name: id,
    model: id,
    modified_at: '',
    size: facts === undefined ? '' : String(facts.sizeBytes),
    digest: '',
    type: 'model',
    description: facts?.name ?? '',
    tags: tags.length === 0 ? [''] : tags,
    capabilities: mmproj === undefined ? ['completion'] : ['completion', 'multimodal'],
    parameters: '',
    details: {
      parent_model: '',
      format: 'gguf',
      family,
      families: [family],
      parameter_size: facts === undefined ? '' : parameterSize(facts.parameters),
      quantization_level: facts?.quantization ?? '',
    },
  };
}

/**
 * What can be said before a model is loaded of what its child reports as `meta` in `data`, by the same keys. `size` is
 * that of the files, headers included, where the child counts weights only. `vocab_type`, `n_ctx` and `ftype` only the
 * child knows: the context size depends on its options and on the memory it finds.
 */
export function metaOfFile(facts: ModelFacts): Record<string, number> {
  const { vocabSize, contextLength, embeddingLength, parameters, sizeBytes } = facts;
  return {
    ...(vocabSize !== undefined && { n_vocab: vocabSize }),
    ...(contextLength !== undefined && { n_ctx_train: contextLength }),
    ...(embeddingLength !== undefined && { n_embd: embeddingLength }),
    n_params: parameters,
    size: sizeBytes,
  };
}

const UNITS = [
  [1e12, 'T'],
  [1e9, 'B'],
  [1e6, 'M'],
  [1e3, 'K'],
] as const;

/** As Ollama and the names of models put it: billions are `B`. */
function parameterSize(parameters: number): string {
  // What would be rounded up to 1000 of a unit is 1 of the next.
  const [size, unit] = UNITS.find(([each]) => parameters >= each * 0.99995) ?? [1, ''];
  return unit === '' ? String(parameters) : `${(parameters / size).toFixed(1)}${unit}`;
}
