import { realpath } from 'node:fs/promises';
import { boundedMap } from '../bounded-map.js';
import { compareBytewise } from '../bytewise.js';
import { failureCode, isGone, joinPath, type DirectoryEntry } from './directory.js';
import { parseGgufName, shardPath } from './gguf-name.js';
import { isGgufFile, roleOf, type GgufRole } from './gguf-role.js';
import { LastReadings } from './last-readings.js';
import { readNamedDirectory, sweepLinks, type OddNames } from './odd-names.js';
import { nearestInBits, ofQuantisation } from './quantisation.js';

/** A model found in `--models-dir`; paths begin with the directory as it was given. */
export interface LocalModel {
  readonly id: string;
  /** The file, or the first shard, which may be missing: whoever checks the file says so. */
  readonly file: string;
  readonly mmproj: string | undefined;
  readonly draft: string | undefined;
}

export interface ModelsDir {
  /** Sorted bytewise by id. */
  readonly models: readonly LocalModel[];
  readonly warnings: readonly string[];
}

const MAX_OPEN_DIRECTORIES = 16;

/**
 * The models in `directory`, one level deep: every GGUF file and every sub-directory that holds one, read in
 * bytewise order of their names so that the outcome does not depend on the file system. Ids are the native
 * router's; what it lists wrongly or leaves to chance is chosen here:
 *
 * - the shards of one model are one model, named without their number;
 * - of several models in a sub-directory, one has the directory's name and the others are `directory:TAG`;
 * - importance matrices are no models;
 * - a sub-directory that is a link back to `directory`, or to one above it, holds none;
 * - of two models with one id the first stays, one whose id is native before one whose id is not.
 *
 * Of what cannot be read that holds which `readings`, the same at each scan of `directory`, kept of the last. Rejects
 * with a message for the user if `directory` is gone, or cannot be read and never was.
 */
export async function scanModelsDir(
  directory: string,
  { linksDirectory, readings = new LastReadings() }: Partial<OddNames> & { readings?: LastReadings } = {},
): Promise<ModelsDir> {
  const oddNames: OddNames = { linksDirectory };
  const warnings: string[] = [];
  readings.startScan();
  const entries = await readModelsDir(directory, oddNames, readings, warnings);
  const findings = await boundedMap(entries, MAX_OPEN_DIRECTORIES, async (entry): Promise<Finding> => {
    if (entry.kind !== 'directory') return findInFile(entry);
    if (entry.isLink && (await leadsBack(entry.path, directory))) return NOTHING;
    return await findInDirectory(entry, oddNames, readings);
  });
  await sweepLinks(oddNames);
  warnings.push(...readings.warnings(directory), ...findings.flatMap((finding) => finding.warnings));
  const candidates = findings.flatMap((finding) => finding.candidates);
  return { models: settleIds(candidates, warnings), warnings };
}

/** A model that is to be listed by the first of `ids` that no other has. */
interface Candidate extends Omit<LocalModel, 'id'> {
  readonly ids: readonly string[];
  /** Whether the native router gives it that id, too. */
  readonly isNative: boolean;
}

interface Finding {
  readonly candidates: readonly Candidate[];
  readonly warnings: readonly string[];
}

const NOTHING: Finding = { candidates: [], warnings: [] };

function settleIds(candidates: readonly Candidate[], warnings: string[]): LocalModel[] {
  const models = new Map<string, LocalModel>();
  const native = candidates.filter(({ isNative }) => isNative);
  const ours = candidates.filter(({ isNative }) => !isNative);
  for (const { ids, file, mmproj, draft } of [...native, ...ours]) {
    // Every shard of a model finds it anew.
    if (ids.some((id) => models.get(id)?.file === file)) continue;
    const id = ids.find((free) => !models.has(free));
    if (id === undefined) {
      const [wanted = ''] = ids;
      const owner = String(models.get(wanted)?.file);
      warnings.push(`'${file}' is not listed: '${owner}' has the id '${wanted}' already; rename one of them`);
      continue;
    }
    models.set(id, { id, file, mmproj, draft });
  }
  return [...models.values()].sort((a, b) => compareBytewise(a.id, b.id));
}

async function readModelsDir(
  directory: string,
  oddNames: OddNames,
  readings: LastReadings,
  warnings: string[],
): Promise<readonly DirectoryEntry[]> {
  const wanted = (entry: Pick<DirectoryEntry, 'name' | 'kind'>): boolean =>
    entry.kind === 'directory' || isGgufFile(entry);
  try {
    return await readSorted(directory, oddNames, wanted, readings, warnings);
  } catch (error) {
    const code = failureCode(error);
    const place = `--models-dir '${directory}'`;
    if (!isGone(code)) throw new Error(`${place} cannot be read: ${code}`, { cause: error });
    const reason = code === 'ENOENT' ? 'does not exist' : 'is not a directory';
    throw new Error(`${place} ${reason}; create it or give another`, { cause: error });
  }
}

/** The entries of `directory` in the order of their names. */
async function readSorted(
  directory: string,
  oddNames: OddNames,
  wanted: (entry: Pick<DirectoryEntry, 'name' | 'kind'>) => boolean,
  readings: LastReadings,
  warnings: string[],
): Promise<readonly DirectoryEntry[]> {
  const entries = await readings.read<readonly DirectoryEntry[]>(directory, (path, last) =>
    readNamedDirectory(path, oddNames, wanted, warnings, last),
  );
  return entries.toSorted(byName);
}

/** Whether the link `path` leads to `directory` or to one above it, whose files are not those of a model. */
async function leadsBack(path: string, directory: string): Promise<boolean> {
  try {
    const [target, start] = await Promise.all([realpath(path), realpath(directory)]);
    return joinPath(start, '').startsWith(joinPath(target, ''));
  } catch {
    return false;
  }
}

function findInFile(entry: DirectoryEntry): Finding {
  if (!isGgufFile(entry) || roleOf(entry.name) !== 'model') return NOTHING;
  // The native router lists every shard; where another model has its name, it has the id of the first shard.
  const prefix = parseGgufName(entry.name)?.prefix ?? entry.name;
  const ids = [prefix, shardPath(entry.name, 1)].map(idOfFile).filter((id) => id !== '');
  if (ids.length === 0) {
    return { candidates: [], warnings: [`'${entry.path}' is not listed: its name leaves no model id`] };
  }
  const file = shardPath(entry.path, 1);
  return {
    candidates: [{ ids, isNative: !isShard(entry.name), file, mmproj: undefined, draft: undefined }],
    warnings: [],
  };
}

/** A file name with every `.gguf` removed, as the native router does it. */
function idOfFile(name: string): string {
  return name.replaceAll('.gguf', '');
}

async function findInDirectory(
  directory: DirectoryEntry,
  oddNames: OddNames,
  readings: LastReadings,
): Promise<Finding> {
  const warnings: string[] = [];
  let entries;
  try {
    entries = await readSorted(directory.path, oddNames, isGgufFile, readings, warnings);
  } catch (error) {
    return { candidates: [], warnings: [`'${directory.path}' cannot be read: ${failureCode(error)}`] };
  }

  const ggufs = entries.filter(isGgufFile);
  const inRole = (role: GgufRole): DirectoryEntry[] => ggufs.filter(({ name }) => roleOf(name) === role);
  const models = modelsAmong(inRole('model'));
  const preferred = preferredModel(models);
  if (preferred === undefined) return { candidates: [], warnings };

  const projectors = openable(inRole('mmproj'), warnings);
  const drafts = openable(inRole('draft'), warnings);
  const candidate = (id: string, { name, file }: DirectoryModel, isNative: boolean): Candidate => ({
    ids: [id],
    isNative,
    file,
    mmproj: nearestInBits(projectors, nameOf, name)?.path,
    draft: nearestInBits(drafts, nameOf, name)?.path,
  });

  const candidates = [candidate(directory.name, preferred, true)];
  const tags = new Set([parseGgufName(preferred.name)?.tag, undefined]);
  const indistinct: string[] = [];
  for (const model of models) {
    if (model === preferred) continue;
    const tag = parseGgufName(model.name)?.tag;
    if (tags.has(tag)) {
      indistinct.push(model.file);
      continue;
    }
    tags.add(tag);
    candidates.push(candidate(`${directory.name}:${String(tag)}`, model, false));
  }
  if (indistinct.length > 0) {
    warnings.push(
      `'${directory.path}' holds several models and '${preferred.file}' is used; give each a directory of its ` +
        `own: '${indistinct.join("', '")}'`,
    );
  }
  return { candidates, warnings };
}

/** One model of a sub-directory, by its only file or its first shard. */
interface DirectoryModel {
  readonly name: string;
  readonly file: string;
  /** Whether that file is there. */
  readonly isPresent: boolean;
}

/** The models that `entries`, files and shards in the order of their names, make up. */
function modelsAmong(entries: readonly DirectoryEntry[]): DirectoryModel[] {
  const present = new Set(entries.filter(({ kind }) => kind === 'file').map(nameOf));
  const models = new Map<string, DirectoryModel>();
  for (const entry of entries) {
    const name = shardPath(entry.name, 1);
    models.set(name, { name, file: shardPath(entry.path, 1), isPresent: present.has(name) });
  }
  return [...models.values()];
}

/**
 * The model that has its directory's name: of those whose file is there the only one in shards, which is the native
 * router's choice; where that is left to the order of the disk, the one that llama-server takes of a repository.
 */
function preferredModel(models: readonly DirectoryModel[]): DirectoryModel | undefined {
  const present = models.filter(({ isPresent }) => isPresent);
  const choice = present.length > 0 ? present : models;
  const [inShards, ...others] = choice.filter(({ name }) => isShard(name));
  return inShards !== undefined && others.length === 0 ? inShards : ofQuantisation(choice, nameOf);
}

/** Companions that can be opened: a child would not start with one that leads nowhere. */
function openable(companions: readonly DirectoryEntry[], warnings: string[]): DirectoryEntry[] {
  return companions.filter(({ path, kind }) => {
    if (kind === 'file') return true;
    const fault = kind === 'dangling' ? 'is a link to a file that does not exist' : 'cannot be read';
    warnings.push(`'${path}' ${fault}; its model is served without it`);
    return false;
  });
}

function isShard(name: string): boolean {
  return parseGgufName(name)?.prefix !== name.slice(0, -'.gguf'.length);
}

function nameOf({ name }: { readonly name: string }): string {
  return name;
}

function byName(a: DirectoryEntry, b: DirectoryEntry): number {
  return compareBytewise(a.name, b.name);
}
