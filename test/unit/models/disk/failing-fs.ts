import type * as promises from 'node:fs/promises';

type FsPromises = typeof promises;

const failures = new Map<string, string>();

/** From now on the system fails with `code` to open or ask `path`, until `mend`. */
export function failAt(path: string, code: string): void {
  failures.set(path, code);
}

export function mend(): void {
  failures.clear();
}

/** `node:fs/promises` as it is, but for the paths of `failAt`. Also a superuser, who can read every file, fails there. */
export function withFailures(fs: FsPromises): FsPromises {
  const failing = <Operation extends (...args: never[]) => Promise<unknown>>(
    operation: Operation,
  ): Operation =>
    ((...args: never[]) => {
      const code = failures.get(String(args[0]));
      if (code === undefined) return operation(...args);
      return Promise.reject(Object.assign(new Error(`${code}: made to fail`), { code }));
    }) as Operation;
  return {
    ...fs,
    open: failing(fs.open),
    opendir: failing(fs.opendir),
    readFile: failing(fs.readFile),
    stat: failing(fs.stat),
  };
}
