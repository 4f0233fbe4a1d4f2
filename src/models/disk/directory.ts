import { opendir, stat } from 'node:fs/promises';
import type { Dirent } from 'node:fs';

/** One entry of a directory, symbolic links followed; `dangling` is a link whose target does not exist. */
export interface DirectoryEntry {
  readonly name: string;
  readonly path: string;
  readonly kind: 'file' | 'directory' | 'dangling' | 'other';
}

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

/** The entries of `directory` in the system's order, links followed. Rejects if it cannot be read. */
export async function readDirectory(directory: string): Promise<DirectoryEntry[]> {
  const entries: DirectoryEntry[] = [];
  for (const dirent of await readDirents(directory)) {
    const path = joinPath(directory, dirent.name);
    const kind = dirent.isSymbolicLink() ? await kindOfPath(path) : directKind(dirent);
    entries.push({ name: dirent.name, path, kind });
  }
  return entries;
}

/** What `path` is, links followed. */
export async function kindOfPath(path: string | Buffer): Promise<DirectoryEntry['kind']> {
  try {
    return directKind(await stat(path));
  } catch {
    return 'dangling';
  }
}

function directKind(entry: { isFile(): boolean; isDirectory(): boolean }): DirectoryEntry['kind'] {
  if (entry.isFile()) return 'file';
  return entry.isDirectory() ? 'directory' : 'other';
}

/** What `read` gives of `directory`; nothing where it does not exist, and a warning where it cannot be read. */
export async function readOrWarn<Entry>(
  directory: string,
  read: (directory: string) => Promise<Entry[]>,
  warnings: string[],
): Promise<Entry[]> {
  try {
    return await read(directory);
  } catch (error) {
    const code = failureCode(error);
    if (code !== 'ENOENT') warnings.push(`'${directory}' cannot be read: ${code}`);
    return [];
  }
}

/** The system's code of a failed file operation (`EACCES`), or the message where it has none. */
export function failureCode(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return code ?? message;
}
