import type { DirectoryEntry } from './directory.js';
import type { FlatManifest } from './flat-manifest.js';
import { flatName, guessPlace, KnownRepos, type FlatPlace } from './flat-name.js';
import { canonicalTag, parseGgufName, shardPath } from './gguf-name.js';
import { roleOf, type GgufRole } from './gguf-role.js';
import { nearestInBits } from './quantisation.js';

export interface FlatModel {
  /** `user/repo:TAG`, as in the hub's layout; the file's name without `.gguf` where that is not to be made out. */
  readonly id: string;
  /** The file, or the first shard, which may be missing: whoever checks the file says so. */
  readonly file: string;
  readonly mmproj: string | undefined;
  readonly draft: string | undefined;
  /** `user/repo`, if that meant this file when it was downloaded. */
  readonly aliases: readonly string[];
  /** Whether a download left it there, as what lies beside it tells; others may have put their only copy there. */
  readonly isDownload: boolean;
}

/** What earlier versions of llama.cpp kept beside each file they downloaded, and added to its name. */
export const DOWNLOAD_TRACES = ['.json', '.etag', '.lastModified'] as const;

/** The tag of a manifest that was asked for without one. */
const NO_TAG = 'latest';

/** A file that is no shard but the first. */
interface FlatFile {
  readonly name: string;
  readonly path: string;
  readonly place: FlatPlace | undefined;
  readonly role: GgufRole;
}

/** A model with the ids it may have, the best first. */
export interface FlatCandidate extends Omit<FlatModel, 'id'> {
  readonly ids: readonly string[];
}

/**
 * The models among `entries`, with the companions that the manifests name, or else the nearest of the repository.
 * `names` are those of all files there.
 */
export function flatModels(
  entries: readonly DirectoryEntry[],
  manifests: readonly FlatManifest[],
  names: ReadonlySet<string> = new Set(),
): FlatCandidate[] {
  const files = placeFiles(entries, manifests);
  // A child would not start with a companion that is a link to nowhere.
  const present = new Set(entries.filter(({ kind }) => kind === 'file').map(nameOf));
  const companions = groupBy(
    files.filter(({ role, name }) => role !== 'model' && present.has(name)),
    ({ place, role }) => place && `${role} ${place.repo}`,
  );
  const manifestsOf = groupBy(manifests, ({ model }) => model && flatName(model));

  return files.flatMap(({ name, path, place, role }): FlatCandidate[] => {
    if (role !== 'model') return [];
    const own = manifestsOf.get(name) ?? [];
    const beside = (wanted: GgufRole): readonly FlatFile[] =>
      companions.get(`${wanted} ${place?.repo ?? ''}`) ?? [];
    const projectors = beside('mmproj');
    const named = new Set(own.flatMap(({ mmproj }) => (mmproj === undefined ? [] : flatName(mmproj))));
    const mmproj = projectors.find((file) => named.has(file.name)) ?? nearestInBits(projectors, nameOf, name);
    return [
      {
        ids: idsOf(name, place, own),
        file: path,
        mmproj: mmproj?.path,
        draft: nearestInBits(beside('draft'), nameOf, name)?.path,
        aliases: own.flatMap(({ repo, tag }) => (tag === NO_TAG ? repo : [])),
        isDownload: own.length > 0 || DOWNLOAD_TRACES.some((trace) => names.has(name + trace)),
      },
    ];
  });
}

/**
 * Finds out where each file came from: a manifest says it of the files it names, and by its own name of all of its
 * repository; else it is guessed. The names of companions say less, so their repositories are those of the models.
 */
function placeFiles(entries: readonly DirectoryEntry[], manifests: readonly FlatManifest[]): FlatFile[] {
  const told = new Map<string, { place: FlatPlace; role: GgufRole }>();
  for (const { model, mmproj } of manifests) {
    if (model !== undefined) told.set(flatName(model), { place: model, role: 'model' });
    if (mmproj !== undefined) told.set(flatName(mmproj), { place: mmproj, role: 'mmproj' });
  }
  const repos = manifests.map(({ repo }) => repo);
  const known = new KnownRepos(repos);
  const firstShards = new Map(entries.map(({ name, path }) => [shardPath(path, 1), shardPath(name, 1)]));
  const files = Array.from(firstShards, ([path, name]): FlatFile => {
    const place = known.placeOf(name) ?? guessPlace(name);
    return { name, path, place, role: roleOf(place?.path ?? name), ...told.get(name) };
  });

  const models = files.filter(({ role }) => role === 'model');
  const served = new KnownRepos([...repos, ...models.flatMap(({ place }) => place?.repo ?? [])]);
  return files.map((file) =>
    file.role === 'model' || told.has(file.name)
      ? file
      : { ...file, place: served.placeOf(file.name) ?? file.place },
  );
}

/** By the hub's rule; where the name has no tag, with that of a manifest; the name of the file as the last. */
function idsOf(name: string, place: FlatPlace | undefined, manifests: readonly FlatManifest[]): string[] {
  const stem = name.slice(0, -'.gguf'.length);
  const ownNames = [...new Set([parseGgufName(name)?.prefix ?? stem, stem])];
  if (place === undefined) return ownNames;
  const asked = manifests.find(({ tag }) => tag !== NO_TAG)?.tag;
  const tag = parseGgufName(place.path)?.tag ?? (asked === undefined ? undefined : canonicalTag(asked));
  return tag === undefined ? ownNames : [`${place.repo}:${tag}`, ...ownNames];
}

/** The items of each key in their order; those without a key are left out. */
function groupBy<Item>(
  items: readonly Item[],
  keyOf: (item: Item) => string | undefined,
): ReadonlyMap<string, readonly Item[]> {
  const groups = new Map<string, Item[]>();
  for (const item of items) {
    const key = keyOf(item);
    if (key === undefined) continue;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item]);
    else group.push(item);
  }
  return groups;
}

function nameOf({ name }: { readonly name: string }): string {
  return name;
}
