import type * as promises from 'node:fs/promises';

type FsPromises = typeof promises;

type Operation =
  'access' | 'open' | 'opendir' | 'readdir' | 'readFile' | 'readlink' | 'realpath' | 'stat' | 'unlink';

const failures = new Map<string, { readonly code: string; readonly only: Operation | undefined }>();
const silent = new Set<string>();
let unlinksLeft = Infinity;

/** From now on the system fails with `code` to open, ask or remove `path`, or only in one of these, until `mend`. */
export function failAt(path: string, code: string, only?: Operation): void {
  failures.set(path, { code, only });
}

/** From now on the system does not answer at all at `path`, until `mend`. */
export function silenceAt(path: string): void {
  silent.add(path);
}

/** From now on `count` files can be removed and no more, as if the disk had failed then, until `mend`. */
export function failUnlinksAfter(count: number): void {
  unlinksLeft = count;
}

export function mend(): void {
  failures.clear();
  silent.clear();
  unlinksLeft = Infinity;
}

/** `node:fs/promises` as it is, but for the paths of `failAt`. Also a superuser, who can read every file, fails there. */
export function withFailures(fs: FsPromises): FsPromises {
  const failing = <Name extends Operation>(name: Name, operation = fs[name]): FsPromises[Name] =>
    ((...args: never[]) => {
      const path = String(args[0]);
      if (silent.has(path)) return new Promise(() => undefined);
      const { code, only = name } = failures.get(path) ?? {};
      if (code !== undefined && only === name) return Promise.reject(failure(code));
      return (operation as (...args: never[]) => unknown)(...args);
    }) as FsPromises[Name];
  const unlink: FsPromises['unlink'] = async (path) => {
    if (unlinksLeft === 0) throw failure('EIO');
    unlinksLeft--;
    await fs.unlink(path);
  };
  return {
    ...fs,
    access: failing('access'),
    open: failing('open'),
    opendir: failing('opendir'),
    readdir: failing('readdir'),
    readFile: failing('readFile'),
    readlink: failing('readlink'),
    realpath: failing('realpath'),
    stat: failing('stat'),
    unlink: failing('unlink', unlink),
  };
}

function failure(code: string): Error {
  return Object.assign(new Error(`${code}: made to fail`), { code });
}
