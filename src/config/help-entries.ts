/** One option as `llama-server --help` prints it. */
export interface HelpEntry {
  /** The title of its section, for example `common params`; empty before the first. */
  readonly heading: string;
  /** Every spelling, with dashes, in the order of the help. */
  readonly names: readonly string[];
  /** What stands for its value or values; empty for a switch. */
  readonly placeholder: string;
  /** The description without the environment name, a string for each line that its author ended. */
  readonly paragraphs: readonly string[];
  readonly env: string | undefined;
}

/** Where the help wraps descriptions (common/arg.cpp, `n_char_per_line_help`). */
const NATIVE_WRAP = 70;

/** Takes the text of `llama-server --help` apart. Lines that describe no option are passed over. */
export function helpEntries(help: string): HelpEntry[] {
  const blocks: Block[] = [];
  let heading = '';
  let current: Block | undefined;
  for (const line of help.split(/\r?\n/)) {
    const title = /^-{3,} *(.*?) *-{3,}$/.exec(line)?.[1];
    if (/^--?[A-Za-z]/.test(line)) {
      current = { heading, head: line, rest: [] };
      blocks.push(current);
    } else if (/^\s+\S/.test(line)) {
      // What is indented below the names of an option describes it.
      current?.rest.push(line.trim());
    } else if (line.trim() !== '') {
      // A section heading, or a log line of the binary.
      current = undefined;
      heading = title ?? heading;
    }
  }
  return blocks.map(entryOf);
}

interface Block {
  readonly heading: string;
  /** The line that names the option; what follows the names may be its description. */
  readonly head: string;
  readonly rest: string[];
}

function entryOf({ heading, head, rest }: Block): HelpEntry {
  const names: string[] = [];
  let tail = head;
  for (let more = true; more;) {
    const [matched, name = '', comma] = /^([^\s,]+)(, *)?/.exec(tail) ?? [''];
    names.push(name);
    tail = tail.slice(matched.length);
    more = comma !== undefined && tail.startsWith('-');
  }

  // A placeholder follows the names after one blank; a description after three at least.
  const [, placeholder = '', onHeadLine = ''] = /^(?: (\S.*?))?(?: {3,}(.*))?$/.exec(tail) ?? [];
  const lines = [onHeadLine.trim(), ...rest];
  const [, lastLine = lines.at(-1) ?? '', env] = /^(.*?) ?\(env: (\S+)\)$/.exec(lines.at(-1) ?? '') ?? [];
  const paragraphs = unwrap([...lines.slice(0, -1), lastLine].filter((line) => line !== ''));
  return { heading, names, placeholder, paragraphs, env };
}

/**
 * Joins the lines that only the width of the help has parted: where the next word would have fitted, its author
 * wanted a new line.
 */
function unwrap(lines: readonly string[]): string[] {
  const paragraphs: string[] = [];
  let last = '';
  for (const line of lines) {
    const [nextWord = ''] = line.split(' ', 1);
    const wrapped = last !== '' && last.length + 1 + nextWord.length > NATIVE_WRAP;
    if (wrapped) paragraphs.push(`${paragraphs.pop() ?? ''} ${line}`);
    else paragraphs.push(line);
    last = line;
  }
  return paragraphs;
}
