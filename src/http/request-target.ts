/** Path and query as sent, also when the client used the absolute form. */
export function pathOf(url = '/'): string {
  if (url.startsWith('/')) return url;
  const { pathname, search } = new URL(url);
  return pathname + search;
}

/** Undefined where there is none. */
export function queryOf(url = ''): URLSearchParams | undefined {
  const start = url.indexOf('?');
  return start === -1 ? undefined : new URLSearchParams(url.slice(start + 1));
}
