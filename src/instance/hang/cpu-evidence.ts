import type { Evidence, Finding } from './evidence.js';
import { familyOf, processTable, type ProcessTable } from './process-activity.js';

/**
 * Less than this share of one core is not work: answering our own looks (a millisecond each, seconds apart) and waking
 * up to see whether a client is still there (every second per request) stay far below it, while a model that is
 * computed, or read from a slow disk, is far above.
 */
const idleShare = 0.01;

/** So little says nothing after however short a time: a request that is refused, a timer, a look of ours. */
const negligibleMs = 100;

/** Two readings may differ by one step although nothing but a moment lies between them. */
const meaningfulSteps = 2;

/** The processor time of a child's processes, grandchildren included. */
export class CpuEvidence implements Evidence {
  readonly #root: number;
  readonly #table: () => Promise<ProcessTable | undefined>;
  /** As of the last look with progress: what is told in coarse steps adds up over several looks. */
  #before: ReadonlyMap<number, number> | undefined;
  #pids: readonly number[];

  /** @param root process and process group id of the child */
  constructor(root: number, table = processTable) {
    this.#root = root;
    this.#table = table;
    this.#pids = [root];
  }

  /** The child's processes as the last look has found them. */
  get pids(): readonly number[] {
    return this.#pids;
  }

  async look(quietMs: number): Promise<Finding> {
    const table = await this.#table();
    const family = familyOf(this.#root, table?.processes ?? []);
    if (!table || family.length === 0) return { kind: 'unknown' };
    this.#pids = family.map(({ pid }) => pid);
    const now = new Map(family.map(({ pid, cpuMs }) => [pid, cpuMs]));
    const before = this.#before;
    if (!before) {
      this.#before = now;
      return { kind: 'first' };
    }
    let usedMs = 0;
    // By process: one that has ended takes its time with it, and must not hide what the others did.
    for (const [pid, cpuMs] of now) usedMs += Math.max(0, cpuMs - (before.get(pid) ?? 0));
    if (usedMs >= Math.max(quietMs * idleShare, negligibleMs, meaningfulSteps * table.resolutionMs)) {
      this.#before = now;
      return { kind: 'progress' };
    }
    return { kind: 'none', said: `it used ${(usedMs / 1_000).toFixed(2)} s of processor time` };
  }
}
