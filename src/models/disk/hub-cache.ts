import { readFile, stat } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { boundedMap } from '../bounded-map.js';
import { compareBytewise } from '../bytewise.js';
import { failureCode, joinPath, readDirectory, readDirents } from './directory.js';
import { HubFiles, repoIdOf, type HubFile, type HubRepo } from './hub-repo.js';
import { LastReadings } from './last-readings.js';

/** A model in the cache: one repository and one quantisation tag. */
export interface HubModel {
  /** `user/repo:TAG`, which is also its `--hf-repo`. */
  readonly id: string;
}

/** What a child that is given `--hf-repo REPO --offline` would load, or what there is for it. */
export type HubResolution =
  | {
      readonly kind: 'file';
      readonly file: string;
      /** The projector it takes with it, unless its options name another or none. */
      readonly mmproj: string | undefined;
      /** Of an older snapshot than that which is checked out: a child finds these files only by their paths. */
      readonly isOutdated: boolean;
    }
  /** It would load nothing, for this reason. */
  | { readonly kind: 'unusable'; readonly problem: string }
  /** The cache does not hold it: only a download can bring it. */
  | { readonly kind: 'absent' };

const COMMIT = /^[0-9a-fA-F]{40}$/;
/** The file that makes a repository one of presets. */
const PRESET = 'preset.ini';
const MAX_OPEN_REPOS = 16;

let knownHome: { readonly directory: string | undefined } | undefined;

/**
 * The home directory of the user database; a container's arbitrary user may have none. Asked once, because the answer
 * may take its time (LDAP) and nothing else happens meanwhile.
 */
export function passwdHome(): string | undefined {
  knownHome ??= { directory: askHome() };
  return knownHome.directory;
}

function askHome(): string | undefined {
  try {
    return userInfo().homedir;
  } catch {
    return undefined;
  }
}

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
  readonly #repos: ReadonlyMap<string, { readonly files: HubFiles; readonly isOutdated: boolean }>;

  constructor(repos: readonly HubRepo[], warnings: readonly string[]) {
    this.#repos = new Map(
      repos.map(({ id, files, isOutdated = false }) => [id, { files: new HubFiles(files), isOutdated }]),
    );
    this.models = Array.from(this.#repos, ([id, { files }]) =>
      files.tags.map((tag) => ({ id: `${id}:${tag}` })),
    ).flat();
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
    const { files, isOutdated } = repo;
    if (files.at(PRESET) !== undefined) {
      return {
        kind: 'unusable',
        problem:
          `the cached repository '${repoId}' has a ${PRESET}, with which llama-server loads no model; ` +
          'give the file a preset section of its own with "model = PATH"',
      };
    }
    const found = hfFile === undefined ? files.best(rest.at(-1)) : files.at(hfFile);
    if (found === undefined) return { kind: 'absent' };
    return { kind: 'file', file: found.localPath, mmproj: files.projectorFor(found)?.localPath, isOutdated };
  }
}

/**
 * Reads the cache at `directory`: of each repository the snapshot that `refs/main`, or else another ref, names.
 * A cache that does not exist is empty; what cannot be read is a warning, with what `readings`, the same at each scan
 * of it, kept of the last. Never rejects.
 */
export async function scanHubCache(
  directory: string,
  { readings = new LastReadings() }: { readings?: LastReadings } = {},
): Promise<HubCache> {
  readings.startScan();
  const scan = new HubScan(readings);
  const entries = await readings.readOrWarn(directory, readDirectory, scan.warnings);
  const folders = entries
    .filter(({ name, kind }) => kind === 'directory' && repoIdOf(name) !== undefined)
    .sort((a, b) => compareBytewise(a.name, b.name));
  const repos = await boundedMap(folders, MAX_OPEN_REPOS, ({ name, path }) => scan.repo(name, path));
  return new HubCache(
    repos.filter((repo) => repo !== undefined),
    // Repositories are read side by side; the warnings are to be the same at every start.
    [...scan.warnings, ...readings.warnings(directory)].sort(compareBytewise),
  );
}

/** One scan of the repositories of a cache. */
class HubScan {
  readonly warnings: string[] = [];
  readonly #readings: LastReadings;

  constructor(readings: LastReadings) {
    this.#readings = readings;
  }

  async repo(folder: string, path: string): Promise<HubRepo | undefined> {
    const id = repoIdOf(folder);
    const commit = await this.#commitOf(path);
    if (id === undefined || commit === undefined) return undefined;
    const snapshots = joinPath(path, 'snapshots');
    const files = await this.#filesBelow(joinPath(snapshots, commit));
    const found = new HubFiles(files);
    if (found.hasModel || found.at(PRESET) !== undefined) return { id, files };
    const older = await this.#newestWithModel(snapshots, commit);
    if (older === undefined) return { id, files };
    this.warnings.push(
      `'${id}' is served from '${older.snapshot}': its ref names the commit ${commit}, of which no model is in the ` +
        'cache; unless it is being downloaded, download it again',
    );
    return { id, files: older.files, isOutdated: true };
  }

  /**
   * The newest snapshot besides `commit` that holds a model. A download moves the ref before it brings the files, and
   * may break off: until the new ones are there, the old ones are still good.
   */
  async #newestWithModel(
    snapshots: string,
    commit: string,
  ): Promise<{ readonly snapshot: string; readonly files: readonly HubFile[] } | undefined> {
    const entries = await this.#readings.readOrWarn(snapshots, readDirents, this.warnings);
    const others = entries.filter((entry) => entry.isDirectory() && entry.name !== commit);
    const dated = await Promise.all(
      others.map(async ({ name }) => {
        const snapshot = joinPath(snapshots, name);
        return { snapshot, modifiedMs: await modifiedMs(snapshot) };
      }),
    );
    dated.sort((a, b) => b.modifiedMs - a.modifiedMs || compareBytewise(a.snapshot, b.snapshot));
    for (const { snapshot } of dated) {
      const files = await this.#filesBelow(snapshot);
      if (new HubFiles(files).hasModel) return { snapshot, files };
    }
    return undefined;
  }

  /** The commit that is checked out: that of `refs/main`, else the first other that is one. */
  async #commitOf(repo: string): Promise<string | undefined> {
    const refs = await this.#readings.readOrWarn(joinPath(repo, 'refs'), readDirectory, this.warnings);
    let fallback: string | undefined;
    for (const ref of refs) {
      if (ref.kind !== 'file') continue;
      const commit = await this.#firstLine(ref.path);
      if (commit === undefined || commit === '') continue;
      if (!COMMIT.test(commit)) {
        this.warnings.push(`'${ref.path}' is skipped: it holds no commit`);
        continue;
      }
      if (ref.name === 'main') return commit;
      fallback ??= commit;
    }
    return fallback;
  }

  async #firstLine(path: string): Promise<string | undefined> {
    try {
      const text = await this.#readings.read(path, () => readFile(path, 'utf8'));
      return text.split('\n', 1)[0];
    } catch (error) {
      this.warnings.push(`'${path}' cannot be read: ${failureCode(error)}`);
      return undefined;
    }
  }

  async #filesBelow(directory: string): Promise<HubFile[]> {
    const files: HubFile[] = [];
    await this.#walk(directory, '', files);
    return files;
  }

  /** Adds all files and links below `directory`, depth first; links to directories are not entered. */
  async #walk(directory: string, below: string, files: HubFile[]): Promise<void> {
    for (const entry of await this.#readings.readOrWarn(directory, readDirents, this.warnings)) {
      const localPath = joinPath(directory, entry.name);
      const path = below + entry.name;
      if (entry.isDirectory()) await this.#walk(localPath, `${path}/`, files);
      else if (entry.isFile() || entry.isSymbolicLink()) files.push({ path, localPath });
    }
  }
}

async function modifiedMs(path: string): Promise<number> {
  const stats = await stat(path).catch(() => undefined);
  return stats?.mtimeMs ?? 0;
}
