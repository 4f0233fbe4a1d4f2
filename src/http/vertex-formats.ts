/** By these a llama-server with one model gives what it has under GET, or wants a number in the path. */
const noPredictions = new Set(['/props', '/lora-adapters', '/slots/:id_slot']);

/**
 * What `@requestFormat` may say, and the route it stands for: a path itself (`/v1/chat/completions`), or its name in
 * camel case (`chatCompletions`; llama-server, `path_to_gcp_format` in tools/server/server-http.cpp). Of two paths with
 * one name it stands for that of OpenAI's API, `/v1/completions` and not `/completions`, as there.
 *
 * @param routes paths of the POST routes that are for a model
 */
export function requestFormats(routes: readonly string[]): ReadonlyMap<string, string> {
  const formats = new Map<string, string>();
  for (const path of routes) {
    if (noPredictions.has(path)) continue;
    formats.set(path, path);
    const name = camelCase(path);
    if (!formats.has(name) || path.startsWith('/v1/')) formats.set(name, path);
  }
  return formats;
}

function camelCase(path: string): string {
  const words = path.replace(/^\/v1(?=\/)/, '').split(/[/_-]/);
  const [first = '', ...others] = words.filter((word) => word !== '');
  return first + others.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('');
}
