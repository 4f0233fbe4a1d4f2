import { spawnSync } from 'node:child_process';

let prefix: readonly string[] | undefined;

/**
 * The command that makes the kernel kill a child with its parent, to be put before the child's own: the
 * parent-death signal set before exec, by util-linux' `setpriv`. Empty where there is none (not Linux, or a
 * `setpriv` that cannot do it): the orphan guard is then the only guard.
 */
export function parentDeathPrefix(): readonly string[] {
  prefix ??= works() ? ['setpriv', '--pdeathsig', 'KILL', '--'] : [];
  return prefix;
}

function works(): boolean {
  if (process.platform !== 'linux') return false;
  return spawnSync('setpriv', ['--pdeathsig', 'KILL', '--', 'true'], { stdio: 'ignore' }).status === 0;
}
