import { opendir, stat } from 'node:fs/promises';
import type { Dirent } from 'node:fs';

/**
 * One entry of a directory, symbolic links followed; `dangling` is a link whose target does not exist, and `unknown` one
 * whose target the system fails to tell.
 */
export interface DirectoryEntry {
  readonly name: string;
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'dangling' | 'unknown' | 'other';
  readonly isLink: boolean;
}

/** What following a link fails with that leads to no file, today or tomorrow. */
const LEADS_NOWHERE: ReadonlySet<string> = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG']);

/**
 * `directory` and `name` as one path, the first kept exactly as it was given: a relative one stays relative,
 * and `./models` stays `./models`, because these paths appear in a child's arguments.
 */
export function joinPath(directory: string, name: string): string {
  return directory.endsWith('/') ? directory + name : `${directory}/${name}`;
}

/**
 * The names in `directory` in the order in which the system gives them, links not followed.
 * `readdir` would sort them, but a child that has a choice takes the first in the system's order.
 */
export async function readDirents(directory: string): Promise<Dirent[]> {
  const dirents: Dirent[] = [];
  for await (const dirent of await opendir(directory)) dirents.push(dirent);
  return dirents;
}

/**
 * The entries of `directory` in the system's order, links followed. Where a link leads is taken from `last`, the entries
 * as they were before, if the system fails to tell. Rejects if the directory cannot be read.
 */
export async function readDirectory(
  directory: string,
  last: readonly DirectoryEntry[] = [],
): Promise<DirectoryEntry[]> {
  const entries: DirectoryEntry[] = [];
  for (const dirent of await readDirents(directory)) {
    const path = joinPath(directory, dirent.name);
    const isLink = dirent.isSymbolicLink();
    entries.push({
      name: dirent.name,
      path,
      kind: isLink ? await kindOfPath(path) : directKind(dirent),
      isLink,
    });
  }
  if (!entries.some(({ kind }) => kind === 'unknown')) return entries;
  const kinds = new Map(last.map(({ name, kind }) => [name, kind]));
  return entries.map((entry) =>
    entry.kind === 'unknown' ? { ...entry, kind: kinds.get(entry.name) ?? entry.kind } : entry,
  );
}

/** What `path` is, links followed. */
export async function kindOfPath(path: string | Buffer): Promise<DirectoryEntry['kind']> {
  try {
    return directKind(await stat(path));
  } catch (error) {
    return LEADS_NOWHERE.has(failureCode(error)) ? 'dangling' : 'unknown';
  }
}

function directKind(entry: { isFile(): boolean; isDirectory(): boolean }): DirectoryEntry['kind'] {
  if (entry.isFile()) return 'file';
  return entry.isDirectory() ? 'directory' : 'other';
}

/** What `look` gives; undefined if that fails because the path leads to nothing. */
export async function unlessNowhere<T>(look: () => Promise<T>): Promise<T | undefined> {
  try {
    return await look();
  } catch (error) {
    if (LEADS_NOWHERE.has(failureCode(error))) return undefined;
    throw error;
  }
}

/** Whether a failure with `code` says that there is nothing at the path; others leave open what is there. */
export function isGone(code: string): boolean {
  return code === 'ENOENT' || code === 'ENOTDIR';
}

/** The system's code of a failed file operation (`EACCES`), or the message where it has none. */
export function failureCode(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}
