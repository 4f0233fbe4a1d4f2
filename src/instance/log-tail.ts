const maxLines = 40;
const maxLineLength = 500;

/** The last lines a child wrote, kept for the message when it dies: at most 40 lines of 500 characters. */
export class LogTail {
  readonly #lines: string[] = [];

  add(line: string): void {
    if (line.trim() === '') return;
    this.#lines.push(line.length > maxLineLength ? `${line.slice(0, maxLineLength)}…` : line);
    if (this.#lines.length > maxLines) this.#lines.shift();
  }

  /** Oldest first. */
  lines(): string[] {
    return [...this.#lines];
  }
}
