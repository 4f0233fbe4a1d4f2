import { rmSync } from 'node:fs';
import { chmod, lstat, mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** What the command line needs to reach a running supervisor. */
export interface RunFile {
  readonly pid: number;
  readonly url: string;
  /** A key that this run accepts besides the configured ones; absent when no key is asked for. */
  readonly apiKey?: string;
}

/**
 * Writes `PORT.json` (mode 0600) in a directory of this user's alone; returns how to remove it again.
 *
 * @throws when the directory cannot be made, or is not this user's
 */
export async function writeRunFile(directory: string, port: number, content: RunFile): Promise<() => void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const stats = await lstat(directory);
  const uid = process.getuid?.();
  if (!stats.isDirectory() || (uid !== undefined && stats.uid !== uid)) {
    throw new Error(`${directory} is not a directory of this user; remove it or set XDG_RUNTIME_DIR`);
  }
  await chmod(directory, 0o700);
  const file = join(directory, `${port}.json`);
  const temporary = `${file}.${process.pid}`;
  await writeFile(temporary, `${JSON.stringify(content)}\n`, { mode: 0o600 });
  await rename(temporary, file);
  // At once, so that it can also be the last thing a process does.
  return () => rmSync(file, { force: true });
}
