/** Time as the hang watch sees it, so that tests can move it. */
export interface Clock {
  /** Milliseconds, monotonic. */
  readonly now: () => number;
  /** Calls back once after `ms`; the returned function calls that off. */
  readonly after: (ms: number, callback: () => void) => () => void;
}

/** The machine's own. What it waits for keeps no process alive. */
export const systemClock: Clock = {
  now: () => performance.now(),
  after: (ms, callback) => {
    const timer = setTimeout(callback, ms).unref();
    return () => clearTimeout(timer);
  },
};
