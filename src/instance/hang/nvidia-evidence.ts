import { execa } from 'execa';
import { systemClock, type Clock } from './clock.js';
import type { Evidence, Finding } from './evidence.js';

/** Percent of the busiest unit of a GPU, by process id. */
export type GpuUse = ReadonlyMap<number, number>;

export interface NvidiaSmiOptions {
  readonly timeoutMs?: number;
  readonly clock?: Pick<Clock, 'now'>;
}

/** It samples for about a second; a driver in trouble may not answer it at all. */
const askTimeoutMs = 5_000;
const maxOutputBytes = 1024 * 1024;

/** After a failure it is left alone for so long: what it failed for may pass, but not within seconds. Milliseconds. */
const afterFailureMs = 5 * 60_000;

/**
 * What `nvidia-smi` says of the processes on NVIDIA's GPUs. One for all children: those who ask at once share one run
 * of it. Where it is not installed it is not tried again.
 */
export class NvidiaSmi {
  readonly #program: string;
  readonly #timeoutMs: number;
  readonly #clock: Pick<Clock, 'now'>;
  #running: Promise<GpuUse | undefined> | undefined;
  /** As its clock counts. */
  #notBefore = Number.NEGATIVE_INFINITY;

  /** All for tests. */
  constructor(
    program = 'nvidia-smi',
    { timeoutMs = askTimeoutMs, clock = systemClock }: NvidiaSmiOptions = {},
  ) {
    this.#program = program;
    this.#timeoutMs = timeoutMs;
    this.#clock = clock;
  }

  /** The processes that are on a GPU now; undefined when it does not tell. Never rejects. */
  async use(): Promise<GpuUse | undefined> {
    if (this.#clock.now() < this.#notBefore) return undefined;
    this.#running ??= this.#ask().finally(() => (this.#running = undefined));
    return await this.#running;
  }

  async #ask(): Promise<GpuUse | undefined> {
    const { stdout, failed, timedOut, code } = await execa(this.#program, ['pmon', '-c', '1', '-s', 'u'], {
      reject: false,
      stdin: 'ignore',
      stderr: 'ignore',
      timeout: this.#timeoutMs,
      killSignal: 'SIGKILL',
      maxBuffer: maxOutputBytes,
    });
    if (!failed) return parsePmon(stdout);
    // What is not there, or must not be run, is not looked for again; what was late once may be in time the next time.
    if (code === 'ENOENT' || code === 'EACCES') this.#notBefore = Number.POSITIVE_INFINITY;
    else if (!timedOut) this.#notBefore = this.#clock.now() + afterFailureMs;
    return undefined;
  }
}

/** Whether a child's processes are seen at work on an NVIDIA GPU; a process that is on none has nothing to show. */
export class NvidiaEvidence implements Evidence {
  readonly #pids: () => readonly number[];
  readonly #nvidiaSmi: NvidiaSmi;

  constructor(pids: () => readonly number[], nvidiaSmi: NvidiaSmi) {
    this.#pids = pids;
    this.#nvidiaSmi = nvidiaSmi;
  }

  async look(): Promise<Finding> {
    const use = await this.#nvidiaSmi.use();
    const percents = this.#pids().flatMap((pid) => use?.get(pid) ?? []);
    if (percents.length === 0) return { kind: 'unknown' };
    if (percents.some((percent) => percent > 0)) return { kind: 'progress' };
    return { kind: 'none', said: 'nvidia-smi saw it use no GPU' };
  }
}

/**
 * Reads the table of `nvidia-smi pmon`: a line of column names after `#`, one of units, then a line a process, with `-`
 * for what is not known or zero. Columns come and go with versions, so that they are found by their names.
 */
export function parsePmon(output: string): GpuUse {
  const use = new Map<number, number>();
  let columns: readonly string[] = [];
  for (const line of output.split('\n')) {
    const cells = line.replace('#', ' ').trim().split(/\s+/);
    if (line.startsWith('#')) {
      if (cells.includes('pid')) columns = cells;
      continue;
    }
    const pid = Number(cells[columns.indexOf('pid')]);
    if (!Number.isInteger(pid)) continue;
    const percents = ['sm', 'mem', 'enc', 'dec'].map((unit) => Number(cells[columns.indexOf(unit)]));
    use.set(pid, Math.max(use.get(pid) ?? 0, ...percents.filter((percent) => !Number.isNaN(percent))));
  }
  return use;
}
