import type { ChildAddress } from './ask-child.js';
import { CpuEvidence } from './cpu-evidence.js';
import { GpuTimeEvidence } from './gpu-time-evidence.js';
import { HangWatch, lookIntervalMs } from './hang-watch.js';
import { NvidiaEvidence, type NvidiaSmi } from './nvidia-evidence.js';
import { probeOneToken } from './one-token-probe.js';
import { SlotsEvidence } from './slots-evidence.js';

export interface WatchedChild {
  /** Process and process group id. */
  readonly pid: number;
  readonly address: ChildAddress;
  /** Above 0. */
  readonly hangTimeoutMs: number;
  /** Whether its model is loaded now, neither asleep nor waking up. */
  readonly isAwake: () => boolean;
  /** Called once, with words that continue a sentence which begins with the child's process. */
  readonly onHang: (reason: string) => void;
  /** Aborted when the child is stopped or gone; ends the watch. */
  readonly signal: AbortSignal;
  /** One for all children. */
  readonly nvidiaSmi: NvidiaSmi;
}

/** How long an answer about slots may take; where batches are not waited for it comes at once. Milliseconds. */
const slotsPatienceMs = 5_000;

/** One token of a large model on a slow processor; after it the child's other signs of life count. Milliseconds. */
const probePatienceMs = 30_000;

/** Watches one ready child, by everything that can be seen of it from outside. */
export function watchChild(child: WatchedChild): HangWatch {
  const { pid, address, hangTimeoutMs, isAwake, onHang, signal, nvidiaSmi } = child;
  const cpu = new CpuEvidence(pid);
  // The one that reads the processes comes first, and the one that runs a program last.
  const evidence = [
    cpu,
    new GpuTimeEvidence(() => cpu.pids),
    new SlotsEvidence({
      address,
      timeoutMs: Math.min(slotsPatienceMs, lookIntervalMs(hangTimeoutMs)),
      isAwake,
      signal,
    }),
    new NvidiaEvidence(() => cpu.pids, nvidiaSmi),
  ];
  const timeoutMs = Math.min(probePatienceMs, hangTimeoutMs);
  const probe = () => probeOneToken(address, { timeoutMs, signal });
  const watch = new HangWatch({ hangTimeoutMs, evidence, probe, isAwake, onHang });
  signal.addEventListener('abort', () => watch.close(), { once: true });
  if (signal.aborted) watch.close();
  return watch;
}
