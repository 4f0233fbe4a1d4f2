import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** What is at each path below `directory`, links not followed; each byte of a path is a character. */
export function listing(directory: string): Map<string, string> {
  const found = new Map<string, string>();
  const walk = (path: Buffer, below: string): void => {
    for (const name of readdirSync(path, { encoding: 'buffer' })) {
      const child = Buffer.concat([path, Buffer.from('/'), name]);
      const at = below + name.toString('latin1');
      const stats = lstatSync(child);
      if (stats.isSymbolicLink()) found.set(at, `-> ${readlinkSync(child, 'latin1')}`);
      else if (!stats.isDirectory()) found.set(at, readFileSync(child, 'latin1'));
      else {
        found.set(at, 'a directory');
        walk(child, `${at}/`);
      }
    }
  };
  walk(Buffer.from(directory), '');
  return found;
}

/** The paths that are in `before` and no more in `after`, sorted; fails if anything else differs. */
export function goneFrom(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string[] {
  for (const [path, what] of after) {
    if (before.get(path) !== what)
      throw new Error(`'${path}' was ${before.get(path) ?? 'not there'}: ${what}`);
  }
  return [...before.keys()].filter((path) => !after.has(path)).sort();
}
