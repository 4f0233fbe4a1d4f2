import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { atEndOfTest } from '../helpers/cleanup.js';

/** What a process takes of the machine, as Linux tells it. */
export interface ProcessFigures {
  /** Memory that it holds, in MiB. */
  residentMiB: number;
  /** Its open descriptors, but for files of /proc, which it reads now and then, many at a time. */
  files: number;
}

export function figuresOf(pid: number): ProcessFigures {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return {
    residentMiB: Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1024,
    files: readdirSync(`/proc/${pid}/fd`).filter((fd) => !isOfProc(`/proc/${pid}/fd/${fd}`)).length,
  };
}

function isOfProc(descriptor: string): boolean {
  try {
    return readlinkSync(descriptor).startsWith('/proc/');
  } catch {
    // It has been closed meanwhile.
    return true;
  }
}

/** Watches the memory of a process until `stop`, which gives the most that was seen. MiB. */
export function watchMemory(pid: number): { stop(): number } {
  let mostMiB = figuresOf(pid).residentMiB;
  const timer = setInterval(() => {
    mostMiB = Math.max(mostMiB, figuresOf(pid).residentMiB);
  }, 50);
  atEndOfTest(() => clearInterval(timer));
  return {
    stop: () => {
      clearInterval(timer);
      return Math.max(mostMiB, figuresOf(pid).residentMiB);
    },
  };
}

/** How many connections a test may hold: this process and the supervisor, with the same limit on open files, have one end each. */
export function connectionsAtHand(wanted: number): number {
  const limits = readFileSync('/proc/self/limits', 'utf8');
  const files = Number(/^Max open files +(\d+)/m.exec(limits)?.[1] ?? Infinity);
  return Math.min(wanted, Math.max(100, Math.floor(files / 2) - 500));
}
