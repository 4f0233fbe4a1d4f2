import { boundedMap } from './bounded-map.js';
import { compareBytewise } from './bytewise.js';
import { failureCode, joinPath, readDirectory, type DirectoryEntry } from './directory.js';
import { parseGgufName, shardPath } from './gguf-name.js';

/** A model found in `--models-dir`; paths begin with the directory as it was given. */
export interface LocalModel {
  readonly id: string;
  /** The file, or the first shard, which may be missing: whoever checks the file says so. */
  readonly file: string;
  readonly mmproj: string | undefined;
  readonly draft: string | undefined;
}

export interface ModelsDir {
  readonly models: readonly LocalModel[];
  readonly warnings: readonly string[];
}

/** Names that mark a draft for speculative decoding (common/preset.cpp, `draft_prefixes`). */
const DRAFT_PREFIXES = ['mtp-', 'dspark-', 'dflash-'] as const;
const MAX_OPEN_DIRECTORIES = 16;

/**
 * The models in `directory`, one level deep: every GGUF file and every sub-directory that holds one, read in
 * bytewise order of their names so that the outcome does not depend on the file system. Unlike the native
 * router, the shards of one model are one model. Of two models with one id the first in that order stays.
 * Rejects with a message for the user if `directory` cannot be read.
 */
export async function scanModelsDir(directory: string): Promise<ModelsDir> {
  const warnings: string[] = [];
  const models = new Map<string, LocalModel>();
  const entries = await readModelsDir(directory, warnings);
  const found = await boundedMap(entries, MAX_OPEN_DIRECTORIES, (entry) => modelOf(entry));

  for (const { model, warning } of found) {
    if (warning !== undefined) warnings.push(warning);
    if (model === undefined) continue;
    const earlier = models.get(model.id);
    if (earlier === undefined) models.set(model.id, model);
    else if (earlier.file !== model.file) {
      warnings.push(
        `'${model.file}' is not listed: '${earlier.file}' has the id '${model.id}' already; rename one of them`,
      );
    }
  }
  return { models: [...models.values()], warnings };
}

async function readModelsDir(directory: string, warnings: string[]): Promise<DirectoryEntry[]> {
  try {
    return await readSorted(directory, warnings);
  } catch (error) {
    const code = failureCode(error);
    const reason =
      code === 'ENOENT'
        ? 'does not exist'
        : code === 'ENOTDIR'
          ? 'is not a directory'
          : `cannot be read: ${code}`;
    throw new Error(`--models-dir '${directory}' ${reason}; create it or give another`, { cause: error });
  }
}

interface Finding {
  readonly model?: LocalModel;
  readonly warning?: string;
}

async function modelOf(entry: DirectoryEntry): Promise<Finding> {
  if (entry.kind === 'directory') return await modelOfDirectory(entry);
  if (!isGgufFile(entry) || isMmproj(entry) || isDraft(entry)) return {};
  const id = idOfFile(entry.name);
  if (id === '') return { warning: `'${entry.path}' is not listed: its name leaves no model id` };
  return { model: { id, file: shardPath(entry.path, 1), mmproj: undefined, draft: undefined } };
}

/** The file name with every `.gguf` removed, as the native router does it, and without a shard's number. */
function idOfFile(name: string): string {
  return (parseGgufName(name)?.prefix ?? name).replaceAll('.gguf', '');
}

async function modelOfDirectory(directory: DirectoryEntry): Promise<Finding> {
  const warnings: string[] = [];
  let entries;
  try {
    entries = (await readSorted(directory.path, warnings)).filter(isGgufFile);
  } catch (error) {
    return { warning: `'${directory.path}' cannot be read: ${failureCode(error)}` };
  }

  const mmproj = entries.find(isMmproj);
  const draft = entries.find((entry) => !isMmproj(entry) && isDraft(entry));
  const rest = entries.filter((entry) => !isMmproj(entry) && !isDraft(entry));
  const isShard = (entry: DirectoryEntry): boolean => (parseGgufName(entry.name)?.count ?? 1) > 1;
  // A model in shards goes before one in a single file, as in the native router.
  const files = new Set([...rest.filter(isShard), ...rest].map((entry) => shardPath(entry.path, 1)));
  const [file, ...others] = files;
  if (file === undefined) return {};
  if (others.length > 0) {
    warnings.push(
      `'${directory.path}' holds several models and '${file}' is used; give each a directory of its own: ` +
        `'${others.join("', '")}'`,
    );
  }
  return {
    model: { id: directory.name, file, mmproj: mmproj?.path, draft: draft?.path },
    ...(warnings.length > 0 && { warning: warnings.join('; ') }),
  };
}

function isGgufFile(entry: DirectoryEntry): boolean {
  return entry.name.endsWith('.gguf') && (entry.kind === 'file' || entry.kind === 'dangling');
}

function isMmproj(entry: DirectoryEntry): boolean {
  return entry.name.includes('mmproj');
}

function isDraft(entry: DirectoryEntry): boolean {
  return DRAFT_PREFIXES.some((prefix) => entry.name.startsWith(prefix));
}

/** The entries of `directory` in bytewise order, without those that no request could name. */
async function readSorted(directory: string, warnings: string[]): Promise<DirectoryEntry[]> {
  const entries = await readDirectory(directory);
  return entries
    .filter(({ name }) => {
      // A name that is not UTF-8 arrives with replacement characters: it can neither be opened nor asked for.
      const readable = !name.includes('\uFFFD');
      if (!readable) {
        warnings.push(`'${joinPath(directory, name)}' is not listed: its name is not valid UTF-8; rename it`);
      }
      return readable;
    })
    .sort((a, b) => compareBytewise(a.name, b.name));
}
