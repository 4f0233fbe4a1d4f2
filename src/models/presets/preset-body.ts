import ini from 'ini';
import type { PresetEntry } from './preset-lines.js';

/**
 * The keys and values of one section, by the `ini` package; a repeated key has its last value. In a presets
 * file every value is literal, while `ini` would unquote, unescape, and turn `true` into a boolean. So each
 * value is handed to it quoted, and what it still converts is made text again.
 */
export function parseBody(entries: readonly PresetEntry[]): ReadonlyMap<string, string> {
  const body = entries.map(({ key, value }) => `${key}=${quote(value)}`).join('\n');
  return new Map(Object.entries(ini.parse(body)).map(([key, value]) => [key, String(value)]));
}

/** A JSON string on one line: `ini` reads its quoted values as JSON, and stops at U+2028 and U+2029. */
function quote(value: string): string {
  return JSON.stringify(value).replace(/[\u2028\u2029]/g, (char) => `\\u${char.charCodeAt(0).toString(16)}`);
}
