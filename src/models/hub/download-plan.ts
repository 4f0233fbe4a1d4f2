import { RouterError } from '../../errors.js';
import { joinPath } from '../disk/directory.js';
import { parseGgufName } from '../disk/gguf-name.js';
import { HubFiles, repoFolder } from '../disk/hub-repo.js';
import type { ListedFile, ListedRepo } from './hub-listing.js';
import type { HubName } from './hub-name.js';

/** What a download is to bring, and where llama-server will put it. */
export interface DownloadPlan {
  readonly repo: string;
  readonly commit: string;
  /** The folder of the repository in the hub cache. */
  readonly folder: string;
  /** What the catalog will call the model; undefined for one without a quantisation in its name, which it cannot name. */
  readonly modelId: string | undefined;
  /** The files of the model: one, or all its shards, in the hub's order. */
  readonly model: readonly PlannedFile[];
  /** Those and the projector that is downloaded with the model, unless an option says that none is. */
  readonly files: readonly PlannedFile[];
}

/** One file to be downloaded. */
export interface PlannedFile {
  /** In the repository. */
  readonly path: string;
  /** Undefined if the hub does not tell. */
  readonly sizeBytes: number | undefined;
  /** In the snapshot, under the file's own name. */
  readonly finalPath: string;
  /** Where the bytes are, which `finalPath` links to. */
  readonly bytesPath: string;
  /** Where they are while they come. */
  readonly partialPath: string;
}

/** What llama-server appends to the name of a file while it comes. */
export const PARTIAL_SUFFIX = '.downloadInProgress';

const PRESET = 'preset.ini';
const OID = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/i;
/** A message names no more quantisations than these. */
const MAX_NAMED_TAGS = 64;

/**
 * What llama-server downloads of a repository for this name (common/download.cpp, `common_download_get_hf_plan`;
 * common/hf-cache.cpp, `get_repo_files`). Drafts, which an option may ask for, are not told.
 *
 * @param cacheDirectory the hub cache
 * @throws RouterError hub_not_found, saying what there is instead
 */
export function planDownload(
  { repo, tag }: HubName,
  { commit, files }: Pick<ListedRepo, 'commit' | 'files'>,
  cacheDirectory: string,
): DownloadPlan {
  const listed = files.filter(isTaken);
  const known = new HubFiles(listed.map(({ path }) => ({ path, localPath: path })));
  if (known.at(PRESET) !== undefined) {
    throw notFound(`'${repo}' holds presets and no single model; start with --hf-repo ${repo} to serve them`);
  }
  const best = known.best(tag);
  if (best === undefined) throw notFound(whatThereIs(repo, tag, known));

  const shards = shardsOf(best.path, listed);
  const count = parseGgufName(best.path)?.count ?? 1;
  if (shards.length < count) {
    throw notFound(`'${repo}' has ${shards.length} of the ${count} parts of '${best.path}'`);
  }
  const folder = joinPath(cacheDirectory, repoFolder(repo));
  const projectorPath = known.projectorFor(best)?.path;
  const model = shards.map((file) => planned(file, folder, commit));
  const projectors = listed.filter(({ path }) => path === projectorPath);
  const [catalogTag] = new HubFiles([best]).tags;
  return {
    repo,
    commit,
    folder,
    modelId: catalogTag === undefined ? undefined : `${repo}:${catalogTag}`,
    model,
    files: [...model, ...projectors.map((file) => planned(file, folder, commit))],
  };
}

/** Others llama-server skips: they would lead out of the cache. */
function isTaken({ path, oid }: ListedFile): boolean {
  const leadsOut = path.startsWith('/') || path.split('/').includes('..') || path.includes('\0');
  return !leadsOut && (oid === undefined || OID.test(oid));
}

/** All shards of the model of which `path` is the first. */
function shardsOf(path: string, files: readonly ListedFile[]): ListedFile[] {
  const first = parseGgufName(path);
  if (first === undefined || first.count <= 1) return files.filter((file) => file.path === path);
  return files.filter((file) => {
    const name = parseGgufName(file.path);
    return name?.prefix === first.prefix && name.count === first.count;
  });
}

function planned({ path, oid, sizeBytes }: ListedFile, folder: string, commit: string): PlannedFile {
  const finalPath = `${folder}/snapshots/${commit}/${path}`;
  const bytesPath = oid === undefined ? finalPath : `${folder}/blobs/${oid}`;
  return { path, sizeBytes, finalPath, bytesPath, partialPath: bytesPath + PARTIAL_SUFFIX };
}

function whatThereIs(repo: string, tag: string | undefined, { hasModel, tags }: HubFiles): string {
  if (!hasModel || tag === undefined) return `'${repo}' holds no GGUF model`;
  const lacks = `'${repo}' has no quantisation '${tag}'`;
  if (tags.length === 0) return `${lacks}; name it without one`;
  const rest = tags.length > MAX_NAMED_TAGS ? ', …' : '';
  return `${lacks}; there are ${tags.slice(0, MAX_NAMED_TAGS).join(', ')}${rest}`;
}

function notFound(message: string): RouterError {
  return new RouterError('hub_not_found', message);
}
