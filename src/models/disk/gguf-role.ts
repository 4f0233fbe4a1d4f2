import type { DirectoryEntry } from './directory.js';
import { parseGgufName } from './gguf-name.js';

/**
 * What the name of a GGUF file says of its part: files that accompany a model and are none themselves. These are
 * the rules for files that a child is given by path; what it finds by itself in the hub's layout is in hub-repo.ts.
 */
export type GgufRole =
  | 'model'
  /** The projector of a model that sees or hears. */
  | 'mmproj'
  /** A small model for speculative decoding that the child recognises as what it is. */
  | 'draft'
  /** Of use only with an option that names it: other drafts, and importance matrices. */
  | 'other';

/** Names that mark a draft (common/preset.cpp, `draft_prefixes`). */
const DRAFT_PREFIXES = ['mtp-', 'dspark-', 'dflash-'] as const;
/** A draft whose kind the child cannot tell from the file; as a model of its own it does not start. */
const UNKNOWN_DRAFT_PREFIX = 'eagle3-';

/** Whether an entry is a GGUF file by its name, or a link that should lead to one. */
export function isGgufFile({ name, kind }: Pick<DirectoryEntry, 'name' | 'kind'>): boolean {
  return name.endsWith('.gguf') && (kind === 'file' || kind === 'dangling' || kind === 'unknown');
}

/** The role of the file `name`, which has no directories in it. */
export function roleOf(name: string): GgufRole {
  if (name.includes('mmproj')) return 'mmproj';
  if (DRAFT_PREFIXES.some((prefix) => name.startsWith(prefix))) return 'draft';
  if (name.startsWith(UNKNOWN_DRAFT_PREFIX) || isImatrix(name)) return 'other';
  return 'model';
}

/**
 * Whether a file is an importance matrix: `imatrix.gguf`, `imatrix_unsloth.gguf`, `X-imatrix.gguf`,
 * `X.imatrix.gguf`. One like `X-imatrix-Q4_K_M.gguf` is a model that was made with one.
 */
function isImatrix(name: string): boolean {
  const prefix = parseGgufName(name)?.prefix ?? name;
  return prefix.startsWith('imatrix') || /[-._]imatrix$/.test(prefix);
}
