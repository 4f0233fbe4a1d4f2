import { readdirSync, readFileSync } from 'node:fs';

/** One running process as /proc shows it. `command` is its argv joined by blanks, empty for kernel threads. */
export interface ProcessInfo {
  pid: number;
  ppid: number;
  command: string;
}

/** Whether this machine has the /proc that the listings below read; without it they are empty. */
export const canListProcesses = process.platform === 'linux';

/** The environment variable that every process of one test run inherits; see global-setup.ts. */
export const runMarker = 'LLAMA_SUPERVISOR_TEST_RUN';

/** Whether the process runs. A zombie, dead but not yet waited for by its parent, does not. */
export function alive(pid: number): boolean {
  const stat = readStat(pid);
  if (stat !== undefined) return !stat.isZombie;
  if (canListProcesses) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** All processes below `pid`, parents before their children, without itself. */
export function descendants(pid: number): ProcessInfo[] {
  const all = listProcesses();
  const found: ProcessInfo[] = [];
  let parents = new Set([pid]);
  while (parents.size > 0) {
    const generation = all.filter(({ ppid }) => parents.has(ppid));
    found.push(...generation);
    parents = new Set(generation.map((child) => child.pid));
  }
  return found;
}

/**
 * All processes that were started with `name=value` in their environment. It is the environment at exec: what a process
 * sets for itself later is not seen, and those of other users cannot be read.
 */
export function processesWithEnv(name: string, value: string): ProcessInfo[] {
  const wanted = `${name}=${value}`;
  return listProcesses().filter(({ pid }) => readProc(pid, 'environ')?.split('\0').includes(wanted));
}

/**
 * SIGKILLs a process and everything below it. Refuses a process that this test run did not start: one that neither
 * descends from this process nor carries the run's marker.
 */
export function killTree(pid: number): void {
  const below = descendants(pid);
  const marker = process.env[runMarker];
  const isDescendant = descendants(process.pid).some((ours) => ours.pid === pid);
  const isMarked =
    marker !== undefined && processesWithEnv(runMarker, marker).some((ours) => ours.pid === pid);
  if (!alive(pid)) return;
  if (
    below.some((child) => child.pid === process.pid) ||
    pid === process.pid ||
    !(isDescendant || isMarked)
  ) {
    throw new Error(`refusing to kill ${pid}: this test run did not start it`);
  }
  for (const target of [pid, ...below.map((child) => child.pid)]) sigkill(target);
}

/** SIGKILLs one process that the caller knows to be its own; one that has ended already is fine. */
export function sigkill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** One line for a failure message: which process, and what it is. */
export function describeProcess({ pid, ppid, command }: ProcessInfo): string {
  return `pid ${pid} (parent ${ppid}): ${command}`;
}

function listProcesses(): ProcessInfo[] {
  if (!canListProcesses) return [];
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      const pid = Number(name);
      const stat = readStat(pid);
      if (stat === undefined || stat.isZombie) return [];
      const command = (readProc(pid, 'cmdline') ?? '').replaceAll('\0', ' ').trim();
      return [{ pid, ppid: stat.ppid, command }];
    });
}

function readStat(pid: number): { isZombie: boolean; ppid: number } | undefined {
  const text = readProc(pid, 'stat');
  if (text === undefined) return undefined;
  // The command name may hold blanks and brackets: the other fields start after its last bracket (proc_pid_stat(5)).
  const [state, ppid] = text.slice(text.lastIndexOf(') ') + 2).split(' ');
  return { isZombie: state === 'Z' || state === 'X', ppid: Number(ppid) };
}

/** A file of /proc/PID, or undefined when the process has gone or is not ours to read. */
function readProc(pid: number, file: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return undefined;
  }
}
