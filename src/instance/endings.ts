/** Branches of a race that can be called off: nothing of a loser stays behind. */

/** Settles when `event` is aborted, and is forgotten when `end` is. */
export function aborted(event: AbortSignal, end: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (event.aborted) resolve();
    else event.addEventListener('abort', () => resolve(), { once: true, signal: end });
  });
}

/** Settles after `ms`, and is forgotten when `end` is aborted. */
export function deadline(ms: number, end: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const forget = (): void => clearTimeout(timer);
    const timer = setTimeout(() => {
      end.removeEventListener('abort', forget);
      resolve();
    }, ms);
    end.addEventListener('abort', forget, { once: true });
  });
}
