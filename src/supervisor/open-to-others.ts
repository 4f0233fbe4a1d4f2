import { endpointName, type Listeners } from '../http/listening.js';
import type { Logger } from '../observe/log.js';

export interface OpenToOthersOptions {
  readonly listeners: Listeners;
  /** Whether some key is asked for. */
  readonly hasKeys: boolean;
  /** Whether Vertex AI runs this: nobody else reaches the container, and it sends no key. */
  readonly isVertex: boolean;
  readonly log: Logger;
}

/**
 * Warns of addresses that other machines may reach while no key is asked for. A Unix socket does not count: who may
 * connect to it is for the modes of its file and directory.
 */
export function warnIfOpenToOthers({ listeners, hasKeys, isVertex, log }: OpenToOthersOptions): void {
  if (hasKeys || isVertex) return;
  const addresses = listeners.beyondLoopback.map(endpointName);
  if (addresses.length === 0) return;
  log.warn(
    { addresses },
    `NO API KEY: whoever reaches ${addresses.join(' or ')} may use, load, download and delete models; ` +
      'set --api-key or --api-key-file, or listen on this machine only (--host 127.0.0.1)',
  );
}
