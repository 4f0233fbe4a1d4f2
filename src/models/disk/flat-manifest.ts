import { readFile, stat } from 'node:fs/promises';
import { failureCode, type DirectoryEntry } from './directory.js';
import type { FlatPlace } from './flat-name.js';
import type { LastReadings } from './last-readings.js';

/**
 * What the hub answered for `user/repo:tag`, as earlier versions of llama.cpp kept it in
 * `manifest=user=repo=tag.json`: which files the tag meant at that time.
 */
export interface FlatManifest {
  /** `user/repo`. */
  readonly repo: string;
  /** As it was asked for: `latest` stands for none. */
  readonly tag: string;
  readonly model: FlatPlace | undefined;
  readonly mmproj: FlatPlace | undefined;
}

const NAME = /^manifest=([^=]+)=([^=]+)=(.+)\.json$/s;
/** The hub's answers are a few kilobytes. */
const MAX_BYTES = 4 * 1024 * 1024;

/** Whether a file is a manifest, by its name. */
export function isManifest({ name, kind }: DirectoryEntry): boolean {
  return kind === 'file' && NAME.test(name);
}

/** The repository, `user/repo`, of which a file is a manifest by its name; undefined if it is none. */
export function repoOfManifest(name: string): string | undefined {
  const [, user, repoName] = NAME.exec(name) ?? [];
  return user === undefined || repoName === undefined ? undefined : `${user}/${repoName}`;
}

/**
 * Reads the manifest `entry`. Of one that is broken the name still tells the repository, and a line is added to
 * `warnings`. Never rejects.
 */
export async function readManifest(
  { name, path }: DirectoryEntry,
  readings: LastReadings,
  warnings: string[],
): Promise<FlatManifest | undefined> {
  const repo = repoOfManifest(name);
  const tag = NAME.exec(name)?.[3];
  if (repo === undefined || tag === undefined) return undefined;
  try {
    const content: unknown = JSON.parse(await readings.read(path, readText));
    const model = fileIn(content, 'ggufFile');
    if (model === undefined) throw new Error('names no ggufFile.rfilename');
    const mmproj = fileIn(content, 'mmprojFile');
    return {
      repo,
      tag,
      model: { repo, path: model },
      mmproj: mmproj === undefined ? undefined : { repo, path: mmproj },
    };
  } catch (error) {
    warnings.push(`the manifest '${path}' is not used: ${failureCode(error)}`);
    return { repo, tag, model: undefined, mmproj: undefined };
  }
}

async function readText(path: string): Promise<string> {
  const { size } = await stat(path);
  if (size > MAX_BYTES) throw new Error(`has ${size} bytes, more than ${MAX_BYTES}`);
  return await readFile(path, 'utf8');
}

/** `content[field].rfilename`, the path of a file in the repository. */
function fileIn(content: unknown, field: 'ggufFile' | 'mmprojFile'): string | undefined {
  const path = memberOf(memberOf(content, field), 'rfilename');
  return typeof path === 'string' ? path : undefined;
}

function memberOf(value: unknown, name: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined;
  return (value as Record<string, unknown>)[name];
}
