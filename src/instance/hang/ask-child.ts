import { createHash } from 'node:crypto';
import { Client, errors } from 'undici';
import { isBrokenByChild } from './broken-connection.js';

/** Where a child is asked, and with which key. */
export interface ChildAddress {
  readonly port: number;
  readonly apiKey: string;
  /** In front of all of its routes: its `--api-prefix`, or empty. */
  readonly apiPrefix: string;
}

export interface ChildQuestion {
  readonly method: 'GET' | 'POST';
  /** Without the prefix. */
  readonly path: string;
  /** JSON. */
  readonly body?: string;
  /** From the connecting to the last byte. */
  readonly timeoutMs: number;
  /** Aborted when the answer is not wanted any more. */
  readonly signal: AbortSignal;
}

export interface ChildAnswer {
  readonly status: number;
  /** SHA-256 of the body: equal when the bodies are. */
  readonly digest: string;
}

/**
 * No whole answer: the child has refused or broken the connection, or has not answered in time; or the question could not
 * be put to it, or was called off, and then nothing is known.
 */
export type NoAnswer = 'broken' | 'late' | 'not asked';

/** Answers to our own questions are small; one that is larger counts as broken. */
const maxAnswerBytes = 16 * 1024 * 1024;

/** Asks a child something on a connection of its own: those of the requests may all be waiting for the child. Never rejects. */
export async function askChild(
  { port, apiKey, apiPrefix }: ChildAddress,
  { method, path, body, timeoutMs, signal }: ChildQuestion,
): Promise<ChildAnswer | NoAnswer> {
  const client = new Client(`http://127.0.0.1:${port}`, {
    // The signal below bounds it as a whole.
    headersTimeout: 0,
    bodyTimeout: 0,
    maxResponseSize: maxAnswerBytes,
    connect: { timeout: timeoutMs },
  });
  // Not AbortSignal.any(…timeout()): the garbage collector of Node 20 takes such a signal, and it never fires.
  const end = new AbortController();
  const giveUp = (): void => end.abort();
  const timer = setTimeout(giveUp, timeoutMs);
  signal.addEventListener('abort', giveUp, { once: true });
  if (signal.aborted) giveUp();
  try {
    const response = await client.request({
      method,
      path: apiPrefix + path,
      headers: {
        authorization: `Bearer ${apiKey}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      ...(body === undefined ? {} : { body }),
      signal: end.signal,
    });
    const hash = createHash('sha256');
    for await (const chunk of response.body as AsyncIterable<Buffer>) hash.update(chunk);
    return { status: response.statusCode, digest: hash.digest('base64') };
  } catch (error) {
    if (signal.aborted) return 'not asked';
    if (end.signal.aborted || error instanceof errors.ConnectTimeoutError) return 'late';
    return isBrokenByChild(error) ? 'broken' : 'not asked';
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', giveUp);
    await client.destroy();
  }
}
