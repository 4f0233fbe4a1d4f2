const tellsOfFailure =
  /\b(?:error|errors|failed|failure|failing|invalid|unable|cannot|can't|not found|unknown|no such|couldn't)\b/i;

/** What llama-server puts before its words: the time since its start, the level, and which of its parts speaks. */
const prefix = /^[\d.]+ [A-Z] (?:[a-z_]{2,8}\s+(?:\w+: )?)?/;
const levelError = /^[\d.]+ E /;

/**
 * Of the last lines of a process that failed the one that says why, without what stands before its words: the first
 * that llama-server calls an error, since those after it only say what follows from it; else the last one that tells of
 * a failure.
 *
 * @param lines oldest first
 */
export function tellingLine(lines: readonly string[]): string | undefined {
  const line =
    lines.find((each) => levelError.test(each)) ??
    lines.findLast((each) => tellsOfFailure.test(each)) ??
    lines.at(-1);
  return line?.replace(prefix, '').trim();
}

/** How a process failed, and what it said of that, where that is something else. */
export function withLastWords(message: string, lines: readonly string[]): string {
  const words = tellingLine(lines);
  return words === undefined || message.includes(words) ? message : `${message}; it said: ${words}`;
}
