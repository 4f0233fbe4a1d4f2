import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Logger } from '../observe/log.js';
import { seldom } from './seldom.js';

/** What is open besides the connections of clients: pipes and probes of children, files, watchers, clients on their way out. */
const otherFiles = 384;

/** A client that is served has one connection to us, and one of ours to its child. */
const filesPerClient = 2;

/** However many files may be open: so many idle connections cost some hundred megabytes. */
const mostByDefault = 16_384;

/** Where the system does not tell what its limit is. */
const usualOpenFilesMax = 4_096;

/** A connection that has just come, or whose answer has just ended, is about to be used. */
const restMs = 1_000;

/** Between two lines of the log about the same want of room. */
const sayEveryMs = 60_000;

/** Number of clients that may be connected where so many files may be open. */
export function connectionsFor(openFilesMax: number): number {
  const forClients = openFilesMax - Math.min(otherFiles, Math.ceil(openFilesMax / 2));
  return Math.max(1, Math.min(mostByDefault, Math.floor(forClients / filesPerClient)));
}

/** How many files this process may have open: by the time we ask, Node has raised the soft limit to the hard one. */
export function readOpenFilesMax(limitsFile = '/proc/self/limits'): number {
  try {
    const soft = /^Max open files +(\S+)/m.exec(readFileSync(limitsFile, 'utf8'))?.[1];
    return soft === 'unlimited' ? Infinity : Number(soft ?? usualOpenFilesMax);
  } catch {
    return usualOpenFilesMax;
  }
}

interface Idle {
  readonly since: number;
  /** What it had sent by then. */
  readonly bytesRead: number;
}

export interface ConnectionLimitOptions {
  readonly max: number;
  /** Told each time that a client finds no room. */
  readonly onFull: () => void;
  readonly now?: () => number;
}

/**
 * The connections of clients, to all addresses together, bounded: no number of clients may take the files that those who
 * are being served need. Who wants to come in while it is full takes the place of the connection that has been idle
 * longest: without a request, whether it has carried one before, or is slow to send one, or never does. When all are in
 * use, or have been idle for no time to speak of, it is refused.
 */
export class ConnectionLimit {
  readonly max: number;
  readonly #onFull: () => void;
  readonly #now: () => number;
  #open = 0;
  /** In the order in which they became so. */
  readonly #idle = new Map<Socket, Idle>();

  constructor({ max, onFull, now = () => performance.now() }: ConnectionLimitOptions) {
    this.max = max;
    this.#onFull = onFull;
    this.#now = now;
  }

  /** Number of connections that were admitted and are not closed. */
  get open(): number {
    return this.#open;
  }

  /** Whether a new connection may stay; it is counted until it closes, and idle at first. */
  admit(socket: Socket): boolean {
    if (this.#open >= this.max) {
      this.#onFull();
      if (!this.#closeLongestIdle()) return false;
    }
    this.#open += 1;
    socket.once('close', () => (this.#open -= 1));
    this.#follow(socket);
    return true;
  }

  /** Client and server have agreed on the encryption: from now on the connection is known by its encrypted side. */
  encrypted(socket: Socket, plain: Socket): void {
    this.#idle.delete(plain);
    this.#follow(socket);
  }

  #follow(socket: Socket): void {
    this.setIdle(socket);
    socket.once('close', () => this.#idle.delete(socket));
  }

  /** It waits for a request. */
  setIdle(socket: Socket): void {
    if (!socket.destroyed) this.#idle.set(socket, { since: this.#now(), bytesRead: socket.bytesRead });
  }

  /** A request has come on it. */
  setBusy(socket: Socket): void {
    this.#idle.delete(socket);
  }

  /** Closes all that wait for a request of which not a byte has come. */
  closeIdle(): void {
    for (const [socket, { bytesRead }] of this.#idle) {
      if (socket.bytesRead === bytesRead) socket.destroy();
    }
  }

  #closeLongestIdle(): boolean {
    for (const [socket, { since }] of this.#idle) {
      if (this.#now() - since < restMs) return false;
      this.#idle.delete(socket);
      if (socket.destroyed) continue;
      socket.destroy();
      return true;
    }
    return false;
  }
}

/** The bound of `--connections-max`, which is told in the log, as is when it is reached. */
export function limitConnections(connectionsMax: number, log: Logger): ConnectionLimit {
  const openFilesMax = readOpenFilesMax();
  const allowed = connectionsFor(openFilesMax);
  const max = connectionsMax === 0 ? allowed : connectionsMax;
  log.debug({ connectionsMax: max, openFilesMax }, 'the connections of clients are bounded');
  if (max * filesPerClient > openFilesMax) {
    log.warn(
      { connectionsMax: max, openFilesMax },
      '--connections-max is more than the limit on open files allows: raise that one (ulimit -n, LimitNOFILE=)',
    );
  }
  const onFull = seldom(sayEveryMs, (times) =>
    log.warn(
      { connectionsMax: max, times },
      'as many clients are connected as may be (--connections-max): idle ones are let go, then new ones refused',
    ),
  );
  return new ConnectionLimit({ max, onFull });
}
