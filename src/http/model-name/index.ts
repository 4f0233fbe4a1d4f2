import { JsonModelScanner, type ModelName } from './json-scanner.js';
import { isMultipartForm, MultipartModelScanner } from './multipart-scanner.js';

export type { ModelName } from './json-scanner.js';

/** Reads the model's name out of a request body that passes by in chunks. */
export interface ModelScanner {
  /** Takes the next bytes of the body, cut anywhere. They are not kept. */
  push(chunk: Buffer): void;
  /** The answer, once the whole body has been pushed. */
  end(): ModelName;
  /** Whether the body asks for its answer as a stream of events; of forms that is not known. */
  readonly asksForStream: boolean;
}

/**
 * The scanner for a body of this Content-Type. All that is not multipart/form-data is read as JSON, as
 * llama-server does: `curl -d` calls its JSON application/x-www-form-urlencoded.
 */
export function modelScannerFor(contentType: string | undefined): ModelScanner {
  if (contentType !== undefined && isMultipartForm(contentType))
    return new MultipartModelScanner(contentType);
  return new JsonModelScanner();
}
