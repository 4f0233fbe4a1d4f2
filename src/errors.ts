/**
 * The error catalogue: every refusal and failure a client can be told, with its status, its wire type and
 * what it says. Wording and types are the native router's where it has them (llama-server, tools/server/
 * server-models.cpp); `docs/compatibility.md` lists where ours differ and why.
 */

/** Wire types of llama-server's error envelope. */
type WireType =
  | 'invalid_request_error'
  | 'authentication_error'
  | 'not_found_error'
  | 'server_error'
  | 'unavailable_error'
  | 'overloaded_error'
  | 'permission_error'
  | 'feature_disabled';

/** What asking again can change says when, in seconds: what waits on a person is not worth asking for often. */
type CatalogueEntry =
  | { readonly status: 429 | 502 | 503 | 504 | 507; readonly type: WireType; readonly retryAfterS: number }
  | { readonly status: 400 | 401 | 403 | 404 | 408 | 413 | 415 | 417 | 499 | 500; readonly type: WireType };

const catalogue = {
  body_malformed: { status: 400, type: 'invalid_request_error' },
  body_encoded: { status: 415, type: 'invalid_request_error' },
  body_too_large: { status: 413, type: 'invalid_request_error' },
  body_timeout: { status: 408, type: 'invalid_request_error' },
  body_memory_full: { status: 503, type: 'unavailable_error', retryAfterS: 2 },
  model_missing: { status: 400, type: 'invalid_request_error' },
  model_unknown: { status: 400, type: 'invalid_request_error' },
  model_unknown_to_load: { status: 404, type: 'not_found_error' },
  model_unknown_to_remove: { status: 404, type: 'not_found_error' },
  model_unknown_to_unload: { status: 400, type: 'invalid_request_error' },
  model_invalid: { status: 503, type: 'unavailable_error', retryAfterS: 60 },
  model_not_loaded: { status: 400, type: 'invalid_request_error' },
  model_already_running: { status: 400, type: 'invalid_request_error' },
  model_not_running: { status: 400, type: 'invalid_request_error' },
  model_downloading: { status: 400, type: 'invalid_request_error' },
  model_not_removable: { status: 400, type: 'invalid_request_error' },
  remove_failed: { status: 500, type: 'server_error' },
  model_exists: { status: 400, type: 'invalid_request_error' },
  hub_name_invalid: { status: 400, type: 'invalid_request_error' },
  hub_not_found: { status: 404, type: 'not_found_error' },
  hub_refused: { status: 403, type: 'permission_error' },
  hub_unreachable: { status: 502, type: 'server_error', retryAfterS: 10 },
  hub_offline: { status: 403, type: 'permission_error' },
  disk_full: { status: 507, type: 'server_error', retryAfterS: 60 },
  too_many_downloads: { status: 429, type: 'overloaded_error', retryAfterS: 30 },
  stream_stopped: { status: 400, type: 'invalid_request_error' },
  stream_unknown: { status: 404, type: 'not_found_error' },
  // The web UI asks again after as long.
  stream_not_yet: { status: 503, type: 'unavailable_error', retryAfterS: 2 },
  helper_failed: { status: 503, type: 'unavailable_error', retryAfterS: 1 },
  too_many_listeners: { status: 429, type: 'overloaded_error', retryAfterS: 5 },
  too_many_connections: { status: 503, type: 'unavailable_error', retryAfterS: 2 },
  feature_disabled: { status: 403, type: 'feature_disabled' },
  origin_foreign: { status: 403, type: 'permission_error' },
  model_changing: { status: 503, type: 'unavailable_error', retryAfterS: 5 },
  model_unloaded_meanwhile: { status: 400, type: 'invalid_request_error' },
  model_failing: { status: 503, type: 'unavailable_error', retryAfterS: 10 },
  out_of_memory: { status: 503, type: 'unavailable_error', retryAfterS: 10 },
  load_failed: { status: 503, type: 'unavailable_error', retryAfterS: 10 },
  queue_full: { status: 429, type: 'overloaded_error', retryAfterS: 5 },
  queue_timeout: { status: 503, type: 'unavailable_error', retryAfterS: 5 },
  child_gone: { status: 502, type: 'server_error', retryAfterS: 1 },
  child_timeout: { status: 504, type: 'server_error', retryAfterS: 10 },
  shutting_down: { status: 503, type: 'unavailable_error', retryAfterS: 5 },
  client_gone: { status: 499, type: 'invalid_request_error' },
  key_invalid: { status: 401, type: 'authentication_error' },
  request_malformed: { status: 400, type: 'invalid_request_error' },
  expectation_unknown: { status: 417, type: 'invalid_request_error' },
  not_found: { status: 404, type: 'not_found_error' },
  internal: { status: 500, type: 'server_error' },
} as const satisfies Record<string, CatalogueEntry>;

export type ErrorCode = keyof typeof catalogue;

export interface ErrorDetails {
  /** Seconds after which trying again makes sense, where it is known better than from the catalogue; becomes `Retry-After`. */
  readonly retryAfterS?: number;
  readonly model?: string;
  /** What the child wrote last, oldest line first. */
  readonly lastLines?: readonly string[];
  readonly cause?: unknown;
}

/** An error of the catalogue. `message` is what the client reads: what happened and what to do. */
export class RouterError extends Error {
  override readonly name = 'RouterError';
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, 'cause' in details ? { cause: details.cause } : undefined);
    this.code = code;
    this.details = details;
  }

  get status(): number {
    return catalogue[this.code].status;
  }

  /** Headers that go with the error, besides the content type. */
  get headers(): Record<string, string> {
    const entry: CatalogueEntry = catalogue[this.code];
    const retryAfterS = this.details.retryAfterS ?? ('retryAfterS' in entry ? entry.retryAfterS : undefined);
    return retryAfterS === undefined ? {} : { 'Retry-After': String(Math.max(1, Math.ceil(retryAfterS))) };
  }

  /** The body: llama-server's envelope, with `reason`, `model` and `last_lines` added where they are known. */
  toJSON(): { error: Record<string, unknown> } {
    const { status, type } = catalogue[this.code];
    const { model, lastLines } = this.details;
    return {
      error: {
        code: status,
        message: this.message,
        type,
        reason: this.code,
        ...(model === undefined ? {} : { model }),
        ...(lastLines === undefined || lastLines.length === 0 ? {} : { last_lines: lastLines }),
      },
    };
  }
}

/** Any thrown value as an error of the catalogue; what was not foreseen is `internal`. */
export function asRouterError(error: unknown): RouterError {
  if (error instanceof RouterError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new RouterError('internal', `internal error: ${message}`, { cause: error });
}
