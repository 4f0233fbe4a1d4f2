import { Busboy, type BusboyInstance } from '@fastify/busboy';

import { MAX_NAME_BYTES, type ModelName } from './json-scanner.js';

// llama-server refuses a form of more parts.
const MAX_PARTS = 1024;
const MAX_PART_HEADER_BYTES = 16 * 1024;

// What the decoder puts where bytes are not UTF-8. No model is named with it.
const REPLACEMENT_CHARACTER = '\ufffd';

/**
 * Finds the text field `model` of a multipart/form-data body. Other parts are not kept, files included.
 *
 * As in llama-server a part with a file name is a file, and one without or with an empty one is text,
 * whatever its content type. A repeated field makes a list there, hence no name here.
 */
export class MultipartModelScanner {
  private readonly parser: BusboyInstance | undefined;
  private readonly parsed: Promise<void>;
  private fields = 0;
  private name = '';
  private problem = '';

  /** `contentType` is the request's header; one without a usable boundary makes the body malformed. */
  constructor(contentType: string) {
    let parser: BusboyInstance;
    try {
      parser = new Busboy({
        headers: { 'content-type': contentType },
        preservePath: true,
        isPartAFile: (field, _type, filename) =>
          field !== 'model' || (filename !== undefined && filename !== ''),
        limits: { parts: MAX_PARTS, fieldSize: MAX_NAME_BYTES, headerSize: MAX_PART_HEADER_BYTES },
      });
    } catch (error) {
      this.fail(error);
      this.parsed = Promise.resolve();
      return;
    }
    this.parser = parser;
    // Nobody listens for files, which makes the parser drop their bytes as it meets them.
    parser.on('field', (_field, value, _fieldTruncated, valueTruncated) => {
      if (valueTruncated) this.fail(`the model name is longer than ${MAX_NAME_BYTES} bytes`);
      else if (value.includes(REPLACEMENT_CHARACTER)) this.fail('the model name is not valid UTF-8');
      this.fields++;
      this.name = value;
    });
    parser.on('partsLimit', () => this.fail(`it has more than ${MAX_PARTS} parts`));
    this.parsed = new Promise((resolve) => {
      parser.on('finish', resolve);
      parser.on('error', (error) => {
        this.fail(error);
        resolve();
      });
    });
  }

  /** Takes the next bytes of the body, as they came from the socket. */
  push(chunk: Buffer): void {
    if (this.problem === '') this.parser?.write(chunk);
  }

  /** The answer, once the whole body has been pushed. */
  async end(): Promise<ModelName> {
    if (this.problem === '') {
      this.parser?.end();
      await this.parsed;
    }
    if (this.problem !== '') return { kind: 'malformed', reason: this.problem };
    return this.name === '' || this.fields > 1 ? { kind: 'missing' } : { kind: 'found', name: this.name };
  }

  /** The first cause is the one to tell. */
  private fail(cause: unknown): void {
    const what = cause instanceof Error ? cause.message : String(cause);
    if (this.problem === '') this.problem = `the multipart/form-data body cannot be read: ${what}`;
  }
}
