import { readKeyFile } from './key-file.js';
import type { Option } from './option-table.js';
import { inheritedSource, type NativeConfig, type Source } from './setting-source.js';
import { OWN_ROWS, ROUTER_ROWS, type SettingRow, type Settings } from './settings.js';
import type { StartOptions } from './start-options.js';

/**
 * Reads and checks all settings: command line before environment before config files before default. A setting that cannot be read
 * has its default in the result and a line in `problems`.
 */
export function readSettings(
  given: ReadonlyMap<Option, readonly string[]>,
  options: StartOptions,
  env: NodeJS.ProcessEnv,
  config: NativeConfig,
): { readonly settings: Settings; readonly problems: readonly string[] } {
  const problems: string[] = [];

  const sourcesOf = (row: SettingRow<unknown>): readonly Source[] => {
    const option = options.optionOf(row);
    const texts = given.get(option);
    if (texts !== undefined) return texts.map((text) => ({ text, from: row.name }));
    const source = inheritedSource(option, env, config);
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
  const files = sourcesOf(ROUTER_ROWS.apiKeyFile).map((source) => keysInFile(source, problems));
  const fixedApiKeys = [
    ...sourcesOf(ROUTER_ROWS.apiKeys).flatMap((source) => keysIn(source, problems)),
    ...files.slice(0, -1).flat(),
  ];
  const apiKeys = [...new Set([...fixedApiKeys, ...(files.at(-1) ?? [])])];
  // The tables have a row of the right type for each field of Settings, which Object.entries forgets.
  const settings = { ...single, apiKeys, fixedApiKeys } as unknown as Settings;
  problems.push(...contradictionsIn(settings));
  return { settings, problems };
}

/** An empty list would open the server to everybody, which nobody means who gives the option. */
function keysIn({ text, from }: Source, problems: string[]): readonly string[] {
  const keys = ROUTER_ROWS.apiKeys.kind.read(text);
  if (keys.length === 0) problems.push(`${from}: holds no key; leave it out to serve without keys`);
  return keys;
}

function keysInFile({ text: path, from }: Source, problems: string[]): readonly string[] {
  try {
    return readKeyFile(path);
  } catch (error) {
    problems.push(`${from}: ${messageOf(error)}`);
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
