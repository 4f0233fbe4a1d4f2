/**
 * Breaks `text` into lines of at most `width` columns, at blanks, and within a longer word after `,`, `;` and `|`. What
 * offers no such place, as an address, sticks out.
 */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/)) {
    for (const [index, piece] of piecesOf(word, width).entries()) {
      const joined = index === 0 && line !== '' ? `${line} ${piece}` : line + piece;
      if (line === '' || joined.length <= width) {
        line = joined;
      } else {
        lines.push(line);
        line = piece;
      }
    }
  }
  return [...lines, line];
}

function piecesOf(word: string, width: number): string[] {
  return word.length <= width ? [word] : word.split(/(?<=[,;|])/);
}
