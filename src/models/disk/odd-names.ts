import { isUtf8 } from 'node:buffer';
import { createHash } from 'node:crypto';
import { lstat, mkdir, readdir, readlink, rm, rmdir, symlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { failureCode, joinPath, kindOfPath, readDirectory, type DirectoryEntry } from './directory.js';

/**
 * File names that are not UTF-8. Neither a request nor, through Node, an argument of a child can carry such bytes,
 * so the file gets a symbolic link under a readable name, and everything else works on the link's path:
 *
 *     LINKS/<hash of the directory>/caf%E9-00001-of-00002.gguf -> /models/caf\xe9-00001-of-00002.gguf
 *
 * All links of one directory lie side by side, because a child finds the shards of a model beside the first.
 */
export interface OddNames {
  /** Where the links are made; undefined: such files are left out, with a warning. */
  readonly linksDirectory: string | undefined;
}

/** Another supervisor may make or sweep the same links; each can spoil one attempt. */
const LINK_ATTEMPTS = 3;

/**
 * The entries of `directory`, links followed, in the system's order, then those whose names are not UTF-8 under
 * readable names, sorted. Of these only the ones that are `wanted` get a link or a warning; the rest is left out.
 * `last` is what it gave before (`readDirectory`). Rejects if the directory cannot be read.
 */
export async function readNamedDirectory(
  directory: string,
  { linksDirectory }: OddNames,
  wanted: (entry: Pick<DirectoryEntry, 'name' | 'kind'>) => boolean,
  warnings: string[],
  last?: readonly DirectoryEntry[],
): Promise<DirectoryEntry[]> {
  const entries = await readDirectory(directory, last);
  // Bytes that are not UTF-8 are read as U+FFFD, which may also just be in a name.
  if (!entries.some(({ name }) => name.includes('\uFFFD'))) return entries;

  const rawNames = await readdir(directory, { encoding: 'buffer' });
  const readable = new Set(rawNames.filter(isUtf8).map(String));
  const named = entries.filter(({ name }) => readable.has(name));
  const taken = new Set<string>();
  for (const raw of rawNames.filter((name) => !isUtf8(name)).sort((a, b) => Buffer.compare(a, b))) {
    const target = Buffer.concat([Buffer.from(joinPath(resolve(directory), '')), raw]);
    const name = escapeOddBytes(raw);
    const kind = await kindOfPath(target);
    if (!wanted({ name, kind })) continue;

    const refusal = `'${joinPath(directory, raw.toString())}' is not listed: its name is not valid UTF-8`;
    if (linksDirectory === undefined) {
      warnings.push(`${refusal}; rename it`);
      continue;
    }
    if (taken.has(name)) {
      warnings.push(`${refusal}, and another is '${name}' already; rename one of them`);
      continue;
    }
    taken.add(name);
    const path = join(linksDirectory, hashOf(resolve(directory)), name);
    try {
      await link(path, target);
      named.push({ name, path, kind, isLink: true });
    } catch (error) {
      warnings.push(`${refusal}, and '${path}' cannot be made: ${failureCode(error)}; rename it`);
    }
  }
  return named;
}

/** `name`, or a path, with each byte that is not part of a UTF-8 character as `%FF`; other `%` stay as they are. */
export function escapeOddBytes(name: Buffer): string {
  let text = '';
  for (let start = 0; start < name.length;) {
    const character = characterAt(name, start);
    text += character?.toString() ?? `%${name.toString('hex', start, start + 1).toUpperCase()}`;
    start += character?.length ?? 1;
  }
  return text;
}

/** The one character that begins at `start`, if one does. */
function characterAt(bytes: Buffer, start: number): Buffer | undefined {
  for (let length = 1; length <= 4; length++) {
    const candidate = bytes.subarray(start, start + length);
    if (isUtf8(candidate)) return candidate;
  }
  return undefined;
}

/** A name for the links of one directory that stays the same, so that a running child's arguments do, too. */
function hashOf(directory: string): string {
  return createHash('sha256').update(directory).digest('hex').slice(0, 16);
}

/** Makes `path` a link to `target`, unless it is one. */
async function link(path: string, target: Buffer): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const found = await readlink(path, { encoding: 'buffer' }).catch(() => undefined);
    if (found?.equals(target) === true) return;
    try {
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      await rm(path, { force: true });
      await symlink(target, path);
      return;
    } catch (error) {
      // EEXIST: another made it first. ENOENT: another swept the directory just before its first link.
      if (attempt === LINK_ATTEMPTS || !['EEXIST', 'ENOENT'].includes(failureCode(error))) throw error;
    }
  }
}

/** Removes the links whose files are gone, whoever made them. Never rejects. */
export async function sweepLinks({ linksDirectory }: OddNames): Promise<void> {
  if (linksDirectory === undefined) return;
  for (const folder of await namesIn(linksDirectory)) {
    for (const name of await namesIn(join(linksDirectory, folder))) {
      const path = join(linksDirectory, folder, name);
      if (await isStale(path)) await rm(path, { force: true }).catch(() => undefined);
    }
    // Only an empty one goes.
    await rmdir(join(linksDirectory, folder)).catch(() => undefined);
  }
}

async function namesIn(directory: string): Promise<string[]> {
  return await readdir(directory).catch(() => []);
}

/** Whether `path` is a link to a name that is no more; what the name stands for, a link in turn, is not asked. */
async function isStale(path: string): Promise<boolean> {
  try {
    await lstat(await readlink(path, { encoding: 'buffer' }));
    return false;
  } catch (error) {
    return failureCode(error) === 'ENOENT';
  }
}
