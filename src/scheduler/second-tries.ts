import type { Instance } from '../instance/instance.js';

/** A load that has failed and is tried once more. */
interface SecondTry {
  /** Models that were stopped for it, because it ran out of memory: that is done once, whatever it fails by after that. */
  readonly evicted: readonly string[];
  /** What has to be gone before: these, and what was stopping then. */
  readonly clearing: readonly Instance[];
}

const noModels: ReadonlySet<string> = new Set();

/** Which loads that failed are tried once more, and without whom models ran out of memory all the same. Decides nothing. */
export class SecondTries {
  readonly #tries = new Map<string, SecondTry>();
  /** Until something else is known of the model. */
  readonly #misfits = new Map<string, ReadonlySet<string>>();

  begin(model: string, secondTry: SecondTry): void {
    this.#tries.set(model, secondTry);
  }

  /** Returns whether there was to be one. */
  callOff(model: string): boolean {
    return this.#tries.delete(model);
  }

  /** Calls off those that are wanted no more. */
  callOffUnless(isWanted: (model: string) => boolean): void {
    for (const model of this.#tries.keys()) if (!isWanted(model)) this.#tries.delete(model);
  }

  /** The model has got ready. */
  succeeded(model: string): void {
    this.#tries.delete(model);
    this.#misfits.delete(model);
  }

  /** It is another model now, or gone, or somebody wants it to be tried at once. */
  forgive(model: string): void {
    this.#misfits.delete(model);
  }

  /** Models that were stopped for the second try of this one; empty when there is none. */
  evictedFor(model: string): readonly string[] {
    return this.#tries.get(model)?.evicted ?? [];
  }

  /** The model ran out of memory also without these others. */
  noteMisfit(model: string, without: readonly string[]): void {
    this.#misfits.set(model, new Set([...(this.#misfits.get(model) ?? noModels), ...without]));
  }

  /** Others without which the model ran out of memory, too; undefined when nothing of the kind is known. */
  misfitWithout(model: string): ReadonlySet<string> | undefined {
    return this.#misfits.get(model);
  }

  /** The models for whose second try there is still something to go. */
  get cramped(): ReadonlySet<string> {
    if (this.#tries.size === 0) return noModels;
    const waiting = [...this.#tries].filter(([, { clearing }]) =>
      clearing.some(({ state }) => state.name !== 'exited'),
    );
    return new Set(waiting.map(([model]) => model));
  }
}
