/**
 * The candidate a person most likely meant by `text`, or undefined when none is close.
 *
 * Leading dashes and `_` against `-` do not count as differences. Ties go to the candidate with as many leading
 * dashes as the text, then to the shorter one, then bytewise.
 */
export function nearest(text: string, candidates: Iterable<string>): string | undefined {
  // Beyond two fifths of the letters a suggestion is a guess, and a one-letter option has no neighbours.
  const limit = Math.floor(bare(text).length * 0.4);
  return [...candidates]
    .map((candidate) => ({ candidate, edits: editsBetween(bare(text), bare(candidate), limit) }))
    .filter(({ edits }) => edits <= limit)
    .sort(
      (a, b) =>
        a.edits - b.edits ||
        Number(dashes(a.candidate) !== dashes(text)) - Number(dashes(b.candidate) !== dashes(text)) ||
        a.candidate.length - b.candidate.length ||
        (a.candidate < b.candidate ? -1 : 1),
    )[0]?.candidate;
}

function bare(name: string): string {
  return name.replace(/^-+/, '').replaceAll('_', '-').toLowerCase();
}

function dashes(name: string): number {
  return name.length - name.replace(/^-+/, '').length;
}

function editsBetween(wanted: string, name: string, limit: number): number {
  // People shorten: `--ctx` means `--ctx-size` sooner than it means a misspelt `-ctk`.
  const shortened = wanted.length > 2 && name.length > wanted.length && name.startsWith(wanted);
  if (shortened) return 0.5;
  // Each letter that one has more is an edit at least; to compare with a text of a megabyte would take minutes.
  return Math.abs(wanted.length - name.length) > limit ? Infinity : editDistance(wanted, name);
}

/** Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours, each one edit. */
function editDistance(a: string, b: string): number {
  let beforePrevious: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const same = a[row - 1] === b[column - 1];
      const swapped = row > 1 && column > 1 && a[row - 1] === b[column - 2] && a[row - 2] === b[column - 1];
      current.push(
        Math.min(
          at(previous, column) + 1,
          at(current, column - 1) + 1,
          at(previous, column - 1) + (same ? 0 : 1),
          swapped ? at(beforePrevious, column - 2) + 1 : Infinity,
        ),
      );
    }
    beforePrevious = previous;
    previous = current;
  }
  return at(previous, b.length);
}

function at(row: readonly number[], column: number): number {
  return row[column] ?? Infinity;
}
