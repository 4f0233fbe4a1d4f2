import { readFileSync, statSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { readPipe } from './pipe-file.js';

/**
 * The keys in the file that `--api-key-file` names: one per line, blanks around them ignored, `#` begins a comment line.
 *
 * @throws with a message for the user when the file cannot be read, is no text, or holds no key: an empty list would open
 *   the server to everybody, which nobody means who names a file
 */
export function readKeyFile(path: string): readonly string[] {
  try {
    const stats = statSync(path);
    const isPlain = stats.isFile() || stats.isDirectory();
    return keysIn(path, isPlain ? readFileSync(path, 'utf8') : readPipe(path).toString());
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
    return linesIn(path, await readFile(path, 'utf8'));
  } catch (error) {
    throw keyFileError(path, error);
  }
}

class NoKeys extends Error {}

function keysIn(path: string, text: string): readonly string[] {
  const keys = linesIn(path, text);
  if (keys.length === 0) throw new NoKeys(`${path} holds no key; write one per line`);
  return keys;
}

function linesIn(path: string, text: string): readonly string[] {
  const lines = text.split('\n').map((line) => line.trim());
  const isKey = (line: string): boolean => line !== '' && !line.startsWith('#');
  // A certificate in DER or a file in UTF-16: whoever named it would be left with keys that nobody can send.
  const odd = lines.findIndex((line) => isKey(line) && /\p{Cc}|\ufffd/u.test(line));
  if (odd !== -1) {
    throw new NoKeys(
      `${path}: line ${odd + 1} is no text that a header can carry; write one key per line, in UTF-8`,
    );
  }
  return lines.filter(isKey);
}

function keyFileError(path: string, cause: unknown): Error {
  if (cause instanceof NoKeys) return cause;
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new Error(`cannot read the key file '${path}': ${reason}`, { cause });
}
