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

export type ChildMessage =
  | { readonly kind: 'loading'; readonly progress: LoadProgress | undefined }
  | { readonly kind: 'ready'; readonly info: ModelInfo | undefined }
  | { readonly kind: 'sleeping' };

/**
 * The message a stdout line carries, or undefined when it is an ordinary log line. A line with a broken payload
 * or a state we do not know is a log line too: what a child prints must not be able to hurt its supervisor.
 */
export function parseChildLine(line: string): ChildMessage | undefined {
  if (!line.startsWith(statePrefix)) return undefined;
  let message: unknown;
  try {
    message = JSON.parse(line.slice(statePrefix.length));
  } catch {
    return undefined;
  }
  if (!isRecord(message)) return undefined;
  const payload = isRecord(message['payload']) ? message['payload'] : undefined;
  switch (message['state']) {
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

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
