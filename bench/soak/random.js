/**
 * Randomness that a seed repeats. What runs side by side takes a source of its own by name: then the timing of one
 * does not change the choices of another.
 */
export class Random {
  #state;
  #seed;

  /** @param {number | string} seed */
  constructor(seed) {
    this.#seed = seed;
    this.#state = hash(String(seed));
  }

  /** @param {string} name @returns {Random} another source, which the same seed and name repeat */
  named(name) {
    return new Random(`${this.#seed}/${name}`);
  }

  /** @returns {number} from 0 to 1, 1 excluded (Mulberry32) */
  next() {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  between(low, high) {
    return low + this.next() * (high - low);
  }

  /** A whole number, both ends included. */
  whole(low, high) {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  chance(share) {
    return this.next() < share;
  }

  /** The time to the next arrival of a Poisson process. */
  exponential(mean) {
    return -Math.log(1 - this.next()) * mean;
  }

  /** @template T @param {readonly T[]} list not empty @returns {T} */
  pick(list) {
    return list[Math.floor(this.next() * list.length)];
  }

  /** @template T @param {readonly (readonly [number, T])[]} weighted @returns {T} */
  weighted(weighted) {
    const total = weighted.reduce((sum, [weight]) => sum + weight, 0);
    let left = this.next() * total;
    for (const [weight, value] of weighted) {
      left -= weight;
      if (left < 0) return value;
    }
    return weighted.at(-1)[1];
  }

  /** @template T @param {readonly T[]} list @returns {T[]} in another order */
  shuffled(list) {
    return list
      .map((value) => ({ value, at: this.next() }))
      .sort((a, b) => a.at - b.at)
      .map(({ value }) => value);
  }
}

/** FNV-1a. */
function hash(text) {
  let state = 0x811c9dc5;
  for (const byte of Buffer.from(text)) state = Math.imul(state ^ byte, 0x01000193);
  return state;
}
