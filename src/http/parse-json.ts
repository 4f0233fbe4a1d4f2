/** What a small JSON text says; undefined when it is none. A byte order mark is skipped, as llama-server does. */
export function parseJson(text: Buffer): unknown {
  try {
    return JSON.parse(text.toString().replace(/^\ufeff/, ''));
  } catch {
    return undefined;
  }
}
