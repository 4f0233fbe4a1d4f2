import type { Option, OptionTable, OptionValues } from './option-table.js';
import { inheritedSource, type NativeConfig } from './setting-source.js';

/** With one of these there is nothing to route (tools/server/server.cpp); a model *URL* does not count there. */
const MODEL_KEYS: readonly string[] = ['model', 'hf-repo', 'docker-repo'];

/** These make the binary print something and exit, known by any spelling. */
const QUERIES: readonly string[] = [
  '--help',
  '--version',
  '--list-devices',
  '--cache-list',
  '--completion-bash',
];

/** Whether `option` makes the binary only print something. */
export function isQuery(option: Option): boolean {
  return QUERIES.some((name) => option.positive.includes(name));
}

/** Whether `option` names the one model that the binary is to serve by itself. */
export function isModelOption(option: Option): boolean {
  return MODEL_KEYS.includes(option.key) || isModelShortcut(option);
}

/** Whether the command line makes the binary only print something. */
export function asksBinary(values: OptionValues): boolean {
  return [...values].some(([option, text]) => isQuery(option) && text === '1');
}

/** Whether one model is named by the command line, else by the environment, else by a config file. */
export function namesModel(
  values: OptionValues,
  table: OptionTable,
  env: NodeJS.ProcessEnv,
  config: NativeConfig,
): boolean {
  return table.options.filter(isModelOption).some((option) => {
    const text = values.get(option) ?? inheritedSource(option, env, config)?.text ?? '';
    return isModelShortcut(option) ? text === '1' : text !== '';
  });
}

/** Whether `option` is a switch such as `--gpt-oss-20b-default`, which stands for a repository: only its words tell. */
export function isModelShortcut({ valueCount, description }: Option): boolean {
  return valueCount === 0 && description.includes('can download weights');
}
