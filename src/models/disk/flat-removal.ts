import { realpath } from 'node:fs/promises';
import { basename } from 'node:path';
import { childOf } from './byte-path.js';
import { readDirents, unlessNowhere } from './directory.js';
import { scanFlatCache } from './flat-cache.js';
import { repoOfManifest } from './flat-manifest.js';
import { DOWNLOAD_TRACES } from './flat-models.js';
import { flatName } from './flat-name.js';
import { shardPath } from './gguf-name.js';
import { notDownloaded, type RemovalPlan } from './removal-plan.js';
import type { Removal } from './removal.js';

/** What downloads leave beside a file, whether they ended or broke off. */
const LEFTOVERS = [...DOWNLOAD_TRACES, '.downloadInProgress'] as const;

/**
 * What is to go from the flat cache at `directory` with the model `id`: its file or shards, and what is kept beside
 * them; undefined if it is not there. Rejects if no download brought it: it would keep the id, wherever else that goes.
 */
export async function planFlatRemoval(directory: string, id: string): Promise<RemovalPlan | undefined> {
  const root = await unlessNowhere(() => realpath(directory, { encoding: 'buffer' }));
  if (root === undefined) return undefined;
  const { models } = await scanFlatCache(directory);
  const model = models.find((other) => other.id === id);
  if (model === undefined) return undefined;
  if (!model.isDownload) throw notDownloaded(id, model.file);

  const names = await fileNames(directory);
  const shardsOf = (file: string): string[] =>
    names.filter((name) => shardPath(name, 1) === basename(file)).sort();
  const others = models.filter((other) => other !== model);
  const kept = new Set(others.flatMap(({ mmproj, draft }) => [mmproj, draft]));
  const companions = [model.mmproj, model.draft].filter((file) => file !== undefined && !kept.has(file));
  const at = (name: string): Buffer => childOf(root, name);
  const files = shardsOf(model.file);
  return {
    root,
    directories: [root],
    files: files.map(at),
    companions: companions.flatMap((file) => shardsOf(file ?? '')).map(at),
    hasOwnFiles: () => false,
    async remove(removal, taken) {
      const [first, ...rest] = files.map(at);
      await removal.files(first === undefined ? [] : [first]);
      await removal.files(rest);
      await removal.files(taken);
      const gone = [...files.map(at), ...taken];
      await removal.files(
        gone.flatMap((path) => LEFTOVERS.map((end) => Buffer.concat([path, Buffer.from(end)]))),
      );
      await removeManifests(removal, directory, files, at);
    },
  };
}

/**
 * Removes the manifests of a repository of whose files none is left. As long as there are others it is a manifest that
 * tells of which repository they are, and so their ids.
 */
async function removeManifests(
  removal: Removal,
  directory: string,
  gone: readonly string[],
  at: (name: string) => Buffer,
): Promise<void> {
  const names = await fileNames(directory);
  const models = names.filter((name) => name.endsWith('.gguf'));
  const stale = names.filter((name) => {
    const repo = repoOfManifest(name);
    if (repo === undefined) return false;
    const prefix = flatName({ repo, path: '' });
    const isOfRepo = (file: string): boolean => file.startsWith(prefix);
    return gone.some(isOfRepo) && !models.some(isOfRepo);
  });
  await removal.files(stale.map(at));
}

/** The names of the files in `directory`, and of the links. */
async function fileNames(directory: string): Promise<string[]> {
  const dirents = (await unlessNowhere(() => readDirents(directory))) ?? [];
  return dirents.flatMap((dirent) => (dirent.isFile() || dirent.isSymbolicLink() ? dirent.name : []));
}
