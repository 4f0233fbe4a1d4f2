import fc from 'fast-check';
import { afterEach, beforeEach, it, vi } from 'vitest';
import type { SchedulerOptions } from '../../../src/scheduler/scheduler.js';
import { SchedulerBooks } from './scheduler-books.js';
import { broken, firstForm, gone, stopTheClock, type Form } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => {
  vi.useRealTimers();
});

const models = ['a', 'b', 'c', 'd', 'e'];

/** About three seconds' worth; WALKS=20000 after a change of the scheduler meets what is rare as well. */
const walks = Number(process.env['WALKS'] ?? 300);

/** Time passes in steps of this; the scheduler's own times are multiples of it. Milliseconds. */
const tickMs = 10;

/** Few slots, short queues and short times, so that every bound is met. */
const options: fc.Arbitrary<SchedulerOptions> = fc.record({
  modelsMax: fc.constantFrom(0, 1, 1, 2, 2, 3, 4),
  queueMax: fc.constantFrom(1, 3, 6, 10),
  inFlightMax: fc.constantFrom(0, 0, 1, 2),
  queueTimeoutMs: fc.constantFrom(200, 1_000),
  fairAfterMs: fc.constantFrom(0, 50, 300),
  loadTimeoutMs: fc.constant(600_000),
  drainTimeoutMs: fc.constantFrom(20, 500),
});

const form: fc.Arbitrary<Form> = fc.constantFrom(
  firstForm,
  firstForm,
  'second form',
  'third form',
  gone,
  broken,
);

/** What a new catalog says of some models; of none when something else has changed. */
const forms: fc.Arbitrary<Readonly<Record<string, Form>>> = fc
  .subarray(models)
  .chain((some) => fc.record(Object.fromEntries(some.map((model) => [model, form]))));

type Step = fc.AsyncCommand<SchedulerBooks, SchedulerBooks>;

/** One thing that can happen; afterwards the books are compared. */
function step(
  label: string,
  isPossible: (books: SchedulerBooks) => boolean,
  happens: (books: SchedulerBooks) => void | Promise<void>,
): Step {
  return {
    toString: () => label,
    check: isPossible,
    run: async (books) => {
      await happens(books);
      await books.compare();
    },
  };
}

/** A step on one of those that are there, whichever these are then. */
function stepOnOne<T>(
  label: string,
  candidates: (books: SchedulerBooks) => readonly T[],
  happens: (one: T, books: SchedulerBooks) => void,
): fc.Arbitrary<Step> {
  return fc.nat({ max: 11 }).map((n) =>
    step(
      `${label} #${n}`,
      (books) => candidates(books).length > 0,
      (books) => {
        const all = candidates(books);
        const one = all[n % all.length];
        if (one !== undefined) happens(one, books);
      },
    ),
  );
}

/** A step on any of the models, whether it makes sense then or not. */
function stepOnModel(
  label: string,
  happens: (model: string, books: SchedulerBooks) => void,
): fc.Arbitrary<Step> {
  return fc.constantFrom(...models).map((model) =>
    step(
      `${label} ${model}`,
      () => true,
      (books) => happens(model, books),
    ),
  );
}

const newCatalog = forms.map((given) =>
  step(
    `catalog with ${Object.entries(given)
      .map(([model, is]) => `${model}: ${is instanceof Error ? is.message : is}`)
      .join(', ')}`,
    () => true,
    (books) => books.publish(given),
  ),
);

const pause = fc.integer({ min: 1, max: 30 }).map((ticks) =>
  step(
    `${ticks * tickMs} ms pass`,
    () => true,
    (books) => books.passes(ticks, tickMs),
  ),
);

/** How often each thing happens among the others: mostly requests that come, are served and end; seldom a mishap. */
const steps: fc.Arbitrary<Step>[] = [
  ...often(
    stepOnModel('request', (model, books) => books.ask(model, 'lease')),
    9,
  ),
  ...often(
    stepOnModel('look at', (model, books) => books.ask(model, 'look')),
    2,
  ),
  stepOnModel('load', (model, books) => books.ask(model, 'load')),
  stepOnModel('unload', (model, books) => books.unload(model)),
  fc.constant(
    step(
      'the file of e goes or comes back',
      () => true,
      (books) => books.toggleFile('e'),
    ),
  ),
  ...often(
    stepOnOne(
      'request ends',
      (books) => books.inFlight,
      (ask, books) => books.finish(ask),
    ),
    6,
  ),
  stepOnOne(
    'request ends twice',
    (books) => books.inFlight,
    (ask, books) => {
      books.finish(ask);
      books.finish(ask);
    },
  ),
  stepOnOne(
    'client leaves the queue',
    (books) => books.waiting,
    (ask) => ask.leave(),
  ),
  stepOnOne(
    'client leaves in the middle of an answer',
    (books) => books.inFlight,
    (ask, books) => {
      ask.leave();
      books.finish(ask);
    },
  ),
  ...often(
    stepOnOne(
      'load completes',
      (books) => books.loading,
      (instance) => instance.becomesReady(),
    ),
    8,
  ),
  stepOnOne(
    'load fails',
    (books) => books.loading,
    (instance, books) => books.exits(instance),
  ),
  stepOnOne(
    'load misses its deadline',
    (books) => books.loading,
    (instance) => instance.missesLoadDeadline(),
  ),
  stepOnOne(
    'child falls asleep, begins to wake or is awake',
    (books) => books.up,
    (instance) => {
      if (instance.state.name === 'ready') instance.fallsAsleep();
      else if (instance.state.name === 'sleeping') instance.wakes();
      else instance.becomesReady();
    },
  ),
  stepOnOne(
    'child crashes',
    (books) => books.up,
    (instance, books) => books.exits(instance),
  ),
  ...often(
    stepOnOne(
      'stopping child is gone',
      (books) => books.stopping,
      (instance, books) => books.exits(instance),
    ),
    6,
  ),
  ...often(newCatalog, 2),
  ...often(
    stepOnOne(
      'catalog changes what runs',
      (books) => [...books.loading, ...books.up],
      ({ modelId }, books) => books.publish({ [modelId]: 'second form' }),
    ),
    2,
  ),
  ...often(
    fc.constant(
      step(
        'all that the catalog has changed is taken back',
        () => true,
        (books) => books.publish(Object.fromEntries(models.map((model) => [model, firstForm]))),
      ),
    ),
    2,
  ),
  ...often(pause, 3),
];

function often(happening: fc.Arbitrary<Step>, times: number): fc.Arbitrary<Step>[] {
  return Array.from({ length: times }, () => happening);
}

it('keeps its promises whatever arrives, ends, fails, crashes, leaves, changes, is unloaded or takes long', async () => {
  const walk = fc.asyncProperty(
    options,
    fc.commands(steps, { maxCommands: 250, size: 'max' }),
    fc.boolean(),
    async (given, commands, endsByShutdown) => {
      // A walk that failed must not leave its timers to those that look for a smaller one.
      vi.clearAllTimers();
      const books = new SchedulerBooks(given);
      await fc.asyncModelRun(() => ({ model: books, real: books }), commands);
      if (endsByShutdown) await books.shutDown();
      else await books.endEverything();
    },
  );
  await fc.assert(walk, { numRuns: walks });
});
