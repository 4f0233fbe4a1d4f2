import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Where the kernel keeps count of the processes it has killed because memory ran out. */
export interface KillAccount {
  readonly file: string;
  /** How many there were; undefined when the file does not say. */
  readonly count: () => number | undefined;
}

/** What a child that runs is asked about when it has ended. */
export interface KillWatch {
  /**
   * What the kernel's account says of the end of a child that SIGKILL has ended; undefined when it was not the kernel.
   * The kill belongs to that child then, and to no other.
   */
  readonly claim: () => string | undefined;
  /** To be called when the child is gone; `claim` may still follow. */
  readonly end: () => void;
}

/**
 * How often the count is read while a child runs. From the count on until its parent hears of it, a process dies one to
 * two of these at most; a large one takes some seconds to give its memory back. Milliseconds.
 */
const sampleMs = 10_000;

/** Kills that children have claimed, the latest; older ones were outlived by every child that runs now. */
const maxClaimed = 1_000;

/** Counts that a child was still alive at. */
interface Outlived {
  /** At the sample before the last: who was killed by then is gone by now. */
  before: number | undefined;
  last: number | undefined;
}

/**
 * The kernel kills without a word to anybody but its own log, and counts. A child that SIGKILL has ended was killed for
 * want of memory when the count has risen just before its end, by a kill that no other child has claimed yet. A kill
 * that nobody claims (of a stranger in our group, or of what a child had started) is soon nobody's: otherwise a child
 * that is killed by hand weeks later would be taken for it.
 *
 * Counted is the control group that we and our children are in; only without one the whole machine. The count rises
 * before the signal is sent (mm/oom_kill.c, `__oom_kill_process`), so that it is there when the child is gone.
 */
export class KernelKills {
  readonly #account: KillAccount | undefined;
  /** By their number. */
  readonly #claimed = new Set<number>();
  readonly #running = new Set<Outlived>();
  #sampling: NodeJS.Timeout | undefined;

  /** @param account where to look; undefined where the system keeps none */
  constructor(account: KillAccount | undefined) {
    this.#account = account;
  }

  /** To be called as a child is started. While anybody watches the count is read now and then. */
  watch(): KillWatch {
    const count = this.#account?.count();
    const outlived: Outlived = { before: count, last: count };
    this.#running.add(outlived);
    this.#sampling ??= setInterval(() => this.#sample(), sampleMs).unref();
    return {
      claim: () => this.#claimSince(outlived.before),
      end: () => {
        this.#running.delete(outlived);
        if (this.#running.size > 0) return;
        clearInterval(this.#sampling);
        this.#sampling = undefined;
      },
    };
  }

  #sample(): void {
    const count = this.#account?.count();
    for (const outlived of this.#running) {
      outlived.before = outlived.last;
      outlived.last = count;
    }
  }

  #claimSince(before: number | undefined): string | undefined {
    const account = this.#account;
    const now = account?.count();
    if (account === undefined || before === undefined || now === undefined) return undefined;
    for (let kill = before + 1; kill <= now; kill += 1) {
      if (this.#claimed.has(kill)) continue;
      this.#claim(kill);
      return `the kernel killed it because memory ran out (oom_kill ${kill} in ${account.file})`;
    }
    return undefined;
  }

  #claim(kill: number): void {
    this.#claimed.add(kill);
    const [oldest] = this.#claimed;
    if (this.#claimed.size > maxClaimed && oldest !== undefined) this.#claimed.delete(oldest);
  }
}

export interface AccountSources {
  /** For tests: `/proc`. */
  readonly proc?: string;
  /** For tests: where the control groups are mounted. */
  readonly cgroup?: string;
}

/**
 * The kernel's account of processes killed for want of memory: of the control group we are in, else of the machine;
 * undefined where there is neither, which is everywhere but on Linux.
 *
 * - v2, `memory.events`: those of the groups below it are counted, too
 * - v1, `memory.oom_control`: since Linux 4.13, without the groups below
 * - `/proc/vmstat`: since Linux 4.13
 *
 * @see https://docs.kernel.org/admin-guide/cgroup-v2.html
 * @see https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
 */
export function killAccount({ proc = '/proc', cgroup = '/sys/fs/cgroup' }: AccountSources = {}):
  KillAccount | undefined {
  const { v1, v2 } = groupsOf(readText(join(proc, 'self', 'cgroup')) ?? '');
  const files = [
    ...(v1 === undefined ? [] : [join(cgroup, 'memory', v1, 'memory.oom_control')]),
    ...(v2 === undefined ? [] : [join(cgroup, v2, 'memory.events')]),
    // A container may see its own group as the root, although it is told another path.
    join(cgroup, 'memory', 'memory.oom_control'),
    join(cgroup, 'memory.events'),
    join(proc, 'vmstat'),
  ];
  for (const file of files) {
    if (countIn(file) !== undefined) return { file, count: () => countIn(file) };
  }
  return undefined;
}

/** Reads lines `NUMBER:CONTROLLERS:PATH`; the second version's is `0::PATH`, and names no memory beside the first's. */
function groupsOf(text: string): { readonly v1: string | undefined; readonly v2: string | undefined } {
  const v1 = /^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:(.*)$/m.exec(text)?.[1];
  const v2 = /^0::(.*)$/m.exec(text)?.[1];
  return { v1, v2 };
}

function countIn(file: string): number | undefined {
  const count = /^oom_kill (\d+)$/m.exec(readText(file) ?? '')?.[1];
  return count === undefined ? undefined : Number(count);
}

/** At once: these files are made by the kernel as they are read, and how it stands now is what counts. */
function readText(file: string): string | undefined {
  try {
    return readFileSync(file, 'latin1');
  } catch {
    return undefined;
  }
}
