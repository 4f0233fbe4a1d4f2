import { readdir } from 'node:fs/promises';
import { childOf } from './byte-path.js';
import { unlessNowhere } from './directory.js';

/** A file somewhere below a directory. */
export interface TreeFile {
  readonly path: Buffer;
  /** Relative to the directory, with `/`; bytes that are not UTF-8 are U+FFFD, as in a scan. */
  readonly below: string;
  readonly kind: 'file' | 'link' | 'other';
}

/** All that is below a directory; links are in it and are not followed. */
export interface FileTree {
  readonly files: readonly TreeFile[];
  /** Each after those in it, the directory itself the last. */
  readonly directories: readonly Pick<TreeFile, 'path' | 'below'>[];
}

/** Reads the tree of `root`; what vanishes meanwhile is not in it. Rejects if a directory cannot be read. */
export async function readTree(root: Buffer): Promise<FileTree> {
  const files: TreeFile[] = [];
  const directories: Pick<TreeFile, 'path' | 'below'>[] = [];
  const walk = async (directory: Buffer, above: string): Promise<void> => {
    const entries = await unlessNowhere(() =>
      readdir(directory, { encoding: 'buffer', withFileTypes: true }),
    );
    for (const entry of entries ?? []) {
      const path = childOf(directory, entry.name);
      const below = above + entry.name.toString();
      if (entry.isDirectory()) await walk(path, `${below}/`);
      else
        files.push({
          path,
          below,
          kind: entry.isFile() ? 'file' : entry.isSymbolicLink() ? 'link' : 'other',
        });
    }
    directories.push({ path: directory, below: above.slice(0, -1) });
  };
  await walk(root, '');
  return { files, directories };
}
