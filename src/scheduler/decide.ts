/**
 * The scheduler's one decision, pure: given who runs and who waits, which instances start, which stop, which
 * take no new leases, and whose waiters may go on. `Scheduler` calls it after every change and carries it out.
 */

export interface InstanceView {
  readonly model: string;
  /** `ready` covers everything that can take a request: loaded, sleeping, waking. */
  readonly phase: 'loading' | 'ready' | 'stopping';
  readonly leases: number;
  /** Time of the end of its last request, or of its becoming ready. Milliseconds, monotonic. */
  readonly lastUsed: number;
  /** Time at which it became ready. */
  readonly readySince: number;
  /** It takes no new leases: a starving queue entry is waiting for it to become idle. */
  readonly held: boolean;
}

/** All waiters for one model; the queue is in order of arrival. */
export interface QueueView {
  readonly model: string;
  readonly since: number;
}

export interface Snapshot {
  /** Number of slots; 0 = unlimited. */
  readonly limit: number;
  readonly instances: readonly InstanceView[];
  readonly queue: readonly QueueView[];
  readonly now: number;
  /** How long traffic to loaded models may hold up a queued one. Milliseconds. */
  readonly fairAfter: number;
}

export interface Decision {
  /** Models whose waiters get their leases: their instance is ready. */
  readonly admit: readonly string[];
  readonly start: readonly string[];
  readonly stop: readonly string[];
  /** All instances that take no new leases from now on; those not named (any more) do. */
  readonly hold: readonly string[];
}

/**
 * The queue is walked in order of arrival. What each entry whose model is not there yet gets:
 *
 * 1. Its instance is loading: it waits for that.
 * 2. A slot is free, and no instance of its own is still stopping: it starts.
 * 3. A slot is becoming free, not yet promised to an entry before it: it waits for that.
 * 4. There is a victim: the least recently used ready instance without leases that nobody waits for. One that is
 *    held is a victim also for entries that came before those that wait for it. It is stopped, one per entry.
 * 5. It has waited `fairAfter` and everything is busy: the instance that has been ready longest is held, so that
 *    its leases run out. One that is held already stays the one.
 * 6. It waits.
 *
 * Then: 7. An entry whose instance is ready is admitted, unless that instance is now held or stopped.
 *
 * Never more instances than the limit, since only a free slot starts one; never a victim with leases; loading
 * instances are never victims.
 */
export function decide({ limit, instances, queue, now, fairAfter }: Snapshot): Decision {
  const byModel = new Map(instances.map((instance) => [instance.model, instance]));
  const placeInQueue = new Map(queue.map((entry, place) => [entry.model, place]));
  const start: string[] = [];
  const stop: string[] = [];
  const hold: string[] = [];
  let free = limit === 0 ? Number.POSITIVE_INFINITY : limit - instances.length;
  let freeing = instances.filter((instance) => instance.phase === 'stopping').length;

  const idle = instances
    .filter(
      ({ phase, leases, held, model }) =>
        phase === 'ready' && leases === 0 && (held || !placeInQueue.has(model)),
    )
    .sort(byLeastRecentUse);
  const busy = instances.filter(({ phase, leases }) => phase === 'ready' && leases > 0).sort(byHolding);

  queue.forEach((entry, place) => {
    const own = byModel.get(entry.model);
    if (own?.phase === 'loading' || own?.phase === 'ready') return; // 1, 7
    if (free > 0 && own === undefined) {
      start.push(entry.model); // 2
      free -= 1;
      return;
    }
    if (freeing > 0) {
      freeing -= 1; // 3
      return;
    }
    const choice = idle.findIndex(
      ({ model }) => (placeInQueue.get(model) ?? Number.POSITIVE_INFINITY) > place,
    );
    const victim = choice === -1 ? undefined : idle.splice(choice, 1)[0];
    if (victim) {
      stop.push(victim.model); // 4
      return;
    }
    const longest = now - entry.since >= fairAfter ? busy.shift() : undefined;
    if (longest) hold.push(longest.model); // 5
    // 6
  });

  const withheld = new Set([...hold, ...stop]);
  const admit = queue
    .map((entry) => entry.model)
    .filter((model) => byModel.get(model)?.phase === 'ready' && !withheld.has(model)); // 7
  return { admit, start, stop, hold };
}

function byLeastRecentUse(a: InstanceView, b: InstanceView): number {
  return a.lastUsed - b.lastUsed || compareBytewise(a.model, b.model);
}

function byHolding(a: InstanceView, b: InstanceView): number {
  return Number(b.held) - Number(a.held) || a.readySince - b.readySince || compareBytewise(a.model, b.model);
}

function compareBytewise(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
