import { readFileSync } from 'node:fs';

/**
 * The keys in the file that `--api-key-file` names: one per line, blanks around them ignored, `#` begins a comment line.
 *
 * @throws with a message for the user when the file cannot be read or holds no key: an empty list would open the
 *   server to everybody, which nobody means who names a file
 */
export function readKeyFile(path: string): readonly string[] {
  const keys = textOf(path)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));
  if (keys.length === 0) throw new Error(`${path} holds no key; write one per line`);
  return keys;
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`cannot read the key file '${path}': ${reason}`, { cause });
  }
}
