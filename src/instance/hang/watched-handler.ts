import type { Dispatcher } from 'undici';
import { isBrokenByChild } from './broken-connection.js';
import type { HangWatch, WatchedRequest } from './hang-watch.js';
import { onlyComments } from './sse-comments.js';

/**
 * POST routes that llama-server answers without the loop that does the work: they go on working in a child that is
 * wedged, and say nothing about it. Each may stand behind a prefix.
 */
const besideTheLoop =
  /\/(?:tokenize|detokenize|apply-template|input_tokens|count_tokens|streams\/lookup|props)\/?$/;

/**
 * Whether a request needs the child's model to be at work. What only looks does not: it may be a stream that is silent
 * for good reason, or be answered by a child that does nothing else any more.
 *
 * @param path with or without a query
 */
export function isWork(method: string, path: string): boolean {
  const [route = ''] = path.split('?', 1);
  return method === 'POST' && !besideTheLoop.test(route);
}

/** Tells a watch of one request what the handler hears of it. */
export class WatchedHandler implements Dispatcher.DispatchHandler {
  readonly #handler: Dispatcher.DispatchHandler;
  readonly #request: WatchedRequest;
  #controller: Dispatcher.DispatchController | undefined;

  /** To be given to a dispatcher at once: the request is in flight from now on. */
  constructor(handler: Dispatcher.DispatchHandler, watch: Pick<HangWatch, 'begin'>) {
    this.#handler = handler;
    this.#request = watch.begin(() => this.#controller?.paused === true);
  }

  onRequestStart(controller: Dispatcher.DispatchController, context: unknown): void {
    this.#controller = controller;
    this.#handler.onRequestStart?.(controller, context);
  }

  onResponseStart(
    controller: Dispatcher.DispatchController,
    statusCode: number,
    headers: Record<string, string | string[] | undefined>,
    statusMessage?: string,
  ): void {
    // Informational answers (1xx) come from the part of the child that reads, not from the one that works.
    if (statusCode >= 200) this.#request.answered(statusCode);
    this.#handler.onResponseStart?.(controller, statusCode, headers, statusMessage);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (!onlyComments(chunk)) this.#request.progressed();
    this.#handler.onResponseData?.(controller, chunk);
  }

  onResponseEnd(
    controller: Dispatcher.DispatchController,
    trailers: Record<string, string | string[] | undefined>,
  ): void {
    this.#request.ended();
    this.#handler.onResponseEnd?.(controller, trailers);
  }

  onResponseError(controller: Dispatcher.DispatchController, error: Error): void {
    // What we have cut ourselves says nothing about the child, or, where it was silent for too long, nothing new.
    if (this.#controller?.aborted !== true && isBrokenByChild(error)) this.#request.broken(error.message);
    else this.#request.ended();
    this.#handler.onResponseError?.(controller, error);
  }
}
