import { negatedEnv, type Option } from './option-table.js';

/** A text that an option is given, and the name of what gave it, for messages. */
export interface Source {
  readonly text: string;
  readonly from: string;
}

/** What llama.cpp's own config files say. */
export interface NativeConfig {
  /** `1` or `0` for an option without a value. */
  readonly given: ReadonlyMap<Option, Source>;
  readonly warnings: readonly string[];
}

export const NO_CONFIG: NativeConfig = { given: new Map(), warnings: [] };

/**
 * What an option is given besides the command line, by the rules of the native router (common/arg.cpp): by its
 * variable, where the mere presence of the negated name means off and wins, else by the config files. An empty
 * variable is taken as unset, as service managers and compose files leave them, and hides what the files say.
 */
export function inheritedSource(
  option: Option,
  env: NodeJS.ProcessEnv,
  config: NativeConfig,
): Source | undefined {
  const negated = negatedEnv(option);
  if (negated !== undefined && env[negated] !== undefined) return { text: '0', from: negated };
  const text = option.env === undefined ? undefined : env[option.env];
  if (option.env === undefined || text === undefined) return config.given.get(option);
  return text === '' ? undefined : { text, from: option.env };
}
