import { createCatalog, type Catalog } from './catalog.js';
import { diffCatalogs, type CatalogDiff } from './catalog-diff.js';
import { Discovery, type DiscoveryOptions, type ScanOptions } from './discover.js';
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

/** What reading a model's files has found. */
interface Finding {
  readonly file: string;
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
  /** By `stateOf`: what was found in one state of the files says nothing about the next. */
  readonly #findings = new Map<string, Finding>();
  #scanned: Catalog;
  #current: Catalog;
  #scanning: Promise<void> | undefined;
  #nextScan: Promise<void> | undefined;
  #nextIsPatient = true;
  #learning = false;
  #publishTimer: NodeJS.Timeout | undefined;
  #lookTimer: NodeJS.Timeout | undefined;
  /** When it fires. Milliseconds, monotonic. */
  #lookAt = 0;
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
    const { catalog, againMs } = await discovery.scan();
    const live = new LiveCatalog(discovery, catalog, options);
    if (againMs !== undefined) live.#lookLater(againMs);
    return live;
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
   *
   * @param patient whether what was changed just now may be left to a later scan: it may not be finished
   */
  reload({ patient }: ScanOptions = { patient: false }): Promise<void> {
    if (this.#scanning === undefined && this.#nextScan === undefined) return this.#beginScan({ patient });
    this.#nextIsPatient &&= patient;
    this.#nextScan ??= Promise.allSettled([this.#scanning]).then(() => {
      const next = { patient: this.#nextIsPatient };
      this.#nextScan = undefined;
      this.#nextIsPatient = true;
      return this.#beginScan(next);
    });
    return this.#nextScan;
  }

  /** What is known of the model's files by now; of files that are at fault nothing is. */
  facts(model: Model): ModelFacts | undefined {
    const hasNone = model.file === undefined || model.problem !== undefined;
    const report = hasNone ? undefined : this.#facts.known(filesOf(model, model.file));
    return report?.kind === 'facts' ? report.facts : undefined;
  }

  /** Why the model can not be loaded, found by reading its files if they have not been read as they are now. */
  async vet(model: Model): Promise<string | undefined> {
    if (model.problem !== undefined || model.file === undefined) return model.problem;
    const report = await this.#read(model, model.file, { urgent: true });
    return report.kind === 'problem' ? report.problem : undefined;
  }

  /** Begins to read the files of all models in the background, those that are not known yet. */
  learn(): void {
    if (this.#learning || this.#closed) return;
    this.#learnAll().catch(this.#onError);
  }

  /** Ends what goes on in the background. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#publishTimer);
    clearTimeout(this.#lookTimer);
  }

  #beginScan(options: ScanOptions): Promise<void> {
    this.#scanning = this.#scan(options).finally(() => (this.#scanning = undefined));
    return this.#scanning;
  }

  async #scan(options: ScanOptions): Promise<void> {
    const { catalog: scanned, againMs } = await this.#discovery.scan(options);
    await this.#readUnfinished(scanned);
    if (this.#closed) return;
    if (againMs !== undefined) this.#lookLater(againMs);
    this.#scanned = scanned;
    const states = new Set(scanned.models.map(stateOf));
    for (const state of this.#findings.keys()) if (!states.has(state)) this.#findings.delete(state);
    this.#publish();
    this.learn();
  }

  /**
   * Reads the files that were still being written: each scan of them finds another state, against which nothing is
   * known yet, and nobody is to be told that they are well in between.
   */
  async #readUnfinished({ models }: Catalog): Promise<void> {
    const findings = [...this.#findings.values()].filter(({ transient }) => transient);
    const unfinished = new Map(findings.map((finding) => [finding.file, finding]));
    const reread = async (model: Model): Promise<void> => {
      const state = stateOf(model);
      const earlier = model.file === undefined ? undefined : unfinished.get(model.file);
      if (earlier === undefined || this.#findings.has(state)) return;
      await this.#read(model, earlier.file, { urgent: true });
      if (this.#closed || this.#findings.has(state)) return;
      // It could not be read: it is as unfinished as it was.
      this.#findings.set(state, earlier);
      this.#lookLater(lookAgainMs);
    };
    await Promise.all(models.map(reread));
  }

  async #learnAll(): Promise<void> {
    this.#learning = true;
    try {
      let catalog;
      // A catalog that came meanwhile has files of its own to read.
      while (catalog !== this.#scanned) {
        catalog = this.#scanned;
        for (const model of catalog.models) {
          if (model.file === undefined || this.#isLearnt(model)) continue;
          await this.#read(model, model.file, { urgent: false });
          if (this.#closed) return;
        }
      }
    } finally {
      // At once, or a catalog that came before the next turn would find this still at work.
      this.#learning = false;
    }
  }

  /** A fault is looked for again after each scan: a disk that was away when the file was read leaves no other trace. */
  #isLearnt(model: Model): boolean {
    const finding = this.#findings.get(stateOf(model));
    return finding !== undefined && finding.problem === undefined;
  }

  /** Reads the model's files and notes what is found against them. */
  async #read(model: Model, file: string, urgency: { readonly urgent: boolean }): Promise<FactsReport> {
    const report = await this.#facts.read(filesOf(model, file), urgency);
    if (!this.#closed) this.#note(model, file, report);
    return report;
  }

  #note(model: Model, file: string, report: FactsReport): void {
    const state = stateOf(model);
    const earlier = this.#findings.get(state);
    if (report.kind === 'unread') {
      if (earlier?.transient === true) this.#lookLater(lookAgainMs);
      return;
    }
    const isProblem = report.kind === 'problem';
    const finding = {
      file,
      problem: isProblem ? report.problem : undefined,
      transient: isProblem && report.transient,
    };
    this.#findings.set(state, finding);
    // What the scan had against a file that can be read has passed, unless it is the fault of its section.
    if (finding.transient || (!isProblem && model.problem !== undefined)) this.#lookLater(lookAgainMs);
    const { problem, transient } = earlier ?? { problem: undefined, transient: false };
    if (finding.problem === problem && finding.transient === transient) return;
    this.#publishTimer ??= setTimeout(() => this.#publish(), publishAfterMs).unref();
  }

  /** Scans again after `ms`, or sooner if that was wanted already. */
  #lookLater(ms: number): void {
    const at = performance.now() + ms;
    if (this.#lookTimer !== undefined && this.#lookAt <= at) return;
    clearTimeout(this.#lookTimer);
    this.#lookAt = at;
    this.#lookTimer = setTimeout(() => {
      this.#lookTimer = undefined;
      this.reload({ patient: true }).catch(this.#onError);
    }, ms).unref();
  }

  /** Makes what was scanned last, with what reading the files has found, the current catalog. */
  #publish(): void {
    clearTimeout(this.#publishTimer);
    this.#publishTimer = undefined;
    const models = this.#scanned.models.map((model) => this.#withFinding(model));
    const before = this.#current;
    this.#current = createCatalog(models, this.#scanned.warnings);
    try {
      this.#onChange(diffCatalogs(before, this.#current));
    } catch (error) {
      this.#onError(error);
    }
  }

  #withFinding(model: Model): Model {
    const finding = this.#findings.get(stateOf(model));
    if (finding?.problem === undefined) return model;
    // The scan's look at first bytes has the same words; any others are about the model's section.
    if (model.problem !== undefined && model.problem !== finding.problem) return model;
    return { ...model, problem: finding.problem, transient: finding.transient };
  }
}

/** A model's files, with their sizes and times. No path holds a NUL. */
function stateOf({ file, mmproj, version }: Model): string {
  return [file, mmproj, version].join('\0');
}

function filesOf({ mmproj }: Model, file: string): ModelFiles {
  return { file, mmproj };
}
