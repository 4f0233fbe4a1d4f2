import { readFile, readdir } from 'node:fs/promises';
import { execa } from 'execa';

/** One process of the machine, and how much processor time it has used so far. */
export interface ProcessTimes {
  readonly pid: number;
  readonly parent: number;
  readonly group: number;
  readonly cpuMs: number;
}

export interface ProcessTable {
  readonly processes: readonly ProcessTimes[];
  /** The times are multiples of this. */
  readonly resolutionMs: number;
}

/** The kernel counts for programs in hundredths of a second (USER_HZ) wherever Node runs. */
const tickMs = 10;

/** So many files of /proc are read at once: reading takes threads that others wait for. */
const readsAtOnce = 16;

const psTimeoutMs = 5_000;

/** All processes that can be seen; undefined where the system does not tell. Never rejects. */
export async function processTable(): Promise<ProcessTable | undefined> {
  try {
    if (process.platform === 'linux') return await tableOfProc();
    return process.platform === 'win32' ? undefined : await tableOfPs();
  } catch {
    return undefined;
  }
}

/**
 * A child's processes: its group, and what descends from it under whatever group (a wrapper may have started the real
 * one in a session of its own).
 *
 * @param root process and process group id of the child
 */
export function familyOf(root: number, processes: readonly ProcessTimes[]): readonly ProcessTimes[] {
  const children = new Map<number, ProcessTimes[]>();
  for (const each of processes) {
    const siblings = children.get(each.parent);
    if (siblings) siblings.push(each);
    else children.set(each.parent, [each]);
  }
  // A set goes on over what is added to it meanwhile.
  const family = new Set(processes.filter(({ pid, group }) => pid === root || group === root));
  for (const { pid } of family) for (const child of children.get(pid) ?? []) family.add(child);
  return [...family];
}

/** @see https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html */
export function parseProcStat(stat: string): ProcessTimes | undefined {
  // The name may hold blanks and brackets: the other fields start after its last bracket.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const [, parent, group] = fields.map(Number);
  const [utime, stime] = fields.slice(11, 13).map(Number);
  const times = {
    pid: Number.parseInt(stat, 10),
    parent: parent ?? NaN,
    group: group ?? NaN,
    cpuMs: ((utime ?? NaN) + (stime ?? NaN)) * tickMs,
  };
  return Object.values(times).some(Number.isNaN) ? undefined : times;
}

/** Reads lines of `pid ppid pgid time`, where time is `[[days-]hours:]minutes:seconds[.hundredths]`. */
export function parsePs(output: string): ProcessTable {
  const processes: ProcessTimes[] = [];
  let resolutionMs = 1_000;
  const line = /^\s*(\d+)\s+(\d+)\s+(\d+)\s+(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)([.,]\d+)?\s*$/gm;
  for (const [, pid, parent, group, days = 0, hours = 0, minutes, seconds, fraction] of output.matchAll(
    line,
  )) {
    const whole = ((Number(days) * 24 + Number(hours)) * 60 + Number(minutes)) * 60 + Number(seconds);
    if (fraction !== undefined) resolutionMs = 10;
    const cpuMs = (whole + Number((fraction ?? '.0').replace(',', '.'))) * 1_000;
    processes.push({ pid: Number(pid), parent: Number(parent), group: Number(group), cpuMs });
  }
  return { processes, resolutionMs };
}

async function tableOfProc(): Promise<ProcessTable> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const processes: ProcessTimes[] = [];
  for (let at = 0; at < pids.length; at += readsAtOnce) {
    const stats = await Promise.all(
      // One that has ended meanwhile is none of those that run.
      pids.slice(at, at + readsAtOnce).map((pid) => readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '')),
    );
    processes.push(...stats.flatMap((stat) => parseProcStat(stat) ?? []));
  }
  return { processes, resolutionMs: tickMs };
}

/** macOS and the BSDs; the form of the time is theirs, the columns are POSIX. */
async function tableOfPs(): Promise<ProcessTable> {
  const { stdout } = await execa('ps', ['-A', '-o', 'pid=,ppid=,pgid=,time='], {
    timeout: psTimeoutMs,
    killSignal: 'SIGKILL',
    stdin: 'ignore',
    env: { LC_ALL: 'C' },
  });
  return parsePs(stdout);
}
