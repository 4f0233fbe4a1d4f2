import { pino, type DestinationStream, type Logger as PinoLogger } from 'pino';

export type Logger = PinoLogger;

export interface LogOptions {
  /** pino's levels: trace, debug, info, warn, error, fatal, silent. */
  readonly level: string;
  /** `auto` is text on a terminal and JSON elsewhere. */
  readonly format: 'auto' | 'json' | 'text';
}

/** Lines that a stuck reader of the log has not taken are kept up to here, then dropped. Bytes. */
const maxUnwrittenBytes = 4 * 1024 * 1024;

/**
 * Lines are written together, but never later than this: writing each on its own costs a request a fifth of its
 * processor time.
 */
const batch = { minLength: 4096, periodicFlush: 100 } as const;

/** The supervisor's log on standard output: a JSON record a line, or text for people. */
export async function createLog({ level, format }: LogOptions): Promise<Logger> {
  const asText = format === 'text' || (format === 'auto' && process.stdout.isTTY);
  const destination = standardOutput();
  const stream = asText ? await asTextOn(destination) : destination;
  const log = pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, stream);
  sayWhatIsDropped(destination, log);
  return log;
}

/** Once the reader has taken all that was kept for it, the gap is named. */
function sayWhatIsDropped(destination: Destination, log: Logger): void {
  let dropped = 0;
  destination.on('drop', () => (dropped += 1));
  destination.on('drain', () => {
    if (dropped === 0) return;
    log.warn({ dropped }, 'lines of the log were dropped: its reader did not take them');
    dropped = 0;
  });
}

type Destination = ReturnType<typeof pino.destination>;

/** Never waits for the reader: whoever reads the log must not be able to stop the requests. */
function standardOutput(): Destination {
  const destination = pino.destination({ fd: 1, sync: false, maxLength: maxUnwrittenBytes, ...batch });
  // pino flushes synchronously when the process exits, which never returns when the reader is gone or stuck. What
  // ends the process flushes before, and waits only so long.
  destination.flushSync = () => undefined;
  process.once('beforeExit', () => destination.flush());
  destination.on('error', () => undefined);
  return destination;
}

async function asTextOn(
  destination: Destination,
): Promise<DestinationStream & { flush: Destination['flush'] }> {
  // Loaded only where a person reads along: it costs start-up time.
  const { prettyFactory } = await import('pino-pretty');
  const pretty = prettyFactory({
    colorize: process.stdout.isTTY,
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
    // A request's `error` is a record's part like any other; only what is thrown has a stack to show.
    errorLikeObjectKeys: ['err'],
  });
  return {
    write: (line) => destination.write(pretty(withoutControls(JSON.parse(line)))),
    flush: (done) => destination.flush(done),
  };
}

/** A file can be named so that its name ends the line, commands the terminal that shows it, or turns its text round. */
const controls = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu;
/** The same in a stack, the frames of which keep their lines; the error's message before them holds names, too. */
const controlsInStack = /(?!\n {4}at )[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu;

/** The record with such characters written as escapes. */
function withoutControls(value: unknown, key = ''): unknown {
  if (typeof value === 'string') return value.replace(key === 'stack' ? controlsInStack : controls, escape);
  if (Array.isArray(value)) return value.map((item) => withoutControls(item));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, withoutControls(item, name)]));
}

function escape(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
}
