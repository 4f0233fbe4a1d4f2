/** One case in which we do something else than the native router, on purpose; as docs/compatibility.md tells it. */
export interface IntendedDifference {
  readonly case: string;
  readonly native: string;
  readonly here: string;
  readonly why: string;
}

/** Every difference that the tests against the native router meet. */
export const INTENDED_DIFFERENCES = {
  'two-values': {
    case: 'options with two values (`--control-vector-layer-range`)',
    native: 'does not start',
    here: 'passed on to the models',
    why: 'the binary of a single model takes them',
  },
  'inline-values': {
    case: '`--name=value`',
    native: 'an invalid argument',
    here: 'the same as `--name value`; also `--switch=on` and `=off`',
    why: 'what nearly every other program takes',
  },
  'strict-numbers': {
    case: 'a number with something behind it (`--port 80a`)',
    native: 'what is behind it is ignored',
    here: 'an error',
    why: 'it is a typing mistake',
  },
  'empty-variable': {
    case: 'an empty environment variable of a number or a switch',
    native: 'does not start',
    here: 'taken as unset',
    why: 'service managers and compose files leave them so',
  },
  'empty-api-key': {
    case: '`--api-key` or `--api-key-file` without a key',
    native: 'serves everybody',
    here: 'an error',
    why: 'who gives the option does not mean that',
  },
  'api-keys-of-one-source': {
    case: 'API keys on the command line and in the environment',
    native: 'all are valid, although it says that the environment is overwritten',
    here: 'those of the command line alone',
    why: 'as with every other option',
  },
  'key-file-blanks': {
    case: 'blanks around a key in `--api-key-file`, carriage returns included',
    native: 'belong to the key',
    here: 'do not',
    why: 'no client sends them',
  },
  'reserved-variables': {
    case: 'keys, `LLAMA_ARG_MODELS_*`, TLS, log file and `AIP_*` in the environment',
    native: 'reach the children',
    here: 'do not',
    why: 'they are the router’s own; children would refuse it, or write one log',
  },
  'tools-of-the-helper': {
    case: '`--tools`, `--tools-runtime`, `--mcp-servers-*` and `--agent`, on the command line or in the environment',
    native: 'reach every child, which starts the MCP servers and containers again',
    here: 'one process has them; a presets section can give them to a model',
    why: 'no client reaches the tools of a child',
  },
  'shared-ports': {
    case: '`--reuse-port`, and the children',
    native: 'they share their ports, too',
    here: 'they do not',
    why: 'another process could take their requests',
  },
  'one-bad-section': {
    case: 'an unknown option, an indented line or another fault in the presets file',
    native: 'does not start',
    here: 'only the model of that section fails, with file, line and remedy; in `[*]` a warning',
    why: 'one bad model never stops the rest',
  },
  'removed-option': {
    case: 'an option in the presets file that llama-server lists only to say that it was removed',
    native: 'the model is offered and fails at load',
    here: 'listed as failed, with what to use instead',
    why: '',
  },
  'byte-order-mark': {
    case: 'a presets file with a byte order mark',
    native: 'does not start',
    here: 'read, with a warning',
    why: 'some editors write one unasked',
  },
  'alias-conflict': {
    case: 'an alias that another model has as id or alias',
    native: 'does not start',
    here: 'the id goes before the alias, the first model by id before the others; a warning says so',
    why: 'one bad model never stops the rest',
  },
  'missing-model': {
    case: 'a section that names no model',
    native: 'offered; its child becomes another router and never answers',
    here: 'listed as failed, with what to add',
    why: '',
  },
  'unreadable-cache': {
    case: 'a model cache that is no directory or may not be read',
    native: 'does not start',
    here: 'a warning; the other models are served',
    why: 'one bad source never stops the rest',
  },
  offline: {
    case: 'cached (hub) models',
    native: 'each load asks the hub',
    here: 'started with `--offline`',
    why: 'a load never waits for the network',
  },
  imatrix: {
    case: 'imatrix files',
    native: 'listed as models',
    here: 'no models',
    why: 'no child loads them',
  },
  'cached-preset': {
    case: 'models of a cached repository that holds a `preset.ini`',
    native: 'offered, fail at load',
    here: 'listed as failed, with what to do',
    why: '',
  },
  'top-shards': {
    case: 'shards at the top of `--models-dir`',
    native: 'a model each',
    here: 'one model',
    why: '',
  },
  'several-models': {
    case: 'several models in one folder of `--models-dir`',
    native: 'the last one the file system gives',
    here: "Q4_K_M, Q8_0 or the first is the folder's id, the others are `folder:QUANT`",
    why: '',
  },
  'several-companions': {
    case: 'several projectors or drafts in one folder of `--models-dir`',
    native: 'the last projector and the first draft the file system gives',
    here: 'those nearest to the model in bits',
    why: 'as llama-server chooses in a repository',
  },
  'eagle-drafts': {
    case: '`eagle3-` drafts in `--models-dir`',
    native: 'listed as models, or taken for that of their folder',
    here: 'no models',
    why: 'no child loads one by itself',
  },
  'dangling-link': {
    case: 'a link in `--models-dir` that leads nowhere',
    native: 'not listed',
    here: 'listed as failed, with the reason',
    why: 'a disk that is not mounted must not look like an empty one',
  },
  'file-beside-folder': {
    case: '`x.gguf` beside a folder `x` in `--models-dir`',
    native: 'the last one the file system gives',
    here: 'the folder; a warning names the file',
    why: '',
  },
  'lost-first-shard': {
    case: 'shards of which the first is missing',
    native: 'offered by another shard, fail at load',
    here: 'listed as failed, with the name of the missing one',
    why: '',
  },
  'nameless-file': {
    case: 'a file of `--models-dir` named `.gguf`',
    native: 'a model with an empty id',
    here: 'not listed; a warning says so',
    why: 'no request can name it',
  },
  'odd-names': {
    case: 'file names that are not UTF-8',
    native: 'listed with � in the id, which no request can name',
    here: 'listed and served with the odd bytes as `%E9`',
    why: '',
  },
  modalities: {
    case: 'modalities of a model',
    native: 'the projector is read at the start, synchronously',
    here: 'read off the main thread; text only until then',
    why: '',
  },
  'modalities-of-child': {
    case: 'modalities of a model with `hf-file`, or with `mmproj` beside `no-mmproj`',
    native: 'of the projector beside the file of the tag; none',
    here: 'of the projector that the child loads',
    why: '',
  },
  'outdated-snapshot': {
    case: 'a cached repository of whose new commit no model is there yet',
    native: 'not listed until it is downloaded',
    here: 'the newest commit that is whole is served, with a warning',
    why: 'an update of 40 GB takes hours',
  },
  'flat-cache': {
    case: 'flat cache of earlier llama.cpp versions',
    native: 'not read',
    here: "listed, with the hub's ids",
    why: 'people still have it',
  },
  'reload-names': {
    case: 'a reload that changes only the aliases of a running model',
    native: 'they stay until it is unloaded and a reload follows',
    here: 'count at once; its process goes on',
    why: '',
  },
  'reload-of-no-matter': {
    case: 'a reload that changes only `tags`, `stop-timeout` or `load-on-startup` of a running model',
    native: 'it is unloaded',
    here: 'its process goes on',
    why: 'its child would be started the same',
  },
  'replaced-file': {
    case: 'a reload after the file of a running model was replaced',
    native: 'the old process goes on',
    here: 'the next request starts the new file',
    why: '',
  },
  'reload-failure': {
    case: 'a reload, and a model that failed to load and has not changed',
    native: '`failed` is cleared',
    here: 'stays listed with its reason; a request tries again all the same',
    why: 'nobody must search a log for what is still true',
  },
  'reload-source': {
    case: 'a reload that adds or removes the section of a model that was found on disk',
    native: '`source` and `can_remove` stay as they were at the start',
    here: 'they are as at a start',
    why: '',
  },
  'reload-alias-conflict': {
    case: 'a reload that gives an alias to a second model',
    native: 'the model that had it keeps it; for a new model 500, and no model is loaded any more',
    here: 'as at a start: the first model by id has it, a warning says so',
    why: 'the same files make the same list, whatever was before',
  },
  'broken-reload': {
    case: 'a presets file that is broken at a reload',
    native: '500, and nothing is reloaded; after a download 500 for every request',
    here: 'the last good form of the section goes on, marked `stale`, with the place and the remedy',
    why: '',
  },
  'lost-directory': {
    case: '`--models-dir` that is gone at a reload',
    native: '500, and its models stay listed',
    here: 'its models are unlisted until it is back, with a warning',
    why: 'a disk that is not mounted is no reason to refuse the rest',
  },
  'busy-reload': {
    case: 'a reload changes a busy model',
    native: 'its requests are cut',
    here: 'they end first; later ones wait for the new form, at most `--fair-after` (then 503 `model_changing`)',
    why: 'no stream is lost',
  },
  'events-with-reasons': {
    case: '`unloaded` in `GET /models/sse`',
    native: '`exit_code` alone',
    here: 'after it also `reason` (`evicted`, `unloaded`, `removed`, `changed`) or, of a failure, `error` with its last lines',
    why: 'nobody must search a log for it',
  },
  'forced-stop': {
    case: 'a model that is unloaded and does not exit within `stop-timeout`',
    native: '`exit_code` 1, listed as `failed`',
    here: '`exit_code` 0, not failed',
    why: 'it was asked for',
  },
  'given-up-load': {
    case: 'a model that is unloaded while it loads',
    native: 'listed as `failed`',
    here: 'listed as unloaded (the event has `exit_code` 1, too)',
    why: 'it was asked for',
  },
  'reload-of-nothing': {
    case: 'a reload that finds the models as they were',
    native: '`models_reload` in `GET /models/sse`',
    here: 'no event',
    why: 'no client has to read the list again',
  },
  'reload-first': {
    case: 'a reload that unloads a model, in `GET /models/sse`',
    native: '`unloaded`, then `models_reload`, for which the reload waits',
    here: '`models_reload`, then `unloaded`',
    why: 'a reload waits for no model to stop',
  },
  'section-prefix': {
    case: '`api-prefix` in a section of the presets file',
    native: 'every request for the model is answered with 404',
    here: 'ignored with a warning',
    why: 'the child would not be found',
  },
  'look-loads-nothing': {
    case: 'proxied GET of a model that is not loaded',
    native: 'loads it',
    here: '400 `model is not loaded`, unless `autoload=true`',
    why: 'looking must not change anything',
  },
  'unknown-to-load': {
    case: 'load of an unknown model',
    native: '404 with the text `File Not Found`',
    here: "404 with `model 'X' not found`",
    why: '',
  },
  'nameless-load': {
    case: '`POST /models/load` and `/models/unload` without a model',
    native: '404 `File Not Found`; 400 `model is not found`',
    here: '400 `model name is missing from the request`',
    why: 'as on all other routes',
  },
  'unknown-methods': {
    case: 'methods that no route has (`TRACE`, `PROPFIND`), or that are none',
    native: '400 without a body',
    here: '404, as for any wrong method; 400 in JSON',
    why: '',
  },
  'request-targets': {
    case: 'a request target in the absolute form, with `..`, or with `%2F` for a slash',
    native: '404; 404; as a slash',
    here: 'read as a URL: its path counts; resolved; no slash',
    why: 'what RFC 9112 and RFC 3986 say',
  },
  'head-ranges': {
    case: 'answers to HEAD',
    native: '`Accept-Ranges: bytes`',
    here: 'without it',
    why: 'no answer of the API is given in parts',
  },
  'malformed-json': {
    case: 'body is not JSON',
    native: "500 `server_error`, the parser's text",
    here: '400 `invalid_request_error`, reason and byte offset',
    why: 'the request is wrong, not the server',
  },
  'autoload-off-while-loading': {
    case: '`autoload=false` while the model loads',
    native: "the child's 503 is passed on",
    here: 'waits for the load',
    why: '',
  },
  'failed-load': {
    case: 'a model fails to load',
    native: '500 `model name=X failed to load`',
    here: "503 with `Retry-After`, the same words, the exit and the child's last lines",
    why: 'a balancer can try elsewhere; nobody must search a log',
  },
  'large-body': {
    case: 'body over 100 MiB',
    native: '413, empty body',
    here: '413, JSON (`--body-max`)',
    why: '',
  },
  'long-targets': {
    case: 'request line and headers',
    native: 'no answer above 32 KiB',
    here: '431 in JSON above 64 KiB',
    why: '',
  },
  'many-headers': {
    case: 'more than 100 headers in a request',
    native: '400 without a body',
    here: 'served',
    why: 'proxies in front add theirs',
  },
  'draining-unload': {
    case: 'unload of a busy model',
    native: 'its requests are cut',
    here: 'they get `--drain-timeout` to end; new ones wait for the next instance',
    why: '`force: true` cuts, as before',
  },
  'load-while-stopping': {
    case: 'load of a model that is being unloaded',
    native: '400 `model is already running`',
    here: 'takes its turn: it is loaded anew when its process is gone',
    why: 'it is about not to run',
  },
  'full-load': {
    case: 'explicit load, all models busy',
    native: '500 at once',
    here: 'takes its turn in the queue',
    why: '',
  },
  'parallel-loads': {
    case: 'several loads at once',
    native: 'strictly one after another',
    here: 'side by side while slots are free',
    why: '',
  },
  recency: {
    case: 'recency',
    native: 'start of the last request',
    here: 'end of the last request',
    why: 'a long answer must not leave its model as the oldest',
  },
  'sleeping-looks': {
    case: '`GET /slots`, `/lora-adapters` of a sleeping model',
    native: 'wakes it',
    here: '400 `model is not loaded`, unless `autoload=true`',
    why: 'looking must not change anything',
  },
  'startup-over-limit': {
    case: 'more `load-on-startup` models than slots',
    native: 'does not start',
    here: 'the first by id are loaded, the others named in the log',
    why: '',
  },
  'startup-without-limit': {
    case: '`--models-max 0` with `load-on-startup`',
    native: 'does not start',
    here: 'all of them are loaded: 0 is no limit',
    why: '',
  },
  'cors-without-origin': {
    case: '`Access-Control-Allow-Origin` for a request without `Origin`',
    native: 'an empty header',
    here: 'none; `Vary: Origin` where the answer depends on it',
    why: '',
  },
  'foreign-pages': {
    case: 'requests that change something, made by a page of another origin',
    native: 'carried out, wherever CORS lets them through',
    here: '403 `origin_foreign`, unless the page sends an API key or `--cors-origins` names its origin',
    why: 'a web page must not unload or delete models of whoever visits it',
  },
  'given-up-wait': {
    case: 'a request that waits for a load which is then unloaded',
    native: '500 `model name=X failed to load`',
    here: '400 `model name=X is not running`',
    why: 'it has not failed: somebody gave it up',
  },
  'metrics-of-children': {
    case: '`GET /metrics?model=` without `--metrics`',
    native: '501',
    here: 'answered',
    why: 'children are always started with `--metrics`',
  },
  'no-buffering': {
    case: '`X-Accel-Buffering: no`',
    native: 'on every proxied answer',
    here: 'on event streams',
    why: 'a proxy in front may buffer the others',
  },
  'response-framing': {
    case: 'response framing',
    native: 'always chunked, connection closed after each',
    here: 'Content-Length kept, connections kept alive',
    why: '',
  },
  'entry-additions': {
    case: 'an entry of `GET /models`',
    native: 'its fields',
    here: 'the same in their order, then `path`, `facts`, `progress`, `pid`, `memory`, `last_used`, `in_flight`, `waiting`, `changing`, `stale`; `meta` of unloaded models, too; beside `data` also `models`',
    why: 'what a dashboard or a client of a server of one model looks for',
  },
  'unknown-stream': {
    case: '`GET /v1/stream` of a conversation that is not known',
    native: '404 with the text `File Not Found`',
    here: '404 with `Stream not found or expired`',
    why: '',
  },
  'queued-stream': {
    case: '`GET /v1/stream` of a request that waits in line for a slot',
    native: '404',
    here: '503 `Stream owner model is loading, retry later`',
    why: 'the web UI forgets an answer that is a 404',
  },
  'several-origins': {
    case: '`--cors-origins` with several origins',
    native: '`Access-Control-Allow-Origin` has the list as it is',
    here: 'it has the one that asks, if it is in the list',
    why: 'browsers accept no list',
  },
} as const satisfies Record<string, IntendedDifference>;

export type DifferenceId = keyof typeof INTENDED_DIFFERENCES;

/** The title of a test of that difference. */
export function intended(id: DifferenceId): string {
  const { case: what, native, here } = INTENDED_DIFFERENCES[id];
  return `${what}: ${here} (native: ${native})`;
}
