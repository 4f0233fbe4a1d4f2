import type { ModelFacts } from '../models/gguf/gguf-facts.js';
import type { Model } from '../models/model.js';
import { withLastWords, type ModelStatus, type Outcome } from '../scheduler/scheduler.js';
import type { DownloadView } from './download-routes.js';
import { metaOfFile } from './single-model-list.js';

/** How a model is started: the child's command line and the merged preset, as the native router prints them. */
export interface LaunchDescription {
  readonly args: readonly string[];
  readonly preset: string;
}

/** What a list entry is made of. */
export interface EntryParts {
  readonly model: Model;
  readonly status: ModelStatus;
  readonly launch: LaunchDescription;
  /** Undefined while its file has not been read. */
  readonly facts: ModelFacts | undefined;
  /** What its process holds, in bytes; undefined where that is not known. */
  readonly memoryBytes: number | undefined;
  /** Unix time, seconds. */
  readonly now: number;
}

/**
 * A model's entry in `GET /models`: the native router's fields in its order (tools/server/server-models.cpp,
 * `get_router_models`), then ours. A failed model keeps the native form, `unloaded` and `failed`, and says why
 * in `error`; `facts` are read from its file, loaded or not, and absent until then.
 */
export function listEntry({
  model,
  status,
  launch,
  facts,
  memoryBytes,
  now,
}: EntryParts): Record<string, unknown> {
  const { args, preset } = launch;
  const entry: Record<string, unknown> = {
    id: model.id,
    aliases: model.aliases,
    tags: model.tags,
    object: 'model',
    owned_by: 'llamacpp',
    created: now,
    status: { value: status.value, args, preset, ...failure(model, status) },
    architecture: { input_modalities: facts?.inputModalities ?? ['text'], output_modalities: ['text'] },
    source: model.source,
    can_remove: model.canRemove,
  };
  if (status.value !== 'unloaded') {
    for (const [key, value] of Object.entries(status.info ?? {})) if (!(key in entry)) entry[key] = value;
  }
  // Clients of a server of one model read it there, whose model is always loaded.
  if (facts !== undefined) entry['meta'] ??= metaOfFile(facts);
  if (model.file !== undefined) entry['path'] = model.file;
  if (facts !== undefined) entry['facts'] = describeFacts(facts);
  if (model.stale !== undefined) entry['stale'] = model.stale;
  if (status.progress !== undefined) entry['progress'] = status.progress;
  if (status.pid !== undefined) entry['pid'] = status.pid;
  if (memoryBytes !== undefined) entry['memory'] = memoryBytes;
  if (status.lastUsed !== undefined) entry['last_used'] = Math.floor(status.lastUsed.getTime() / 1000);
  entry['in_flight'] = status.inFlight;
  entry['waiting'] = status.waiting;
  if (status.changing) entry['changing'] = true;
  else if (status.stopping) entry['stopping'] = true;
  if (status.leftBehind.length > 0) {
    entry['left_behind'] = status.leftBehind.map(({ pid, since }) => ({ pid, since: since.toISOString() }));
  }
  return entry;
}

/**
 * The entry of a download, or of one that failed and that nothing has been asked of since: the native router's fields
 * for it in its order, then ours.
 */
export function downloadEntry(download: DownloadView, now: number): Record<string, unknown> {
  const { id, args, progress } = download;
  return {
    id,
    aliases: [],
    tags: [],
    object: 'model',
    owned_by: 'llamacpp',
    created: now,
    status:
      download.state === 'downloading'
        ? { value: 'downloading', args }
        : { value: 'unloaded', args, failed: true, error: describeError(download.error) },
    architecture: { input_modalities: ['text'], output_modalities: ['text'] },
    source: 'cache',
    can_remove: true,
    progress,
    in_flight: 0,
    waiting: 0,
  };
}

interface ListedError {
  readonly reason: string;
  readonly message: string;
  readonly lastLines: readonly string[];
  readonly at: Date;
}

function describeError({ reason, message, lastLines, at }: ListedError): Record<string, unknown> {
  return { reason, message, last_lines: lastLines, at: at.toISOString() };
}

/** In the wire's spelling; what the file does not say is absent. */
function describeFacts(facts: ModelFacts): Record<string, unknown> {
  return {
    architecture: facts.architecture,
    name: facts.name,
    n_params: facts.parameters,
    size: facts.sizeBytes,
    quantization: facts.quantization,
    n_ctx_train: facts.contextLength,
    n_embd: facts.embeddingLength,
    n_vocab: facts.vocabSize,
    chat_template: facts.chatTemplate,
  };
}

function failureReason({ cause, phase }: Outcome & { kind: 'failed' }): string {
  switch (cause) {
    case 'out of memory':
      return 'out_of_memory';
    case 'hung':
      return 'hung';
    case 'signal':
    case 'other':
      return phase === 'loading' ? 'load_failed' : 'crashed';
  }
}

function failure(model: Model, { value, outcome, failures, retryAt }: ModelStatus): Record<string, unknown> {
  if (model.problem !== undefined) {
    return { failed: true, error: { reason: 'model_invalid', message: model.problem } };
  }
  if (value !== 'unloaded' || outcome?.kind !== 'failed') return {};
  const { exitCode, message, lastLines, at } = outcome;
  return {
    exit_code: exitCode,
    failed: true,
    error: {
      ...describeError({
        reason: failureReason(outcome),
        message: `its process ${withLastWords(message, lastLines)}`,
        lastLines,
        at,
      }),
      failures,
      ...(retryAt === undefined ? {} : { retry_at: retryAt.toISOString() }),
    },
  };
}
