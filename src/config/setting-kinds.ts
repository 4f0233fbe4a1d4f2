import { isFalsey, isTruthy } from './option-table.js';

/** How the text of a setting is read. `read` throws an Error whose message says what is expected instead. */
export interface Kind<T> {
  /** What stands for the value in the help; undefined for a flag. */
  readonly placeholder: string | undefined;
  read(text: string): T;
}

/** Node's timers fire at once when asked for more than this: a 32-bit number of milliseconds, 24.8 days. */
export const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Text as it is, but not nothing. */
export function text(placeholder: string): Kind<string> {
  return {
    placeholder,
    read(given) {
      if (given === '') throw new Error(`expected a ${placeholder.toLowerCase()}, found nothing`);
      return given;
    },
  };
}

/** A path, or undefined for the empty text that the native router takes as "none". */
export const optionalPath: Kind<string | undefined> = {
  placeholder: 'PATH',
  read: (given) => (given === '' ? undefined : given),
};

/** Text, or undefined for the empty one. */
export function optionalText(placeholder: string): Kind<string | undefined> {
  return { placeholder, read: (given) => (given === '' ? undefined : given) };
}

/** Addresses with commas between them; empty ones are left out, as llama-server does. */
export const hostList: Kind<readonly string[]> = {
  placeholder: 'HOST[,HOST...]',
  read(given) {
    const hosts = given.split(',').flatMap((host) => host.trim() || []);
    if (hosts.length === 0) throw new Error('expected at least one address, found none');
    return [...new Set(hosts)];
  },
};

/** The path under which every route is served, for example `/llama`; empty for none. */
export const pathPrefix: Kind<string> = {
  placeholder: 'PREFIX',
  read(given) {
    // Anything else matches no request in the children, which compare it as it stands.
    if (given !== '' && !/^(?:\/[^/?#\s]+)+$/.test(given)) {
      throw new Error(
        `expected a path such as /llama, with a leading and without a trailing slash, not '${given}'`,
      );
    }
    return given;
  },
};

/** The values of a comma-separated row; `"` around one that holds a comma, `""` for a quote in it. */
export function splitAtCommas(row: string): string[] {
  const cells = row.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g);
  return [...cells]
    .map(([, quoted, plain = '']) => quoted?.replaceAll('""', '"') ?? plain)
    .filter((cell) => cell !== '');
}

export function commaSeparated(placeholder: string): Kind<readonly string[]> {
  return { placeholder, read: splitAtCommas };
}

/** A whole number from `min` to `max`; `note` tells what a special value means. */
export function integer(range: {
  min: number;
  max?: number;
  note?: string;
  placeholder?: string;
}): Kind<number> {
  const { min, max = Number.MAX_SAFE_INTEGER, note, placeholder = 'N' } = range;
  return {
    placeholder,
    read(given) {
      const value = /^[+-]?\d+$/.test(given) ? Number(given) : NaN;
      if (value >= min && value <= max) return value;
      const hasEnd = max !== Number.MAX_SAFE_INTEGER || value > max;
      const upTo = hasEnd ? `from ${min} to ${max}` : `of at least ${min}`;
      throw new Error(
        `expected a whole number ${upTo}${note === undefined ? '' : ` (${note})`}, not '${given}'`,
      );
    },
  };
}

/** Seconds, decimals allowed, read as milliseconds; zero only where `orZero` says that it has a meaning. */
export function seconds({ orZero }: { orZero: boolean }): Kind<number> {
  return {
    placeholder: 'SECONDS',
    read(given) {
      const milliseconds = /^\d+(?:\.\d+)?$/.test(given) ? Math.round(Number(given) * 1000) : NaN;
      if (milliseconds >= (orZero ? 0 : 1) && milliseconds <= LONGEST_TIMER_MS) return milliseconds;
      const least = orZero ? 'at least 0' : 'more than 0';
      const most = Math.floor(LONGEST_TIMER_MS / 1000);
      throw new Error(`expected seconds, ${least} and at most ${most}, such as 30 or 0.5, not '${given}'`);
    },
  };
}

/**
 * The native `--timeout`: whole seconds, read as milliseconds, 0 for none. A negative one waits for ever there
 * as well (cpp-httplib hands it to poll), and one beyond the timers' reach is cut to it.
 */
export const nativeTimeout: Kind<number> = {
  placeholder: 'SECONDS',
  read(given) {
    const value = integer({ min: Number.MIN_SAFE_INTEGER, note: '0 = none' }).read(given);
    return Math.min(Math.max(0, value) * 1000, LONGEST_TIMER_MS);
  },
};

const BYTES_PER_UNIT = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 } as const;

/** A number of bytes, at least one: plain, or in `K`, `M`, `G` (also `KiB`, `MiB`, `GiB`), powers of 1024. */
export const bytes: Kind<number> = {
  placeholder: 'BYTES',
  read(given) {
    const [, amount, unit = ''] = /^(\d+(?:\.\d+)?) *(?:([KMG])(?:iB)?)?$/i.exec(given) ?? [];
    const factor = BYTES_PER_UNIT[unit.toUpperCase() as keyof typeof BYTES_PER_UNIT];
    const value = Math.floor(Number(amount) * factor);
    if (value >= 1 && value <= Number.MAX_SAFE_INTEGER) return value;
    throw new Error(`expected bytes, such as 104857600, 100M or 1.5GiB, not '${given}'`);
  },
};

/** On or off, in the words of the native router. */
export const flag: Kind<boolean> = {
  placeholder: undefined,
  read(given) {
    if (isTruthy(given)) return true;
    if (isFalsey(given)) return false;
    throw new Error(`expected on, enabled, true or 1, or off, disabled, false or 0, not '${given}'`);
  },
};

/** One of a few words. */
export function choice<const T extends string>(...words: readonly T[]): Kind<T> {
  return {
    placeholder: words.join('|'),
    read(given) {
      const word = words.find((candidate) => candidate === given);
      if (word !== undefined) return word;
      throw new Error(`expected one of ${words.join(', ')}, not '${given}'`);
    },
  };
}
