import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { atEndOfFile } from './cleanup.js';

/** A new, empty directory of its own, removed with all it holds when the test file is over. */
export function tempDir(): string {
  const path = mkdtempSync(join(tmpdir(), 'llama-supervisor-test-'));
  atEndOfFile(() => {
    // A process that is just ending may still be writing into it.
    rmSync(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 });
  });
  return path;
}
