import { parseGgufName } from './gguf-name.js';
import { nearestInBits, ofQuantisation } from './quantisation.js';

/** A file of a snapshot. */
export interface HubFile {
  /** Relative to the snapshot, with `/`. */
  readonly path: string;
  readonly localPath: string;
}

/** The checked-out snapshot of one repository. */
export interface HubRepo {
  readonly id: string;
  /** In the system's order: where several files fit a tag, the child takes the first. */
  readonly files: readonly HubFile[];
}

const REPO_PREFIX = 'models--';
/** Word characters, with single `/`, `.` or `-` between them (common/hf-cache.cpp, `is_valid_repo_id`). */
const REPO_ID = /^\w+(?:[/.-]\w+)*$/;
const REPO_ID_MAX_LENGTH = 256;
/** Files that accompany a model (common/download.cpp): projectors and drafts. */
const COMPANION_MARKS = ['mmproj', 'mtp-', 'eagle3-', 'dflash-', 'dspark-'] as const;

/** `models--user--repo` as `user/repo`; undefined if it is no model repository. */
export function repoIdOf(folder: string): string | undefined {
  if (!folder.startsWith(REPO_PREFIX)) return undefined;
  const id = folder.slice(REPO_PREFIX.length).replaceAll('--', '/');
  return isRepoId(id) ? id : undefined;
}

/** Whether llama-server takes `id` for a repository, `user/repo`. */
export function isRepoId(id: string): boolean {
  return id.length <= REPO_ID_MAX_LENGTH && REPO_ID.test(id) && id.split('/').length === 2;
}

/** The quantisation tags of the models in `repo`, each once (common/download.cpp, `common_list_cached_models`). */
export function tagsOf(repo: HubRepo): string[] {
  const tags = new Set<string>();
  for (const { path } of repo.files) {
    const name = parseGgufName(path);
    if (name?.tag === undefined || name.index !== 1) continue;
    if (COMPANION_MARKS.some((mark) => name.prefix.includes(mark))) continue;
    // The native router lists importance matrices, which its children then refuse to find.
    if (!isModelFile(path)) continue;
    tags.add(name.tag);
  }
  return [...tags];
}

/** The file a child takes for `tag`, or without one (common/download.cpp, `find_best_model`). */
export function bestFile(repo: HubRepo, tag: string | undefined): HubFile | undefined {
  const models = repo.files.filter(({ path }) => isModelFile(path) && parseGgufName(path)?.index === 1);
  return ofQuantisation(models, ({ path }) => path, tag);
}

/**
 * The projector a child takes for `model`, a file of `repo`: of those in its directory, or else in the nearest
 * one above, the nearest in bits (common/download.cpp, `find_best_mmproj`).
 */
export function bestMmproj(repo: HubRepo, model: HubFile): HubFile | undefined {
  const projectors = repo.files.filter(({ path }) => path.endsWith('.gguf') && path.includes('mmproj'));
  const above = projectors.filter(({ path }) => model.path.startsWith(directoryOf(path)));
  const deepest = Math.max(...above.map(({ path }) => directoryOf(path).length));
  const nearest = above.filter(({ path }) => directoryOf(path).length === deepest);
  return nearestInBits(nearest, ({ path }) => path, model.path);
}

/** With its `/` at the end; empty for the snapshot itself. */
function directoryOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/') + 1);
}

function isModelFile(path: string): boolean {
  const name = path.slice(path.lastIndexOf('/') + 1);
  return name.endsWith('.gguf') && ![...COMPANION_MARKS, 'imatrix'].some((mark) => name.includes(mark));
}
