import { connect, type Socket } from 'node:net';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';

/** A client's TCP connection, for what an HTTP client would not send. */
export interface RawSocket {
  socket: Socket;
  send(bytes: string | Buffer): void;
  /** All that came so far. */
  received(): string;
  /** Polls until `received()` matches, and returns it. */
  receives(label: string, pattern: RegExp): Promise<string>;
  /** All that came, once the other side has closed or reset the connection. */
  closed(label: string): Promise<string>;
}

/** Connects to a port of 127.0.0.1; the connection is destroyed at the end of the test. */
export function openSocket(port: number): RawSocket {
  const socket = connect(port, '127.0.0.1');
  const pieces: Buffer[] = [];
  let isClosed = false;
  socket.on('data', (piece: Buffer) => pieces.push(piece));
  socket.once('close', () => (isClosed = true));
  // A reset is one of the ways in which the other side closes.
  socket.on('error', () => undefined);
  atEndOfTest(() => {
    socket.destroy();
  });
  const received = () => Buffer.concat(pieces).toString('latin1');
  return {
    socket,
    send: (bytes) => {
      socket.write(bytes);
    },
    received,
    receives: async (label, pattern) => {
      await eventually(label, () => pattern.test(received()));
      return received();
    },
    closed: async (label) => {
      await eventually(label, () => isClosed);
      return received();
    },
  };
}
