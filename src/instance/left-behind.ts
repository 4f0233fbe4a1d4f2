import type { Logger } from '../observe/log.js';

/** A process that SIGKILL did not end. Nobody waits for it any more: its model is free to run again beside it. */
export interface LeftBehind {
  readonly pid: number;
  /** When SIGKILL was sent. */
  readonly since: Date;
  /** Settles when it is gone after all, which may be never. */
  readonly gone: Promise<unknown>;
}

/**
 * Says that a process was sent SIGKILL and is still there, and later, should it happen, that it has gone. The orphan guard
 * keeps it in mind, and sends it one more when the supervisor ends.
 *
 * @param left a child, or what one has started
 * @param name of whom it was, for the log
 * @returns undefined for one that never was a process
 */
export function leaveBehind(
  left: { readonly pid: number | undefined; readonly exited: Promise<unknown> },
  name: { readonly model: string } | { readonly role: 'helper' },
  { since, log }: { readonly since: Date; readonly log: Logger },
): LeftBehind | undefined {
  const { pid } = left;
  if (pid === undefined) return undefined;
  const remedy =
    `see why with: ps -o pid,user,stat,wchan:32,cmd -p ${pid} (in state D it waits for a device or a file system, and ` +
    'ends when that answers, or with a restart of the machine; of another user, it is for that one to kill)';
  log.error({ ...name, pid, since, remedy }, 'SIGKILL did not end it; leaving it behind');
  const gone = left.exited.then(() => log.info({ ...name, pid }, 'what was left behind has ended'));
  return { pid, since, gone };
}
