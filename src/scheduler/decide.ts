/**
 * The scheduler's one decision, pure: given who runs and who waits, which instances start, which stop, which
 * take no new leases, and whose waiters may go on. `Scheduler` calls it after every change and carries it out.
 */

export interface InstanceView {
  readonly model: string;
  /**
   * `ready` covers everything that can take a request: loaded, sleeping, waking. `draining`: an explicit unload, or a
   * change of its model, lets its requests end first, which can take long.
   */
  readonly phase: 'loading' | 'ready' | 'draining' | 'stopping';
  readonly leases: number;
  /** Time of the end of its last request, or of its becoming ready. Milliseconds, monotonic. */
  readonly lastUsed: number;
  /** Time at which it became ready. */
  readonly readySince: number;
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
  /** What the last decision held. */
  readonly held: readonly string[];
  /** Models whose load has run out of memory, and that start once what was stopped for them is gone. */
  readonly cramped: ReadonlySet<string>;
  readonly now: number;
  /** How long traffic to loaded models may hold up a queued one. Milliseconds. */
  readonly fairAfter: number;
}

export interface Decision {
  /** Models whose waiters get their leases: their instance is ready. */
  readonly admit: readonly string[];
  readonly start: readonly string[];
  readonly stop: readonly string[];
  /**
   * All instances that take no new leases from now on, because a starving entry waits for them to become idle; those
   * not named (any more) do. In the order of those entries.
   */
  readonly hold: readonly string[];
}

/**
 * The queue is walked in order of arrival. What each entry whose model is not there yet gets:
 *
 * 1. Its instance is loading, or draining: it waits for that.
 * 2. A slot is free, and no instance of its own is still stopping: it starts; after a load that ran out of memory not
 *    before what was stopped for it is gone, with its memory; its slot is kept for it.
 * 3. An instance is stopping, its slot not yet promised to an entry before it: it waits for that. (One that is
 *    draining promises nothing: a long drain must not keep a model from a slot that an idle one can give.)
 * 4. There is a victim: the least recently used ready instance without leases that nobody waits for. One that is
 *    held is a victim also for entries that came before those that wait for it. It is stopped, one per entry.
 * 5. It has waited `fairAfter` and everything is busy: the instance that has been ready longest is held, so that
 *    its leases run out; not one that an entry before it waits for. One that is held already stays the one: else it would take
 *    new leases just before the old ones have run out.
 * 6. It waits.
 *
 * Then: 7. An entry whose instance is ready is admitted, unless that instance is now held or stopped.
 *
 * Never more instances than the limit, since only a free slot starts one; never a victim with leases; loading
 * instances are never victims.
 */
export function decide({ limit, instances, queue, held, cramped, now, fairAfter }: Snapshot): Decision {
  const byModel = new Map(instances.map((instance) => [instance.model, instance]));
  const placeInQueue = new Map(queue.map((entry, place) => [entry.model, place]));
  const placeInHeld = new Map(held.map((model, place) => [model, place]));
  const start: string[] = [];
  const stop: string[] = [];
  const hold: string[] = [];
  let free = limit === 0 ? Number.POSITIVE_INFINITY : limit - instances.length;
  let freeing = instances.filter((instance) => instance.phase === 'stopping').length;

  const ready = instances.filter(({ phase }) => phase === 'ready');
  const idle = ready
    .filter(({ leases, model }) => leases === 0 && (placeInHeld.has(model) || !placeInQueue.has(model)))
    .sort(byLeastRecentUse);
  const heldFirst = ({ model }: InstanceView): number => placeInHeld.get(model) ?? held.length;
  const busy = ready
    .filter(({ leases }) => leases > 0)
    .sort((a, b) => heldFirst(a) - heldFirst(b) || byReadiness(a, b));

  queue.forEach((entry, place) => {
    const notWantedBefore = ({ model }: InstanceView): boolean =>
      (placeInQueue.get(model) ?? Number.POSITIVE_INFINITY) > place;
    const own = byModel.get(entry.model);
    if (own !== undefined && own.phase !== 'stopping') return; // 1, 7
    if (own === undefined && cramped.has(entry.model)) {
      if (free > 0)
        free -= 1; // 2
      else freeing -= 1;
      return;
    }
    if (free > 0 && own === undefined) {
      start.push(entry.model); // 2
      free -= 1;
      return;
    }
    if (freeing > 0) {
      freeing -= 1; // 3
      return;
    }
    const victim = takeFirst(idle, notWantedBefore);
    if (victim) {
      stop.push(victim.model); // 4
      return;
    }
    const longest = now - entry.since >= fairAfter ? takeFirst(busy, notWantedBefore) : undefined;
    if (longest) hold.push(longest.model); // 5
    // 6
  });

  const withheld = new Set([...hold, ...stop]);
  const admit = queue
    .map((entry) => entry.model)
    .filter((model) => byModel.get(model)?.phase === 'ready' && !withheld.has(model)); // 7
  return { admit, start, stop, hold };
}

/** Removes and returns the first that is suitable. */
function takeFirst(
  instances: InstanceView[],
  suitable: (instance: InstanceView) => boolean,
): InstanceView | undefined {
  const place = instances.findIndex(suitable);
  return place === -1 ? undefined : instances.splice(place, 1)[0];
}

function byLeastRecentUse(a: InstanceView, b: InstanceView): number {
  return a.lastUsed - b.lastUsed || compareIds(a.model, b.model);
}

function byReadiness(a: InstanceView, b: InstanceView): number {
  return a.readySince - b.readySince || compareIds(a.model, b.model);
}

function compareIds(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
