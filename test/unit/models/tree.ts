import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ggufHeader } from './gguf-header.js';

/** Writes a file and the directories above it; a GGUF file that looks right unless told otherwise. */
export function writeFile(path: string, content: string | Uint8Array = ggufHeader()): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  return path;
}

/** Writes a file like `writeFile`, its path being given in Latin-1: each character above U+007F is a byte that is not UTF-8. */
export function writeOddFile(latin1Path: string): void {
  const path = Buffer.from(latin1Path, 'latin1');
  mkdirSync(path.subarray(0, path.lastIndexOf('/')), { recursive: true });
  writeFileSync(path, ggufHeader());
}

/** Writes a symbolic link and the directories above it. */
export function writeLink(path: string, target: string): string {
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(target, path);
  return path;
}

export const COMMIT = '0123456789abcdef0123456789abcdef01234567';

/** Adds files to a repository of a hub cache, as links into its blobs; gives the path of its snapshot. */
export function writeRepo(cache: string, repo: string, files: readonly string[], commit = COMMIT): string {
  const folder = join(cache, `models--${repo.replaceAll('/', '--')}`);
  writeFile(join(folder, 'refs/main'), commit);
  const snapshot = join(folder, 'snapshots', commit);
  mkdirSync(snapshot, { recursive: true });
  for (const file of files) {
    writeLink(join(snapshot, file), writeFile(join(folder, 'blobs', file.replaceAll('/', '_'))));
  }
  return snapshot;
}
