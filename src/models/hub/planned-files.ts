import { rename, rm, stat, statfs, truncate } from 'node:fs/promises';
import { dirname } from 'node:path';
import { failureCode, isGone, joinPath, readDirents } from '../disk/directory.js';
import { PARTIAL_SUFFIX, type DownloadPlan, type PlannedFile } from './download-plan.js';

/** How many bytes of these files are still to come; files whose size is not known count for nothing. */
export async function missingBytes(files: readonly PlannedFile[]): Promise<number> {
  const missing = await Promise.all(
    files.map(async ({ sizeBytes = 0, finalPath, bytesPath, partialPath }) => {
      const there =
        (await sizeOf(finalPath)) ?? (await sizeOf(bytesPath)) ?? (await sizeOf(partialPath)) ?? 0;
      return Math.max(0, sizeBytes - there);
    }),
  );
  return missing.reduce((sum, bytes) => sum + bytes, 0);
}

/** The first of the files that is not whole in the cache under its name, and what there is of it instead. */
export async function firstNotThere(
  files: readonly PlannedFile[],
): Promise<{ readonly file: PlannedFile; readonly bytes: number | undefined } | undefined> {
  for (const file of files) {
    const bytes = await sizeOf(file.finalPath);
    if (bytes === undefined || bytes !== (file.sizeBytes ?? bytes)) return { file, bytes };
  }
  return undefined;
}

/**
 * Makes of what is there something that a worker goes on with. By itself it takes a file under its hash for whole,
 * which one that was cut off when the disk was full is not, and of a whole one that was not yet given its name it asks
 * the hub for a part behind the end (common/download.cpp, `common_download_file_single_online`).
 */
export async function makeResumable(files: readonly PlannedFile[]): Promise<void> {
  for (const { sizeBytes, bytesPath, partialPath } of files) {
    if (sizeBytes === undefined) continue;
    const bytes = await sizeOf(bytesPath);
    if (bytes !== undefined && bytes !== sizeBytes) await rename(bytesPath, partialPath);
    const partBytes = await sizeOf(partialPath);
    if (partBytes === undefined || partBytes < sizeBytes) continue;
    if (partBytes === sizeBytes && sizeBytes > 0) await truncate(partialPath, sizeBytes - 1);
    else await rm(partialPath);
  }
}

/** Removes what has come of unfinished files. */
export async function removeUnfinished(files: readonly PlannedFile[]): Promise<void> {
  for (const { partialPath } of files) await rm(partialPath, { force: true });
}

/** How many bytes of unfinished files of the repository there are; grows while a download goes on. */
export async function unfinishedBytes({ folder }: DownloadPlan): Promise<number> {
  const blobs = joinPath(folder, 'blobs');
  const names = (await readDirents(blobs)).map(({ name }) => name);
  const sizes = await Promise.all(
    names.filter((name) => name.endsWith(PARTIAL_SUFFIX)).map((name) => sizeOf(joinPath(blobs, name))),
  );
  return sizes.reduce((sum: number, bytes) => sum + (bytes ?? 0), 0);
}

/** How many bytes this user may still write to the disk of `directory`, which need not exist yet. */
export async function freeBytes(directory: string): Promise<number> {
  for (let place = directory; ; place = dirname(place)) {
    try {
      const { bavail, bsize } = await statfs(place);
      return bavail * bsize;
    } catch (error) {
      if (!isGone(failureCode(error)) || place === dirname(place)) throw error;
    }
  }
}

/** Of a file, links followed; undefined if there is none. */
async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const facts = await stat(path);
    return facts.isFile() ? facts.size : undefined;
  } catch (error) {
    if (isGone(failureCode(error))) return undefined;
    throw error;
  }
}
