import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { deadline } from './endings.js';
import { familyOf, processTable, type ProcessTable } from './hang/process-activity.js';
import type { OrphanGuard } from './orphan-guard.js';

/** A look takes some milliseconds; it is not waited for longer when the threads that read files are all taken. */
const lookPatienceMs = 250;

/** How often it is seen whether those that were killed are gone. */
const killPollMs = 10;

/** How often it is seen whether one that could not be killed has gone after all. */
const survivorPollMs = 1_000;

/** A descendant that SIGKILL did not end. */
export interface Survivor {
  readonly pid: number;
  /** When SIGKILL was sent. */
  readonly since: Date;
  /** Settles when it is gone after all, which may be never. */
  readonly exited: Promise<void>;
}

export interface DescendantsOptions {
  /** Process and process group id of the child. */
  readonly root: number;
  /** Whether the child has not been waited for yet: its number is its own. */
  readonly rootLives: () => boolean;
  /** Kills those that are known when the supervisor does not live to do it. */
  readonly guard: Pick<OrphanGuard, 'addProcess' | 'removeProcess'>;
  /** For tests. */
  readonly table?: () => Promise<ProcessTable | undefined>;
  /** For tests: what `/proc/PID/stat` says. */
  readonly readStat?: (pid: number) => Promise<string>;
}

/**
 * What a child has started, in whatever group: a wrapper may run the real llama-server in a session of its own, where no
 * signal to the group of the child reaches it. Whose it is can be seen only while its parents live, hence the looks;
 * what was seen once stays known by its number and the time of its start, so that a stranger that was given the number
 * later is not taken for it. Known on Linux only, and never of one whose parent had gone before the first look: a daemon
 * that means to outlive who has started it does.
 *
 * Not by a mark in `/proc/PID/environ`, which would find those, too: to read that may take as long as a process waits
 * for its memory, and the one that cannot be stopped is the one that does.
 */
export class Descendants {
  readonly #options: Required<DescendantsOptions>;
  /** By process id: when it was started, as the kernel writes it. */
  readonly #known = new Map<number, string>();
  /** One after the other: an earlier one must not forget what a later one has found. */
  #looking: Promise<void> = Promise.resolve();

  constructor({ table = tableOfLinux, readStat = readProcStat, ...options }: DescendantsOptions) {
    this.#options = { ...options, table, readStat };
  }

  /** Finds out whom there is by now. Never rejects, and takes a quarter of a second at most. */
  async look(): Promise<void> {
    this.#looking = this.#looking.then(() => this.#look());
    await within(lookPatienceMs, this.#looking);
  }

  /**
   * Signals each that is known, is still there, and is not in the group of the child: a signal to the group has reached
   * those, and to llama-server a second one means something else. Never rejects.
   */
  async signal(signal: NodeJS.Signals): Promise<void> {
    for (const { pid, group } of await this.#alive()) if (group !== this.#options.root) send(signal, pid);
  }

  /**
   * Kills all that are known, and what those have started meanwhile.
   *
   * @param graceMs how long their end is waited for at most
   * @returns those that are still there then
   */
  async end(graceMs: number): Promise<readonly Survivor[]> {
    const since = new Date();
    const late = new AbortController();
    await within(graceMs, this.#killAll(late.signal));
    late.abort();
    return Array.from(this.#known, ([pid, start]) => ({ pid, since, exited: this.#gone(pid, start) }));
  }

  async #look(): Promise<void> {
    const { root, rootLives, guard, table } = this.#options;
    const processes = (await table())?.processes ?? [];
    const known = await this.#alive();
    // Asked when the table was read: in it the number may be a stranger's already.
    const roots = [...(rootLives() ? [root] : []), ...known.map(({ pid }) => pid)];
    const family = new Set(roots.flatMap((each) => familyOf(each, processes).map(({ pid }) => pid)));
    for (const pid of family) {
      if (pid === root || this.#known.has(pid)) continue;
      // Read a moment later; a number is not given out again before all others were.
      const life = await this.#lifeOf(pid);
      if (typeof life === 'string') continue;
      this.#known.set(pid, life.start);
      guard.addProcess(pid, life.start);
    }
  }

  async #killAll(late: AbortSignal): Promise<void> {
    await this.#looking;
    if (this.#known.size === 0) return;
    await this.look();
    for (;;) {
      const alive = await this.#alive();
      if (late.aborted || this.#known.size === 0) return;
      // Each time: a look that took long may have found more meanwhile.
      for (const { pid } of alive) send('SIGKILL', pid);
      await delay(killPollMs);
    }
  }

  /** Those that are there for certain. Forgets those that are gone, and no others: a reading that fails tells nothing. */
  async #alive(): Promise<readonly { readonly pid: number; readonly group: number }[]> {
    const found = [];
    for (const [pid, start] of [...this.#known]) {
      const life = await this.#lifeOf(pid);
      if (life === 'unknown') continue;
      if (life !== 'ended' && life.start === start) {
        found.push({ pid, group: life.group });
      } else if (this.#known.get(pid) === start) {
        this.#known.delete(pid);
        this.#options.guard.removeProcess(pid, start);
      }
    }
    return found;
  }

  /** Settles when a survivor has gone. Nothing is kept alive for this. */
  async #gone(pid: number, start: string): Promise<void> {
    while (this.#known.get(pid) === start) {
      await delay(survivorPollMs, undefined, { ref: false });
      await this.#alive();
    }
  }

  /** One that has ended may not have been waited for by its parent yet. Unknown: there was no descriptor left, say. */
  async #lifeOf(pid: number): Promise<Life | 'ended' | 'unknown'> {
    try {
      return lifeIn(await this.#options.readStat(pid)) ?? 'ended';
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      return code === 'ENOENT' || code === 'ESRCH' ? 'ended' : 'unknown';
    }
  }
}

interface Life {
  /** In the kernel's own words: ticks since the boot. */
  readonly start: string;
  readonly group: number;
}

/**
 * Reads what `/proc/PID/stat` says; undefined for a process that has ended.
 *
 * @see https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
 */
function lifeIn(stat: string): Life | undefined {
  // The name may hold blanks and brackets: the other fields start after its last bracket, with the third.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const [state, group, start] = [fields[0], fields[2], fields[19]];
  if (state === 'Z' || state === 'X' || start === undefined) return undefined;
  return { start, group: Number(group) };
}

function send(signal: NodeJS.Signals, pid: number): void {
  try {
    process.kill(pid, signal);
  } catch {
    // ESRCH: it has just gone. EPERM: it is another user's by now; it will be reported.
  }
}

async function tableOfLinux(): Promise<ProcessTable | undefined> {
  return process.platform === 'linux' ? await processTable() : undefined;
}

function readProcStat(pid: number): Promise<string> {
  return readFile(`/proc/${pid}/stat`, 'latin1');
}

async function within(ms: number, promise: Promise<void>): Promise<void> {
  const end = new AbortController();
  await Promise.race([promise, deadline(ms, end.signal)]);
  end.abort();
}
