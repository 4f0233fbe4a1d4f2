/** Path and query as sent, also when the client used the absolute form. */
export function pathOf(url = '/'): string {
  if (url.startsWith('/')) return url;
  const { pathname, search } = new URL(url);
  return pathname + search;
}

/** What the query says of a name: of several values the last, as llama-server reads them; empty where there is none. */
export function queryValue(url = '', name: string): string {
  const start = url.indexOf('?');
  return start === -1 ? '' : (new URLSearchParams(url.slice(start + 1)).getAll(name).at(-1) ?? '');
}
