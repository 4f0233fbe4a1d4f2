import { lstat, readFile, realpath, stat } from 'node:fs/promises';
import type { Model } from '../model.js';
import { childOf, isWithin, nameOf, parentOf } from './byte-path.js';
import { unlessNowhere } from './directory.js';
import { readTree, type FileTree, type TreeFile } from './file-tree.js';
import { parseGgufName } from './gguf-name.js';
import { blobsOf } from './hub-blobs.js';
import { HubFiles, isRepoId, repoFolder, type HubFile } from './hub-repo.js';
import { escapeOddBytes } from './odd-names.js';
import { notRemovable, type RemovalPlan } from './removal-plan.js';
import type { Removal } from './removal.js';

const SNAPSHOT = /^snapshots\/[^/]+$/;
/** A file of a snapshot: `snapshots/COMMIT` and its path in there. */
const SNAPSHOT_FILE = /^(snapshots\/[^/]+)\/(.+)$/s;
/** What downloads that broke off leave beside a blob, of llama-server and of the hub's own program. */
const BLOB_LEFTOVERS = ['.downloadInProgress', '.etag', '.incomplete'] as const;

/**
 * What is to go from the hub cache at `hub` with the model `user/repo:TAG`; undefined if it is not there.
 *
 * In every snapshot these are the files under whose names the tag is listed, and then the blobs that no snapshot names
 * any more. Other programs share this cache, so that all other files of the repository stay, however small, and the
 * repository with them; when there are none, it goes, too.
 *
 * Rejects if a directory cannot be read, or is a link: what is elsewhere is not the cache's to remove.
 */
export async function planHubRemoval(
  hub: string,
  { id, file: loaded }: Pick<Model, 'id' | 'file'>,
): Promise<RemovalPlan | undefined> {
  const [repo = '', tag = ''] = id.split(':');
  const cache = await unlessNowhere(() => realpath(hub, { encoding: 'buffer' }));
  if (!isRepoId(repo) || cache === undefined) return undefined;
  const root = childOf(cache, repoFolder(repo));
  for (const directory of [root, childOf(root, 'snapshots'), childOf(root, 'blobs')]) {
    const stats = await unlessNowhere(() => lstat(directory));
    if (stats?.isSymbolicLink() === true) throw notInCache(id, directory);
  }
  const tree = await readTree(root);
  for (const { path, below, kind } of tree.files) {
    if (kind !== 'link' || !SNAPSHOT.test(below)) continue;
    // A scan follows it.
    const isDirectory = (await unlessNowhere(() => stat(path)))?.isDirectory() === true;
    if (isDirectory && !isWithin(await realpath(path, { encoding: 'buffer' }), root)) {
      throw notInCache(id, path);
    }
  }

  const snapshots = snapshotsOf(tree).map((files) => ({ files, found: new HubFiles(files.map(asHubFile)) }));
  const isLastModel = !snapshots.some(({ found }) => found.hasModelBesides(tag));
  const own: TreeFile[] = [];
  const companions: TreeFile[] = [];
  for (const { files, found } of snapshots) {
    const shards = new Set(found.shardsOf(tag).map(({ path }) => path));
    const withIt = new Set(found.companionsOf(tag).map(({ path }) => path));
    own.push(...files.filter((file) => shards.has(asHubFile(file).path)));
    // Elsewhere they may be those of a model that a broken download has not brought yet.
    if (shards.size === 0 && !isLastModel) continue;
    companions.push(...files.filter((file) => withIt.has(asHubFile(file).path)));
  }
  if (own.length === 0) return undefined;
  const blobs = childOf(root, 'blobs');
  // Of whom each link is must be known afterwards; better to fail before.
  await blobsOf(
    snapshots.flatMap(({ files }) => files),
    tree,
    blobs,
  );
  return {
    root,
    directories: [blobs, ...own.map(({ path }) => parentOf(path))],
    files: pathsOf(own),
    companions: pathsOf(companions),
    // A child given the tag F16 takes the first file whose name has `F16.` in it, and that may be BF16's.
    hasOwnFiles: (other) =>
      snapshots.some(({ found }) => found.tags.some((listed) => other === `${repo}:${listed}`)),
    remove: (removal, taken) =>
      removeFromRepo(removal, {
        root,
        before: tree,
        own,
        companions: companions.filter(({ path }) => taken.includes(path)),
        loaded,
      }),
  };
}

interface Going {
  readonly root: Buffer;
  /** The repository with all of it. */
  readonly before: FileTree;
  readonly own: readonly TreeFile[];
  readonly companions: readonly TreeFile[];
  /** The first shard that the catalog gives the model. */
  readonly loaded: string | undefined;
}

async function removeFromRepo(
  removal: Removal,
  { root, before, own, companions, loaded }: Going,
): Promise<void> {
  const blobs = childOf(root, 'blobs');
  const gone = [...own, ...companions];
  const unlinked = await blobsOf(gone, before, blobs);
  const isFirst = ({ below }: TreeFile): boolean => parseGgufName(below)?.index === 1;
  const isLoaded = ({ below }: TreeFile): boolean => loaded?.endsWith(`/${below}`) === true;
  for (const files of [
    // Until the file it loads goes, the model is whole; when that has gone, no first shard is left to be listed.
    own.filter((file) => isFirst(file) && !isLoaded(file)),
    own.filter((file) => isFirst(file) && isLoaded(file)),
    own.filter((file) => !isFirst(file)),
    companions,
  ]) {
    await removal.files(pathsOf(files));
  }

  const after = await readTree(root);
  const named = await blobsOf(snapshotsOf(after).flat(), after, blobs);
  const orphaned = [...unlinked].filter((name) => !named.has(name));
  const useless = new Set(orphaned.flatMap((name) => [name, ...BLOB_LEFTOVERS.map((end) => name + end)]));
  const orphans = after.files.filter(({ path }) => {
    const name = nameOf(path).toString('latin1');
    return parentOf(path).equals(blobs) && useless.has(name) && !named.has(name);
  });
  await removal.files(pathsOf(orphans));

  // A snapshot that a ref names stays, empty as it is: other programs take a ref without one for a broken cache.
  const checkedOut = await snapshotsInRefs(after);
  const emptied = after.directories.filter(
    ({ below }) =>
      below.startsWith('snapshots/') &&
      !checkedOut.has(below) &&
      gone.some((file) => file.below.startsWith(`${below}/`)),
  );
  await removal.emptyDirectories(pathsOf(emptied));

  const rest = await readTree(root);
  if (!rest.files.every(({ below }) => below.startsWith('refs/'))) return;
  await removal.files(pathsOf(rest.files));
  await removal.emptyDirectories(pathsOf(rest.directories));
}

function pathsOf(files: readonly Pick<TreeFile, 'path'>[]): Buffer[] {
  return files.map(({ path }) => path);
}

/** The files and links of each snapshot. */
function snapshotsOf({ files }: FileTree): TreeFile[][] {
  const snapshots = new Map<string, TreeFile[]>();
  for (const file of files) {
    const snapshot = SNAPSHOT_FILE.exec(file.below)?.[1];
    if (snapshot === undefined || file.kind === 'other') continue;
    const others = snapshots.get(snapshot);
    if (others === undefined) snapshots.set(snapshot, [file]);
    else others.push(file);
  }
  return [...snapshots.values()];
}

function asHubFile({ below }: TreeFile): HubFile {
  const path = SNAPSHOT_FILE.exec(below)?.[2] ?? below;
  return { path, localPath: below };
}

/** `snapshots/COMMIT` for each commit that a ref names. */
async function snapshotsInRefs({ files }: FileTree): Promise<ReadonlySet<string>> {
  const refs = files.filter(({ below, kind }) => below.startsWith('refs/') && kind === 'file');
  const texts = await Promise.all(refs.map(({ path }) => unlessNowhere(() => readFile(path, 'utf8'))));
  return new Set(texts.flatMap((text) => `snapshots/${text?.split('\n', 1)[0] ?? ''}`));
}

function notInCache(id: string, link: Buffer): Error {
  return notRemovable(
    id,
    `: '${escapeOddBytes(link)}' is a link; remove the model where it leads, then the link`,
  );
}
