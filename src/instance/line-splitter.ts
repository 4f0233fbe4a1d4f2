import { StringDecoder } from 'node:string_decoder';

/** A child's line longer than this is cut: one without an end must not grow memory. Characters. */
const maxLineLength = 64 * 1024;

/**
 * Splits a child's output into lines (`\n` or `\r\n`, without their ends). A line over the bound is handed over
 * in its first `maxLineLength` characters and the rest of it is dropped.
 */
export class LineSplitter {
  readonly #decoder = new StringDecoder('utf8');
  readonly #onLine: (line: string) => void;
  #rest = '';
  #skipping = false;

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine;
  }

  push(chunk: Buffer): void {
    let text = this.#decoder.write(chunk);
    for (;;) {
      const end = text.indexOf('\n');
      if (end === -1) break;
      this.#finish(text.slice(0, end));
      text = text.slice(end + 1);
    }
    if (this.#skipping) return;
    this.#rest += text;
    if (this.#rest.length > maxLineLength) {
      this.#onLine(this.#rest.slice(0, maxLineLength));
      this.#rest = '';
      this.#skipping = true;
    }
  }

  /** The output has ended: what stands without a line end is a line too. */
  end(): void {
    const rest = this.#rest + this.#decoder.end();
    this.#rest = '';
    if (rest !== '' && !this.#skipping) this.#onLine(rest.slice(0, maxLineLength));
    this.#skipping = false;
  }

  #finish(tail: string): void {
    if (this.#skipping) {
      this.#skipping = false;
      return;
    }
    const line = this.#rest + tail;
    this.#rest = '';
    const trimmed = line.endsWith('\r') ? line.slice(0, -1) : line;
    this.#onLine(trimmed.length > maxLineLength ? trimmed.slice(0, maxLineLength) : trimmed);
  }
}
