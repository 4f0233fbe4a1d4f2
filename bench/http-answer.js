/**
 * Reads HTTP/1.1 answers off a connection, as much as the load generator needs of it. A generator that shares
 * two cores with what it measures must cost little: Node's own client costs several times as much per request.
 */
export class HttpAnswer {
  status = 0;
  /** Whether the server said that it closes the connection after this answer. */
  closes = false;
  /** When the first byte of the body was there, in milliseconds of `performance.now()`. */
  firstByteAt = 0;
  #parts = [];
  #read = this.#readHead;
  /** Of the body, or of the current chunk. */
  #bytesLeft = 0;
  #chunked = false;
  #unread = Buffer.alloc(0);

  /**
   * @param {Buffer} bytes what came next on the connection
   * @returns {boolean} whether the answer is whole
   */
  push(bytes) {
    this.#unread = this.#unread.length === 0 ? bytes : Buffer.concat([this.#unread, bytes]);
    while (this.#read());
    return this.#read === this.#readNothing;
  }

  get body() {
    return this.#parts.length === 1 ? this.#parts[0] : Buffer.concat(this.#parts);
  }

  /** Each step reads one element, chooses the next step, and says whether there may be enough bytes for it. */
  #readHead() {
    const end = this.#unread.indexOf('\r\n\r\n');
    if (end === -1) return false;
    const head = this.#unread.latin1Slice(0, end);
    this.#unread = this.#unread.subarray(end + 4);
    this.status = Number(/^HTTP\/1\.[01] (\d{3})/.exec(head)?.[1]);
    if (Number.isNaN(this.status)) throw new Error(`not an answer in HTTP/1.1: ${head.slice(0, 80)}`);
    this.closes = /\r\nconnection: *close/i.test(head);
    this.#chunked = /\r\ntransfer-encoding: *chunked/i.test(head);
    if (this.#chunked) {
      this.#read = this.#readChunkSize;
      return true;
    }
    const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1];
    if (length === undefined) throw new Error(`an answer without a length: ${head}`);
    this.#bytesLeft = Number(length);
    this.#read = this.#bytesLeft === 0 ? this.#readNothing : this.#readBytes;
    return this.#bytesLeft > 0;
  }

  #readBytes() {
    if (this.#unread.length === 0) return false;
    if (this.#parts.length === 0) this.firstByteAt = performance.now();
    const part = this.#unread.subarray(0, this.#bytesLeft);
    this.#parts.push(part);
    this.#bytesLeft -= part.length;
    this.#unread = this.#unread.subarray(part.length);
    if (this.#bytesLeft > 0) return false;
    this.#read = this.#chunked ? this.#readChunkEnd : this.#readNothing;
    return this.#chunked;
  }

  #readChunkSize() {
    const end = this.#unread.indexOf('\r\n');
    if (end === -1) return false;
    const text = this.#unread.latin1Slice(0, end);
    this.#bytesLeft = Number.parseInt(text, 16);
    if (Number.isNaN(this.#bytesLeft)) throw new Error(`not the size of a chunk: ${text.slice(0, 80)}`);
    this.#unread = this.#unread.subarray(end + 2);
    this.#read = this.#bytesLeft === 0 ? this.#readTrailer : this.#readBytes;
    return true;
  }

  #readChunkEnd() {
    if (this.#unread.length < 2) return false;
    this.#unread = this.#unread.subarray(2);
    this.#read = this.#readChunkSize;
    return true;
  }

  #readTrailer() {
    const end = this.#unread.indexOf('\r\n');
    if (end === -1) return false;
    this.#unread = this.#unread.subarray(end + 2);
    if (end > 0) return true;
    this.#read = this.#readNothing;
    return false;
  }

  #readNothing() {
    return false;
  }
}
