import { lstat, readlink, realpath } from 'node:fs/promises';
import { directoryOfTarget, nameOf, parentOf } from './byte-path.js';
import { unlessNowhere } from './directory.js';
import type { FileTree, TreeFile } from './file-tree.js';

/**
 * The names in the directory `blobs`, each byte a character, of the blobs that `files` of snapshots stand for: as links,
 * or as other names of the same file. `tree` is that of the repository.
 */
export async function blobsOf(
  files: readonly TreeFile[],
  tree: FileTree,
  blobs: Buffer,
): Promise<ReadonlySet<string>> {
  const names = new Set<string>();
  const addIfBlob = (directory: Buffer, name: Buffer): void => {
    if (directory.equals(blobs)) names.add(name.toString('latin1'));
  };
  const hardLinked = new Set<string>();
  for (const { path, kind } of files) {
    if (kind === 'link') {
      const target = await unlessNowhere(() => readlink(path, { encoding: 'buffer' }));
      if (target === undefined) continue;
      const directory = await unlessNowhere(() =>
        realpath(directoryOfTarget(path, target), { encoding: 'buffer' }),
      );
      if (directory !== undefined) addIfBlob(directory, nameOf(target));
      // The same, unless links of links lead to a blob.
      const end = await unlessNowhere(() => realpath(path, { encoding: 'buffer' }));
      if (end !== undefined) addIfBlob(parentOf(end), nameOf(end));
    } else {
      const identity = await hardLinkIdentity(path);
      if (identity !== undefined) hardLinked.add(identity);
    }
  }
  for (const { path, below, kind } of tree.files) {
    if (hardLinked.size === 0 || kind !== 'file' || !below.startsWith('blobs/')) continue;
    if (hardLinked.has((await hardLinkIdentity(path)) ?? '')) addIfBlob(parentOf(path), nameOf(path));
  }
  return names;
}

/** What all names of a file have in common; undefined if it has but one. */
async function hardLinkIdentity(path: Buffer): Promise<string | undefined> {
  const stats = await unlessNowhere(() => lstat(path, { bigint: true }));
  return stats === undefined || stats.nlink === 1n ? undefined : `${stats.dev}:${stats.ino}`;
}
