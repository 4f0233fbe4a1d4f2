import type { ServerResponse } from 'node:http';

export interface EarlyStreamOptions {
  /** How long nothing may be sent before the stream is begun; 0 = it is never begun early. Milliseconds. */
  readonly afterMs: number;
  /** Between two comments. Milliseconds. */
  readonly intervalMs: number;
}

/** What is known of the wait for the answer, when it is asked for. */
export interface EarlyStreamNews {
  /** What is being waited for, in a line that a person can read. */
  readonly stage: () => string;
  /** How long that has been, as a `Server-Timing`. */
  readonly timing: () => string | undefined;
}

/**
 * Begins a stream of events before there is anything to stream, so that nobody on the way takes the silence for a dead
 * connection: nginx cuts after a minute, many clients after less, and a load can take ten. What has been begun so has
 * its status: whatever goes wrong later is an error event. Until then the answer can have a real status, which is why
 * it is not begun at once.
 */
export class EarlyStream {
  readonly #outgoing: ServerResponse;
  readonly #options: EarlyStreamOptions;
  readonly #news: EarlyStreamNews;
  #timer: NodeJS.Timeout | undefined;
  #hasBegun = false;

  constructor(outgoing: ServerResponse, options: EarlyStreamOptions, news: EarlyStreamNews) {
    this.#outgoing = outgoing;
    this.#options = options;
    this.#news = news;
    if (options.afterMs > 0) this.#timer = setTimeout(this.#onTime, options.afterMs);
  }

  /** Whether the status and the headers of a stream have been sent. */
  get hasBegun(): boolean {
    return this.#hasBegun;
  }

  /** The wait is over: nothing is sent here from now on. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#outgoing.off('close', this.#onClose);
  }

  readonly #onTime = (): void => {
    const outgoing = this.#outgoing;
    if (outgoing.destroyed || (outgoing.headersSent && !this.#hasBegun)) return;
    if (!this.#hasBegun) {
      this.#hasBegun = true;
      const timing = this.#news.timing();
      outgoing.writeHead(200, {
        'Content-Type': 'text/event-stream',
        'Cache-Control': 'no-cache',
        'X-Accel-Buffering': 'no',
        ...(timing === undefined ? {} : { 'Server-Timing': timing }),
      });
      outgoing.once('close', this.#onClose);
    }
    // A client that does not read gets no more of them than its connection takes.
    if (!outgoing.writableNeedDrain) outgoing.write(`: ${oneLine(this.#news.stage())}\n\n`);
    this.#timer = setTimeout(this.#onTime, this.#options.intervalMs);
  };

  readonly #onClose = (): void => this.stop();
}

/** A line break would end the comment. */
function oneLine(text: string): string {
  return text.replaceAll(/[\r\n]+/g, ' ');
}
