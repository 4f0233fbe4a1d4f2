import { setTimeout as delay } from 'node:timers/promises';

/** How long and how often `eventually` asks, in milliseconds. */
export interface Patience {
  deadlineMs?: number;
  intervalMs?: number;
}

type Truthy<T> = Exclude<T, undefined | null | false | 0 | ''>;

/**
 * Asks again and again until `check` returns something truthy without throwing, and resolves with that value.
 *
 * A check made of expectations ends with `return true`. At the deadline it rejects with an error that carries the
 * label, the deadline and what the last try said; a check that never answers counts as not yet, too.
 */
export async function eventually<T>(
  label: string,
  check: () => T | Promise<T>,
  { deadlineMs = 10_000, intervalMs = 20 }: Patience = {},
): Promise<Truthy<T>> {
  const deadline = performance.now() + deadlineMs;
  let lastSaid = 'the first try did not answer';
  let cause: unknown;
  for (;;) {
    const leftMs = deadline - performance.now();
    if (leftMs <= 0) throw new Error(`${label}: not within ${deadlineMs} ms; ${lastSaid}`, { cause });
    try {
      const value = await withDeadline(`${label}: one try`, Promise.resolve(check()), leftMs);
      if (value) return value as Truthy<T>;
      lastSaid = `last value: ${String(value)}`;
    } catch (error) {
      cause = error;
      lastSaid = `last error: ${error instanceof Error ? error.message : String(error)}`;
    }
    await delay(intervalMs);
  }
}

/** The outcome of `promise`, or a rejection that names `label` when there is none within `ms` milliseconds. */
export async function withDeadline<T>(label: string, promise: Promise<T>, ms: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const deadline = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`${label}: not within ${Math.round(ms)} ms`));
    }, ms);
  });
  try {
    return await Promise.race([promise, deadline]);
  } finally {
    clearTimeout(timer);
  }
}
