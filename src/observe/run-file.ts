import { createHash } from 'node:crypto';
import { readFileSync, unlinkSync } from 'node:fs';
import { chmod, lstat, mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** What the command line needs to reach a running supervisor. */
export interface RunFile {
  readonly pid: number;
  readonly url: string;
  /** The Unix socket to connect to, where the host in `url` is a name only. */
  readonly socketPath?: string;
  /** A key that this run accepts besides the configured ones; absent when no key is asked for. */
  readonly apiKey?: string;
}

/** `PORT.json`; for a supervisor that listens on Unix sockets alone `unix-HASH.json`, by the path of the first. */
export function runFileName(where: { readonly port: number } | { readonly socketPath: string }): string {
  if ('port' in where) return `${where.port}.json`;
  // A path itself may be longer than a file's name can be.
  const hash = createHash('sha256').update(where.socketPath).digest('hex').slice(0, 16);
  return `unix-${hash}.json`;
}

/**
 * Writes a run file (mode 0600) in a directory that nobody else can write to; returns how to remove it again: only while
 * it is this one and not that of another process, which may share a port. Others may enter a directory that was there
 * before, as a service manager makes it: sockets may be in it.
 *
 * @throws when the directory cannot be made, or is not this user's
 */
export async function writeRunFile(directory: string, name: string, content: RunFile): Promise<() => void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const stats = await lstat(directory);
  const uid = process.getuid?.();
  if (!stats.isDirectory() || (uid !== undefined && stats.uid !== uid)) {
    throw new Error(`${directory} is not a directory of this user; remove it or set XDG_RUNTIME_DIR`);
  }
  if ((stats.mode & 0o022) !== 0) await chmod(directory, stats.mode & 0o7755);
  const file = join(directory, name);
  const temporary = `${file}.${process.pid}`;
  const text = `${JSON.stringify(content)}\n`;
  await writeFile(temporary, text, { mode: 0o600 });
  await rename(temporary, file);
  // At once, so that it can also be the last thing a process does.
  return () => {
    try {
      if (readFileSync(file, 'utf8') === text) unlinkSync(file);
    } catch {
      // It is gone already, or cannot be reached; a later start on the port writes its own.
    }
  };
}
