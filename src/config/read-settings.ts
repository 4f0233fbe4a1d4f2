import { readFileSync } from 'node:fs';
import { negatedEnv, type Option } from './option-table.js';
import { API_KEY_FILE_ROW, OWN_ROWS, ROUTER_ROWS, type SettingRow, type Settings } from './settings.js';
import type { StartOptions } from './start-options.js';

/** A text that a setting is given, and the name of what gave it, for messages. */
interface Source {
  readonly text: string;
  readonly from: string;
}

/**
 * Reads and checks all settings: command line before environment before default. A setting that cannot be read
 * has its default in the result and a line in `problems`.
 */
export function readSettings(
  given: ReadonlyMap<Option, readonly string[]>,
  options: StartOptions,
  env: NodeJS.ProcessEnv,
): { readonly settings: Settings; readonly problems: readonly string[] } {
  const problems: string[] = [];

  const sourcesOf = (row: SettingRow<unknown>): readonly Source[] => {
    const option = options.optionOf(row);
    const texts = given.get(option);
    if (texts !== undefined) return texts.map((text) => ({ text, from: row.name }));
    const source = fromEnvironment(option, env);
    return source === undefined ? [] : [source];
  };
  const read = <T>(row: SettingRow<T>, source: Source | undefined): T => {
    if (source === undefined) return row.kind.read(row.initial);
    try {
      return row.kind.read(source.text);
    } catch (error) {
      problems.push(`${source.from}: ${messageOf(error)}`);
      return row.kind.read(row.initial);
    }
  };

  const rows: readonly [string, SettingRow<unknown>][] = Object.entries({ ...ROUTER_ROWS, ...OWN_ROWS });
  const single = Object.fromEntries(rows.map(([field, row]) => [field, read(row, sourcesOf(row).at(-1))]));
  const apiKeys = [
    ...sourcesOf(ROUTER_ROWS.apiKeys).flatMap((source) => keysIn(source, problems)),
    ...sourcesOf(API_KEY_FILE_ROW).flatMap((source) => keysInFile(source, problems)),
  ];
  // The tables have a row of the right type for each field of Settings, which Object.entries forgets.
  const settings = { ...single, apiKeys: [...new Set(apiKeys)] } as unknown as Settings;
  problems.push(...contradictionsIn(settings));
  return { settings, problems };
}

/**
 * What the environment says of an option, by the rules of the native router: the mere presence of the negated name
 * means off and wins. An empty variable is taken as unset, as service managers and compose files leave them.
 */
export function fromEnvironment(option: Option, env: NodeJS.ProcessEnv): Source | undefined {
  const negated = negatedEnv(option);
  if (negated !== undefined && env[negated] !== undefined) return { text: '0', from: negated };
  const text = option.env === undefined ? undefined : env[option.env];
  if (option.env === undefined || text === undefined || text === '') return undefined;
  return { text, from: option.env };
}

/** An empty list would open the server to everybody, which nobody means who gives the option. */
function keysIn({ text, from }: Source, problems: string[]): readonly string[] {
  const keys = ROUTER_ROWS.apiKeys.kind.read(text);
  if (keys.length === 0) problems.push(`${from}: holds no key; leave it out to serve without keys`);
  return keys;
}

function keysInFile({ text: path, from }: Source, problems: string[]): readonly string[] {
  try {
    const keys = readFileSync(path, 'utf8')
      .split('\n')
      .map((line) => line.trim())
      .filter((line) => line !== '' && !line.startsWith('#'));
    if (keys.length === 0) problems.push(`${from}: ${path} holds no key; write one per line`);
    return keys;
  } catch (error) {
    problems.push(`${from}: cannot read the key file '${path}': ${messageOf(error)}`);
    return [];
  }
}

function contradictionsIn(settings: Settings): readonly string[] {
  const { sslKeyFile, sslCertFile, bodyMaxBytes, bodyMemoryMaxBytes } = settings;
  const problems: string[] = [];
  if ((sslKeyFile === undefined) !== (sslCertFile === undefined)) {
    const [present, absent] =
      sslKeyFile === undefined
        ? ['--ssl-cert-file', '--ssl-key-file']
        : ['--ssl-key-file', '--ssl-cert-file'];
    problems.push(`${present} is given without ${absent}: HTTPS needs both, plain HTTP neither`);
  }
  if (bodyMemoryMaxBytes < bodyMaxBytes) {
    problems.push(
      `--body-memory-max (${bodyMemoryMaxBytes} bytes) is less than --body-max (${bodyMaxBytes} bytes), which a ` +
        'single body may have: raise the one or lower the other',
    );
  }
  return problems;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
