import { homedir, tmpdir, userInfo } from 'node:os';
import { isAbsolute, join } from 'node:path';

/**
 * Where things are kept (XDG Base Directory Specification 0.8, systemd.exec(5)). These functions only name
 * directories; whoever writes there creates them, the runtime and state directories with mode 0700.
 */

const APPLICATION = 'llama-supervisor';

/** Builds, help tables, GGUF facts, demo models: all of it can be deleted and made again. */
export function cacheDirectory(env: NodeJS.ProcessEnv): string {
  return join(xdgBase(env, 'XDG_CACHE_HOME') ?? join(home(env), '.cache'), APPLICATION);
}

/** What outlives a run, one directory per port, or the one that systemd gives to this unit alone. */
export function stateDirectory(env: NodeJS.ProcessEnv, port: number): string {
  const base = xdgBase(env, 'XDG_STATE_HOME') ?? join(home(env), '.local', 'state');
  return systemdDirectory(env, 'STATE_DIRECTORY') ?? join(base, APPLICATION, String(port));
}

/**
 * Where the run files (`PORT.json`) lie. Without a session or a service manager it is a directory of this
 * user's own in the temporary one, which others can write to: check its owner before trusting what is in it.
 */
export function runtimeDirectory(env: NodeJS.ProcessEnv): string {
  const given = systemdDirectory(env, 'RUNTIME_DIRECTORY');
  if (given !== undefined) return given;
  const base = xdgBase(env, 'XDG_RUNTIME_DIR');
  if (base !== undefined) return join(base, APPLICATION);
  const temporary = xdgBase(env, 'TMPDIR') ?? tmpdir();
  return join(temporary, `${APPLICATION}-${process.getuid?.() ?? userInfo().username}`);
}

/** The specification says to ignore relative paths. */
function xdgBase(env: NodeJS.ProcessEnv, name: string): string | undefined {
  const path = env[name];
  return path !== undefined && isAbsolute(path) ? path : undefined;
}

/** A unit may declare several directories; systemd joins them with colons, and the first is ours. */
function systemdDirectory(env: NodeJS.ProcessEnv, name: string): string | undefined {
  const first = env[name]?.split(':')[0];
  return first === '' ? undefined : first;
}

function home(env: NodeJS.ProcessEnv): string {
  return xdgBase(env, 'HOME') ?? homedir();
}
