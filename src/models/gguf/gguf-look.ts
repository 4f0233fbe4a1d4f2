import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { failureCode } from '../disk/directory.js';
import { headerFacts, type FileReading } from './gguf-facts.js';
import { statsProblem } from './gguf-file.js';
import { readGgufMetadata } from './gguf-metadata.js';

/** The outcome of one look at a file; size and time are those from before it was read. */
export type FileLook =
  | {
      readonly kind: 'read';
      readonly sizeBytes: number;
      readonly mtimeMs: number;
      readonly reading: FileReading;
    }
  /** The system's code of the operation that failed, or other words on the cause. */
  | { readonly kind: 'failed'; readonly code: string };

/**
 * Reads the header of the file `path`. Blocks the thread while it does, which spares the process's few threads for
 * files when the file system does not answer: it is for the facts worker. Never throws.
 */
export function lookAtFile(path: string): FileLook {
  try {
    // Should the file have become a FIFO meanwhile, opening it must not wait for a writer.
    const file = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stats = fstatSync(file);
      const problem = statsProblem(stats);
      const reading: FileReading =
        problem === undefined ? readHeader(file, stats.size) : { kind: 'fault', fault: problem };
      return { kind: 'read', sizeBytes: stats.size, mtimeMs: stats.mtimeMs, reading };
    } finally {
      closeSync(file);
    }
  } catch (error) {
    return { kind: 'failed', code: failureCode(error) };
  }
}

function readHeader(file: number, sizeBytes: number): FileReading {
  const outcome = readGgufMetadata({
    sizeBytes,
    read: (target, position) => readSync(file, target, 0, target.length, position),
  });
  return outcome.kind === 'fault' ? outcome : { kind: 'header', header: headerFacts(outcome.metadata) };
}
