import { readFileSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';

/**
 * The keys in the file that `--api-key-file` names: one per line, blanks around them ignored, `#` begins a comment line.
 *
 * @throws with a message for the user when the file cannot be read or holds no key: an empty list would open the
 *   server to everybody, which nobody means who names a file
 */
export function readKeyFile(path: string): readonly string[] {
  try {
    return keysIn(path, readFileSync(path, 'utf8'));
  } catch (error) {
    throw keyFileError(path, error);
  }
}

/**
 * The same, without holding up anything else, and of a file without a key an empty list; undefined of what is no regular file, which may give its text only once.
 */
export async function rereadKeyFile(path: string): Promise<readonly string[] | undefined> {
  try {
    const stats = await stat(path);
    if (!stats.isFile() && !stats.isDirectory()) return undefined;
    return linesIn(await readFile(path, 'utf8'));
  } catch (error) {
    throw keyFileError(path, error);
  }
}

class NoKey extends Error {}

function keysIn(path: string, text: string): readonly string[] {
  const keys = linesIn(text);
  if (keys.length === 0) throw new NoKey(`${path} holds no key; write one per line`);
  return keys;
}

function linesIn(text: string): readonly string[] {
  const lines = text.split('\n').map((line) => line.trim());
  return lines.filter((line) => line !== '' && !line.startsWith('#'));
}

function keyFileError(path: string, cause: unknown): Error {
  if (cause instanceof NoKey) return cause;
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new Error(`cannot read the key file '${path}': ${reason}`, { cause });
}
