/** The clients: random arrivals, now and then many at once, until they are told to pause. */
import { Arrivals } from './arrivals.js';
import { anyKind, kinds, kindsForAnyTalker } from './requests.js';
import { ids } from './served-models.js';

/** Requests at one time; more would measure how long the queue is, and nothing else. */
const maxOutstanding = 120;

/** Of the arrivals, those that are many at once, and those that are more than may wait. */
const burstShare = 0.02;
const floodShare = 0.002;
const burstSizes = [10, 60];

/** More than `--queue-max`, which is smaller than this for the purpose. */
export const floodSize = 400;
export const queueMax = 300;

export class Traffic {
  #asking;
  #random;
  #isServing;
  #tally;
  #ledger;
  #arrivals;
  #count = 0;

  /**
   * @param {object} options
   * @param {import('./client.js').Client} options.client
   * @param {import('./served-models.js').ServedModels} options.models
   * @param {import('./random.js').Random} options.random
   * @param {number} options.rate arrivals per second
   * @param {() => boolean} options.isServing where nobody serves, many at once are as good as one
   * @param {import('./tally.js').Tally} options.tally
   * @param {import('./fault-ledger.js').FaultLedger} options.ledger
   */
  constructor({ client, models, random, rate, isServing, tally, ledger }) {
    this.#asking = { client, models };
    this.#random = random;
    this.#isServing = isServing;
    this.#tally = tally;
    this.#ledger = ledger;
    this.#arrivals = new Arrivals({ random, meanMs: 1000 / rate, arrive: () => this.#arrive() });
  }

  start() {
    this.#arrivals.start();
  }

  /** Nothing new is asked; settles when everything has been answered. */
  pause() {
    return this.#arrivals.pause();
  }

  #arrive() {
    const random = this.#random;
    if (this.#arrivals.ongoing >= maxOutstanding) {
      this.#tally.skipped += 1;
    } else if (random.chance(floodShare)) {
      if (this.#isServing()) this.#flood();
    } else if (random.chance(burstShare)) {
      if (!this.#isServing()) return;
      const model = random.chance(0.5) ? random.pick(ids.talkers) : undefined;
      const kind = random.pick(kindsForAnyTalker);
      const size = random.whole(...burstSizes);
      for (let n = 0; n < size; n++) this.#send(kind, model);
    } else {
      this.#send(anyKind(random));
    }
  }

  /** More than the queue takes: who does not fit in is refused. */
  #flood() {
    const end = this.#ledger.begin('flood');
    const requests = Array.from({ length: floodSize }, () => this.#send('tokenize'));
    void Promise.all(requests).then(end);
  }

  #send(kind, model) {
    this.#count += 1;
    const random = this.#random.named(String(this.#count));
    const exchange = this.#ask(kind, random, model);
    this.#arrivals.follow(exchange);
    return exchange;
  }

  async #ask(kind, random, model) {
    const startedAt = performance.now();
    try {
      this.#tally.add(kind, await kinds[kind].ask({ ...this.#asking, random }, model));
    } catch (error) {
      // A mistake of the soak's own must not pass for silence.
      this.#tally.complain(kind, `the soak itself failed: ${error.stack}`, { model, startedAt });
    }
  }
}
