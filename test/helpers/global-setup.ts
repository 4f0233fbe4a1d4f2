import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import {
  canListProcesses,
  describeProcess,
  processesWithEnv,
  runMarker,
  sigkill,
  type ProcessInfo,
} from './processes.js';

/** How long the processes of the last test may take to end, in milliseconds. */
const graceMs = 5_000;

/**
 * For vitest's `globalSetup`: marks the environment that every process of this run inherits, and fails the run when one
 * of them is still there at its end.
 *
 * @returns the teardown, which rejects with the pid and command line of each process left behind.
 */
export default function setup(): () => Promise<void> {
  const run = randomUUID();
  process.env[runMarker] = run;
  return async () => {
    if (!canListProcesses) {
      console.warn('Processes left behind by the tests were NOT looked for: that needs /proc.');
      return;
    }
    try {
      await expectNothingLeft(run, graceMs);
    } catch (error) {
      // vitest prints what a teardown throws, but does not fail the run for it.
      process.exitCode = 1;
      throw error;
    }
  };
}

/** Rejects when processes marked with `run` outlive `withinMs` milliseconds, and kills them once they are named. */
export async function expectNothingLeft(run: string, withinMs: number): Promise<void> {
  const deadline = performance.now() + withinMs;
  let left = leftBehind(run);
  while (left.length > 0 && performance.now() < deadline) {
    await delay(100);
    left = leftBehind(run);
  }
  if (left.length === 0) return;
  for (const { pid } of left) sigkill(pid);
  throw new Error(`the tests left processes behind:\n${left.map(describeProcess).join('\n')}`);
}

/**
 * The processes marked with `run` that a test must have started. The direct children of the test runner are its own
 * workers; what a test starts is below a worker, or an orphan. The runner itself was started before the mark was made.
 */
function leftBehind(run: string): ProcessInfo[] {
  return processesWithEnv(runMarker, run).filter(
    ({ pid, ppid }) => pid !== process.pid && ppid !== process.pid,
  );
}
