import { parseGgufName } from './gguf-name.js';

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
/** Without a tag the child looks for these, then takes the first file. */
const DEFAULT_TAGS = ['Q4_K_M', 'Q8_0'] as const;

/** `models--user--repo` as `user/repo`; undefined if it is no model repository. */
export function repoIdOf(folder: string): string | undefined {
  if (!folder.startsWith(REPO_PREFIX)) return undefined;
  const id = folder.slice(REPO_PREFIX.length).replaceAll('--', '/');
  const valid = id.length <= REPO_ID_MAX_LENGTH && REPO_ID.test(id) && id.split('/').length === 2;
  return valid ? id : undefined;
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
  const candidates = repo.files.filter(({ path }) => isModelFile(path) && parseGgufName(path)?.index === 1);
  const tags = tag === undefined || tag === '' ? DEFAULT_TAGS : [tag];
  for (const wanted of tags) {
    const pattern = new RegExp(`${wanted.replace(/[^\w]/g, '\\$&')}[.-]`, 'i');
    const match = candidates.find(({ path }) => pattern.test(path));
    if (match !== undefined) return match;
  }
  return tags === DEFAULT_TAGS ? candidates[0] : undefined;
}

function isModelFile(path: string): boolean {
  const name = path.slice(path.lastIndexOf('/') + 1);
  return name.endsWith('.gguf') && ![...COMPANION_MARKS, 'imatrix'].some((mark) => name.includes(mark));
}
