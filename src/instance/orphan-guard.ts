import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import type { Logger } from '../observe/log.js';

/**
 * The guard's whole program. It holds the reading end of a pipe from the supervisor, keeps the list of process groups
 * (`PGID`) and single processes (`PID@START`), those of its arguments and those it is told (`+ PGID`, `- PGID`), and when
 * the pipe closes, for whatever reason, kills those that are left; a process only when it is the one that was started
 * then (field 22 of `/proc/PID/stat`; the name before the third may hold anything but ends with the last bracket). A
 * shell, because it must be tiny, start at once and be there on every Unix.
 */
const guardProgram = `
trap '' INT TERM HUP QUIT
left=" $* "
while read -r sign each; do
  case $sign in
    +) left="$left$each " ;;
    -) left="\${left%% $each *} \${left#* $each }" ;;
  esac
done
for each in $left; do
  case $each in
    *@*)
      pid=\${each%@*}
      { read -r stat <"/proc/$pid/stat"; } 2>/dev/null || continue
      set -- \${stat##*) }
      [ "\${20}" = "\${each#*@}" ] && kill -KILL "$pid" 2>/dev/null ;;
    *) kill -KILL "-$each" 2>/dev/null ;;
  esac
done
`;

/** Between the end of a guard and the start of the next. */
const restartDelayMs = 100;

/**
 * Sees to it that no child outlives the supervisor, not even one ended by SIGKILL: a process of its own session
 * that kills the registered process groups, and processes that have left them, once the supervisor is gone. It reaches
 * what a parent-death signal does not (grandchildren), and works where there is none.
 */
export class OrphanGuard {
  /** As its program has them. */
  readonly #guarded = new Set<string>();
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
    this.#add(String(group));
  }

  /** The group is gone; its number may be given to a stranger. */
  remove(group: number): void {
    this.#remove(String(group));
  }

  /**
   * From now on the process dies with the supervisor, whatever group it is in. A stranger that is given its number later
   * does not.
   *
   * @param start when it was started, as `/proc/PID/stat` says it (field 22)
   */
  addProcess(pid: number, start: string): void {
    this.#add(`${pid}@${start}`);
  }

  /** The process is gone. */
  removeProcess(pid: number, start: string): void {
    this.#remove(`${pid}@${start}`);
  }

  /** Ends the guard; what is still registered is killed by it. */
  close(): void {
    this.#closed = true;
    this.#process?.stdin?.end();
  }

  #start(): void {
    // As arguments: the supervisor may be gone before it could write a line.
    const guarded = [...this.#guarded];
    const guard = spawn('/bin/sh', ['-c', guardProgram, 'llama-supervisor-guard', ...guarded], {
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

  #add(entry: string): void {
    this.#guarded.add(entry);
    this.#write(`+ ${entry}\n`);
  }

  #remove(entry: string): void {
    if (this.#guarded.delete(entry)) this.#write(`- ${entry}\n`);
  }

  #write(line: string): void {
    this.#process?.stdin?.write(line);
  }
}
