import { lstat, open, stat, type FileHandle } from 'node:fs/promises';
import { endianness } from 'node:os';
import { boundedMap } from './bounded-map.js';
import { failureCode } from './directory.js';
import { parseGgufName, shardPath } from './gguf-name.js';

/** Magic, version (u32), number of tensors (u64), number of metadata pairs (u64): ggml/docs/gguf.md. */
const HEADER_BYTES = 24;
/** The versions llama.cpp reads; version 1 was dropped, and no later one exists. */
const READABLE_VERSIONS: readonly number[] = [2, 3];
/** Directories of ten thousand models are checked at start; each open file costs a descriptor. */
const MAX_OPEN_FILES = 16;
const LFS_POINTER = 'version https://git-lfs.';

/**
 * Why `path` can not be a GGUF file that this machine loads, as a phrase that follows its name ("is empty");
 * undefined if its header looks right. Reads 24 bytes and never rejects.
 */
export async function ggufFileProblem(path: string): Promise<string | undefined> {
  try {
    // Opening a FIFO would wait for a writer, so the kind is asked first.
    const { size } = await regularFile(path);
    if (size === 0) return 'is empty';
    const file = await open(path);
    try {
      return headerProblem(await readHeader(file));
    } finally {
      await file.close();
    }
  } catch (error) {
    if (error instanceof NotAFile) return error.message;
    const code = failureCode(error);
    if (code !== 'ENOENT') return `cannot be read: ${code}`;
    return (await isLink(path)) ? 'is a link to a file that does not exist' : 'does not exist';
  }
}

async function isLink(path: string): Promise<boolean> {
  const stats = await lstat(path).catch(() => undefined);
  return stats?.isSymbolicLink() === true;
}

class NotAFile extends Error {}

async function regularFile(path: string): Promise<{ size: number }> {
  const stats = await stat(path);
  if (stats.isDirectory()) throw new NotAFile('is a directory, not a GGUF file');
  if (!stats.isFile()) throw new NotAFile('is not a regular file');
  return stats;
}

async function readHeader(file: FileHandle): Promise<Buffer> {
  const buffer = Buffer.alloc(HEADER_BYTES);
  let length = 0;
  // A read may give less than was asked for; only an empty one is the end of the file.
  while (length < HEADER_BYTES) {
    const { bytesRead } = await file.read(buffer, length, HEADER_BYTES - length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return buffer.subarray(0, length);
}

function headerProblem(header: Buffer): string | undefined {
  if (!'GGUF'.startsWith(header.toString('latin1', 0, 4))) {
    if (header.toString('latin1').startsWith(LFS_POINTER)) {
      return 'is a Git LFS pointer, not a GGUF file; fetch the file itself with "git lfs pull"';
    }
    return `is not a GGUF file (starts with ${printable(header.subarray(0, 4))})`;
  }
  if (header.length < HEADER_BYTES) return 'has a truncated header; it may still be being written';

  const [version, foreignVersion] =
    endianness() === 'LE'
      ? [header.readUInt32LE(4), header.readUInt32BE(4)]
      : [header.readUInt32BE(4), header.readUInt32LE(4)];
  if (READABLE_VERSIONS.includes(version)) return undefined;
  if (READABLE_VERSIONS.includes(foreignVersion)) {
    return 'is a GGUF file of the other byte order than this machine has';
  }
  return `is of GGUF version ${version}; versions ${READABLE_VERSIONS.join(' and ')} can be read`;
}

function printable(bytes: Buffer): string {
  const text = bytes.toString('latin1');
  return /^[\x20-\x7e]+$/.test(text) ? JSON.stringify(text) : `0x${bytes.toString('hex')}`;
}

/**
 * Why the model whose file (or first shard) is `path` can not be loaded, as a sentence that names the file at
 * fault; undefined if every shard looks right.
 */
export async function modelFileProblem(path: string): Promise<string | undefined> {
  const { index, count } = parseGgufName(path) ?? { index: 1, count: 1 };
  if (index !== 1)
    return `'${path}' is shard ${index} of ${count}; name the first one, '${shardPath(path, 1)}'`;
  // One after the other and no further than the first fault: a name may claim 99,999 shards.
  for (let shard = 1; shard <= count; shard++) {
    const file = shardPath(path, shard);
    const problem = await ggufFileProblem(file);
    if (problem !== undefined) {
      return `'${file}' ${count > 1 ? `(shard ${shard} of ${count}) ` : ''}${problem}`;
    }
  }
  return undefined;
}

/** The problem of each file of `paths` that has one (`modelFileProblem`), a few files being open at a time. */
export async function modelFileProblems(paths: Iterable<string>): Promise<ReadonlyMap<string, string>> {
  const problems = new Map<string, string>();
  await boundedMap([...new Set(paths)], MAX_OPEN_FILES, async (path) => {
    const problem = await modelFileProblem(path);
    if (problem !== undefined) problems.set(path, problem);
  });
  return problems;
}
