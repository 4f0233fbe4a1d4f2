import { readFile } from 'node:fs/promises';
import { boundedMap } from './bounded-map.js';
import { compareBytewise } from './bytewise.js';
import { failureCode, joinPath, readDirectory, readDirents } from './directory.js';
import { parseGgufName } from './gguf-name.js';

/** A model in the cache: one repository and one quantisation tag. */
export interface HubModel {
  /** `user/repo:TAG`, which is also its `--hf-repo`. */
  readonly id: string;
}

/** What a child that is given `--hf-repo REPO --offline` would load. */
export type HubResolution =
  | { readonly kind: 'file'; readonly file: string }
  /** It would load nothing, for this reason. */
  | { readonly kind: 'unusable'; readonly problem: string }
  /** The cache does not hold it: only a download can bring it. */
  | { readonly kind: 'absent' };

interface HubFile {
  /** Relative to the snapshot, with `/`. */
  readonly path: string;
  readonly localPath: string;
}

interface HubRepo {
  readonly id: string;
  /** In the system's order: where several files fit a tag, the child takes the first. */
  readonly files: readonly HubFile[];
}

const REPO_PREFIX = 'models--';
const COMMIT = /^[0-9a-fA-F]{40}$/;
/** Word characters, with single `/`, `.` or `-` between them (common/hf-cache.cpp, `is_valid_repo_id`). */
const REPO_ID = /^\w+(?:[/.-]\w+)*$/;
const REPO_ID_MAX_LENGTH = 256;
/** Files that accompany a model (common/download.cpp): projectors and drafts. */
const COMPANION_MARKS = ['mmproj', 'mtp-', 'eagle3-', 'dflash-', 'dspark-'] as const;
/** Without a tag the child looks for these, then takes the first file. */
const DEFAULT_TAGS = ['Q4_K_M', 'Q8_0'] as const;
const MAX_OPEN_REPOS = 16;

/**
 * Where the Hugging Face hub cache is, by the first of the variables llama-server reads that is set and not
 * empty (common/hf-cache.cpp). `passwdHome` is the home directory of the user database, tried last; undefined
 * if nothing tells.
 */
export function hubCacheDirectory(
  env: NodeJS.ProcessEnv,
  passwdHome?: string,
  platform: NodeJS.Platform = process.platform,
): string | undefined {
  const home = platform === 'win32' ? env['USERPROFILE'] : env['HOME'];
  const candidates: readonly [base: string | undefined, below: string][] = [
    [env['LLAMA_CACHE'], ''],
    [env['HF_HUB_CACHE'], ''],
    [env['HUGGINGFACE_HUB_CACHE'], ''],
    [env['HF_HOME'], 'hub'],
    [env['XDG_CACHE_HOME'], 'huggingface/hub'],
    [home, '.cache/huggingface/hub'],
    [passwdHome, '.cache/huggingface/hub'],
  ];
  for (const [base, below] of candidates) {
    if (base !== undefined && base !== '') return below === '' ? base : joinPath(base, below);
  }
  return undefined;
}

/** What one scan of the cache found. */
export class HubCache {
  readonly models: readonly HubModel[];
  readonly warnings: readonly string[];
  readonly #repos: ReadonlyMap<string, HubRepo>;

  constructor(repos: readonly HubRepo[], warnings: readonly string[]) {
    this.#repos = new Map(repos.map((repo) => [repo.id, repo]));
    this.models = repos.flatMap((repo) => tagsOf(repo).map((tag) => ({ id: `${repo.id}:${tag}` })));
    this.warnings = warnings;
  }

  /**
   * Which file a child takes without the network for `--hf-repo` (`user/repo` or `user/repo:TAG`) and, if it is
   * given, `--hf-file` (common/download.cpp, `common_download_get_hf_plan`).
   */
  resolve(hfRepo: string, hfFile?: string): HubResolution {
    const [repoId = '', ...rest] = hfRepo.split(':');
    const repo = this.#repos.get(repoId);
    if (repo === undefined) return { kind: 'absent' };
    if (repo.files.some(({ path }) => path === 'preset.ini')) {
      return {
        kind: 'unusable',
        problem:
          `the cached repository '${repoId}' has a preset.ini, with which llama-server loads no model; ` +
          'give the file a preset section of its own with "model = PATH"',
      };
    }
    const found =
      hfFile === undefined ? bestFile(repo, rest.at(-1)) : repo.files.find(({ path }) => path === hfFile);
    return found === undefined ? { kind: 'absent' } : { kind: 'file', file: found.localPath };
  }
}

/** Tags in the order in which they are met, each once. */
function tagsOf(repo: HubRepo): string[] {
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

function bestFile(repo: HubRepo, tag: string | undefined): HubFile | undefined {
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

/**
 * Reads the cache at `directory`: of each repository the snapshot that `refs/main`, or else another ref, names.
 * A cache that does not exist is empty; what cannot be read is a warning. Never rejects.
 */
export async function scanHubCache(directory: string): Promise<HubCache> {
  const warnings: string[] = [];
  const entries = await readOrWarn(directory, readDirectory, warnings);
  const folders = entries
    .filter(({ name, kind }) => kind === 'directory' && repoIdOf(name) !== undefined)
    .sort((a, b) => compareBytewise(a.name, b.name));
  const repos = await boundedMap(folders, MAX_OPEN_REPOS, (folder) =>
    scanRepo(folder.name, folder.path, warnings),
  );
  return new HubCache(
    repos.filter((repo) => repo !== undefined),
    // Repositories are read side by side; the warnings are to be the same at every start.
    warnings.sort(compareBytewise),
  );
}

/** `models--user--repo` as `user/repo`; undefined if it is no model repository. */
function repoIdOf(folder: string): string | undefined {
  if (!folder.startsWith(REPO_PREFIX)) return undefined;
  const id = folder.slice(REPO_PREFIX.length).replaceAll('--', '/');
  const valid = id.length <= REPO_ID_MAX_LENGTH && REPO_ID.test(id) && id.split('/').length === 2;
  return valid ? id : undefined;
}

async function scanRepo(folder: string, path: string, warnings: string[]): Promise<HubRepo | undefined> {
  const id = repoIdOf(folder);
  const commit = await commitOf(path, warnings);
  if (id === undefined || commit === undefined) return undefined;
  const files: HubFile[] = [];
  await walk(joinPath(path, `snapshots/${commit}`), '', files, warnings);
  return { id, files };
}

/** The commit that is checked out: that of `refs/main`, else the first other that is one. */
async function commitOf(repo: string, warnings: string[]): Promise<string | undefined> {
  const refs = await readOrWarn(joinPath(repo, 'refs'), readDirectory, warnings);
  let fallback: string | undefined;
  for (const ref of refs) {
    if (ref.kind !== 'file') continue;
    const commit = await firstLine(ref.path, warnings);
    if (commit === undefined || commit === '') continue;
    if (!COMMIT.test(commit)) {
      warnings.push(`'${ref.path}' is skipped: it holds no commit`);
      continue;
    }
    if (ref.name === 'main') return commit;
    fallback ??= commit;
  }
  return fallback;
}

async function firstLine(path: string, warnings: string[]): Promise<string | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    return text.split('\n', 1)[0];
  } catch (error) {
    warnings.push(`'${path}' cannot be read: ${failureCode(error)}`);
    return undefined;
  }
}

/** Adds all files and links below `directory`, depth first; links to directories are not entered. */
async function walk(directory: string, below: string, files: HubFile[], warnings: string[]): Promise<void> {
  for (const entry of await readOrWarn(directory, readDirents, warnings)) {
    const localPath = joinPath(directory, entry.name);
    const path = below + entry.name;
    if (entry.isDirectory()) await walk(localPath, `${path}/`, files, warnings);
    else if (entry.isFile() || entry.isSymbolicLink()) files.push({ path, localPath });
  }
}

/** What `read` gives of `directory`; nothing where it does not exist, and a warning where it cannot be read. */
async function readOrWarn<Entry>(
  directory: string,
  read: (directory: string) => Promise<Entry[]>,
  warnings: string[],
): Promise<Entry[]> {
  try {
    return await read(directory);
  } catch (error) {
    if (failureCode(error) !== 'ENOENT')
      warnings.push(`'${directory}' cannot be read: ${failureCode(error)}`);
    return [];
  }
}
