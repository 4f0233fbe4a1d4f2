import type { ErrorCode } from '../errors.js';
import type { DownloadOutcome } from '../instance/download-worker.js';

/** Why a download did not bring its model. */
export interface DownloadFailure {
  readonly reason: ErrorCode | 'cancelled';
  /** One sentence: what happened. */
  readonly message: string;
  /** What the worker wrote last, oldest line first. */
  readonly lastLines: readonly string[];
}

/**
 * What llama-server writes when a download fails (common/download.cpp, common/hf-cache.cpp), by what it means; the
 * first that fits counts. That a file cannot be written it says without the system's reason.
 */
const WORDS: readonly (readonly [words: RegExp, reason: ErrorCode, advice: string])[] = [
  [
    /(error writing to file|No space left on device|Disk quota exceeded).*/,
    'disk_full',
    'make room; the next try goes on where this one stopped',
  ],
  [/error opening local file for writing.*/, 'internal', 'look whether the cache can be written to'],
  [
    /(failed with status code: 40[13]|GET failed \(40[13]\)).*/,
    'hub_refused',
    'it needs a token (--hf-token or HF_TOKEN) that is good for it',
  ],
  [/(failed with status code: 404|GET failed \(404\)).*/, 'hub_not_found', 'the hub does not have it'],
  [
    /(download failed:|HTTPLIB failed|failed with status code:|GET failed|did not respond with 206).*/,
    'hub_unreachable',
    'the next try goes on where this one stopped',
  ],
];

/**
 * What is to be told of a worker that did not bring what it was to bring.
 *
 * @param message what happened, in one sentence
 * @param otherwise the reason when its words give none
 */
export function failureByWords(
  { message, lastLines }: Pick<DownloadOutcome, 'message' | 'lastLines'>,
  otherwise: ErrorCode,
): DownloadFailure {
  const text = lastLines.join('\n');
  for (const [words, reason, advice] of WORDS) {
    const said = words.exec(text)?.[0];
    if (said !== undefined) return { reason, message: `${message}: ${said} (${advice})`, lastLines };
  }
  // Its last line only counts them: "download completed with errors".
  const said = lastLines.findLast((line) => /error:|failed/i.test(line));
  return {
    reason: otherwise,
    message: said === undefined ? message : `${message}: ${said.trim()}`,
    lastLines,
  };
}

/** What is to be told of a download that failed by its worker's end. */
export function failureOf(outcome: DownloadOutcome & { readonly kind: 'failed' }): DownloadFailure {
  const { how, message, lastLines } = outcome;
  switch (how) {
    case 'reported':
      return failureByWords(outcome, 'internal');
    case 'exited':
      return { reason: 'child_gone', message, lastLines };
    case 'silent':
      return { reason: 'child_timeout', message, lastLines };
  }
}
