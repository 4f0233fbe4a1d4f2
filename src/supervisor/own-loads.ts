import type { LiveCatalog } from '../models/live-catalog.js';
import type { Model } from '../models/model.js';
import type { Scheduler } from '../scheduler/scheduler.js';

export interface OwnLoadsOptions {
  readonly catalog: {
    readonly current: { readonly resolve: (name: string) => Model | undefined };
    readonly vet: LiveCatalog['vet'];
  };
  readonly scheduler: Pick<Scheduler, 'load' | 'status' | 'slotsTaken'>;
  /** Number of slots; 0 = unlimited. */
  readonly modelsMax: number;
}

/** Loads that no client asks for: at the start, and of models that come back later. */
export class OwnLoads {
  readonly #options: OwnLoadsOptions;
  /** Models that are to be loaded and have no place in the queue yet: their files are looked into before. */
  readonly #toCome = new Set<string>();

  constructor(options: OwnLoadsOptions) {
    this.#options = options;
  }

  /** Loads them all; each takes its place in the queue when the one before has. Never rejects. */
  async inOrder(models: readonly string[], onError: (model: string, error: unknown) => void): Promise<void> {
    const { scheduler } = this.#options;
    for (const model of models) this.#toCome.add(model);
    for (const model of models) {
      const canBe = await this.#canBe(model).catch((error: unknown) => onError(model, error));
      this.#toCome.delete(model);
      // A request may have been first.
      if (canBe !== true || scheduler.status(model).value !== 'unloaded') continue;
      scheduler.load(model, new AbortController().signal).catch((error: unknown) => onError(model, error));
    }
  }

  /**
   * Loads the model if nobody has yet, and a slot is left that nobody has or waits for: what was loaded meanwhile was
   * asked for meanwhile, and those that come back together would only evict each other.
   *
   * @param isWanted asked when its files have been read, which may take long
   * @returns whether it is being loaded. Never rejects.
   */
  async ifItFits(
    model: string,
    isWanted: () => boolean,
    onError: (model: string, error: unknown) => void,
  ): Promise<boolean> {
    const { scheduler, modelsMax } = this.#options;
    const hasRoom = (): boolean => modelsMax === 0 || scheduler.slotsTaken + this.#toCome.size < modelsMax;
    const isAway = (): boolean => {
      const { value, waiting } = scheduler.status(model);
      return value === 'unloaded' && waiting === 0 && !this.#toCome.has(model);
    };
    if (!isAway() || !hasRoom()) return false;
    const canBe = await this.#canBe(model).catch((error: unknown) => onError(model, error));
    if (canBe !== true || !isWanted() || !isAway() || !hasRoom()) return false;
    scheduler
      .load(model, new AbortController().signal, { anew: false })
      .catch((error: unknown) => onError(model, error));
    return true;
  }

  /** Whether its files are whole; what is wrong with them is told by the catalog. */
  async #canBe(id: string): Promise<boolean> {
    const { catalog } = this.#options;
    const model = catalog.current.resolve(id);
    return model?.id === id && (await catalog.vet(model)) === undefined;
  }
}
