import { afterAll, onTestFinished, TestRunner } from 'vitest';

type Cleanup = () => void | Promise<void>;

const endOfFile: Cleanup[] = [];

/**
 * Runs `cleanup` when the file's last test is over, in reverse order of registration. All of them run even when some
 * throw; what they threw fails the file.
 */
export function atEndOfFile(cleanup: Cleanup): void {
  endOfFile.push(cleanup);
}

/** Runs `cleanup` when the running test is over, or at the end of the file when called from a hook or outside. */
export function atEndOfTest(cleanup: Cleanup): void {
  if (TestRunner.getCurrentTest() === undefined) atEndOfFile(cleanup);
  else onTestFinished(cleanup);
}

// A module is loaded once per test file, and while that file is collected: so this hook is the file's own, and being
// the first hook of the file it runs after the file's others.
afterAll(async () => {
  const failures: unknown[] = [];
  for (const cleanup of endOfFile.splice(0).reverse()) {
    try {
      await cleanup();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length === 1) throw failures[0];
  if (failures.length > 1) throw new AggregateError(failures, 'more than one cleanup failed');
});
