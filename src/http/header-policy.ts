/**
 * Which headers pass the proxy. Raw header lists are names and values in turn, as Node gives and takes them.
 */

/**
 * Headers of one connection only, never passed on.
 * @see https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
 */
const hopByHop = [
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
] as const;

/** The client's credentials stop here; host, length and expectation belong to the connection to the child. */
const notForwarded = new Set<string>([
  ...hopByHop,
  'authorization',
  'x-api-key',
  'cookie',
  'host',
  'content-length',
  'expect',
]);

/** Who may read an answer is ours to say, and what a proxy may buffer. */
const notReturned = new Set<string>([
  ...hopByHop,
  'x-accel-buffering',
  'access-control-allow-origin',
  'access-control-allow-credentials',
  'access-control-allow-methods',
  'access-control-allow-headers',
]);

/** Headers named in a Connection header, lower case. */
function namedByConnection(rawHeaders: readonly string[]): Set<string> | undefined {
  let named: Set<string> | undefined;
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() !== 'connection') continue;
    for (const token of rawHeaders[i + 1]?.split(',') ?? []) {
      const name = token.trim().toLowerCase();
      if (name !== 'keep-alive' && name !== 'close' && name !== '') (named ??= new Set()).add(name);
    }
  }
  return named;
}

/** The client's headers as the child gets them. */
export function requestHeaders(rawHeaders: readonly string[]): string[] {
  return filter(rawHeaders, notForwarded);
}

/** The child's headers as the client gets them; event streams tell nginx not to buffer. */
export function responseHeaders(
  rawHeaders: readonly string[],
  { isEventStream }: { isEventStream: boolean },
): string[] {
  const headers = filter(rawHeaders, notReturned);
  if (isEventStream) headers.push('X-Accel-Buffering', 'no');
  return headers;
}

function filter(rawHeaders: readonly string[], dropped: ReadonlySet<string>): string[] {
  const named = namedByConnection(rawHeaders);
  const kept: string[] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    const name = rawHeaders[i] ?? '';
    const lower = name.toLowerCase();
    if (dropped.has(lower) || named?.has(lower)) continue;
    kept.push(name, rawHeaders[i + 1] ?? '');
  }
  return kept;
}
