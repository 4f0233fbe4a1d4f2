import { appCommand } from '../config/app-command.js';
import type { Option, OptionTable } from '../config/option-table.js';
import { renderArgs, renderPreset, withoutKeys } from '../config/render-options.js';
import { isSecret, withoutSecret } from '../config/secret-options.js';
import type { Model } from './model.js';

/** Children are reached over loopback only. */
const CHILD_HOST = '127.0.0.1';

/**
 * The whole argument list of the child of `model`, `binary` first, as the native router would give it
 * (tools/server/server-models.cpp, `update_args`); models whose files are in the hub cache get `--offline` at
 * the end, so that a load never waits for the network. An explicit `offline` in the options, either way, stands.
 *
 * @param env may say that `binary` is the unified `llama` program, which takes its subcommand first
 */
export function modelArgs(
  model: Model,
  binary: string,
  table: OptionTable,
  port: number,
  env: NodeJS.ProcessEnv = {},
): string[] {
  const values = new Map(model.options);
  values.set(optionNamed(table, 'host'), CHILD_HOST);
  values.set(optionNamed(table, 'port'), String(port));
  values.set(optionNamed(table, 'alias'), model.id);
  const args = [binary, ...appCommand(env), ...renderArgs(values)];

  const offline = table.findKey('offline')?.option;
  if (model.offline && offline !== undefined && !values.has(offline)) args.push(`--${offline.key}`);
  return args;
}

/** `status.preset` of `GET /models`: the merged options as a presets section, without what is listed apart. */
export function modelPreset(model: Model, table: OptionTable): string {
  const tags = optionNamed(table, 'tags').key;
  return renderPreset(model.id, withoutKeys(model.options, new Set([tags])));
}

/** The model with `***` for the values that no list may show. */
export function withoutSecrets(model: Model): Model {
  const options = [...model.options].map(
    ([option, text]) => [option, withoutSecret(option.key, text)] as const,
  );
  return { ...model, options: new Map(options) };
}

/**
 * The model without those values, and the environment that gives them to its child: what is on a command line, every
 * user of the machine can read. An option that the binary takes from no variable stays.
 */
export function secretsApart(model: Model): {
  readonly model: Model;
  readonly environment: Readonly<Record<string, string>>;
} {
  const isApart = ([{ key, env }, text]: readonly [Option, string]): boolean =>
    env !== undefined && isSecret(key, text);
  const options = [...model.options];
  const apart = options.filter(isApart).map(([option, text]) => [option.env ?? '', text] as const);
  return {
    model: { ...model, options: new Map(options.filter((entry) => !isApart(entry))) },
    environment: Object.fromEntries(apart),
  };
}

/** An option without which a binary can not be a child; throws if it has none of that name. */
function optionNamed(table: OptionTable, name: string): Option {
  const spelling = table.findKey(name);
  if (spelling === undefined) throw new Error(`this llama-server has no option '--${name}'; use a newer one`);
  return spelling.option;
}
