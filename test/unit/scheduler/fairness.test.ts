/** How long a request may have to wait, measured on the scheduler under traffic that never pauses. */
import fc from 'fast-check';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { FakeInstance } from './fake-instance.js';
import { Ask, passes, Rig, stopTheClock } from './scheduler-rig.js';

beforeEach(stopTheClock);
afterEach(() => void vi.useRealTimers());

/** About three seconds' worth; SCENES=3000 after a change of the scheduler meets what is rare as well. */
const scenes = Number(process.env['SCENES'] ?? 60);

/** Time passes in steps of this, between which everything happens that is due. Milliseconds. */
const tickMs = 10;

/** What happens one after the other in the course of one change of models is each noticed a tick late. */
const lateMs = 4 * tickMs;

/** How long there is traffic: many times what a change of models takes. Milliseconds. */
const trafficMs = 6_000;

/** A client that asks one model again as soon as it has its answer. */
interface Client {
  readonly model: string;
  /** Milliseconds from the beginning. */
  readonly comesAtMs: number;
  /** How long its answers take, one after the other and over again. Milliseconds. */
  readonly answersMs: readonly number[];
}

interface Scene {
  readonly modelsMax: number;
  readonly inFlightMax: number;
  readonly fairAfterMs: number;
  readonly loadMs: number;
  readonly stopMs: number;
  readonly clients: readonly Client[];
}

const ticks = (min: number, max: number): fc.Arbitrary<number> =>
  fc.integer({ min, max }).map((count) => count * tickMs);

/** Several for each model, so that it becomes idle only when it takes no new requests. */
const clientsOf = (model: string): fc.Arbitrary<Client[]> =>
  fc.array(
    fc.record({
      model: fc.constant(model),
      comesAtMs: ticks(0, 50),
      answersMs: fc.array(ticks(5, 40), { minLength: 1, maxLength: 3 }),
    }),
    { minLength: 1, maxLength: 5, size: 'max' },
  );

/** There are always more models than slots. */
const scene: fc.Arbitrary<Scene> = fc.integer({ min: 1, max: 3 }).chain((modelsMax) =>
  fc.record({
    modelsMax: fc.constant(modelsMax),
    inFlightMax: fc.constantFrom(0, 0, 1, 3),
    fairAfterMs: ticks(0, 60),
    loadMs: ticks(1, 30),
    stopMs: ticks(0, 10),
    clients: fc
      .integer({ min: modelsMax + 1, max: modelsMax + 3 })
      .chain((models) => fc.tuple(...Array.from({ length: models }, (_, at) => clientsOf(`m${at}`))))
      .map((all) => all.flat()),
  }),
);

/** One request, who waited when it came, and what became of it. */
interface Request {
  readonly ask: Ask;
  readonly answerMs: number;
  readonly waitingBefore: readonly Ask[];
  servedAt: number | undefined;
}

/** Plays clients and children until everybody has the last answer. */
async function play({ loadMs, stopMs, clients, ...options }: Scene): Promise<Request[]> {
  const rig = new Rig({ ...options, queueMax: 1_000 });
  const start = performance.now();
  const all: Request[] = [];
  const current = new Map<Client, Request>();
  const asks = (client: Client, answers: number): void => {
    const ask = new Ask(client.model, 'lease');
    const waitingBefore = Array.from(current.values(), (request) => request.ask).filter(
      ({ isWaiting }) => isWaiting,
    );
    const answerMs = client.answersMs[answers % client.answersMs.length] ?? 0;
    const request = { ask, answerMs, waitingBefore, servedAt: undefined };
    ask.arriveAt(rig.scheduler);
    current.set(client, request);
    all.push(request);
  };
  const since = new Map<FakeInstance, { phase: string; at: number }>();
  const inPhaseMs = (instance: FakeInstance): number => {
    const known = since.get(instance);
    if (known?.phase === instance.state.name) return performance.now() - known.at;
    since.set(instance, { phase: instance.state.name, at: performance.now() });
    return 0;
  };

  const nextAnswer = new Map<Client, number>();
  for (;;) {
    const passed = performance.now() - start;
    for (const instance of rig.alive) {
      const ms = inPhaseMs(instance);
      if (instance.state.name === 'loading' && ms >= loadMs) instance.becomesReady();
      if (instance.state.name === 'stopping' && ms >= stopMs) instance.exits();
    }
    for (const client of clients) {
      const request = current.get(client);
      if (request?.ask.holdsLease) {
        request.servedAt ??= performance.now();
        if (performance.now() - request.servedAt >= request.answerMs) request.ask.finish();
      }
      const isFree = request === undefined || request.ask.released;
      if (!isFree || passed < client.comesAtMs || passed > trafficMs) continue;
      const answers = nextAnswer.get(client) ?? 0;
      nextAnswer.set(client, answers + 1);
      asks(client, answers);
    }
    if (passed > trafficMs && all.every(({ ask }) => ask.released || ask.error)) return all;
    await passes(tickMs);
  }
}

/**
 * Before a request is served, those that came before it are, if they need another model. Each of them costs, at most,
 * the rest of the answers that are being given, a stop and a load. All those of one model are served at once, but not with
 * a bound on what a model answers at once.
 */
function longestWaitMs(
  { fairAfterMs, loadMs, stopMs, inFlightMax, clients }: Scene,
  { ask, waitingBefore }: Request,
): number {
  const others = new Set(waitingBefore.map(({ model }) => model).filter((model) => model !== ask.model));
  const ahead = inFlightMax === 0 ? others.size : waitingBefore.length;
  const answerMs = Math.max(...clients.flatMap(({ answersMs }) => answersMs));
  return fairAfterMs + (ahead + 1) * (answerMs + stopMs + loadMs + lateMs);
}

it('everybody is served, and waits no longer than fair-after and a change of models for each that came before', async () => {
  const isFair = fc.asyncProperty(scene, async (given) => {
    for (const request of await play(given)) {
      const { ask, servedAt } = request;
      expect(ask.error).toBeUndefined();
      const waitedMs = (servedAt ?? Number.POSITIVE_INFINITY) - ask.askedAt;
      expect(waitedMs, ask.model).toBeLessThanOrEqual(longestWaitMs(given, request));
    }
  });
  await fc.assert(isFair, { numRuns: scenes });
});
