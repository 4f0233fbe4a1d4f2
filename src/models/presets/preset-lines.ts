/**
 * The line pass over a presets file: splits it into its sections and checks each line against the grammar of
 * llama-server (common/preset.cpp, `parse_ini_from_file`), so that a fault is reported with its line and costs
 * one section instead of the whole file.
 */

import { namesSecret, withoutSecretsIn } from '../../config/secret-options.js';

/** A line at fault, or one that deserves a word. */
export interface LineNote {
  /** Counted from 1. */
  readonly line: number;
  readonly message: string;
}

export interface PresetEntry {
  readonly key: string;
  /** Literally as the native router reads it: cut at the first `;` or `#`, blanks around it removed. */
  readonly value: string;
  readonly line: number;
}

export interface PresetBlock {
  /** As written in the header; `default` for what stands before the first header. */
  readonly name: string;
  /** The line of the header; 1 for what stands before the first header. */
  readonly line: number;
  readonly entries: readonly PresetEntry[];
  readonly faults: readonly LineNote[];
  readonly warnings: readonly LineNote[];
}

export interface PresetLines {
  /** In the order of the file, what stands before the first header first; a name can occur more than once. */
  readonly blocks: readonly PresetBlock[];
  /** Those of all blocks. */
  readonly warnings: readonly LineNote[];
}

/** The name of what stands before the first header. */
export const DEFAULT_SECTION = 'default';

type Line =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'header'; readonly name: string; readonly fault?: string }
  | { readonly kind: 'entry'; readonly key: string; readonly value: string; readonly lost?: string }
  | { readonly kind: 'fault'; readonly message: string };

const NEWLINE = /\r\n|\n|\r/;
const NOTHING = /^[ \t]*(?:[;#].*)?$/s;
const HEADER = /^\[[ \t]*([^\] \t][^\]]*)\][ \t]*(?:[;#].*)?$/s;
const ENTRY = /^([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*)$/s;
const UTF8_BOM = '\u{FEFF}';

/** Linux takes no argument of more bytes (MAX_ARG_STRLEN), so that no child could be started with such a value. */
const maxLineLength = 128 * 1024;
/** So much of a line at fault is shown. */
const maxShown = 200;

/** Splits and checks the bytes of a presets file. Never throws: what is wrong is in the result. */
export function readPresetLines(bytes: Uint8Array): PresetLines {
  let block = beginBlock(DEFAULT_SECTION, 1);
  const blocks: PresetBlock[] = [block];

  for (const [index, text] of decodeLines(bytes).entries()) {
    const line = index + 1;
    const hasBom = line === 1 && text?.startsWith(UTF8_BOM) === true;
    if (hasBom) {
      const message = 'starts with a byte order mark, which llama-server refuses; save the file without it';
      block.warnings.push({ line, message });
    }
    const parsed = parseLine(hasBom ? text.slice(UTF8_BOM.length) : text);
    switch (parsed.kind) {
      case 'nothing':
        break;
      case 'header':
        block = beginBlock(parsed.name, line);
        blocks.push(block);
        if (parsed.fault !== undefined) block.faults.push({ line, message: parsed.fault });
        break;
      case 'entry':
        block.entries.push({ key: parsed.key, value: parsed.value, line });
        if (parsed.lost !== undefined) {
          const what = namesSecret(parsed.key)
            ? `'${parsed.key}' is cut: what follows the mark is lost`
            : `'${parsed.key}' is cut to '${parsed.value}': '${parsed.lost}' is lost`;
          const message = `${what}, because ';' and '#' begin a comment wherever they stand`;
          block.warnings.push({ line, message });
        }
        break;
      case 'fault':
        block.faults.push({ line, message: parsed.message });
        break;
    }
  }
  return { blocks, warnings: blocks.flatMap(({ warnings }) => warnings) };
}

function beginBlock(name: string, line: number) {
  const entries: PresetEntry[] = [];
  const faults: LineNote[] = [];
  const warnings: LineNote[] = [];
  return { name, line, entries, faults, warnings } satisfies PresetBlock;
}

/** The lines as text; undefined for one that is not UTF-8. */
function decodeLines(bytes: Uint8Array): (string | undefined)[] {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  // No byte of a multi-byte character looks like a newline, so lines can be split before they are decoded.
  const lines = Buffer.from(bytes).toString('latin1').split(NEWLINE);
  return lines.map((line) => {
    try {
      return decoder.decode(Buffer.from(line, 'latin1'));
    } catch {
      return undefined;
    }
  });
}

function parseLine(text: string | undefined): Line {
  if (text === undefined) return { kind: 'fault', message: 'is not valid UTF-8; save the file as UTF-8' };
  if (NOTHING.test(text)) return { kind: 'nothing' };
  if (text.length >= maxLineLength) {
    return { kind: 'fault', message: `is over ${maxLineLength} bytes long, which no argument may be` };
  }
  // The native router would cut arguments at it, and Node starts no program with one.
  if (text.includes('\0')) return { kind: 'fault', message: 'holds a NUL byte; save the file as plain text' };
  if (/^[ \t]*\[/.test(text)) return parseHeader(text);
  const [, key, rest] = ENTRY.exec(text) ?? [];
  if (key === undefined || rest === undefined) return { kind: 'fault', message: entryFault(text) };
  return { kind: 'entry', key, ...cutValue(rest) };
}

function parseHeader(text: string): Line {
  const name = HEADER.exec(text)?.[1];
  if (name !== undefined) return { kind: 'header', name };
  // The keys below belong to the section that was meant, not to the one above.
  const meant = (/^[ \t]*\[([^\];#]*)/.exec(text)?.[1] ?? '').trim();
  const fault = /^[ \t]/.test(text)
    ? 'the section header is indented; begin it in the first column'
    : `is no section header: '${showable(text)}'; write '[${meant === '' ? 'name' : meant}]' and nothing after it`;
  return { kind: 'header', name: meant, fault };
}

function entryFault(text: string): string {
  const bare = text.trim();
  if (bare.startsWith('-')) {
    const [dashed = bare] = /^[^\s=]+/.exec(bare) ?? [];
    return `'${dashed}' has leading dashes; write '${dashed.replace(/^-+/, '')} = value'`;
  }
  const shown = showable(bare);
  if (!bare.includes('=')) return `is neither 'key = value' nor '[section]' nor a comment: '${shown}'`;
  if (/^[ \t]/.test(text)) return `'${shown}' is indented; begin the key in the first column`;
  return `'${bare.slice(0, bare.indexOf('=')).trim()}' is no key; keys are letters, digits, '_', '.' and '-'`;
}

/** A line at fault as the log may have it. */
function showable(text: string): string {
  const open = withoutSecretsIn(text);
  return open.length > maxShown ? `${open.slice(0, maxShown)}…` : open;
}

/** The value up to the first comment mark; `lost` is what follows, unless that looks like a meant comment. */
function cutValue(rest: string): { value: string; lost?: string } {
  const mark = rest.search(/[;#]/);
  if (mark === -1) return { value: trimBlanksEnd(rest) };
  const value = trimBlanksEnd(rest.slice(0, mark));
  const isMeant = value !== '' && value.length < mark && !isOpen(value);
  return { value, ...(!isMeant && { lost: trimBlanksEnd(rest.slice(mark)) }) };
}

/** Whether `value` ends inside quotes or brackets, as a text does that was cut in the middle. */
function isOpen(value: string): boolean {
  const count = (pattern: RegExp): number => value.match(pattern)?.length ?? 0;
  return count(/"/g) % 2 === 1 || count(/[[{(]/g) !== count(/[\]})]/g);
}

function trimBlanksEnd(text: string): string {
  return text.replace(/[ \t]+$/, '');
}
