import { randomInt } from 'node:crypto';
import { lstatSync, renameSync, unlinkSync, type Stats } from 'node:fs';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { dirname, join } from 'node:path';
import { bind } from './server.js';

/** The kernel's room for a path, without the zero byte at its end (unix(7); macOS and the BSDs have less). */
const longestPathBytes = process.platform === 'linux' ? 107 : 103;

/** A connection to a socket of this machine is taken or refused at once. */
const answerMs = 1_000;

/**
 * Has the server listen on a Unix socket, whose permissions are those that the umask leaves. A socket that nobody
 * listens on any more is replaced; anything else that is there stays.
 *
 * @returns how to remove the file again, at once: only while it is still this server's
 * @throws with a message that names the path, the reason and the remedy
 */
export async function listenOnSocket(server: Server, path: string): Promise<() => void> {
  const bytes = Buffer.byteLength(path);
  if (bytes > longestPathBytes) {
    throw refusal(path, `the path has ${bytes} bytes; choose one of at most ${longestPathBytes}`);
  }
  const abandoned = await abandonedSocket(path);

  // Under its own name the socket would take nobody's place, and when it is closed Node would remove whatever has that
  // name by then. No longer than the shortest name that ends in `.sock`, so that there is room for it.
  const temporary = join(dirname(path), `.${randomInt(36 ** 4).toString(36)}`);
  try {
    await bind(server, { path: temporary });
  } catch (error) {
    throw refusal(path, bindFailure(path, error as NodeJS.ErrnoException), error);
  }
  const own = look(temporary);
  if (!isSame(look(path), abandoned)) throw refusal(path, inUse);
  try {
    renameSync(temporary, path);
  } catch (error) {
    throw refusal(path, bindFailure(path, error as NodeJS.ErrnoException), error);
  }
  return () => {
    try {
      if (isSame(look(path), own)) unlinkSync(path);
    } catch {
      // It stays behind, and the next start replaces it.
    }
  };
}

const inUse = 'another program listens there; stop it or choose another path';

/**
 * The socket at the path, if nobody listens on it; undefined when there is nothing.
 *
 * @throws when something is there that is not ours to replace
 */
async function abandonedSocket(path: string): Promise<Stats | undefined> {
  const found = look(path);
  if (found === undefined) return undefined;
  if (!found.isSocket()) {
    throw refusal(path, 'a file that is no socket is there; remove it or choose another path');
  }
  const outcome = await connectionTo(path);
  switch (outcome) {
    case 'ECONNREFUSED':
      return found;
    case 'ENOENT':
      return undefined;
    case 'EACCES':
      throw refusal(path, "another user's socket is there; remove it or choose another path");
    default:
      throw refusal(path, inUse);
  }
}

/** How a connection to the socket ends: `connected`, `silent`, or the code of its error. */
function connectionTo(path: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ path });
    const end = (outcome: string): void => {
      socket.destroy();
      resolve(outcome);
    };
    socket.once('connect', () => end('connected'));
    socket.once('error', ({ code = 'error' }: NodeJS.ErrnoException) => end(code));
    socket.setTimeout(answerMs, () => end('silent'));
  });
}

function look(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw refusal(path, `${(error as NodeJS.ErrnoException).code}; check the directories in --host`, error);
  }
}

function isSame(a: Stats | undefined, b: Stats | undefined): boolean {
  return a?.ino === b?.ino && a?.dev === b?.dev;
}

/** libuv says EACCES as well for a directory that does not exist. */
function bindFailure(path: string, { code, message }: NodeJS.ErrnoException): string {
  const directory = dirname(path);
  if (look(directory) === undefined) return `the directory ${directory} does not exist; make it first`;
  return `${code ?? message}; this user must be able to write to ${directory}`;
}

function refusal(path: string, reasonAndRemedy: string, cause?: unknown): Error {
  return new Error(`cannot listen on the socket ${path}: ${reasonAndRemedy}`, { cause });
}
