import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { findLlamaServer, noBinaryMessage } from '../../src/config/binary.js';
import { atEndOfTest } from './cleanup.js';
import { eventually, withDeadline } from './eventually.js';
import { freePort } from './free-port.js';
import { descendants, runMarker, type ProcessInfo } from './processes.js';
import { rawRequest } from './raw-http.js';
import {
  startSupervisor,
  type LaunchedSupervisor,
  type SupervisorOptions,
  type SupervisorProcess,
} from './supervisor-process.js';

/** The known-answer models are tiny: more threads than one would only make tests disturb each other. */
const oneThread = ['--threads', '1'];

/**
 * The llama-server that a user of this checkout would run.
 *
 * @throws when there is none: `npm test` builds one first, so that is a failure and no reason to skip
 */
export function realLlamaServer(): string {
  const found = findLlamaServer({ explicit: undefined, env: process.env });
  if (!found) throw new Error(noBinaryMessage());
  return found.path;
}

/** A supervisor, as a process, in front of the real llama-server. */
export function startRealSupervisor({
  args = [],
  ...options
}: SupervisorOptions): Promise<SupervisorProcess> {
  return startSupervisor({ ...options, llamaServer: realLlamaServer(), args: [...oneThread, ...args] });
}

/** The llama-server processes of a supervisor that run now. */
export function childrenOf(supervisor: LaunchedSupervisor): ProcessInfo[] {
  const start = `${realLlamaServer()} `;
  return descendants(supervisor.pid).filter(({ command }) => command.startsWith(start));
}

/** The command line of a running process as the kernel knows it; needs /proc. */
export function argvOf(pid: number): string[] {
  return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
}

/** A llama-server with one model and nothing in front of it, until the end of the test; settles when it serves. */
export async function startLlamaServer(modelFile: string, args: readonly string[] = []): Promise<string> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(
    realLlamaServer(),
    ['--model', modelFile, '--host', '127.0.0.1', '--port', String(port), ...oneThread, ...args],
    { env: withoutLlamaNames(process.env), stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
  atEndOfTest(async () => {
    child.kill('SIGKILL');
    await withDeadline('the llama-server ends', exited, 10_000);
  });
  await eventually(
    'the llama-server serves its model',
    async () => {
      if (child.exitCode !== null) throw new Error(`it exited: ${output}`);
      return (await rawRequest(`${url}/health`)).status === 200;
    },
    { deadlineMs: 30_000 },
  );
  return url;
}

function withoutLlamaNames(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(env).filter(([name]) => name === runMarker || !name.startsWith('LLAMA_'));
  return Object.fromEntries(kept);
}
