import { parseGgufName } from './gguf-name.js';
import { nearestInBits, ofQuantisation } from './quantisation.js';

/** A file of a snapshot. */
export interface HubFile {
  /** Relative to the snapshot, with `/`. */
  readonly path: string;
  readonly localPath: string;
}

/** The snapshot of one repository that stands: the one that is checked out, or the one before (`isOutdated`). */
export interface HubRepo {
  readonly id: string;
  /** In the system's order: where several files fit a tag, the child takes the first. */
  readonly files: readonly HubFile[];
  /**
   * Whether the checked-out snapshot holds no model, and these are the files of an older one. A child that is given
   * the repository would not find them.
   */
  readonly isOutdated?: boolean;
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

/** The folder of the repository `id`: `repoIdOf` reversed. */
export function repoFolder(id: string): string {
  return REPO_PREFIX + id.replaceAll('/', '--');
}

/** Whether llama-server takes `id` for a repository, `user/repo`. */
export function isRepoId(id: string): boolean {
  return id.length <= REPO_ID_MAX_LENGTH && REPO_ID.test(id) && id.split('/').length === 2;
}

/** What a child finds among the files of one snapshot; each name is looked at once, however many models there are. */
export class HubFiles {
  /** The quantisation tags of the models, each once (common/download.cpp, `common_list_cached_models`). */
  readonly tags: readonly string[];
  readonly #byPath: ReadonlyMap<string, HubFile>;
  readonly #models: readonly HubFile[];
  readonly #companions: readonly HubFile[];
  readonly #best = new Map<string | undefined, HubFile | undefined>();

  constructor(files: readonly HubFile[]) {
    this.#byPath = new Map(files.map((file) => [file.path, file]));
    this.#models = files.filter(({ path }) => isModelFile(path) && parseGgufName(path)?.index === 1);
    this.#companions = files.filter(
      ({ path }) => path.endsWith('.gguf') && COMPANION_MARKS.some((mark) => path.includes(mark)),
    );
    // The native router lists importance matrices, too, which its children then refuse to find.
    this.tags = [...new Set(this.#models.flatMap(({ path }) => tagOf(path) ?? []))];
  }

  /** Whether there is a model, be it one without a tag. */
  get hasModel(): boolean {
    return this.#models.length > 0;
  }

  /** Whether there is a model that is not listed as `tag`, be it one without a tag. */
  hasModelBesides(tag: string): boolean {
    return this.#modelsBesides(tag).length > 0;
  }

  at(path: string): HubFile | undefined {
    return this.#byPath.get(path);
  }

  /** The file a child takes for `tag`, or without one (common/download.cpp, `find_best_model`). */
  best(tag: string | undefined): HubFile | undefined {
    if (!this.#best.has(tag))
      this.#best.set(
        tag,
        ofQuantisation(this.#models, ({ path }) => path, tag),
      );
    return this.#best.get(tag);
  }

  /** The projector a child takes for `model`, one of these files. */
  projectorFor(model: HubFile): HubFile | undefined {
    return this.#companionFor(model, 'mmproj');
  }

  /** All shards of the models that are listed as `tag`, be the first of them there or not. */
  shardsOf(tag: string): HubFile[] {
    return [...this.#byPath.values()].filter(({ path }) => isModelFile(path) && tagOf(path) === tag);
  }

  /**
   * The projectors and drafts, all their shards, that are of no use without the models of `tag`: those that these take
   * and no other model does, and when there is no other model, all.
   */
  companionsOf(tag: string): HubFile[] {
    const others = this.#modelsBesides(tag);
    if (others.length === 0) return [...this.#companions];
    const own = this.#takenWith(this.#models.filter(({ path }) => tagOf(path) === tag));
    const kept = this.#takenWith(others);
    return this.#companions.filter(({ path }) => own.has(stemOf(path)) && !kept.has(stemOf(path)));
  }

  #modelsBesides(tag: string): HubFile[] {
    return this.#models.filter((file) => tagOf(file.path) !== tag && !this.#companions.includes(file));
  }

  /** The stems of the companions of each kind that children take for `models`. */
  #takenWith(models: readonly HubFile[]): ReadonlySet<string> {
    const taken = models.flatMap((model) => COMPANION_MARKS.map((mark) => this.#companionFor(model, mark)));
    return new Set(taken.flatMap((file) => (file === undefined ? [] : stemOf(file.path))));
  }

  /**
   * The companion of one kind that a child takes for `model`: of those in its directory, or else in the nearest one
   * above, the nearest in bits (common/download.cpp, `find_best_sibling`).
   */
  #companionFor(model: HubFile, mark: (typeof COMPANION_MARKS)[number]): HubFile | undefined {
    const above = this.#companions.filter(
      ({ path }) => path.includes(mark) && model.path.startsWith(directoryOf(path)),
    );
    const deepest = Math.max(...above.map(({ path }) => directoryOf(path).length));
    const nearest = above.filter(({ path }) => directoryOf(path).length === deepest);
    return nearestInBits(nearest, ({ path }) => path, model.path);
  }
}

/** The tag under which the model `path` is listed; directories that are named like companions count here. */
function tagOf(path: string): string | undefined {
  const name = parseGgufName(path);
  return COMPANION_MARKS.some((mark) => name?.prefix.includes(mark)) ? undefined : name?.tag;
}

/** What all shards of a model have in common. */
function stemOf(path: string): string {
  return parseGgufName(path)?.prefix ?? path;
}

/** With its `/` at the end; empty for the snapshot itself. */
function directoryOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/') + 1);
}

function isModelFile(path: string): boolean {
  const name = path.slice(path.lastIndexOf('/') + 1);
  return name.endsWith('.gguf') && ![...COMPANION_MARKS, 'imatrix'].some((mark) => name.includes(mark));
}
