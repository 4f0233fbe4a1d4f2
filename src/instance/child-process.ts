import { execa } from 'execa';
import { exitCommand, parseChildLine, type ChildMessage } from './protocol.js';
import { LineSplitter } from './line-splitter.js';
import { LogTail } from './log-tail.js';
import { parentDeathPrefix } from './parent-death.js';
import type { OrphanGuard } from './orphan-guard.js';

/** How long after a child's exit its last output is waited for; a grandchild may hold the pipe open for ever. */
const lastWordsMs = 250;

export interface ChildExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Set when there was never a process. */
  readonly spawnError?: Error;
}

export interface ChildOptions {
  /** The binary and its arguments. */
  readonly command: readonly string[];
  readonly environment: NodeJS.ProcessEnv;
  readonly guard: OrphanGuard;
  readonly onMessage: (message: ChildMessage) => void;
  readonly onLine: (line: string) => void;
  /** Called when the process is gone; `exited` settles a moment later, when its last words were read. */
  readonly onExit: () => void;
}

/** One llama-server process in its own process group, with its output split into messages and log lines. */
export class ChildProcess {
  /** Settles once, when the process is gone and its last lines were read; never rejects. */
  readonly exited: Promise<ChildExit>;
  readonly #subprocess: ReturnType<typeof start>;
  readonly #tail = new LogTail();
  readonly #guard: OrphanGuard;
  #hasExited = false;

  constructor({ command, environment, guard, onMessage, onLine, onExit }: ChildOptions) {
    this.#guard = guard;
    const subprocess = start([...parentDeathPrefix(), ...command], environment);
    this.#subprocess = subprocess;
    if (subprocess.pid !== undefined) guard.add(subprocess.pid);

    const log = (line: string): void => {
      this.#tail.add(line);
      onLine(line);
    };
    const stdout = new LineSplitter((line) => {
      const message = parseChildLine(line);
      if (message === undefined) log(line);
      else onMessage(message);
    });
    const stderr = new LineSplitter(log);
    // Read always and at once: a child must never block on its output.
    subprocess.stdout.on('data', (chunk: Buffer) => stdout.push(chunk)).on('error', () => undefined);
    subprocess.stderr.on('data', (chunk: Buffer) => stderr.push(chunk)).on('error', () => undefined);
    subprocess.stdin.on('error', () => undefined);

    this.exited = this.#whenExited(onExit).then((exit) => {
      stdout.end();
      stderr.end();
      return exit;
    });
  }

  /** Process and process group id; undefined when the process could not be started. */
  get pid(): number | undefined {
    return this.#subprocess.pid;
  }

  get hasExited(): boolean {
    return this.#hasExited;
  }

  /** The last lines it wrote, oldest first. */
  lastLines(): string[] {
    return this.#tail.lines();
  }

  /** Asks by the child protocol to exit. */
  sendExitCommand(): void {
    if (this.#subprocess.stdin.writable) this.#subprocess.stdin.write(exitCommand);
  }

  /** Signals the whole process group. */
  signal(signal: NodeJS.Signals): void {
    const { pid } = this.#subprocess;
    // Once the process is gone, its number may be given to another group.
    if (pid === undefined || this.#hasExited) return;
    try {
      process.kill(-pid, signal);
    } catch {
      // ESRCH: the group is gone, which is what a signal is sent for.
    }
  }

  async #whenExited(onExit: () => void): Promise<ChildExit> {
    const closed = new Promise<void>((resolve) => {
      this.#subprocess.once('close', () => resolve());
    });
    const { pid } = this.#subprocess;
    if (pid === undefined) return await this.#whyNeverStarted();
    const exit = await new Promise<ChildExit>((resolve) => {
      this.#subprocess.once('exit', (code: number | null, signal: NodeJS.Signals | null) =>
        resolve({ code, signal }),
      );
    });
    // Whatever the child started goes with it. Its group number stays taken while anything of it lives.
    this.signal('SIGKILL');
    this.#hasExited = true;
    onExit();
    this.#guard.remove(pid);
    await this.#lastWords(closed);
    // A process that left the group may hold the other ends for ever.
    this.#subprocess.stdout.destroy();
    this.#subprocess.stderr.destroy();
    return exit;
  }

  /** From execa's result: a command line that is too long, for one, is told by no event. */
  async #whyNeverStarted(): Promise<ChildExit> {
    const { cause, shortMessage } = await this.#subprocess;
    this.#hasExited = true;
    const spawnError = cause instanceof Error ? cause : new Error(shortMessage);
    return { code: null, signal: null, spawnError };
  }

  #lastWords(closed: Promise<void>): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, lastWordsMs);
      void closed.then(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

function start([file = '', ...args]: readonly string[], env: NodeJS.ProcessEnv) {
  return execa(file, args, {
    // A group of its own: a terminal's Ctrl-C is ours to translate, and a stop can reach grandchildren.
    // execa's exit clean-up does not work for detached processes: the guards do that work.
    detached: true,
    cleanup: false,
    buffer: false,
    reject: false,
    extendEnv: false,
    env,
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'pipe',
  });
}
