import { readFile, stat } from 'node:fs/promises';
import { joinPath, readDirectory } from '../disk/directory.js';
import { hubCacheDirectory, passwdHome } from '../disk/hub-cache.js';
import { repoIdOf } from '../disk/hub-repo.js';
import { listHubRepo } from '../hub/hub-listing.js';
import { readPresetLines } from './preset-lines.js';

/** What stands behind `--hf-repo`. */
export type RemotePreset =
  /** No presets, as far as can be told: the binary serves the repository itself, or says what is wrong with it. */
  | { readonly kind: 'model'; readonly warnings: readonly string[] }
  /** Presets, to be read like a file of `--models-preset` and in its place. */
  | {
      readonly kind: 'preset';
      /** `user/repo`. */
      readonly repo: string;
      /** The preset.ini, in the hub cache. */
      readonly file: string;
      /** The section that `user/repo:NAME` chooses; undefined if none was named or there is none of that name. */
      readonly section: string | undefined;
      readonly warnings: readonly string[];
    };

/** What became of a download, and what was written about it last. */
export interface DownloadReport {
  readonly message: string;
  readonly lastLines: readonly string[];
}

export interface RemotePresetOptions {
  /** `user/repo`, or `user/repo:NAME`. */
  readonly hfRepo: string;
  /** The hub is not asked: what is in the cache counts. */
  readonly offline: boolean;
  readonly token: string | undefined;
  /** Says where the hub and its cache are. */
  readonly env: NodeJS.ProcessEnv;
  readonly userAgent: string;
  readonly signal: AbortSignal;
  /** How long the hub may take to say what the repository holds. */
  readonly askTimeoutMs?: number;
  /** Brings the repository's preset.ini into the cache. Its word is not relied on: the file must be there then. */
  readonly download: (repo: string) => Promise<DownloadReport>;
}

const PRESET = 'preset.ini';

/**
 * Finds out whether `--hf-repo` names a repository of presets, one with `preset.ini` in its root, and if so brings
 * that file into the hub cache (tools/server/server.cpp; docs/preset.md). Unlike llama-server it also takes
 * the cached file, when told to stay offline and when the hub does not answer or the download fails.
 *
 * All sections are served. A NAME after the colon chooses the one to be loaded first, as docs/preset.md promises and
 * llama-server forgets; it is not a quantisation then.
 *
 * @throws with a message for the user when the hub has presets and they can not be had, and the signal's reason
 */
export async function findRemotePreset(options: RemotePresetOptions): Promise<RemotePreset> {
  const { hfRepo, offline, askTimeoutMs = 5_000, signal } = options;
  signal.throwIfAborted();
  const [repo = '', ...tags] = hfRepo.split(':');
  const folder = cacheFolder(repo, options.env);
  if (folder === undefined) return { kind: 'model', warnings: [] };
  const preset = (file: string, warnings: readonly string[]) =>
    describe({ repo, file, name: tags.at(-1), warnings });

  const cached = await cachedPreset(folder);
  if (offline) return cached === undefined ? { kind: 'model', warnings: [] } : await preset(cached, []);

  const listing = await listHubRepo({ ...options, repo, timeoutMs: askTimeoutMs });
  if (listing.kind === 'unknown') {
    const unasked = `whether '${repo}' is a repository of presets could not be asked: ${listing.reason}`;
    if (cached === undefined) return { kind: 'model', warnings: [unasked] };
    return await preset(cached, [`${unasked}; its cached preset.ini is used`]);
  }
  if (!listing.files.some(({ path }) => path === PRESET)) return { kind: 'model', warnings: [] };

  const current = joinPath(folder, `snapshots/${listing.commit}/${PRESET}`);
  if (cached === current) return await preset(current, []);
  const { message, lastLines } = await options.download(repo);
  signal.throwIfAborted();
  // The binary reports success for what it did not find, and failure when it dislikes what it has downloaded.
  const file = await cachedPreset(folder);
  const problem = [`the preset.ini of '${repo}' was not downloaded: ${message}`, ...lastLines].join('\n');
  if (file === undefined) throw new Error(problem);
  return await preset(file, file === current ? [] : [`${problem}\nThe one in the cache is used: ${file}`]);
}

interface Found {
  readonly repo: string;
  readonly file: string;
  readonly name: string | undefined;
  readonly warnings: readonly string[];
}

async function describe({ repo, file, name, warnings }: Found): Promise<RemotePreset> {
  // The native router's warning: it takes any option from such a file, and so it is here.
  const trust =
    `using preset.ini from HF repo '${repo}' (${file}): it can set any option of llama-server, also ones that read ` +
    'files or run tools; please only use presets that you can trust';
  const found = { kind: 'preset', repo, file, section: undefined, warnings: [...warnings, trust] } as const;
  if (name === undefined || name === '') return found;

  const { blocks } = readPresetLines(await readFile(file));
  const sections = new Set(blocks.slice(1).flatMap((block) => (block.name === '*' ? [] : [block.name])));
  if (sections.has(name)) return { ...found, section: name };
  const names = [...sections].map((section) => `'${section}'`).join(', ');
  const unknown = `the preset.ini of '${repo}' has no section '${name}', only ${names || 'empty ones'}`;
  return { ...found, warnings: [...found.warnings, unknown] };
}

/** Where the cache keeps `repo`; undefined if that is no name of a repository, or there is no cache. */
function cacheFolder(repo: string, env: NodeJS.ProcessEnv): string | undefined {
  const name = `models--${repo.replaceAll('/', '--')}`;
  const directory = hubCacheDirectory(env, passwdHome());
  return directory === undefined || repoIdOf(name) !== repo ? undefined : joinPath(directory, name);
}

/**
 * The preset.ini of a cached repository: of the snapshot that `refs/main` names; if that is not there, of one
 * that another ref names; if there is none, of the newest. The last is for an update that broke off: llama-server notes
 * the new commit before it fetches that.
 */
async function cachedPreset(folder: string): Promise<string | undefined> {
  const refs = await entriesOf(joinPath(folder, 'refs'));
  const heads = await Promise.all(
    refs.map(async ({ name, path }) => ({ name, commit: await firstLine(path) })),
  );
  const rankOf = (commit: string): number => {
    const names = heads.filter((head) => head.commit === commit).map(({ name }) => name);
    if (names.includes('main')) return 0;
    return names.length > 0 ? 1 : 2;
  };
  const snapshots = await entriesOf(joinPath(folder, 'snapshots'));
  const files = await Promise.all(
    snapshots.map(async ({ name, path }) => {
      const file = joinPath(path, PRESET);
      return { file, rank: rankOf(name), ...(await fileFacts(file)) };
    }),
  );
  const bestRank = Math.min(...files.map(({ rank }) => rank));
  const [newest] = files
    .filter(({ rank, isFile }) => rank === bestRank && isFile)
    .sort((a, b) => b.modifiedMs - a.modifiedMs);
  return newest?.file;
}

async function entriesOf(directory: string) {
  return await readDirectory(directory).catch(() => []);
}

async function firstLine(file: string): Promise<string | undefined> {
  const text = await readFile(file, 'utf8').catch(() => '');
  return text.split('\n', 1)[0];
}

async function fileFacts(path: string): Promise<{ isFile: boolean; modifiedMs: number }> {
  try {
    const facts = await stat(path);
    return { isFile: facts.isFile(), modifiedMs: facts.mtimeMs };
  } catch {
    return { isFile: false, modifiedMs: 0 };
  }
}
