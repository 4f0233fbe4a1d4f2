/** One case in which we do something else than the native router, on purpose; as docs/compatibility.md tells it. */
export interface IntendedDifference {
  readonly case: string;
  readonly native: string;
  readonly here: string;
  readonly why: string;
}

/** Every difference that the tests against the native router meet. */
export const INTENDED_DIFFERENCES = {
  'two-values': {
    case: 'options with two values (`--control-vector-layer-range`)',
    native: 'does not start',
    here: 'passed on to the models',
    why: 'the binary of a single model takes them',
  },
  'inline-values': {
    case: '`--name=value`',
    native: 'an invalid argument',
    here: 'the same as `--name value`; also `--switch=on` and `=off`',
    why: 'what nearly every other program takes',
  },
  'strict-numbers': {
    case: 'a number with something behind it (`--port 80a`)',
    native: 'what is behind it is ignored',
    here: 'an error',
    why: 'it is a typing mistake',
  },
  'empty-variable': {
    case: 'an empty environment variable of a number or a switch',
    native: 'does not start',
    here: 'taken as unset',
    why: 'service managers and compose files leave them so',
  },
  'empty-api-key': {
    case: '`--api-key` or `--api-key-file` without a key',
    native: 'serves everybody',
    here: 'an error',
    why: 'who gives the option does not mean that',
  },
  'api-keys-of-one-source': {
    case: 'API keys on the command line and in the environment',
    native: 'all are valid, although it says that the environment is overwritten',
    here: 'those of the command line alone',
    why: 'as with every other option',
  },
  'key-file-blanks': {
    case: 'blanks around a key in `--api-key-file`, carriage returns included',
    native: 'belong to the key',
    here: 'do not',
    why: 'no client sends them',
  },
  'reserved-variables': {
    case: 'keys, `LLAMA_ARG_MODELS_*`, TLS, log file and `AIP_*` in the environment',
    native: 'reach the children',
    here: 'do not',
    why: 'they are the router’s own; children would refuse it, or write one log',
  },
  'one-bad-section': {
    case: 'an unknown option, an indented line or another fault in the presets file',
    native: 'does not start',
    here: 'only the model of that section fails, with file, line and remedy; in `[*]` a warning',
    why: 'one bad model never stops the rest',
  },
  'removed-option': {
    case: 'an option in the presets file that llama-server lists only to say that it was removed',
    native: 'the model is offered and fails at load',
    here: 'listed as failed, with what to use instead',
    why: '',
  },
  'byte-order-mark': {
    case: 'a presets file with a byte order mark',
    native: 'does not start',
    here: 'read, with a warning',
    why: 'some editors write one unasked',
  },
  'alias-conflict': {
    case: 'an alias that another model has as id or alias',
    native: 'does not start',
    here: 'the id goes before the alias, the first model by id before the others; a warning says so',
    why: 'one bad model never stops the rest',
  },
  'missing-model': {
    case: 'a section that names no model',
    native: 'offered; its child becomes another router and never answers',
    here: 'listed as failed, with what to add',
    why: '',
  },
} as const satisfies Record<string, IntendedDifference>;

export type DifferenceId = keyof typeof INTENDED_DIFFERENCES;

/** The title of a test of that difference. */
export function intended(id: DifferenceId): string {
  const { case: what, native, here } = INTENDED_DIFFERENCES[id];
  return `${what}: ${here} (native: ${native})`;
}
