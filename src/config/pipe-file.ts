import { closeSync, constants, lstatSync, openSync, readSync } from 'node:fs';

/** How long a pipe may take to give its text, and how much that may be: nothing that is read at a start is larger. */
const patienceMs = 10_000;
const maxBytes = 16 * 1024 * 1024;

const pieceBytes = 64 * 1024;
const lookAgainMs = 20;

/**
 * What a pipe gives until its end, as a shell's `<(…)` does; likewise of a device. Nothing else goes on meanwhile, which
 * is for the start alone. To open a pipe that nobody writes into would wait for ever, and take the thread that does
 * along: not even the exit of the process gets past that.
 *
 * @throws when it cannot be opened, has not ended in 10 s, or gives more than 16 MiB
 */
export function readPipe(path: string): Buffer {
  const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const isNamed = lstatSync(path).isFIFO();
    const deadline = performance.now() + patienceMs;
    const piece = Buffer.alloc(pieceBytes);
    const pieces: Buffer[] = [];
    let bytes = 0;
    while (performance.now() < deadline) {
      const count = readIfThere(descriptor, piece);
      // One with a name that has no writer yet looks as if it had ended; those of a shell have one from the start.
      if (count === 0 && (bytes > 0 || !isNamed)) return Buffer.concat(pieces);
      if (count === undefined || count === 0) {
        pause(lookAgainMs);
        continue;
      }
      bytes += count;
      if (bytes > maxBytes) throw new Error(`it gives more than ${maxBytes} bytes`);
      pieces.push(Buffer.from(piece.subarray(0, count)));
    }
    throw new Error(`it is a pipe that has not given its text in ${patienceMs / 1000} s`);
  } finally {
    closeSync(descriptor);
  }
}

/** The number of bytes read, 0 at the end; undefined while there are none. */
function readIfThere(descriptor: number, piece: Buffer): number | undefined {
  try {
    return readSync(descriptor, piece);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return undefined;
    throw error;
  }
}

function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
