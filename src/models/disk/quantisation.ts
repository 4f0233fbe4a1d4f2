import { parseGgufName } from './gguf-name.js';

/** Without a tag llama-server looks for these, then takes the first file (common/download.cpp, `find_best_model`). */
const DEFAULT_TAGS = ['Q4_K_M', 'Q8_0'] as const;

/**
 * The first of `files` whose path names the quantisation `tag`; with no tag the one that llama-server takes by
 * default. `pathOf` gives the path of a file by the rules of its own layout.
 */
export function ofQuantisation<File>(
  files: readonly File[],
  pathOf: (file: File) => string,
  tag?: string,
): File | undefined {
  const tags = tag === undefined || tag === '' ? DEFAULT_TAGS : [tag];
  for (const wanted of tags) {
    const pattern = new RegExp(`${wanted.replace(/[^\w]/g, '\\$&')}[.-]`, 'i');
    const match = files.find((file) => pattern.test(pathOf(file)));
    if (match !== undefined) return match;
  }
  return tags === DEFAULT_TAGS ? files[0] : undefined;
}

/**
 * The one of `files` whose bits per weight, as the names tell them, are nearest to those of the model `path`; of
 * equals the first (common/download.cpp, `find_best_sibling`).
 */
export function nearestInBits<File>(
  files: readonly File[],
  pathOf: (file: File) => string,
  path: string,
): File | undefined {
  const bits = bitsOf(path);
  let nearest: { file: File; distance: number } | undefined;
  for (const file of files) {
    const distance = Math.abs(bitsOf(pathOf(file)) - bits);
    if (nearest === undefined || distance < nearest.distance) nearest = { file, distance };
  }
  return nearest?.file;
}

/** The first number in the tag of a name: 4 for `Q4_K_M`, 16 for `BF16`, 0 where there is none. */
function bitsOf(path: string): number {
  return Number(/[0-9]+/.exec(parseGgufName(path)?.tag ?? '')?.[0] ?? 0);
}
