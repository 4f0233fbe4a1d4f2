import type { Stats } from 'node:fs';
import { lstat, open, stat, type FileHandle } from 'node:fs/promises';
import { endianness } from 'node:os';
import { boundedMap } from '../bounded-map.js';
import { failureCode } from '../disk/directory.js';
import { parseGgufName, shardPath } from '../disk/gguf-name.js';

/** Magic, version (u32), number of tensors (u64), number of metadata pairs (u64): ggml/docs/gguf.md. */
export const GGUF_HEADER_BYTES = 24;
/** The versions llama.cpp reads; version 1 was dropped, and no later one exists. */
const READABLE_VERSIONS: readonly number[] = [2, 3];
/** Directories of ten thousand models are checked at start; each open file costs a descriptor. */
const MAX_OPEN_FILES = 16;
/**
 * A fault is believed for good once the file has been left alone so long: within one tick of the file system's clock
 * (two seconds on FAT) a file can be mended without its time telling.
 */
const SETTLED_AFTER_MS = 2_000;
const LFS_POINTER = 'version https://git-lfs.';

/**
 * Problems of files are phrases that follow a file's name ("is empty"). Those here are also used by the reader of
 * whole headers, so that a fault has the same words whoever finds it.
 */
export const CUT_HEADER = 'has a truncated header; it may still be being written';

/** Why a file of this kind and size can not be a GGUF file; undefined if it may be one. */
export function statsProblem(stats: Stats): string | undefined {
  if (stats.isDirectory()) return 'is a directory, not a GGUF file';
  if (!stats.isFile()) return 'is not a regular file';
  return stats.size === 0 ? 'is empty' : undefined;
}

/** Why a file that begins with `header` (its first 24 bytes, or all it has) can not be loaded by this machine. */
export function headerProblem(header: Buffer): string | undefined {
  if (!'GGUF'.startsWith(header.toString('latin1', 0, 4))) {
    if (header.toString('latin1').startsWith(LFS_POINTER)) {
      return 'is a Git LFS pointer, not a GGUF file; fetch the file itself with "git lfs pull"';
    }
    return `is not a GGUF file (starts with ${printable(header.subarray(0, 4))})`;
  }
  if (header.length < GGUF_HEADER_BYTES) return CUT_HEADER;

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

/** What the machine or a file system on the network may fail with at any file, whatever the file is like. */
const PASSING_FAILURES: ReadonlySet<string> = new Set([
  'EMFILE',
  'ENFILE',
  'ENOMEM',
  'EAGAIN',
  'EBUSY',
  'EIO',
  'ESTALE',
  'ETIMEDOUT',
]);

/** Whether an operation on a file that failed with `code` says nothing about the file. */
export function isPassingFailure(code: string): boolean {
  return PASSING_FAILURES.has(code);
}

/** What an operation on the file `path` that failed with `code` (or other words on the cause) says about it. */
export async function failureProblem(path: string, code: string): Promise<string> {
  if (code !== 'ENOENT') return `cannot be read: ${code}`;
  return (await isLink(path)) ? 'is a link to a file that does not exist' : 'does not exist';
}

async function isLink(path: string): Promise<boolean> {
  const stats = await lstat(path).catch(() => undefined);
  return stats?.isSymbolicLink() === true;
}

/** One file of a model; `index` counts from 1. */
export interface Shard {
  readonly path: string;
  readonly index: number;
  readonly count: number;
}

/**
 * The files of the model whose file (or first shard) is `path`, in order. Lazily, because a name may claim 99,999
 * shards: whoever looks at them stops at the first that is missing.
 */
export function* shardsOf(path: string): Generator<Shard> {
  const count = parseGgufName(path)?.count ?? 1;
  yield { path, index: 1, count };
  for (let index = 2; index <= count; index++) yield { path: shardPath(path, index), index, count };
}

/** Why no model can be named by the file `path`: it is a shard, and not the first one. */
export function notFirstProblem(path: string): string | undefined {
  const { index, count } = parseGgufName(path) ?? { index: 1, count: 1 };
  if (index === 1) return undefined;
  return `'${path}' is shard ${index} of ${count}; name the first one, '${shardPath(path, 1)}'`;
}

/** The problem of one file of a model as a sentence that names the file. */
export function shardProblem({ path, index, count }: Shard, problem: string): string {
  return `'${path}' ${count > 1 ? `(shard ${index} of ${count}) ` : ''}${problem}`;
}

/** The outcome of one look at a model's files. */
export interface GgufCheck {
  /** Why the model can not be loaded, as a sentence that names the file at fault; undefined if every shard looks right. */
  readonly problem: string | undefined;
  /**
   * Sizes and times of the shards, up to the first that is at fault; changes when one is replaced. Undefined if not
   * even the first could be asked.
   */
  readonly version: string | undefined;
}

interface FileCheck {
  readonly problem: string | undefined;
  readonly version: string | undefined;
  /** The outcome holds until the file's version changes. */
  readonly settled: boolean;
}

/**
 * Looks at the first 24 bytes of GGUF files, and again only when a file's size or time has changed: to look at
 * unchanged files costs one `stat` each. Where the system fails, which is not the file's fault, what was found before
 * holds. Never rejects.
 */
export class GgufChecks {
  /** What was found in each file that has been asked for; `checkAll` forgets the others. */
  #known = new Map<string, FileCheck>();

  /** Checks the model whose file (or first shard) is `path`. */
  async check(path: string): Promise<GgufCheck> {
    return await this.#checkModel(path, this.#known, this.#known);
  }

  /** Checks all models of `paths`, a few at a time, and forgets what is known of other files. */
  async checkAll(paths: Iterable<string>): Promise<ReadonlyMap<string, GgufCheck>> {
    const known = new Map<string, FileCheck>();
    const distinct = [...new Set(paths)];
    const checks = await boundedMap(distinct, MAX_OPEN_FILES, async (path) => {
      return [path, await this.#checkModel(path, this.#known, known)] as const;
    });
    this.#known = known;
    return new Map(checks);
  }

  async #checkModel(
    path: string,
    earlier: ReadonlyMap<string, FileCheck>,
    known: Map<string, FileCheck>,
  ): Promise<GgufCheck> {
    const versions: string[] = [];
    const outcome = (problem: string | undefined): GgufCheck => ({
      problem,
      version: versions.length === 0 ? undefined : versions.join(','),
    });
    const misnamed = notFirstProblem(path);
    if (misnamed !== undefined) return outcome(misnamed);
    for (const shard of shardsOf(path)) {
      const check = await checkFile(shard.path, earlier.get(shard.path));
      known.set(shard.path, check);
      const { problem, version } = check;
      if (version !== undefined) versions.push(version);
      if (problem !== undefined) return outcome(shardProblem(shard, problem));
    }
    return outcome(undefined);
  }
}

async function checkFile(path: string, known: FileCheck | undefined): Promise<FileCheck> {
  let version: string | undefined;
  try {
    // Opening a FIFO would wait for a writer, so the kind is asked first.
    const stats = await stat(path);
    version = `${stats.size}@${stats.mtimeMs}`;
    if (known?.settled === true && known.version === version) return known;
    const problem = statsProblem(stats) ?? headerProblem(await readHeader(path));
    return { problem, version, settled: problem === undefined || isSettled(stats) };
  } catch (error) {
    const code = failureCode(error);
    if (isPassingFailure(code)) return known ?? { problem: undefined, version, settled: false };
    return { problem: await failureProblem(path, code), version, settled: false };
  }
}

function isSettled({ mtimeMs }: Stats): boolean {
  return Math.abs(Date.now() - mtimeMs) >= SETTLED_AFTER_MS;
}

async function readHeader(path: string): Promise<Buffer> {
  const file = await open(path);
  try {
    return await readStart(file);
  } finally {
    await file.close();
  }
}

async function readStart(file: FileHandle): Promise<Buffer> {
  const buffer = Buffer.alloc(GGUF_HEADER_BYTES);
  let length = 0;
  // A read may give less than was asked for; only an empty one is the end of the file.
  while (length < GGUF_HEADER_BYTES) {
    const { bytesRead } = await file.read(buffer, length, GGUF_HEADER_BYTES - length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return buffer.subarray(0, length);
}
