/**
 * The protocol between llama-server's router and its children (tools/server/server-models.cpp): the child
 * writes state lines on stdout when `LLAMA_SERVER_ROUTER_PORT` is in its environment, and takes one command on
 * stdin. Everything else a child prints is its log.
 */
import type { LoadProgress, ModelInfo } from './state.js';

/** Its presence tells a llama-server that it is a router's child. The child does not use the value. */
export const childMarkerVariable = 'LLAMA_SERVER_ROUTER_PORT';

export const exitCommand = 'cmd_router_to_child:exit\n';

const statePrefix = 'cmd_child_to_router:state:';

/** Real payloads are four deep. One of thousands of levels can be read, but `JSON.stringify` of it overflows the stack. */
const maxPayloadDepth = 32;

export type ChildMessage =
  | { readonly kind: 'loading'; readonly progress: LoadProgress | undefined }
  | { readonly kind: 'ready'; readonly info: ModelInfo | undefined }
  | { readonly kind: 'sleeping' };

/** How far the download of one file is; a repository may have several under way. */
export interface DownloadProgress {
  readonly url: string;
  readonly downloadedBytes: number;
  /** 0 while it is not known. */
  readonly totalBytes: number;
}

/** What a download worker reports. */
export type WorkerMessage =
  | { readonly kind: 'progress'; readonly progress: DownloadProgress }
  | { readonly kind: 'result'; readonly ok: boolean };

/**
 * The message a stdout line carries, or undefined when it is an ordinary log line. A line with a broken payload
 * or a state we do not know is a log line too: what a child prints must not be able to hurt its supervisor.
 */
export function parseChildLine(line: string): ChildMessage | undefined {
  const { state, payload } = stateIn(line) ?? {};
  switch (state) {
    case 'loading':
      return { kind: 'loading', progress: payload };
    case 'ready':
      return { kind: 'ready', info: payload };
    case 'sleeping':
      return { kind: 'sleeping' };
    default:
      return undefined;
  }
}

/** The message a stdout line of a download worker carries; undefined for every other line, also for one that is broken. */
export function parseWorkerLine(line: string): WorkerMessage | undefined {
  const { state, payload } = stateIn(line) ?? {};
  if (state !== 'downloading' || payload === undefined) return undefined;
  const { result, url, downloaded, total } = payload;
  if (result === 'download_finished' || result === 'download_failed') {
    return { kind: 'result', ok: result === 'download_finished' };
  }
  if (typeof url !== 'string' || typeof downloaded !== 'number' || typeof total !== 'number') {
    return undefined;
  }
  return { kind: 'progress', progress: { url, downloadedBytes: downloaded, totalBytes: total } };
}

/** The content of a state line; undefined for every other line. */
function stateIn(
  line: string,
): { readonly state: unknown; readonly payload: Record<string, unknown> | undefined } | undefined {
  if (!line.startsWith(statePrefix)) return undefined;
  let message: unknown;
  try {
    message = JSON.parse(line.slice(statePrefix.length));
  } catch {
    return undefined;
  }
  if (!isRecord(message) || isDeeperThan(maxPayloadDepth, message)) return undefined;
  const { state, payload } = message;
  return { state, payload: isRecord(payload) ? payload : undefined };
}

function isDeeperThan(depth: number, value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return depth === 0 || Object.values(value).some((inner) => isDeeperThan(depth - 1, inner));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
