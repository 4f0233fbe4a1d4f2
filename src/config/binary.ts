import { accessSync, constants, realpathSync, statSync } from 'node:fs';
import { delimiter, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cacheDirectory } from './directories.js';

/** A `llama-server` that was named or found, but cannot be used. The message says where and what to do. */
export class UnusableBinaryError extends Error {
  override readonly name = 'UnusableBinaryError';
}

export interface FoundBinary {
  readonly path: string;
  readonly origin: 'flag' | 'env' | 'built' | 'path';
}

export interface BinarySearch {
  /** The value of `--llama-server`, when it was given. */
  readonly explicit: string | undefined;
  readonly env: NodeJS.ProcessEnv;
  /** The directory that holds `build-llama.sh` and `vendor/`; by default that of this package. */
  readonly packageRoot?: string;
}

const NAME = process.platform === 'win32' ? 'llama-server.exe' : 'llama-server';

/**
 * Which `llama-server` runs: `--llama-server`, `LLAMA_SERVER_BIN`, one that `build-llama.sh` made (in this
 * checkout, then the latest in the user's cache), then `PATH`. Undefined when there is none.
 * @throws UnusableBinaryError when the one that was named explicitly cannot be run: silently taking another would
 *   hide the mistake.
 */
export function findLlamaServer(search: BinarySearch): FoundBinary | undefined {
  const { explicit, env, packageRoot = ownPackageRoot() } = search;

  if (explicit !== undefined) return { path: mustRun(explicit, '--llama-server'), origin: 'flag' };

  const fromEnv = env['LLAMA_SERVER_BIN'];
  if (fromEnv !== undefined && fromEnv !== '') {
    return { path: mustRun(fromEnv, 'LLAMA_SERVER_BIN'), origin: 'env' };
  }

  const built = [
    join(packageRoot, 'vendor', 'llama.cpp', 'build', 'bin', NAME),
    join(cacheDirectory(env), 'builds', 'current'),
  ].find((path) => whyNotRunnable(path) === undefined);
  // Both are links: followed once, so that a later build cannot change the binary under a running supervisor.
  if (built !== undefined) return { path: realpathSync(built), origin: 'built' };

  const onPath = (env['PATH'] ?? '')
    .split(delimiter)
    .filter((directory) => directory !== '')
    .map((directory) => resolve(directory, NAME))
    .find((path) => whyNotRunnable(path) === undefined);
  return onPath === undefined ? undefined : { path: onPath, origin: 'path' };
}

/** What to tell a person who has no `llama-server`. */
export function noBinaryMessage(): string {
  return [
    'no llama-server found: looked at --llama-server, LLAMA_SERVER_BIN, the build of build-llama.sh and PATH.',
    `Build one with ${buildScript()} (some minutes; --help lists the GPU back ends),`,
    'or name one you have with --llama-server /path/to/llama-server.',
  ].join('\n');
}

/** The script's path, as short as it can be typed here. */
function buildScript(): string {
  const path = join(ownPackageRoot(), 'build-llama.sh');
  const fromHere = relative('.', path);
  return fromHere.startsWith('..') ? path : `./${fromHere}`;
}

function mustRun(given: string, name: string): string {
  const path = resolve(given);
  const reason = whyNotRunnable(path);
  if (reason === undefined) return path;
  throw new UnusableBinaryError(
    `${name} names ${path}, which ${reason}. Give the path of a llama-server program, or leave ${name} out to use ` +
      'the one made by build-llama.sh or found on PATH.',
  );
}

function whyNotRunnable(path: string): string | undefined {
  try {
    const stats = statSync(path, { throwIfNoEntry: false });
    if (stats === undefined) return 'does not exist';
    if (!stats.isFile()) return stats.isDirectory() ? 'is a directory' : 'is not a file';
    accessSync(path, constants.X_OK);
    return undefined;
  } catch (error) {
    // Some versions of Node tell this path, which goes through a file, as an error.
    if (error instanceof Error && 'code' in error && error.code === 'ENOTDIR') return 'does not exist';
    return `is not executable (${error instanceof Error ? error.message : String(error)})`;
  }
}

/** The same from `src/config/` and from `dist/config/`. */
function ownPackageRoot(): string {
  return fileURLToPath(new URL('../..', import.meta.url));
}
