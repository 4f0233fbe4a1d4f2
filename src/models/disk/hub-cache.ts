import { readFile } from 'node:fs/promises';
import { boundedMap } from '../bounded-map.js';
import { compareBytewise } from '../bytewise.js';
import { failureCode, joinPath, readDirectory, readDirents, readOrWarn } from './directory.js';
import { bestFile, bestMmproj, repoIdOf, tagsOf, type HubFile, type HubRepo } from './hub-repo.js';

/** A model in the cache: one repository and one quantisation tag. */
export interface HubModel {
  /** `user/repo:TAG`, which is also its `--hf-repo`. */
  readonly id: string;
}

/** What a child that is given `--hf-repo REPO --offline` would load. */
export type HubResolution =
  | {
      readonly kind: 'file';
      readonly file: string;
      /** The projector it takes with it, unless its options name another or none. */
      readonly mmproj: string | undefined;
    }
  /** It would load nothing, for this reason. */
  | { readonly kind: 'unusable'; readonly problem: string }
  /** The cache does not hold it: only a download can bring it. */
  | { readonly kind: 'absent' };

const COMMIT = /^[0-9a-fA-F]{40}$/;
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
    if (found === undefined) return { kind: 'absent' };
    return { kind: 'file', file: found.localPath, mmproj: bestMmproj(repo, found)?.localPath };
  }
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

async function scanRepo(folder: string, path: string, warnings: string[]): Promise<HubRepo | undefined> {
  const id = repoIdOf(folder);
  const commit = await commitOf(path, warnings);
  if (id === undefined || commit === undefined) return undefined;
  const snapshots = joinPath(path, 'snapshots');
  const files = await filesBelow(joinPath(snapshots, commit), warnings);
  if (files.length === 0) await warnOfLostModels(id, commit, snapshots, warnings);
  return { id, files };
}

/**
 * A download that broke off may have moved the ref and brought no file of the new commit. A child then does not
 * find the models of the older snapshot either, so all that can be done is to say so.
 */
async function warnOfLostModels(
  id: string,
  commit: string,
  snapshots: string,
  warnings: string[],
): Promise<void> {
  for (const other of await readOrWarn(snapshots, readDirents, warnings)) {
    if (!other.isDirectory() || other.name === commit) continue;
    const tags = tagsOf({ id, files: await filesBelow(joinPath(snapshots, other.name), warnings) });
    if (tags.length === 0) continue;
    warnings.push(
      `'${id}' is not listed: its ref names the commit ${commit}, of which no file is in the cache; ` +
        `download it again, or name a file of '${joinPath(snapshots, other.name)}' in a preset`,
    );
    return;
  }
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

async function filesBelow(directory: string, warnings: string[]): Promise<HubFile[]> {
  const files: HubFile[] = [];
  await walk(directory, '', files, warnings);
  return files;
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
