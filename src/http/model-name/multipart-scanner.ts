import { isUtf8 } from 'node:buffer';
import { MAX_NAME_BYTES, type ModelName } from './json-scanner.js';

const FORM_TYPE = 'multipart/form-data';

// llama-server refuses a form that has more.
const MAX_BOUNDARY_BYTES = 70;
const MAX_PARTS = 1024;
const MAX_PART_HEADERS = 100;
const MAX_HEADER_BYTES = 8192;

const CRLF = Buffer.from('\r\n');

// A token, a colon, and a value without control characters (RFC 9110, 5.5).
const HEADER = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*$/;
const DISPOSITION = /^content-disposition:[ \t]*form-data;(.*)$/i;
const UTF8_FILE_NAME = /^utf-8''./i;
// Up to a semicolon that is not quoted. There are no escapes within quotes: file names are full of backslashes.
const PARAMETER = /(?:[^;"]+|"[^"]*"?)+/g;

const NO_BYTES = Buffer.alloc(0);

/** What is being read. */
type Place = 'preamble' | 'header line' | 'content' | 'after boundary' | 'epilogue';

/** What the header lines of a part have said of it so far. */
interface Part {
  lines: number;
  name: string;
  isFile: boolean;
}

/** Whether a body of this Content-Type is a form. */
export function isMultipartForm(contentType = ''): boolean {
  const [type = ''] = contentType.split(';', 1);
  return withoutBlanks(type).toLowerCase() === FORM_TYPE;
}

/**
 * Finds the text field `model` of a multipart/form-data body (RFC 7578). Other parts are not kept, files included.
 * Chunks may be cut anywhere. Work is linear in the body and memory is constant, however the body is shaped.
 *
 * What a form is, where its parts begin and what they are called is decided as the child's own reader does
 * (llama.cpp, vendor/cpp-httplib): readers of forms differ, and one that differs from that one would send requests to
 * models that the child does not find in them. A part with a file name is a file; one without, or with an empty one,
 * is text, whatever its content type. A repeated field makes a list there, hence no name here.
 */
export class MultipartModelScanner {
  readonly asksForStream = false;
  readonly #opening: Buffer;
  readonly #closing: Buffer;
  #place: Place = 'preamble';
  #problem = '';
  #parts = 0;
  #part = newPart();
  #fields = 0;
  #name: Buffer = NO_BYTES;

  /** The end of what was read, in which the delimiter that is searched for may have begun. */
  #tail: Buffer = NO_BYTES;
  /** What is kept of the line or field that is being read. */
  #kept: Buffer[] = [];
  #keptBytes = 0;

  /** `contentType` is the request's header; one without a usable boundary makes the body malformed. */
  constructor(contentType: string) {
    const boundary = boundaryIn(contentType);
    this.#opening = Buffer.from(`--${boundary}\r\n`, 'latin1');
    this.#closing = Buffer.from(`\r\n--${boundary}`, 'latin1');
    if (boundary === '') this.#fail('its Content-Type names no boundary');
    if (boundary.length > MAX_BOUNDARY_BYTES) {
      this.#fail(`its boundary is longer than ${MAX_BOUNDARY_BYTES} bytes`);
    }
  }

  /** Takes the next bytes of the body, as they came from the socket. */
  push(chunk: Buffer): void {
    let rest = chunk;
    while (rest.length > 0 && this.#problem === '' && this.#place !== 'epilogue') {
      rest = this.#place === 'after boundary' ? this.#readAfterBoundary(rest) : this.#readOn(rest);
    }
  }

  /** The answer, once the whole body has been pushed. */
  end(): ModelName {
    if (this.#place !== 'epilogue') this.#fail('it ends before its closing boundary');
    if (this.#problem !== '') return { kind: 'malformed', reason: this.#problem };
    if (this.#name.length === 0 || this.#fields > 1) return { kind: 'missing' };
    return { kind: 'found', name: this.#name.toString() };
  }

  /**
   * Reads up to and with the delimiter that ends what is being read, or to the end of the bytes.
   *
   * @returns the bytes after the delimiter
   */
  #readOn(bytes: Buffer): Buffer {
    const delimiter = this.#delimiter();
    const overlap = delimiter.length - 1;
    if (this.#tail.length > 0) {
      const seam = Buffer.concat([this.#tail, bytes.subarray(0, overlap)]);
      const at = seam.indexOf(delimiter);
      if (at >= 0) {
        this.#keep(seam.subarray(0, at));
        const read = at + delimiter.length - this.#tail.length;
        this.#delimited();
        return bytes.subarray(read);
      }
    }
    const at = bytes.indexOf(delimiter);
    if (at >= 0) {
      this.#keep(this.#tail);
      this.#keep(bytes.subarray(0, at));
      this.#delimited();
      return bytes.subarray(at + delimiter.length);
    }
    const undecided = bytes.length < overlap ? Buffer.concat([this.#tail, bytes]) : bytes;
    if (undecided === bytes) this.#keep(this.#tail);
    const certain = Math.max(0, undecided.length - overlap);
    this.#keep(undecided.subarray(0, certain));
    this.#tail = Buffer.from(undecided.subarray(certain));
    return NO_BYTES;
  }

  #delimiter(): Buffer {
    if (this.#place === 'preamble') return this.#opening;
    return this.#place === 'content' ? this.#closing : CRLF;
  }

  /** Goes on to what comes after the delimiter that has just been read. */
  #delimited(): void {
    this.#tail = NO_BYTES;
    const kept = Buffer.concat(this.#kept);
    this.#forget();
    if (this.#place === 'preamble') {
      this.#place = 'header line';
    } else if (this.#place === 'content') {
      this.#place = 'after boundary';
      if (isModelField(this.#part)) this.#endModelField(kept);
    } else if (kept.length > 0) {
      this.#readHeader(kept.toString('latin1'));
    } else {
      this.#place = 'content';
      this.#parts += 1;
      if (this.#parts > MAX_PARTS) this.#fail(`it has more than ${MAX_PARTS} parts`);
    }
  }

  /** Two bytes say whether another part comes. */
  #readAfterBoundary(bytes: Buffer): Buffer {
    const missing = 2 - this.#keptBytes;
    this.#keep(bytes.subarray(0, missing));
    if (this.#keptBytes === 2) {
      const mark = Buffer.concat(this.#kept).toString('latin1');
      this.#forget();
      this.#part = newPart();
      if (mark === '--') this.#place = 'epilogue';
      else if (mark === '\r\n') this.#place = 'header line';
      else this.#fail('a boundary is followed by neither a line break nor "--"');
    }
    return bytes.subarray(missing);
  }

  #readHeader(line: string): void {
    const part = this.#part;
    part.lines += 1;
    if (part.lines > MAX_PART_HEADERS) this.#fail(`a part has more than ${MAX_PART_HEADERS} headers`);
    if (!HEADER.test(line)) this.#fail('a part has a header that cannot be read');
    const parameters = DISPOSITION.exec(line)?.[1];
    if (parameters === undefined) return;

    const stated = parametersIn(parameters);
    const name = stated.get('name');
    const fileName = stated.get('filename');
    const encodedFileName = stated.get('filename*');
    if (name === undefined) this.#fail('a part has no name');
    else part.name = name;
    if (fileName !== undefined) part.isFile = fileName !== '';
    if (encodedFileName === undefined) return;
    if (!UTF8_FILE_NAME.test(encodedFileName)) this.#fail("a part's filename* is not UTF-8''NAME");
    part.isFile = true;
  }

  #endModelField(name: Buffer): void {
    this.#fields += 1;
    this.#name = name;
    if (!isUtf8(name)) this.#fail('the model name is not valid UTF-8');
  }

  /** Copied, so that a few bytes do not hold on to the chunk in which they came. */
  #keep(bytes: Buffer): void {
    if (bytes.length === 0 || this.#place === 'preamble') return;
    if (this.#place === 'content' && !isModelField(this.#part)) return;
    this.#keptBytes += bytes.length;
    if (this.#place === 'header line' && this.#keptBytes > MAX_HEADER_BYTES) {
      this.#fail(`a header of a part is longer than ${MAX_HEADER_BYTES} bytes`);
    } else if (this.#place === 'content' && this.#keptBytes > MAX_NAME_BYTES) {
      this.#fail(`the model name is longer than ${MAX_NAME_BYTES} bytes`);
    } else {
      this.#kept.push(Buffer.from(bytes));
    }
  }

  #forget(): void {
    this.#kept = [];
    this.#keptBytes = 0;
  }

  /** The first cause is the one to tell. */
  #fail(what: string): void {
    if (this.#problem === '') this.#problem = `the ${FORM_TYPE} body cannot be read: ${what}`;
  }
}

function newPart(): Part {
  return { lines: 0, name: '', isFile: false };
}

function isModelField({ name, isFile }: Part): boolean {
  return name === 'model' && !isFile;
}

/** Its name in any case, as that of every parameter of a media type (RFC 2045, 5.1); empty when there is none. */
function boundaryIn(contentType: string): string {
  const parameters = parametersIn(contentType.slice(contentType.indexOf(';') + 1));
  return [...parameters].find(([name]) => name.toLowerCase() === 'boundary')?.[1] ?? '';
}

/** `a=1; b="2;3"` as a map; of parameters of one name the first counts. */
function parametersIn(text: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const [parameter] of text.matchAll(PARAMETER)) {
    const [key = ''] = parameter.split('=', 1);
    const name = withoutQuotes(withoutBlanks(key));
    if (name !== '' && !parameters.has(name)) {
      parameters.set(name, withoutQuotes(withoutBlanks(parameter.slice(key.length + 1))));
    }
  }
  return parameters;
}

function withoutBlanks(text: string): string {
  return text.replace(/^[ \t]+|[ \t]+$/g, '');
}

function withoutQuotes(text: string): string {
  return text.length >= 2 && text.startsWith('"') && text.endsWith('"') ? text.slice(1, -1) : text;
}
