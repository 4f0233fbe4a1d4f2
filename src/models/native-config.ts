import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isTruthy, type OptionTable } from '../config/option-table.js';
import { failureCode } from './directory.js';
import { readPresetLines } from './preset-lines.js';

/**
 * llama.cpp's own config files (common/arg.cpp, `common_params_apply_system_config`) as environment variables, which
 * is the next source above them: what `[*]` and `default` say, the later file and section winning. Keys that no
 * option has are passed over, as there: other programs share the file.
 *
 * @throws when a file that is there cannot be read
 */
export async function configFileEnvironment(
  env: NodeJS.ProcessEnv,
  table: OptionTable,
): Promise<Record<string, string>> {
  const values: Record<string, string> = {};
  for (const file of configFiles(env)) {
    const { blocks } = readPresetLines(await readIfThere(file));
    for (const section of ['*', 'default']) {
      for (const { key, value } of blocks.flatMap(({ name, entries }) => (name === section ? entries : []))) {
        const spelling = table.findKey(key);
        const name = spelling?.option.env;
        if (name !== undefined) values[name] = spelling?.negated ? String(!isTruthy(value)) : value;
      }
    }
  }
  return values;
}

/** Where llama.cpp looks on Unix; the later file wins. */
function configFiles({ XDG_CONFIG_HOME: config, HOME: home }: NodeJS.ProcessEnv): string[] {
  const files = ['/etc/llama.cpp/config.ini'];
  if (config) files.push(join(config, 'llama.cpp', 'config.ini'));
  else if (home) files.push(join(home, '.config', 'llama.cpp', 'config.ini'));
  return files;
}

async function readIfThere(file: string): Promise<Uint8Array> {
  try {
    return await readFile(file);
  } catch (error) {
    const code = failureCode(error);
    if (code === 'ENOENT' || code === 'ENOTDIR') return new Uint8Array();
    throw new Error(`${file} cannot be read (${code}); the models' processes read it, too`, { cause: error });
  }
}
