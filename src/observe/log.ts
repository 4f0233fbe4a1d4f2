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
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime }, stream);
}

type Destination = ReturnType<typeof pino.destination>;

/** Never waits for the reader: whoever reads the log must not be able to stop the requests. */
function standardOutput(): Destination {
  const destination = pino.destination({ fd: 1, sync: false, maxLength: maxUnwrittenBytes, ...batch });
  process.once('exit', () => {
    try {
      destination.flushSync();
    } catch {
      // The reader is gone or stuck; there is nobody to tell.
    }
  });
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
  });
  return {
    write: (line) => destination.write(pretty(withoutControls(JSON.parse(line)))),
    flush: (done) => destination.flush(done),
  };
}

/** A file can be named so that its name ends the line or commands the terminal that shows it. */
const controls = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu;

/** The record with such characters written as escapes; a stack keeps its lines. */
function withoutControls(value: unknown, key = ''): unknown {
  if (typeof value === 'string') return key === 'stack' ? value : value.replace(controls, escape);
  if (Array.isArray(value)) return value.map((item) => withoutControls(item));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, withoutControls(item, name)]));
}

function escape(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
}
