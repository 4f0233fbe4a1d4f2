/** How long a stopping child may take where nothing else is said; the native router's default. */
export const DEFAULT_STOP_TIMEOUT_MS = 10_000;

/** The longest a timer can wait, in seconds; beyond it Node's timers fire at once. */
const MAX_SECONDS = 2_147_483;

/** The value of `stop-timeout` (seconds) in milliseconds; the default for what is none. */
export function stopTimeoutMs(text: string | undefined): number {
  const seconds = leadingSeconds(text ?? '');
  return seconds === undefined ? DEFAULT_STOP_TIMEOUT_MS : Math.min(seconds, MAX_SECONDS) * 1000;
}

/** What `text` means as a `stop-timeout`, as a phrase that follows it, where that is not what it says. */
export function stopTimeoutWarning(text: string): string | undefined {
  const seconds = leadingSeconds(text);
  if (seconds === undefined) return `is no number of seconds; ${DEFAULT_STOP_TIMEOUT_MS / 1000} are used`;
  if (seconds > MAX_SECONDS) return `is longer than a timer can wait; ${MAX_SECONDS} seconds are used`;
  return /^[0-9]+$/.test(text) ? undefined : `is taken to be ${seconds} whole seconds`;
}

/** The native router reads a number as far as it goes (`std::stoi`), so that `30s` and `30.5` are 30. */
function leadingSeconds(text: string): number | undefined {
  const [, digits] = /^\+?([0-9]+)/.exec(text) ?? [];
  return digits === undefined ? undefined : Number(digits);
}
