/**
 * What would make a child something else than a child: a router, a download worker, a TLS or Vertex server, a
 * writer of one log.
 */
const removed = [
  /^LLAMA_API_KEY$/,
  /^LLAMA_ARG_API_KEY_FILE$/,
  /^LLAMA_ARG_(NO_)?MODELS_/,
  /^LLAMA_SERVER_CHILD_MODE$/,
  /^LLAMA_ARG_LOG_FILE$/,
  /^AIP_/,
  /^LLAMA_SUPERVISOR_/,
];

/**
 * The environment of children: the supervisor's own, minus what changes a child's role, and minus empty options:
 * we take them as unset, a child would not start with some of them. TLS settings and the repository of remote
 * presets are set to empty instead of removed, because a child also reads llama.cpp's config files, which the
 * environment overrides. Metrics are on so that they can be read through the supervisor.
 *
 * The HTTP threads are more than llama-server's own choice (slots + 4), unless the environment or the
 * command line says otherwise: its pool grows late
 * (cpp-httplib counts a thread as idle until it has run), so that of a burst of long streams some connections, and
 * every probe after them, wait behind the streams.
 */
export function childEnvironment(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(env).filter(
    ([name, value]) =>
      !removed.some((pattern) => pattern.test(name)) && !(value === '' && name.startsWith('LLAMA_ARG_')),
  );
  return {
    LLAMA_ARG_THREADS_HTTP: '64',
    ...Object.fromEntries(kept),
    LLAMA_ARG_SSL_KEY_FILE: '',
    LLAMA_ARG_SSL_CERT_FILE: '',
    LLAMA_ARG_HF_REPO: '',
    LLAMA_ARG_ENDPOINT_METRICS: '1',
  };
}
