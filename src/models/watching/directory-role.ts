/** What a directory is to the reader of models, which decides what of it is watched. */
export interface DirectoryRole {
  /** Whether a file of this name matters. */
  readonly heeds: (name: string) => boolean;
  /** The role of a directory of this name; undefined where such a one does not matter. */
  readonly below: (name: string) => DirectoryRole | undefined;
  /** Whether links to directories are entered as the directories themselves are. */
  readonly entersLinks: boolean;
}

const noName = (): boolean => false;
const anyName = (): boolean => true;
const isGguf = (name: string): boolean => name.endsWith('.gguf');
const isManifest = (name: string): boolean => name.startsWith('manifest=') && name.endsWith('.json');
/** What a blob is called while it is being written, by llama.cpp, by the hub's own client and by copying tools. */
const TEMPORARY = /^\.|~$|\.(?:incomplete|downloadInProgress|tmp|temp|part|partial|lock)$/;

/** A directory whose own directories do not matter. */
function leaf(heeds: DirectoryRole['heeds']): DirectoryRole {
  return { heeds, below: () => undefined, entersLinks: false };
}

export const FLAT_CACHE = leaf((name) => isGguf(name) || isManifest(name));

const MODEL_FOLDER = leaf(isGguf);

export const MODELS_DIR: DirectoryRole = { heeds: isGguf, below: () => MODEL_FOLDER, entersLinks: true };

/** A snapshot, or a directory in one: the reader enters no links there. */
const SNAPSHOT: DirectoryRole = { heeds: anyName, below: () => SNAPSHOT, entersLinks: false };

const REPO_PARTS: ReadonlyMap<string, DirectoryRole> = new Map([
  ['refs', leaf(anyName)],
  ['blobs', leaf((name) => !TEMPORARY.test(name))],
  ['snapshots', { heeds: noName, below: () => SNAPSHOT, entersLinks: true }],
]);

const REPO: DirectoryRole = { heeds: noName, below: (name) => REPO_PARTS.get(name), entersLinks: true };

export const HUB_CACHE: DirectoryRole = {
  heeds: noName,
  below: (name) => (name.startsWith('models--') ? REPO : undefined),
  entersLinks: true,
};
