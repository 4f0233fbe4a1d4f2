import { constants } from 'node:fs';
import { mkdir, open, rename, rm, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { stateDirectory } from '../config/directories.js';
import type { Logger } from '../observe/log.js';
import { runFileName } from '../observe/run-file.js';
import { nothingLoaded, type AbsentModel, type LoadedList } from './loaded-models.js';

/** More is not ours. */
const maxBytes = 1024 * 1024;

/** Where the list of a supervisor lies: `loaded-models-PORT.json` in its state directory. */
export function loadedModelsFile(
  env: NodeJS.ProcessEnv,
  where: { readonly port: number } | { readonly socketPath: string },
): string {
  const port = 'port' in where ? where.port : 0;
  return join(stateDirectory(env, port), `loaded-models-${runFileName(where)}`);
}

/**
 * Writes the list into a file that nobody else can read, through the disk's cache: what is there after a power failure is
 * one list or the other.
 */
export async function writeLoadedModels(file: string, { models, absent }: LoadedList): Promise<void> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  // Of the same name each time: the next write is over what one leaves that is killed at it.
  const unfinished = `${file}.unfinished`;
  try {
    const handle = await open(unfinished, 'w', 0o600);
    try {
      const text = JSON.stringify(absent.length === 0 ? { models } : { models, absent });
      await handle.writeFile(`${text}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(unfinished, file);
  } catch (error) {
    await rm(unfinished, { force: true }).catch(() => undefined);
    throw error;
  }
}

/**
 * The list; an empty one when there is none, or a file that is none, which takes another name: somebody may mend it.
 *
 * @throws when it cannot be read, or not get another name
 */
export async function readOrSetAside(file: string, log: Logger): Promise<LoadedList> {
  try {
    const listed = await readLoadedModels(file);
    if (listed === undefined) log.info({ file }, '--restore: there is no list of loaded models yet');
    return listed ?? nothingLoaded;
  } catch (error) {
    if (isOfTheSystem(error)) throw error;
    const aside = `${file}.broken`;
    await rename(file, aside);
    log.warn(
      { err: error, file, aside },
      '--restore: the list of loaded models is broken; it is set aside, and none of it is loaded',
    );
    return nothingLoaded;
  }
}

/** What the disk says may be different later; what the file says is not. */
function isOfTheSystem(error: unknown): boolean {
  return isRecord(error) && 'syscall' in error;
}

/**
 * @returns undefined when there is no such file
 * @throws when it is no list of models
 */
async function readLoadedModels(file: string): Promise<LoadedList | undefined> {
  const text = await readText(file);
  if (text === undefined) return undefined;
  const content: unknown = JSON.parse(text);
  const { models, absent = [] } = isRecord(content) ? content : {};
  if (!Array.isArray(models) || !Array.isArray(absent)) {
    throw new Error(`${basename(file)} has no list of models`);
  }
  if (!models.every(isModelId) || !absent.every(isAbsentModel)) {
    throw new Error(`${basename(file)} lists what is no model id`);
  }
  return { models: [...new Set(models)], absent };
}

function isModelId(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function isAbsentModel(value: unknown): value is AbsentModel {
  return isRecord(value) && isModelId(value['model']) && !Number.isNaN(Date.parse(String(value['since'])));
}

async function readText(file: string): Promise<string | undefined> {
  let handle: FileHandle;
  try {
    // Without waiting for somebody to write to it, should it be a pipe.
    handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    // Where a file has the place of its directory there is no list, either; that none can be kept is said when one is.
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return undefined;
    throw error;
  }
  try {
    const stats = await handle.stat();
    if (!stats.isFile()) throw new Error(`${basename(file)} is no regular file`);
    if (stats.size > maxBytes) throw new Error(`${basename(file)} is larger than ${maxBytes} bytes`);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null;
}
