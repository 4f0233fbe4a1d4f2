import { DROPPED_WITH_ADVICE } from './command-line.js';
import { isModelOption, isQuery } from './direct-options.js';
import { helpEntries, type HelpEntry } from './help-entries.js';
import { OptionTable, type Option } from './option-table.js';
import { OWN_ROWS, ROUTER_ROWS, SETTING_GROUPS, type SettingRow } from './settings.js';
import { StartOptions } from './start-options.js';
import { wrap } from './wrap.js';

/** Where descriptions begin. */
const TEXT_COLUMN = 32;
const NARROWEST = 80;
/** Longer lines of prose are hard to follow. */
const WIDEST = 110;

/** What the installed binary says of itself, or why there is nothing to show. */
export type NativeHelp = { readonly help: string } | { readonly obstacle: string };

/**
 * The text of `llama-supervisor start --help`: the options of the installed llama-server in its own words, without
 * those that we obey ourselves, then all of ours.
 *
 * @param columns the width of the terminal
 */
export function helpText(native: NativeHelp, columns = WIDEST): string {
  const page = new Page(Math.min(Math.max(columns, NARROWEST), WIDEST));
  page.paragraph('Usage: llama-supervisor [start] [options]');
  page.paragraph(
    'Serves many GGUF models behind one OpenAI-compatible endpoint, each in a llama-server of its own that is ' +
      'started by the first request for it.',
  );
  const help = 'help' in native ? native.help : '';
  const options = new StartOptions(OptionTable.parse(help));
  if ('help' in native) writeNative(page, help, options);
  else page.paragraph(`The options of llama-server itself cannot be shown: ${native.obstacle}`);
  writeOurs(page, options);
  page.paragraph(
    'Other commands: llama-supervisor config check FILE (says what is wrong with a presets file), llama-supervisor help.',
  );
  return page.text();
}

function writeNative(page: Page, help: string, options: StartOptions): void {
  const obeyed = new Set(Object.values(ROUTER_ROWS).map((row) => options.optionOf(row)));
  const inherited = new Map<string, HelpEntry[]>();
  const single: HelpEntry[] = [];
  const queries: HelpEntry[] = [];
  for (const entry of helpEntries(help)) {
    const option = options.find(entry.names[0] ?? '')?.option;
    if (option === undefined || obeyed.has(option)) continue;
    if (isQuery(option)) queries.push(entry);
    else if (isModelOption(option)) single.push(entry);
    else inherited.set(entry.heading, [...(inherited.get(entry.heading) ?? []), withAdvice(entry, option)]);
  }

  page.paragraph(
    'Options of llama-server. All models inherit what is given here, whatever the file of --models-preset says; ' +
      'what is meant for one model belongs there.',
  );
  for (const [heading, entries] of inherited) page.section(titleOf(heading), entries.map(nativeItem));
  page.section('One model only (nothing is routed: llama-server runs in our place)', single.map(nativeItem));
  page.section('Questions (the answer is printed, nothing is served)', queries.map(nativeItem));
  page.paragraph('Options of llama-supervisor, and those of llama-server that it obeys itself.');
}

/** In the help of llama-server `example` is the program itself. */
function titleOf(heading: string): string {
  const title = heading.replace('example-specific', 'server');
  return title.charAt(0).toUpperCase() + title.slice(1);
}

function withAdvice(entry: HelpEntry, { key }: Option): HelpEntry {
  const advice = DROPPED_WITH_ADVICE.get(key);
  if (advice === undefined) return entry;
  return { ...entry, paragraphs: [...entry.paragraphs, `not passed on to the models: ${advice}`] };
}

function nativeItem({ names, placeholder, paragraphs, env }: HelpEntry): Item {
  return {
    usage: [names.join(', '), placeholder].join(' ').trim(),
    paragraphs: [...paragraphs, ...(env === undefined ? [] : [`(env: ${env})`])],
  };
}

function writeOurs(page: Page, options: StartOptions): void {
  const rows: readonly SettingRow<unknown>[] = [...Object.values(ROUTER_ROWS), ...Object.values(OWN_ROWS)];
  for (const [group, title] of Object.entries(SETTING_GROUPS)) {
    const items = rows
      .filter((row) => row.group === group)
      .map((row) => {
        const { positive, negative } = options.optionOf(row);
        return {
          usage: [[...positive, ...negative].join(', '), row.kind.placeholder ?? ''].join(' ').trim(),
          paragraphs: [
            row.help,
            row.initial === '' ? `(env: ${row.env})` : `(default: ${row.initial}, env: ${row.env})`,
          ],
        };
      });
    page.section(title, items);
  }
}

interface Item {
  /** The spellings, and what stands for the value. */
  readonly usage: string;
  readonly paragraphs: readonly string[];
}

/** Text in lines of limited width. */
class Page {
  readonly #lines: string[] = [];
  readonly #columns: number;

  constructor(columns: number) {
    this.#columns = columns;
  }

  paragraph(text: string): void {
    const lines = text.split('\n').flatMap((line) => wrap(line, this.#columns));
    this.#lines.push(...lines, '');
  }

  /** A title over items; nothing when there are none. */
  section(title: string, items: readonly Item[]): void {
    if (items.length > 0) this.#lines.push(`${title}:`, ...items.flatMap((item) => this.#item(item)), '');
  }

  text(): string {
    return this.#lines.join('\n');
  }

  #item({ usage, paragraphs }: Item): string[] {
    const left = wrap(usage, this.#columns - 6).map((line, index) => (index === 0 ? '  ' : '      ') + line);
    const right = paragraphs.flatMap((text) => wrap(text, this.#columns - TEXT_COLUMN));
    const sideBySide = left.length === 1 && (left[0]?.length ?? 0) < TEXT_COLUMN - 1;
    const [first = '', ...others] = right;
    const below = (sideBySide ? others : right).map((line) => ' '.repeat(TEXT_COLUMN) + line);
    return sideBySide ? [(left[0] ?? '').padEnd(TEXT_COLUMN) + first, ...below] : [...left, ...below];
  }
}
