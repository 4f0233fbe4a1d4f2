import { readFile } from 'node:fs/promises';

export interface ProcessMemoryOptions {
  /** How long a reading is good for. Default 1 s. */
  readonly maxAgeMs?: number;
  /** How long a look may take; what is not read by then is left out. Default 100 ms: a reading takes less than one. */
  readonly patienceMs?: number;
  /** For tests: what `/proc/PID/status` says. */
  readonly readStatus?: (pid: number) => Promise<string>;
  /** For tests: milliseconds, monotonic. */
  readonly now?: () => number;
}

interface Reading {
  /** When it was begun. Milliseconds, monotonic. */
  readonly since: number;
  /** Undefined when there is no such process, or no way to ask. */
  readonly bytes: Promise<number | undefined>;
  settled: boolean;
}

/**
 * How much memory processes hold: what is resident, the pages of mapped model files among it. Known on Linux only.
 *
 * Readings are kept for a moment, so that however often and by however many it is asked, a process costs one reading a
 * second; one of which nobody asks costs nothing. They are not made on this thread: who reads of a process that ends
 * just then may be the one to give back its gigabytes.
 */
export class ProcessMemory {
  readonly #maxAgeMs: number;
  readonly #patienceMs: number;
  readonly #readStatus: (pid: number) => Promise<string>;
  readonly #now: () => number;
  #readings: ReadonlyMap<number, Reading> = new Map();

  constructor({
    maxAgeMs = 1_000,
    patienceMs = 100,
    readStatus = readProcStatus,
    now = () => performance.now(),
  }: ProcessMemoryOptions = {}) {
    this.#maxAgeMs = maxAgeMs;
    this.#patienceMs = patienceMs;
    this.#readStatus = readStatus;
    this.#now = now;
  }

  /**
   * The resident memory of each of the processes, in bytes. Left out are those that are gone, those that did not answer
   * in time, and all of them where the system does not tell. Never rejects.
   */
  async of(pids: Iterable<number>): Promise<ReadonlyMap<number, number>> {
    const now = this.#now();
    const readings = new Map<number, Reading>();
    for (const pid of pids) readings.set(pid, this.#readingOf(pid, now));
    // What others asked for stays while it is good, or on its way; the rest is forgotten here.
    const kept = [...this.#readings].filter(([, reading]) => this.#isGood(reading, now));
    this.#readings = new Map([...kept, ...readings]);

    const found = new Map<number, number>();
    const all = Array.from(readings, async ([pid, { bytes }]) => {
      const resident = await bytes;
      if (resident !== undefined) found.set(pid, resident);
    });
    await settledWithin(Promise.all(all), this.#patienceMs);
    // A copy: what comes too late must not appear in it afterwards.
    return new Map(found);
  }

  /** One that does not answer is not asked again: it would fill the threads that read files. */
  #isGood({ settled, since }: Reading, now: number): boolean {
    return !settled || now - since < this.#maxAgeMs;
  }

  #readingOf(pid: number, now: number): Reading {
    const earlier = this.#readings.get(pid);
    if (earlier !== undefined && this.#isGood(earlier, now)) return earlier;
    const bytes = this.#readStatus(pid).then(residentBytes, () => undefined);
    const reading: Reading = { since: now, bytes, settled: false };
    void bytes.then(() => (reading.settled = true));
    return reading;
  }
}

function readProcStatus(pid: number): Promise<string> {
  return readFile(`/proc/${pid}/status`, 'latin1');
}

/**
 * Reads the line `VmRSS:    5468 kB`, where kB are 1024 bytes. A process that has ended and was not waited for has none.
 *
 * @see https://www.kernel.org/doc/html/latest/filesystems/proc.html
 */
function residentBytes(status: string): number | undefined {
  const [, kibibytes] = /^VmRSS:\s*(\d+) kB$/m.exec(status) ?? [];
  return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
}

async function settledWithin(promise: Promise<unknown>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  await Promise.race([promise, patience]);
  clearTimeout(timer);
}
