/**
 * What would make a child something else than a child: a router, a download worker, a TLS or Vertex server, a
 * writer of one log, a listener on a port that it shares.
 */
const removed = [
  /^LLAMA_API_KEY$/,
  /^LLAMA_ARG_API_KEY_FILE$/,
  /^LLAMA_ARG_(NO_)?MODELS_/,
  /^LLAMA_SERVER_(CHILD_MODE|ROUTER_PORT)$/,
  /^LLAMA_ARG_LOG_FILE$/,
  /^LLAMA_ARG_REUSE_PORT$/,
  /^AIP_/,
  /^LLAMA_SUPERVISOR_/,
];

/** What the helper child alone obeys: with a model of its own a child has no use for tools and MCP servers. */
const ofTheHelper = [
  /^LLAMA_ARG_TOOLS(_RUNTIME)?$/,
  /^LLAMA_ARG_MCP_SERVERS_(CONFIG|JSON)$/,
  /^LLAMA_ARG_(NO_)?AGENT$/,
];

/** What else the helper obeys. */
const ofTheHelperToo = [
  /^LLAMA_ARG_(NO_)?UI$/,
  /^LLAMA_ARG_UI_CONFIG(_FILE)?$/,
  /^LLAMA_ARG_(NO_)?UI_MCP_PROXY$/,
  /^LLAMA_ARG_STATIC_PATH$/,
  /^LLAMA_ARG_THREADS_HTTP$/,
];

/**
 * A pool of HTTP threads that is larger than llama-server's own choice (slots + 4), unless the environment or the
 * command line says otherwise: its pool grows late (cpp-httplib counts a thread as idle until it has run), so that of a
 * burst of long streams some connections, and every probe after them, wait behind the streams.
 */
const httpThreads = { LLAMA_ARG_THREADS_HTTP: '64' } as const;

/** Set to empty instead of removed, because every llama-server reads llama.cpp's config files, which these override. */
const overridden = {
  LLAMA_ARG_SSL_KEY_FILE: '',
  LLAMA_ARG_SSL_CERT_FILE: '',
  LLAMA_ARG_HF_REPO: '',
} as const;

/**
 * The environment of children: the supervisor's own, minus what changes a child's role or is the helper's, and minus
 * empty options: we take them as unset, a child would not start with some of them. TLS, the repository of remote presets
 * and MCP servers are taken from it even where the config files name them. Metrics are on so that they can be read through
 * the supervisor.
 */
export function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return {
    ...httpThreads,
    ...without(env, (name) => matches(name, ofTheHelper)),
    ...withoutBacktrace(env),
    ...overridden,
    LLAMA_ARG_MCP_SERVERS_CONFIG: '',
    LLAMA_ARG_MCP_SERVERS_JSON: '',
    LLAMA_ARG_TOOLS_RUNTIME: '',
    LLAMA_ARG_ENDPOINT_METRICS: '1',
  };
}

/**
 * The environment of the helper child, a llama-server without a model, which is hence a router: of the options only those
 * that it is there for, and nothing of what would give it models.
 *
 * @param modelCache where it looks for models: a directory without any
 */
export function helperEnvironment(env: NodeJS.ProcessEnv, modelCache: string): NodeJS.ProcessEnv {
  return {
    ...httpThreads,
    ...without(
      env,
      (name) => name.startsWith('LLAMA_ARG_') && !matches(name, [...ofTheHelper, ...ofTheHelperToo]),
    ),
    ...withoutBacktrace(env),
    ...overridden,
    LLAMA_ARG_MODEL: '',
    LLAMA_ARG_DOCKER_REPO: '',
    LLAMA_ARG_MODELS_DIR: '',
    LLAMA_ARG_MODELS_PRESET: '',
    // The prefix is ours: without it the helper tells its public paths from others.
    LLAMA_ARG_API_PREFIX: '',
    // Before all others that name a cache (common/hf-cache.cpp).
    LLAMA_CACHE: modelCache,
  };
}

/**
 * A process that aborts has gdb or lldb read its stack first (ggml/src/ggml.c, `ggml_print_backtrace`). With a large model that
 * takes long, its clients wait meanwhile, and the many lines drive out those that say what is wrong. Who wants it sets the
 * variable to empty, which a child could not tell from any other value.
 */
function withoutBacktrace({ GGML_NO_BACKTRACE: told = '1' }: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return { GGML_NO_BACKTRACE: told === '' ? undefined : told };
}

function without(env: NodeJS.ProcessEnv, isDropped: (name: string) => boolean): NodeJS.ProcessEnv {
  // Of a negated name the mere presence counts.
  const positiveOption = /^LLAMA_ARG_(?!NO_)/;
  const kept = Object.entries(env).filter(
    ([name, value]) =>
      !matches(name, removed) && !isDropped(name) && !(value === '' && positiveOption.test(name)),
  );
  return Object.fromEntries(kept);
}

function matches(name: string, patterns: readonly RegExp[]): boolean {
  return patterns.some((pattern) => pattern.test(name));
}
