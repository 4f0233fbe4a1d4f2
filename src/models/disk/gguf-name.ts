/**
 * What the name of a GGUF file says: its quantisation tag and its place among the shards of one model. The rules
 * are llama-server's (common/download.cpp, `get_gguf_split_info`), because ids are made from them.
 */
export interface GgufName {
  /** The path without `.gguf` and without the shard suffix. */
  readonly prefix: string;
  /** The last component of the prefix after `-` or `.`, upper-cased: `Qwen3-UD-Q4_K_XL` has `Q4_K_XL`. */
  readonly tag: string | undefined;
  /** Counted from 1; a file that is no shard is the first of one. */
  readonly index: number;
  readonly count: number;
}

const SHARD_SUFFIX = /^(.+)-([0-9]{5})-(of)-([0-9]{5})$/is;
const TAG = /[-.]([A-Z0-9_]+)$/i;

/** Reads the name of a file; undefined unless it ends in `.gguf` (case matters). */
export function parseGgufName(path: string): GgufName | undefined {
  if (!path.endsWith('.gguf')) return undefined;
  const stem = path.slice(0, -'.gguf'.length);
  const shard = SHARD_SUFFIX.exec(stem);
  const prefix = shard?.[1] ?? stem;
  return {
    prefix,
    tag: TAG.exec(prefix)?.[1]?.toUpperCase(),
    index: Number(shard?.[2] ?? 1),
    count: Number(shard?.[4] ?? 1),
  };
}

/** The path of shard `index` (from 1) of the model of which `path` is a shard; `path` itself if it is none. */
export function shardPath(path: string, index: number): string {
  const shard = SHARD_SUFFIX.exec(path.slice(0, -'.gguf'.length));
  if (!path.endsWith('.gguf') || shard === null) return path;
  const [, prefix, , of, count] = shard;
  return `${String(prefix)}-${String(index).padStart(5, '0')}-${String(of)}-${String(count)}.gguf`;
}

/** What follows the last colon of a section name, as llama-server canonicalises it (common/preset.cpp). */
export function canonicalTag(tag: string): string {
  // Of ASCII alone, as there.
  return (TAG.exec(tag)?.[1] ?? tag).replace(/[a-z]/g, (letter) => letter.toUpperCase());
}
