import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import { JSON_TYPE } from './json-answer.js';

/** How long a client that is refused gets to read that, and to close its side. */
const lingerMs = 2_000;

/** So many refused clients get that time at once; more are let go as soon as their answer is written. */
const maxLingering = 128;

export interface BareAnswer {
  readonly status: number;
  /** The error envelope. */
  readonly body: object;
  /** Besides those that every such answer has. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** Connections on which there is no request to answer, or none that can be read: they end with an answer all the same. */
export class RefusedSockets {
  readonly #lingering = new Set<Socket>();

  /** Answers, and lets go of the connection soon, whatever its client does. */
  end(socket: Socket, { status, body, headers = {} }: BareAnswer): void {
    const text = JSON.stringify(body);
    const lines = Object.entries({
      'Content-Type': JSON_TYPE,
      'Content-Length': Buffer.byteLength(text),
      ...headers,
      Connection: 'close',
    }).map(([name, value]) => `${name}: ${value}\r\n`);
    const answer = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${text}`;
    socket.on('error', () => undefined);
    if (this.#lingering.size >= maxLingering) {
      socket.end(answer, () => socket.destroy());
      return;
    }
    // What it sends is read: closed with bytes unread, the connection is reset, which can take the answer from the client.
    socket.resume().end(answer);
    this.#lingering.add(socket);
    const timer = setTimeout(() => socket.destroy(), lingerMs).unref();
    socket.once('close', () => {
      this.#lingering.delete(socket);
      clearTimeout(timer);
    });
  }
}
