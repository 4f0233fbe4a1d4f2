/** How long a stopping child may take where nothing else is said; the native router's default. */
export const DEFAULT_STOP_TIMEOUT_MS = 10_000;

/** The longest a timer can wait, in seconds; beyond it Node's timers fire at once. */
const MAX_SECONDS = 2_147_483;

/** Whether `text` is a number of seconds that can be waited for. */
export function isStopTimeout(text: string): boolean {
  return /^[0-9]{1,7}$/.test(text) && Number(text) <= MAX_SECONDS;
}

/** The value of `stop-timeout` (seconds) in milliseconds; the default for what is none. */
export function stopTimeoutMs(text: string | undefined): number {
  return text !== undefined && isStopTimeout(text) ? Number(text) * 1000 : DEFAULT_STOP_TIMEOUT_MS;
}
