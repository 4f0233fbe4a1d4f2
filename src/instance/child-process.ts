import { execa } from 'execa';
import { Descendants, type Survivor } from './descendants.js';
import { exitCommand, parseChildLine, type ChildMessage } from './protocol.js';
import { LineSplitter } from './line-splitter.js';
import { LogTail } from './log-tail.js';
import { parentDeathPrefix } from './parent-death.js';
import type { OrphanGuard } from './orphan-guard.js';

/** How long after a child's exit its last output is waited for; a grandchild may hold the pipe open for ever. */
const lastWordsMs = 250;

/** After SIGKILL a process is gone at once, unless the kernel cannot end it; it is not waited for longer. */
export const killGraceMs = 5_000;

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
  /** Called before `exited` settles, for each process that the child had started and that SIGKILL did not end. */
  readonly onSurvivor?: (survivor: Survivor) => void;
}

/** One llama-server process in its own process group, with its output split into messages and log lines. */
export class ChildProcess {
  /**
   * Settles once, when the process is gone and its last lines were read, and what is known of its descendants is gone or
   * cannot be killed; never rejects.
   */
  readonly exited: Promise<ChildExit>;
  readonly #subprocess: ReturnType<typeof start>;
  readonly #tail = new LogTail();
  readonly #guard: OrphanGuard;
  readonly #descendants: Descendants | undefined;
  #hasExited = false;

  constructor({ command, environment, guard, onMessage, onLine, onExit, onSurvivor }: ChildOptions) {
    this.#guard = guard;
    const subprocess = start([...parentDeathPrefix(), ...command], environment);
    this.#subprocess = subprocess;
    const { pid } = subprocess;
    if (pid !== undefined) {
      guard.add(pid);
      this.#descendants = new Descendants({ root: pid, rootLives: () => !this.#hasExited, guard });
    }

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

    this.exited = this.#whenExited(onExit, onSurvivor).then((exit) => {
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

  /**
   * Finds out what it has started by now, so that this can be ended with it even where it has left the group. Never
   * rejects, and takes a quarter of a second at most.
   */
  async look(): Promise<void> {
    if (!this.#hasExited) await this.#descendants?.look();
  }

  /** Signals the whole process group, and what was found by looks. */
  signal(signal: NodeJS.Signals): void {
    const { pid } = this.#subprocess;
    // Once the process is gone, its number may be given to another group.
    if (pid === undefined || this.#hasExited) return;
    try {
      process.kill(-pid, signal);
    } catch {
      // ESRCH: the group is gone, which is what a signal is sent for.
    }
    void this.#descendants?.signal(signal);
  }

  async #whenExited(onExit: () => void, onSurvivor?: (survivor: Survivor) => void): Promise<ChildExit> {
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
    const [survivors = []] = await Promise.all([
      this.#descendants?.end(killGraceMs),
      this.#lastWords(closed),
    ]);
    for (const survivor of survivors) onSurvivor?.(survivor);
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
