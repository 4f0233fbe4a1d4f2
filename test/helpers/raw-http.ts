import {
  request as openRequest,
  type Agent,
  type ClientRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
} from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

export interface RawRequest {
  method?: string;
  /** An object, or a flat list of names and values: sent in that order and spelling, and then without a Host of its own. */
  headers?: Record<string, string | string[]> | string[];
  /** Sent with a content-length, or chunked as it comes when it is an iterable. */
  body?: string | Buffer | AsyncIterable<Buffer | string>;
  /** Without one, every request has its own connection, closed after it. */
  agent?: Agent;
  /** Called for each piece of the response body as it arrives. */
  onChunk?: (chunk: Buffer) => void;
}

export interface RawHead {
  status: number;
  headers: IncomingHttpHeaders;
  rawHeaders: string[];
}

/** A response. `complete` is false when the connection broke before the body's end: the bytes are what came. */
export interface RawResponse extends RawHead {
  body: Buffer;
  complete: boolean;
}

/** A request on its way. */
export interface RawExchange {
  /** The status line and headers have arrived; rejects when there is no response. */
  head: Promise<RawHead>;
  /** The response is over, whole or broken; rejects when there is no response. */
  ended: Promise<RawResponse>;
  /** The bytes of the body so far. */
  received(): Buffer;
  /** Leaves: closes the connection at once. */
  abort(): void;
  /** Stops reading the response, so that back-pressure builds up. */
  pause(): void;
  resume(): void;
}

/** Sends one HTTP/1.1 request over `node:http`, without redirects, decoding, retries or added headers but Host. */
export function rawExchange(url: string, options: RawRequest = {}): RawExchange {
  const { method = 'GET', headers = {}, body, agent = false, onChunk } = options;
  const chunks: Buffer[] = [];
  let incoming: IncomingMessage | undefined;
  let paused = false;

  const request = openRequest(url, { method, headers: withLength(headers, body), agent });
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    request.once('response', resolve);
    // Stays on: after the response a broken connection is also told here, and `complete` says so.
    request.on('error', reject);
  });
  const head = response.then((message) => {
    incoming = message;
    return { status: message.statusCode ?? 0, headers: message.headers, rawHeaders: message.rawHeaders };
  });
  const ended = response.then(async (message): Promise<RawResponse> => {
    message.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      onChunk?.(chunk);
    });
    if (paused) message.pause();
    await new Promise<void>((resolve) => {
      message.once('close', resolve);
      message.once('error', () => undefined);
    });
    return { ...(await head), body: Buffer.concat(chunks), complete: message.complete };
  });
  // A caller may want only one of the two: the other must not count as an unhandled rejection.
  head.catch(() => undefined);
  ended.catch(() => undefined);
  void sendBody(request, body);

  return {
    head,
    ended,
    received: () => Buffer.concat(chunks),
    abort: () => {
      request.destroy();
    },
    pause: () => {
      paused = true;
      incoming?.pause();
    },
    resume: () => {
      paused = false;
      incoming?.resume();
    },
  };
}

/** The whole response of one request. */
export function rawRequest(url: string, options: RawRequest = {}): Promise<RawResponse> {
  return rawExchange(url, options).ended;
}

/** `value` as a JSON POST. */
export function jsonPost(value: unknown): { method: string; headers: Record<string, string>; body: string } {
  return { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(value) };
}

function withLength(headers: NonNullable<RawRequest['headers']>, body: RawRequest['body']): typeof headers {
  if (typeof body !== 'string' && !Buffer.isBuffer(body)) return headers;
  const names = Array.isArray(headers) ? headers.filter((_entry, at) => at % 2 === 0) : Object.keys(headers);
  if (names.some((name) => /^(content-length|transfer-encoding)$/i.test(name))) return headers;
  const length = String(Buffer.byteLength(body));
  return Array.isArray(headers)
    ? [...headers, 'Content-Length', length]
    : { ...headers, 'content-length': length };
}

async function sendBody(request: ClientRequest, body: RawRequest['body']): Promise<void> {
  if (body === undefined || typeof body === 'string' || Buffer.isBuffer(body)) {
    request.end(body);
    return;
  }
  try {
    await pipeline(Readable.from(body), request);
  } catch {
    // The server may answer and close before it has read everything; the request's own error tells the rest.
  }
}
