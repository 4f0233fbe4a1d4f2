/**
 * For what can happen any number of times a second and is to be said: once when it begins, and then no more often than
 * each interval, with how often it has happened since the last time.
 */
export function seldom<Arguments extends unknown[]>(
  intervalMs: number,
  say: (times: number, ...latest: Arguments) => void,
): (...arguments_: Arguments) => void {
  let times = 0;
  let saidAt = -Infinity;
  return (...latest) => {
    times += 1;
    const now = performance.now();
    if (now - saidAt < intervalMs) return;
    say(times, ...latest);
    saidAt = now;
    times = 0;
  };
}
