import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { isTruthy, type Option, type OptionTable } from '../config/option-table.js';
import { NO_CONFIG, type NativeConfig, type Source } from '../config/setting-source.js';
import { compareBytewise } from './bytewise.js';
import { failureCode } from './disk/directory.js';
import { readPresetLines, type PresetEntry } from './presets/preset-lines.js';

/** Of both sections the later one wins; all others belong to nobody here. */
const SECTIONS = ['*', 'default'];

/** Reserved by llama-server for a version of the format; means nothing yet. */
const VERSION_KEY = 'version';

const UTF8_BOM = Buffer.from('\u{FEFF}');

/**
 * What llama.cpp's own config files say, the lowest source of options (common/arg.cpp,
 * `common_params_apply_system_config`): `[*]` and `default`, the later file winning. Keys that no option has are
 * warned about and skipped, as there: other programs share the files.
 *
 * @throws with a message for the user when a file that is there cannot be read or parsed: no model would start,
 *   because each llama-server reads it and refuses it
 */
export async function readNativeConfig(env: NodeJS.ProcessEnv, table: OptionTable): Promise<NativeConfig> {
  const given = new Map<Option, Source>();
  const warnings: string[] = [];
  for (const file of configFiles(env)) {
    const bytes = await readIfThere(file);
    if (bytes === undefined) continue;
    const { blocks, warnings: notes } = readPresetLines(bytes);
    const faults = blocks.flatMap((block) => block.faults);
    if (bytes.subarray(0, UTF8_BOM.length).equals(UTF8_BOM) || faults.length > 0) {
      const places = [...faults, ...notes].map(({ line, message }) => `${file}:${line}: ${message}`);
      throw new Error(['no llama-server starts with this config file; mend it:', ...places].join('\n'));
    }
    warnings.push(...notes.map(({ line, message }) => `${file}:${line}: ${message}`));

    for (const section of SECTIONS) {
      // A repeated header starts the section over.
      const entries = blocks.findLast(({ name }) => name === section)?.entries ?? [];
      for (const { key, value, line } of inNativeOrder(entries)) {
        if (key === VERSION_KEY) continue;
        const spelling = table.findKey(key);
        if (spelling !== undefined) {
          given.set(spelling.option, { text: textOf(value, spelling), from: `${file}:${line}` });
        } else {
          warnings.push(`${file}:${line}: this llama-server has no option '${key}'; the line is ignored`);
        }
      }
    }
  }
  return given.size + warnings.length === 0 ? NO_CONFIG : { given, warnings };
}

/** Of several spellings of one option the one that sorts last counts; of one spelling the last line. */
function inNativeOrder(entries: readonly PresetEntry[]): PresetEntry[] {
  return [...entries].sort((a, b) => compareBytewise(a.key, b.key));
}

/** Config files read switches in their own way (common/preset.cpp, `apply_to_params`): no text is an error. */
function textOf(value: string, { option, negated }: { option: Option; negated: boolean }): string {
  if (option.valueCount !== 0) return value;
  // One that cannot be turned off is turned on by its mere presence.
  if (option.negative.length === 0) return '1';
  return isTruthy(value) === negated ? '0' : '1';
}

/** Where llama.cpp looks on Unix; the later file wins. */
function configFiles({ XDG_CONFIG_HOME: config, HOME: home }: NodeJS.ProcessEnv): string[] {
  const files = ['/etc/llama.cpp/config.ini'];
  if (config) files.push(join(config, 'llama.cpp', 'config.ini'));
  else if (home) files.push(join(home, '.config', 'llama.cpp', 'config.ini'));
  return files;
}

async function readIfThere(file: string): Promise<Buffer | undefined> {
  try {
    const stats = await stat(file);
    // Each process would wait for a pipe's text, and only one of them would get it.
    if (!stats.isFile() && !stats.isDirectory()) throw new Error('it is no regular file');
    return await readFile(file);
  } catch (error) {
    const code = failureCode(error);
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new Error(`${file} cannot be read (${code}); the models' processes read it, too`, { cause: error });
  }
}
