import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Logger } from '../observe/log.js';

/**
 * The guard's whole program. It holds the reading end of a pipe from the supervisor, keeps the list of process
 * groups, those of its arguments and those it is told (`+ PGID`, `- PGID`), and when the pipe closes, for whatever reason, kills those that are
 * left. A shell, because it must be tiny, start at once and be there on every Unix.
 */
const guardProgram = `
trap '' INT TERM HUP QUIT
groups=" $* "
while read -r sign group; do
  case $sign in
    +) groups="$groups$group " ;;
    -) groups="\${groups%% $group *} \${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -KILL "-$group" 2>/dev/null; done
`;

/** Between the end of a guard and the start of the next. */
const restartDelayMs = 100;

/**
 * Sees to it that no child outlives the supervisor, not even one ended by SIGKILL: a process of its own session
 * that kills the registered process groups once the supervisor is gone. It reaches what a parent-death signal
 * does not (grandchildren), and works where there is none.
 */
export class OrphanGuard {
  readonly #groups = new Set<number>();
  readonly #log: Logger;
  #process: ChildProcess | undefined;
  #closed = false;

  constructor(log: Logger) {
    this.#log = log;
    this.#start();
  }

  /** Process id of the guard itself. */
  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** From now on the process group dies with the supervisor. */
  add(group: number): void {
    this.#groups.add(group);
    this.#write(`+ ${group}\n`);
  }

  /** The group is gone; its number may be given to a stranger. */
  remove(group: number): void {
    if (this.#groups.delete(group)) this.#write(`- ${group}\n`);
  }

  /** Ends the guard; groups that are still registered are killed by it. */
  close(): void {
    this.#closed = true;
    this.#process?.stdin?.end();
  }

  #start(): void {
    // As arguments: the supervisor may be gone before it could write a line.
    const groups = Array.from(this.#groups, String);
    const guard = spawn('/bin/sh', ['-c', guardProgram, 'llama-supervisor-guard', ...groups], {
      detached: true,
      stdio: ['pipe', 'ignore', 'ignore'],
      env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
    });
    this.#process = guard;
    guard.unref();
    // There is no pipe when the process could not be started (no file handle left, for one).
    const pipe = guard.stdin as Socket | null | undefined;
    pipe?.on('error', () => undefined);
    pipe?.unref();
    guard.once('error', (error) => {
      this.#log.error({ err: error }, 'the orphan guard could not be started');
      if (guard.pid === undefined) this.#startAgainSoon();
    });
    guard.once('exit', () => {
      if (this.#closed) return;
      this.#log.warn('the orphan guard was ended from outside; starting another');
      this.#startAgainSoon();
    });
  }

  /** Not at once: where a guard cannot live, trying must not become the work. */
  #startAgainSoon(): void {
    setTimeout(() => {
      if (!this.#closed) this.#start();
    }, restartDelayMs).unref();
  }

  #write(line: string): void {
    this.#process?.stdin?.write(line);
  }
}
