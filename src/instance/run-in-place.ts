import { spawn } from 'node:child_process';
import { parentDeathPrefix } from './parent-death.js';

/** All that a terminal or a service manager may send and a process may catch. */
const forwarded: readonly NodeJS.Signals[] = [
  'SIGINT',
  'SIGTERM',
  'SIGHUP',
  'SIGQUIT',
  'SIGUSR1',
  'SIGUSR2',
  'SIGWINCH',
];

type Execve = (file: string, args: readonly string[], env: NodeJS.ProcessEnv) => never;

/**
 * Runs the binary in our place, for what needs no router (a model on the command line, `--list-devices`). Where
 * Node can replace its process it does; else the child has our standard streams, gets every signal we get, ends
 * with us, and its exit code or signal becomes ours. It has a process group of its own: in ours it would get a
 * terminal's Ctrl-C twice, once from the terminal and once from us, and llama-server takes the second for "at once".
 */
export async function runInPlace(binary: string, args: readonly string[]): Promise<never> {
  const execve = (process as { execve?: Execve }).execve;
  if (execve) execve.call(process, binary, [binary, ...args], process.env);

  const [file = '', ...rest] = [...parentDeathPrefix(), binary, ...args];
  const child = spawn(file, rest, { stdio: 'inherit', detached: true });
  for (const signal of forwarded) process.on(signal, () => child.kill(signal));
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (...ending) => resolve(ending));
  });
  if (signal) {
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  }
  process.exit(code ?? 1);
}
