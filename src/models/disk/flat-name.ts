import { isRepoId } from './hub-repo.js';

/** Where a file of the flat cache came from. */
export interface FlatPlace {
  /** `user/repo`. */
  readonly repo: string;
  /** Its path in the repository; where only the name tells, with `_` for each `/`. */
  readonly path: string;
}

/** The name under which earlier versions of llama.cpp kept the file `path` of `repo`. */
export function flatName({ repo, path }: FlatPlace): string {
  return `${repo}_${path}`.replaceAll(/[/\\]/g, '_');
}

/** Finds files of repositories that are known, of several that fit the one with the longest name. */
export class KnownRepos {
  readonly #byPrefix: ReadonlyMap<string, string>;

  constructor(repos: Iterable<string>) {
    this.#byPrefix = new Map(Array.from(repos, (repo) => [flatName({ repo, path: '' }), repo]));
  }

  placeOf(name: string): FlatPlace | undefined {
    for (const end of underscores(name).reverse()) {
      const repo = this.#byPrefix.get(name.slice(0, end + 1));
      if (repo !== undefined) return { repo, path: name.slice(end + 1) };
    }
    return undefined;
  }
}

/**
 * Splits a name of which nothing else is known. A user's name holds no `_`; the repository's ends, by the first of
 * these that applies,
 *
 * 1. at the first component `gguf`, with which most of them end: `unsloth_Qwen3-GGUF_UD-Q4_K_XL_Qwen3-….gguf`;
 * 2. where the name of the file, or of a directory above it, begins with the repository's: `a_b_c_b_c-Q4_0.gguf` is
 *    of `a/b_c`; of several such places at the last;
 * 3. at the next `_`: `ggml-org_models_tinyllamas_stories15M-q4_0.gguf` is of `ggml-org/models`.
 *
 * Undefined if that gives no name of a repository and of a file.
 */
export function guessPlace(name: string): FlatPlace | undefined {
  const userEnd = name.indexOf('_');
  if (userEnd === -1) return undefined;
  const [user, rest] = splitAt(name, userEnd);
  const ends = underscores(rest);
  const end =
    ends.find((at) => /(?:^|[-_.])gguf$/i.test(rest.slice(0, at))) ??
    ends.findLast((at) => repeats(rest.slice(at), rest.slice(0, at))) ??
    ends[0];
  if (end === undefined) return undefined;
  const [repoName, path] = splitAt(rest, end);
  const repo = `${user}/${repoName}`;
  return isRepoId(repo) ? { repo, path } : undefined;
}

function repeats(path: string, repo: string): boolean {
  return path.toLowerCase().includes(`_${repo.toLowerCase()}`);
}

/** What is before and after the character at `index`. */
function splitAt(text: string, index: number): [string, string] {
  return [text.slice(0, index), text.slice(index + 1)];
}

function underscores(text: string): number[] {
  return Array.from(text.matchAll(/_/g), ({ index }) => index);
}
