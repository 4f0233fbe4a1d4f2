import { isUtf8 } from 'node:buffer';

/** What a request body says about the model it is for. */
export type ModelName =
  | { kind: 'found'; name: string }
  /** Nothing names a model: no such member, one that is null, empty or not a string, or no object at all. */
  | { kind: 'missing' }
  /** The body cannot be read. `reason` says why and where, and is meant for the client. */
  | { kind: 'malformed'; reason: string };

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;
const OPENING_BRACKET = 0x5b;
const CLOSING_BRACKET = 0x5d;

// Brackets and braces differ in this one bit, so that one comparison finds either.
const BRACE_BIT = 0x20;

const BYTE_ORDER_MARK = [0xef, 0xbb, 0xbf];

// What the scan expects next, outside strings and nested values.
const VALUE = 0;
const FIRST_KEY = 1; // or the end of an empty object
const KEY = 2;
const KEY_END = 3;
const SCALAR = 4; // more of a number, true, false or null
const MEMBER_END = 5;
const BODY_END = 6;
const NOTHING = 7;

const EXPECTATIONS = [
  'a value',
  'a member name or "}"',
  'a member name',
  '":"',
  'a scalar',
  '"," or "}"',
  'the end of the body',
];

// What the string that is being read is, if one is.
const NO_STRING = 0;
const SKIPPED_STRING = 1;
const KEY_STRING = 2;
const NAME_STRING = 3;

const MODEL_KEY = Buffer.from('model');
const STREAM_KEY = Buffer.from('stream');
const LETTER_T = 0x74; // as `true` begins
// Every letter of "model" may be written as \uXXXX.
const MAX_MODEL_KEY_BYTES = MODEL_KEY.length * 6;
/** The longest model name that is read, in bytes as they stand in the body. */
export const MAX_NAME_BYTES = 4096;

// The kinds of the outermost open brackets are kept in the bits of one integer. Deeper mismatches are left
// to the child, which parses the body: keeping all of them would need memory that grows with the body.
const CHECKED_NESTING = 31;

// Up to here a string is read in this loop; beyond, calling native code pays.
const SHORT_STRING_BYTES = 64;

const NO_BYTES = Buffer.alloc(0);

/**
 * Finds the member `model` of a JSON object in the bytes of a request body, without parsing the body.
 *
 * Chunks may be cut anywhere and are not kept. Work is linear in the body and memory is constant, however
 * the body is shaped. Of duplicate keys the last one wins, as in llama-server's own parser; a leading UTF-8
 * byte order mark is skipped, and a NUL after the value ends the body, as there.
 *
 * Not every malformed body is recognised, since the child parses it anyway: the insides of nested values
 * and of strings other than the name are skipped. What is incomplete always is.
 *
 * On the way it notes whether the member `stream` is true, when its key is written without escapes.
 */
export class JsonModelScanner {
  private expected = VALUE;
  private inObject = false;
  private keyIsModel = false;
  private keyIsStream = false;
  private streams = false;
  private name = '';
  private problem = '';

  /** Open brackets of the value being skipped, and whether each is a square one (bit 0 is the outermost). */
  private nesting = 0;
  private squareBits = 0;

  private string = NO_STRING;
  /** 1 if the chunk before ended in a backslash that escapes the next byte. */
  private escaped = 0;
  private stringOffset = 0;
  /** The part of a key or name that came with earlier chunks. */
  private held: Buffer = NO_BYTES;

  /** Bytes of all chunks before the current one. */
  private offset = 0;
  /** Bytes of the byte order mark seen so far; all of them once the body proper has begun. */
  private markBytes = 0;

  /** Takes the next bytes of the body, as they came from the socket. */
  push(chunk: Buffer): void {
    let at = this.markBytes < BYTE_ORDER_MARK.length ? this.skipByteOrderMark(chunk) : 0;
    while (at < chunk.length && this.problem === '') {
      if (this.string !== NO_STRING) at = this.scanString(chunk, at);
      else if (this.nesting > 0) at = this.scanNested(chunk, at);
      else at = this.scanOutermost(chunk, at);
    }
    this.offset += chunk.length;
  }

  /** The answer, once the whole body has been pushed. */
  end(): ModelName {
    if (this.problem === '') this.checkComplete();
    if (this.problem !== '') return { kind: 'malformed', reason: this.problem };
    return this.name === '' ? { kind: 'missing' } : { kind: 'found', name: this.name };
  }

  /** Whether the body asks for its answer as a stream; known once the whole body has been pushed. */
  get asksForStream(): boolean {
    return this.streams;
  }

  private checkComplete(): void {
    if (this.offset === 0) {
      this.problem = 'the request body is empty: JSON was expected';
    } else if (this.string !== NO_STRING) {
      this.failToParse(`it ends inside the string that begins at byte ${this.stringOffset}`);
    } else if (this.inObject ? this.expected < BODY_END : this.nesting > 0) {
      this.failToParse(`it ends after ${this.offset} bytes with a bracket still open`);
    } else if (this.markBytes < BYTE_ORDER_MARK.length) {
      this.failToParse('it ends inside a byte order mark');
    }
  }

  private failToParse(what: string): void {
    this.problem = `the request body is not valid JSON: ${what}`;
  }

  private failName(what: string): void {
    this.problem = `the model name at byte ${this.stringOffset} of the request body ${what}`;
  }

  private skipByteOrderMark(chunk: Buffer): number {
    let at = 0;
    while (at < chunk.length && this.markBytes < BYTE_ORDER_MARK.length) {
      if (chunk[at] === BYTE_ORDER_MARK[this.markBytes]) {
        this.markBytes++;
        at++;
      } else {
        if (this.markBytes > 0) this.failToParse(`a byte order mark breaks off at byte ${this.offset + at}`);
        this.markBytes = BYTE_ORDER_MARK.length;
      }
    }
    return at;
  }

  /** Reads the top-level value, and if that is an object its keys and what stands between its members. */
  private scanOutermost(chunk: Buffer, from: number): number {
    for (let at = from; at < chunk.length; at++) {
      const byte = chunk[at] as number;
      if (this.expected === SCALAR) {
        if (isScalarByte(byte)) continue;
        this.expected = this.inObject ? MEMBER_END : BODY_END;
      }
      if (isWhitespace(byte)) continue;

      switch (this.expected) {
        case VALUE:
          if (byte === OPENING_BRACE && !this.inObject) {
            this.inObject = true;
            this.expected = FIRST_KEY;
            continue;
          }
          if (beginsScalar(byte)) {
            if (this.keyIsStream) this.streams = byte === LETTER_T;
            this.expected = SCALAR;
            continue;
          }
          if (byte === QUOTE) {
            this.expected = this.inObject ? MEMBER_END : BODY_END;
            return this.beginString(this.keyIsModel ? NAME_STRING : SKIPPED_STRING, at + 1);
          }
          if (byte === OPENING_BRACE || byte === OPENING_BRACKET) {
            this.expected = this.inObject ? MEMBER_END : BODY_END;
            this.nesting = 1;
            this.squareBits = byte === OPENING_BRACKET ? 1 : 0;
            return at + 1;
          }
          break;
        case FIRST_KEY:
        case KEY:
          if (byte === QUOTE) {
            this.expected = KEY_END;
            return this.beginString(KEY_STRING, at + 1);
          }
          if (byte === CLOSING_BRACE && this.expected === FIRST_KEY) {
            this.expected = BODY_END;
            continue;
          }
          break;
        case KEY_END:
          if (byte === COLON) {
            this.expected = VALUE;
            continue;
          }
          break;
        case MEMBER_END:
          if (byte === COMMA) {
            this.expected = KEY;
            continue;
          }
          if (byte === CLOSING_BRACE) {
            this.expected = BODY_END;
            continue;
          }
          break;
        case BODY_END:
          // llama-server's parser takes a NUL for the end of its input and does not look behind it.
          if (byte === 0) {
            this.expected = NOTHING;
            return chunk.length;
          }
          break;
        default:
          return chunk.length;
      }
      this.failToParse(`expected ${EXPECTATIONS[this.expected] as string} at byte ${this.offset + at}`);
      return at;
    }
    return chunk.length;
  }

  /** Skips an array or a nested object. Only brackets and strings matter there, so nothing else is looked at. */
  private scanNested(chunk: Buffer, from: number): number {
    const length = chunk.length;
    let nesting = this.nesting;
    let at = from;
    while (at < length && nesting > 0) {
      const byte = chunk[at++] as number;
      if (byte === QUOTE) {
        const end = closingQuote(chunk, at);
        if (end < length) {
          at = end + 1;
        } else {
          this.beginString(SKIPPED_STRING, at);
          this.escaped = end - length;
          at = length;
        }
      } else if ((byte | BRACE_BIT) === OPENING_BRACE) {
        if (nesting < CHECKED_NESTING) {
          const bit = 1 << nesting;
          this.squareBits = byte === OPENING_BRACKET ? this.squareBits | bit : this.squareBits & ~bit;
        }
        nesting++;
      } else if ((byte | BRACE_BIT) === CLOSING_BRACE) {
        nesting--;
        if (nesting < CHECKED_NESTING) {
          const opened = (this.squareBits >>> nesting) & 1;
          if (opened !== (byte === CLOSING_BRACKET ? 1 : 0)) {
            this.failToParse(`expected "${opened === 1 ? ']' : '}'}" at byte ${this.offset + at - 1}`);
            return at;
          }
        }
      }
    }
    this.nesting = nesting;
    return at;
  }

  private beginString(string: number, at: number): number {
    this.string = string;
    this.stringOffset = this.offset + at - 1;
    return at;
  }

  /** Reads the open string up to its closing quote or the end of the chunk, and keeps it if it matters. */
  private scanString(chunk: Buffer, from: number): number {
    const end = closingQuote(chunk, from + this.escaped);
    if (end >= chunk.length) {
      this.escaped = end - chunk.length;
      if (this.string !== SKIPPED_STRING) this.hold(chunk.subarray(from));
      return chunk.length;
    }
    this.escaped = 0;
    if (this.string !== SKIPPED_STRING) {
      // Most keys and names come in one piece, and are read where they are.
      if (this.held.length === 0) this.endString(chunk, from, end);
      else {
        const bytes = Buffer.concat([this.held, chunk.subarray(from, end)]);
        this.held = NO_BYTES;
        this.endString(bytes, 0, bytes.length);
      }
    }
    this.string = NO_STRING;
    return end + 1;
  }

  private hold(part: Buffer): void {
    const length = this.held.length + part.length;
    if (this.string === NAME_STRING && length > MAX_NAME_BYTES) {
      this.failName(`is longer than ${MAX_NAME_BYTES} bytes`);
    } else if (this.string === KEY_STRING && length > MAX_MODEL_KEY_BYTES) {
      this.keyIsModel = this.keyIsStream = false;
      this.string = SKIPPED_STRING;
      this.held = NO_BYTES;
    } else {
      this.held = Buffer.concat([this.held, part]);
    }
  }

  private endString(bytes: Buffer, from: number, to: number): void {
    if (this.string === NAME_STRING) {
      this.readName(bytes, from, to);
    } else {
      this.keyIsModel = isModelKey(bytes, from, to);
      // Also a later `model` that is no string replaces an earlier one that is.
      if (this.keyIsModel) this.name = '';
      this.keyIsStream = !this.keyIsModel && isText(bytes, from, to, STREAM_KEY);
      if (this.keyIsStream) this.streams = false;
    }
  }

  private readName(bytes: Buffer, from: number, to: number): void {
    if (to - from > MAX_NAME_BYTES) {
      this.failName(`is longer than ${MAX_NAME_BYTES} bytes`);
      return;
    }
    if (isPlain(bytes, from, to)) {
      this.name = bytes.toString('latin1', from, to);
      return;
    }
    if (!isUtf8(bytes.subarray(from, to))) {
      this.failName('is not valid UTF-8');
      return;
    }
    const name = unescape(bytes.toString('utf8', from, to));
    if (name === undefined) {
      this.failName('has a control character or an escape that JSON does not allow');
    } else if (/\p{Surrogate}/u.test(name)) {
      this.failName('has half of a surrogate pair');
    } else {
      this.name = name;
    }
  }
}

/**
 * The index of the quote that ends a string whose bytes from `from` on are in the chunk. If it is not there:
 * the chunk's length, or one more if the first byte of the next chunk is escaped.
 */
function closingQuote(chunk: Buffer, from: number): number {
  const length = chunk.length;
  let at = from;
  for (;;) {
    const nearby = Math.min(at + SHORT_STRING_BYTES, length);
    while (at < nearby) {
      const byte = chunk[at] as number;
      if (byte === QUOTE) return at;
      at += byte === BACKSLASH ? 2 : 1;
    }
    if (at >= length) return at;

    const quote = chunk.indexOf(QUOTE, at);
    const end = quote === -1 ? length : quote;
    let backslashes = 0;
    while (end - backslashes > at && chunk[end - backslashes - 1] === BACKSLASH) backslashes++;
    // Of an odd number of backslashes the last one escapes what follows.
    const escapes = backslashes & 1;
    if (quote === -1) return length + escapes;
    if (escapes === 0) return quote;
    at = quote + 1;
  }
}

function isModelKey(bytes: Buffer, from: number, to: number): boolean {
  const length = to - from;
  if (length < MODEL_KEY.length || length > MAX_MODEL_KEY_BYTES) return false;
  if (length === MODEL_KEY.length) return isText(bytes, from, to, MODEL_KEY);
  return !isPlain(bytes, from, to) && unescape(bytes.toString('latin1', from, to)) === 'model';
}

function isText(bytes: Buffer, from: number, to: number, text: Buffer): boolean {
  if (to - from !== text.length) return false;
  for (let i = 0; i < text.length; i++) if (bytes[from + i] !== text[i]) return false;
  return true;
}

/** Whether a string is ASCII without escapes, as nearly all are, so that its bytes are its text. */
function isPlain(bytes: Buffer, from: number, to: number): boolean {
  for (let at = from; at < to; at++) {
    const byte = bytes[at] as number;
    if (byte < 0x20 || byte > 0x7e || byte === BACKSLASH) return false;
  }
  return true;
}

/** The text of a JSON string from what stands between its quotes, if that is valid. */
function unescape(text: string): string | undefined {
  try {
    return JSON.parse(`"${text}"`) as string;
  } catch {
    return undefined;
  }
}

function isWhitespace(byte: number): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
}

/** Whether a number or a literal can begin with this byte. */
function beginsScalar(byte: number): boolean {
  return isDigit(byte) || byte === 0x2d || byte === 0x74 || byte === 0x66 || byte === 0x6e;
}

/** Whether this byte can be in a number or a literal: a digit, a letter, `+`, `-` or `.`. */
function isScalarByte(byte: number): boolean {
  const lower = byte | 0x20;
  return isDigit(byte) || (lower >= 0x61 && lower <= 0x7a) || byte === 0x2b || byte === 0x2d || byte === 0x2e;
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}
