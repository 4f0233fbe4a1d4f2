import { API_KEY_FILE_ROW, OWN_ROWS, ROUTER_ROWS, type SettingRow } from './settings.js';

const INDENT = 34;

/** The text of `llama-supervisor start --help`. It needs no llama-server. */
export function helpText(): string {
  return [
    'Usage: llama-supervisor start [options]',
    '',
    'Serves many GGUF models behind one OpenAI-compatible endpoint, each in a llama-server of its own that is',
    'started by the first request for it.',
    '',
    'Options of llama-supervisor:',
    ...Object.values(OWN_ROWS).map(describe),
    '',
    'Options of llama-server that the router obeys:',
    ...[...Object.values(ROUTER_ROWS), API_KEY_FILE_ROW].map(describe),
    '',
    'Every other option of the installed llama-server (llama-server --help) is accepted in any of its spellings and',
    'inherited by all models: llama-supervisor start --models-dir ./models -c 8192 -ngl 99',
    'With a model on the command line (-m, -hf, -dr) there is nothing to route, and llama-server runs in our place.',
    '',
  ].join('\n');
}

function describe({ name, env, kind, initial, help }: SettingRow<unknown>): string {
  const usage = kind.placeholder === undefined ? name : `${name} ${kind.placeholder}`;
  const facts = initial === '' ? `env ${env}` : `default ${initial}, env ${env}`;
  const left = `  ${usage}`;
  const start = left.length < INDENT - 1 ? left.padEnd(INDENT) : `${left}\n${' '.repeat(INDENT)}`;
  return `${start}${help}\n${' '.repeat(INDENT)}(${facts})`;
}
