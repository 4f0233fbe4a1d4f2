import { chmodSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { tempDir } from '../helpers/temp-dir.js';

/** The real llama-server, whose models load when a test lets them, however slow the machine is. */
export interface GatedLlamaServer {
  /** The executable to give to a supervisor. */
  readonly path: string;
  /** Lets this model load, now and from now on. */
  open(model: string): void;
  /** Has this model's process say this and exit with code 1 instead of loading, now and from now on. */
  fail(model: string, words: string): void;
}

/** All models are closed at first. What is not started to serve a model is not held up. */
export function gatedLlamaServer(): GatedLlamaServer {
  const gates = tempDir();
  const path = join(gates, 'gated-llama-server');
  // `exec`, so that the process that is supervised is llama-server itself from then on.
  const script = `#!/bin/sh
if [ -n "$LLAMA_SERVER_ROUTER_PORT" ]; then
  model=
  before=
  for word in "$@"; do
    [ "$before" = --alias ] && model=$word
    before=$word
  done
  gate='${gates}'/$model.gate
  while [ ! -e "$gate" ]; do sleep 0.05; done
  if [ -s "$gate" ]; then
    cat "$gate" >&2
    exit 1
  fi
fi
exec '${realLlamaServer()}' "$@"
`;
  writeFileSync(path, script);
  chmodSync(path, 0o755);
  const write = (model: string, words: string): void => {
    // Moved into place: one that is there is whole.
    writeFileSync(join(gates, `${model}.new`), words);
    renameSync(join(gates, `${model}.new`), join(gates, `${model}.gate`));
  };
  return { path, open: (model) => write(model, ''), fail: (model, words) => write(model, `${words}\n`) };
}
