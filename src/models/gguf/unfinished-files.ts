import type { FileIdentity } from './file-identity.js';

/** A file that was written to so lately is taken to be still being written: a slow download pauses for seconds. */
export const WRITING_WINDOW_MS = 30_000;
/** Files that are tracked; beyond, the first are forgotten, and only their times tell. */
const MAX_FILES = 1_000;

interface Sighting {
  readonly sizeBytes: number;
  /** When it was last seen larger than before. */
  readonly grewAtMs: number | undefined;
}

/**
 * Tells files that are still being written from those that were left unfinished. Their times tell, and where they do
 * not (a clock of another machine, a copy that keeps times), that they have been seen to grow.
 */
export class UnfinishedFiles {
  readonly #sightings = new Map<string, Sighting>();

  /** To be called at each look at a file that is not whole. */
  isBeingWritten({ path, sizeBytes, mtimeMs }: FileIdentity, nowMs = Date.now()): boolean {
    const earlier = this.#sightings.get(path);
    const hasGrown = earlier !== undefined && sizeBytes > earlier.sizeBytes;
    const grewAtMs = hasGrown ? nowMs : earlier?.grewAtMs;
    this.#sightings.delete(path);
    this.#sightings.set(path, { sizeBytes, grewAtMs });
    for (const oldest of this.#sightings.keys()) {
      if (this.#sightings.size <= MAX_FILES) break;
      this.#sightings.delete(oldest);
    }
    const hasGrownLately = grewAtMs !== undefined && nowMs - grewAtMs < WRITING_WINDOW_MS;
    return hasGrownLately || wasWrittenLately(mtimeMs, nowMs);
  }

  /** The file has been found whole. */
  forget(path: string): void {
    this.#sightings.delete(path);
  }
}

/** The time may lie a little in the future, where another machine's clock set it. */
export function wasWrittenLately(mtimeMs: number, nowMs = Date.now()): boolean {
  return Math.abs(nowMs - mtimeMs) < WRITING_WINDOW_MS;
}
