import { isTruthy, type Option } from './option-table.js';
import { inheritedSource, NO_CONFIG, type NativeConfig } from './setting-source.js';
import { ROUTER_ROWS, type Settings } from './settings.js';
import type { StartOptions } from './start-options.js';

/**
 * Canonical keys of options that the helper child alone obeys. A child with a model has no use for them, and each
 * would start every MCP server and container again.
 */
export const HELPER_ONLY_KEYS: ReadonlySet<string> = new Set([
  'tools',
  'tools-runtime',
  'mcp-servers-config',
  'mcp-servers-json',
  'agent',
]);

/** What else the helper obeys, by a spelling; children get these, too. */
const SHARED_SPELLINGS = [
  ROUTER_ROWS.ui.name,
  ROUTER_ROWS.uiConfig.name,
  ROUTER_ROWS.uiConfigFile.name,
  ROUTER_ROWS.uiMcpProxy.name,
  ROUTER_ROWS.staticPath.name,
  '--threads-http',
];

/** One use of an option on a command line. */
interface Use {
  readonly option: Option;
  /** `1` or `0` for an option without a value. */
  readonly text: string;
  /** As it was written. */
  readonly args: readonly string[];
}

/** The settings that more than one option decides, so that which of them comes last counts. */
const ENTANGLED = ['uiConfig', 'uiConfigFile', 'uiMcpProxy', 'tools', 'agent'] as const;
type EntangledField = (typeof ENTANGLED)[number];
export type EntangledSettings = Pick<Settings, EntangledField>;

/** What decides them. */
export interface EntangledSources {
  /** The binary's own arguments, as `scanArguments` gives them. */
  readonly nativeArgs: readonly string[];
  readonly options: StartOptions;
  readonly env: NodeJS.ProcessEnv;
  readonly config: NativeConfig;
}

/**
 * The arguments of the helper child, of those that were given for the binary: in their order and with their
 * repetitions, because of `--agent --tools read_file` and `--tools read_file --agent` one allows a file to be read and
 * the other commands to be run.
 */
export function helperArgsFrom(
  nativeArgs: readonly string[],
  options: StartOptions,
  { timeoutMs }: Pick<Settings, 'timeoutMs'>,
): readonly string[] {
  const shared = new Set(SHARED_SPELLINGS.map((spelling) => options.find(spelling)?.option));
  const own = usesIn(nativeArgs, options).filter(
    ({ option, text }) =>
      shared.has(option) ||
      // To the binary an empty list is one tool without a name, with which it does not start.
      (HELPER_ONLY_KEYS.has(option.key) && !(option.key === 'tools' && text === '')),
  );
  const timeout = options.optionOf(ROUTER_ROWS.timeoutMs);
  // As for children (command-line.ts): to llama-server 0 is not "none".
  const seconds = timeoutMs === 0 ? -1 : timeoutMs / 1000;
  return [
    ...own.flatMap(({ args }) => args),
    ...(options.isNative(timeout) ? [ROUTER_ROWS.timeoutMs.name, String(seconds)] : []),
  ];
}

/**
 * What the binary makes of options that overrule each other (common/arg.cpp): config files, environment, command line,
 * and within each in the order in which the binary comes upon them. `--agent` is all tools and the proxy, its negative
 * neither; of the UI's defaults and a file of them the last counts. In the result `tools` and `uiMcpProxy` say what is
 * on, whatever turned it on, and at most one of `uiConfig` and `uiConfigFile` is set.
 */
export function entangledSettings({ nativeArgs, options, env, config }: EntangledSources): EntangledSettings {
  const rows: Pick<typeof ROUTER_ROWS, EntangledField> = ROUTER_ROWS;
  const optionOf = (field: EntangledField): Option => options.optionOf(rows[field]);
  const fieldOf = new Map(ENTANGLED.map((field) => [optionOf(field), field]));
  const of = (field: EntangledField, text: string | undefined): readonly [EntangledField, string][] =>
    text === undefined ? [] : [[field, text]];
  const uses = [
    ...ENTANGLED.flatMap((field) => of(field, config.given.get(optionOf(field))?.text)),
    ...ENTANGLED.flatMap((field) => of(field, inheritedSource(optionOf(field), env, NO_CONFIG)?.text)),
    ...usesIn(nativeArgs, options).flatMap(({ option, text }) => {
      const field = fieldOf.get(option);
      return field === undefined ? [] : of(field, text);
    }),
  ];
  const none: EntangledSettings = {
    uiConfig: undefined,
    uiConfigFile: undefined,
    uiMcpProxy: false,
    tools: undefined,
    agent: false,
  };
  return uses.reduce((settings, [field, text]) => ({ ...settings, ...effectOf(field, text) }), none);
}

function effectOf(field: EntangledField, text: string): Partial<EntangledSettings> {
  const given = text === '' ? undefined : text;
  switch (field) {
    case 'uiConfig':
      return { uiConfig: given, uiConfigFile: undefined };
    case 'uiConfigFile':
      return { uiConfig: undefined, uiConfigFile: given };
    case 'uiMcpProxy':
      return { uiMcpProxy: isTruthy(text) };
    case 'tools':
      return { tools: given };
    case 'agent': {
      const on = isTruthy(text);
      return { agent: on, tools: on ? 'all' : undefined, uiMcpProxy: on };
    }
  }
}

/** The options in arguments that the scan has found to be right, in their order. */
function usesIn(nativeArgs: readonly string[], options: StartOptions): Use[] {
  const uses: Use[] = [];
  for (let index = 0; index < nativeArgs.length;) {
    const spelling = options.find(nativeArgs[index] ?? '');
    if (spelling === undefined) throw new Error(`${nativeArgs[index] ?? ''} is no option of the binary`);
    const { option, negated } = spelling;
    const args = nativeArgs.slice(index, index + 1 + option.valueCount);
    const text = option.valueCount === 0 ? (negated ? '0' : '1') : args.slice(1).join(' ');
    uses.push({ option, text, args });
    index += args.length;
  }
  return uses;
}
