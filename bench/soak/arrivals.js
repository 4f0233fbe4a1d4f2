/** What arrives at random, and goes on for a while. */
import { setTimeout as delay } from 'node:timers/promises';

export class Arrivals {
  #random;
  #meanMs;
  #arrive;
  #stopping = new AbortController();
  #running = Promise.resolve();
  #ongoing = new Set();

  /**
   * @param {object} options
   * @param {import('./random.js').Random} options.random
   * @param {number} options.meanMs between two arrivals
   * @param {() => void} options.arrive called at each
   */
  constructor({ random, meanMs, arrive }) {
    this.#random = random;
    this.#meanMs = meanMs;
    this.#arrive = arrive;
  }

  /** How much of what has arrived goes on. */
  get ongoing() {
    return this.#ongoing.size;
  }

  get isPausing() {
    return this.#stopping.signal.aborted;
  }

  start() {
    this.#stopping = new AbortController();
    this.#running = this.#run(this.#stopping.signal);
  }

  /** Nothing arrives any more; settles when all that has arrived has ended. */
  async pause() {
    this.#stopping.abort();
    await this.#running;
    while (this.#ongoing.size > 0) await Promise.all(this.#ongoing);
  }

  /** @param {Promise<void>} arrival is waited for by a pause; must not reject */
  follow(arrival) {
    this.#ongoing.add(arrival);
    void arrival.finally(() => this.#ongoing.delete(arrival));
  }

  async #run(signal) {
    while (!signal.aborted) {
      await delay(this.#random.exponential(this.#meanMs), undefined, { signal }).catch(() => undefined);
      if (!signal.aborted) this.#arrive();
    }
  }
}
