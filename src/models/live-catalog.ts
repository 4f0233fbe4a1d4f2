import { createCatalog, type Catalog } from './catalog.js';
import { diffCatalogs, type CatalogDiff } from './catalog-diff.js';
import { Discovery, type DiscoveryOptions } from './discover.js';
import type { FactsReport, FactsStore, ModelFiles } from './gguf/facts-store.js';
import type { ModelFacts } from './gguf/gguf-facts.js';
import type { Model } from './model.js';

export interface LiveCatalogOptions extends DiscoveryOptions {
  readonly facts: FactsStore;
  /** Called with each new catalog, after it has become the current one. */
  readonly onChange: (diff: CatalogDiff) => void;
  /** Called when something unforeseen fails in the background. */
  readonly onError: (error: unknown) => void;
}

/** A fault that reading a model's files found, for those sizes and times of them. */
interface Finding {
  readonly version: string | undefined;
  readonly problem: string | undefined;
  readonly transient: boolean;
}

/** What is found by reading files is published together, at most this often. */
const publishAfterMs = 100;
/** A file that is still being written is looked at again after this, should nobody tell of its next change. */
const lookAgainMs = 5_000;

/**
 * The catalog that is served: scanned at the start and again on `reload`, its models' files read in the background.
 * A catalog is immutable; a new one takes its place.
 */
export class LiveCatalog {
  readonly #discovery: Discovery;
  readonly #facts: FactsStore;
  readonly #onChange: (diff: CatalogDiff) => void;
  readonly #onError: (error: unknown) => void;
  /** By the model's file. */
  readonly #findings = new Map<string, Finding>();
  #scanned: Catalog;
  #current: Catalog;
  #scanning: Promise<void> | undefined;
  #nextScan: Promise<void> | undefined;
  #learning = false;
  #publishTimer: NodeJS.Timeout | undefined;
  #lookTimer: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(discovery: Discovery, catalog: Catalog, options: LiveCatalogOptions) {
    this.#discovery = discovery;
    this.#scanned = this.#current = catalog;
    this.#facts = options.facts;
    this.#onChange = options.onChange;
    this.#onError = options.onError;
  }

  /** The first scan; rejects, with a message for the user, if a directory or file that was named cannot be read. */
  static async open(options: LiveCatalogOptions): Promise<LiveCatalog> {
    const discovery = new Discovery(options);
    return new LiveCatalog(discovery, await discovery.scan(), options);
  }

  get current(): Catalog {
    return this.#current;
  }

  /** The directories of the caches, whether they exist or not. */
  get cacheDirectories(): Discovery['cacheDirectories'] {
    return this.#discovery.cacheDirectories;
  }

  /**
   * Scans everything again; settles when the catalog shows what was on disk at the call. Calls during a scan share
   * the one that follows it.
   */
  reload(): Promise<void> {
    if (this.#scanning === undefined) {
      this.#scanning = this.#scan().finally(() => (this.#scanning = undefined));
      return this.#scanning;
    }
    this.#nextScan ??= this.#scanning
      .catch(() => undefined)
      .then(() => {
        this.#nextScan = undefined;
        return this.reload();
      });
    return this.#nextScan;
  }

  /** What is known of the model's files by now. */
  facts(model: Model): ModelFacts | undefined {
    const report = model.file === undefined ? undefined : this.#facts.known(filesOf(model, model.file));
    return report?.kind === 'facts' ? report.facts : undefined;
  }

  /** Why the model can not be loaded, found by reading its files if they have not been read as they are now. */
  async vet(model: Model): Promise<string | undefined> {
    if (model.problem !== undefined || model.file === undefined) return model.problem;
    const report = await this.#facts.read(filesOf(model, model.file), { urgent: true });
    this.#note(model, model.file, report);
    return report.kind === 'problem' ? report.problem : undefined;
  }

  /** Begins to read the files of all models in the background, those that are not known yet. */
  learn(): void {
    if (this.#learning || this.#closed) return;
    this.#learning = true;
    this.#learnAll()
      .catch(this.#onError)
      .finally(() => (this.#learning = false));
  }

  /** Ends what goes on in the background. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#publishTimer);
    clearTimeout(this.#lookTimer);
  }

  async #scan(): Promise<void> {
    this.#scanned = await this.#discovery.scan();
    if (this.#closed) return;
    const files = new Set(this.#scanned.models.map(({ file }) => file));
    for (const file of this.#findings.keys()) if (!files.has(file)) this.#findings.delete(file);
    this.#publish();
    this.learn();
  }

  async #learnAll(): Promise<void> {
    let catalog;
    // A catalog that came meanwhile has files of its own to read.
    while (catalog !== this.#scanned) {
      catalog = this.#scanned;
      for (const model of catalog.models) {
        if (this.#closed) return;
        if (model.problem !== undefined || model.file === undefined || this.#isLearnt(model)) continue;
        this.#note(model, model.file, await this.#facts.read(filesOf(model, model.file), { urgent: false }));
      }
    }
  }

  #isLearnt({ file, version }: Model): boolean {
    const finding = file === undefined ? undefined : this.#findings.get(file);
    return finding !== undefined && finding.version === version && !finding.transient;
  }

  #note({ version }: Model, file: string, report: FactsReport): void {
    if (this.#closed || report.kind === 'unread') return;
    const [problem, transient] =
      report.kind === 'problem' ? [report.problem, report.transient] : [undefined, false];
    const earlier = this.#findings.get(file);
    this.#findings.set(file, { version, problem, transient });
    if (transient) this.#lookTimer ??= setTimeout(() => this.#lookAgain(), lookAgainMs).unref();
    if (problem === earlier?.problem) return;
    this.#publishTimer ??= setTimeout(() => this.#publish(), publishAfterMs).unref();
  }

  #lookAgain(): void {
    this.#lookTimer = undefined;
    this.reload().catch(this.#onError);
  }

  /** Makes what was scanned last, with what reading the files has found, the current catalog. */
  #publish(): void {
    clearTimeout(this.#publishTimer);
    this.#publishTimer = undefined;
    const models = this.#scanned.models.map((model) => this.#withFinding(model));
    const before = this.#current;
    this.#current = createCatalog(models, this.#scanned.warnings);
    this.#onChange(diffCatalogs(before, this.#current));
  }

  #withFinding(model: Model): Model {
    const finding = model.file === undefined ? undefined : this.#findings.get(model.file);
    if (finding?.problem === undefined || finding.version !== model.version) return model;
    return model.problem === undefined ? { ...model, problem: finding.problem } : model;
  }
}

function filesOf({ mmproj }: Model, file: string): ModelFiles {
  return { file, mmproj };
}
