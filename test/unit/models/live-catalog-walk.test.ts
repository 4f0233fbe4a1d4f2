import { existsSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { Catalog } from '../../../src/models/catalog.js';
import { tempDir } from '../../helpers/temp-dir.js';
import { byKey } from './help-table.js';
import {
  HeldScans,
  openRig,
  soon,
  turns,
  untilRead,
  writeModel,
  type Kind,
  type Rig,
} from './live-catalog-rig.js';
import { writeFile } from './tree.js';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** A few seconds' worth; WALKS=2000 after a change of the live catalog meets what is rare as well. */
const walks = Number(process.env['WALKS'] ?? 40);

const names = ['a', 'b', 'c'];

/** Longer than anything is waited for before it is published or looked at again. Milliseconds. */
const longMs = 5_000;

/** One state of a file; whatever is done to it makes another. */
interface State {
  readonly kind: Kind | 'empty' | 'absent';
  readonly sizeBytes?: number;
}

const verdicts: Readonly<Partial<Record<State['kind'], string | undefined>>> = {
  good: undefined,
  unread: undefined,
  bad: 'is bad',
  unfinished: 'is unfinished',
};

/** What the presets file says of the model `s`. */
type Section = { readonly ctx: number } | 'broken' | 'none' | 'no file';

/** A disk, a live catalog that follows it, and what has been asked of it. */
class Walk {
  readonly #base = tempDir();
  readonly #directory = join(this.#base, 'models');
  readonly #aside = join(this.#base, 'aside');
  readonly #presetFile = join(this.#base, 'p.ini');
  readonly #disk = new Map<string, State>();
  /** Files that were unfinished at some time: one that cannot be read then is taken for what it was. */
  readonly #wereUnfinished = new Set<string>();
  readonly #pending: Promise<unknown>[] = [];
  readonly #faults: unknown[] = [];
  /** How often the directory has gone or come back. */
  #moves = 0;
  #section: Section = { ctx: 1 };
  #checked = 0;
  #catalog!: Catalog;
  rig!: Rig;
  scans!: HeldScans;

  async begin(): Promise<void> {
    for (const name of names) this.write(name, 'good');
    this.writeSection({ ctx: 1 });
    this.rig = await openRig({ modelsDirs: [this.#directory], presetFiles: [this.#presetFile] });
    this.#catalog = this.rig.live.current;
    this.scans = new HeldScans();
  }

  get isThere(): boolean {
    return existsSync(this.#directory);
  }

  write(name: string, kind: Kind | 'empty'): void {
    const path = join(this.#directory, `${name}.gguf`);
    if (kind === 'empty') writeFile(path, '');
    else writeModel(path, kind);
    this.#disk.set(name, { kind, sizeBytes: statSync(path).size });
    if (kind === 'unfinished') this.#wereUnfinished.add(name);
  }

  remove(name: string): void {
    rmSync(join(this.#directory, `${name}.gguf`), { force: true });
    this.#disk.set(name, { kind: 'absent' });
  }

  toggleDirectory(): void {
    this.#moves += 1;
    if (existsSync(this.#directory)) renameSync(this.#directory, this.#aside);
    else renameSync(this.#aside, this.#directory);
  }

  writeSection(section: Section): void {
    this.#section = section;
    if (section === 'no file') {
      rmSync(this.#presetFile, { force: true });
      return;
    }
    const head = ['[s]', `model = ${join(this.#directory, 'a.gguf')}`];
    const lines = section === 'none' ? [] : [...head, section === 'broken' ? 'words' : `c = ${section.ctx}`];
    // A file without a byte would be taken for one that is being written.
    writeFile(this.#presetFile, ['; presets', ...lines].join('\n'));
  }

  /** Asks for a scan; when that settles, the catalog shows what has not changed since. */
  reload(): void {
    const [before, moves] = [new Map(this.#disk), this.#moves];
    const check = (): void => {
      if (moves !== this.#moves) return;
      for (const name of names) {
        if (before.get(name) !== this.#disk.get(name)) continue;
        expect(this.#shown(name), `${name} after a reload`).toBe(this.#expected(name));
      }
    };
    this.#later(this.rig.live.reload().then(check));
  }

  /** Asks whether a model can be loaded; the answer is about the file as it is at some time from then on. */
  vet(name: string): void {
    const model = this.rig.live.current.resolve(name);
    if (model === undefined) return;
    const [written, moves] = [existsSync(this.#directory) ? this.#disk.get(name) : undefined, this.#moves];
    const check = (answer: string | undefined): void => {
      if (model.problem !== undefined) expect(answer).toBe(model.problem);
      else if (written !== undefined && written === this.#disk.get(name) && moves === this.#moves) {
        if (written.kind in verdicts) expect(answer).toBe(verdicts[written.kind]);
      }
    };
    this.#later(this.rig.live.vet(model).then(check));
  }

  /** What must be true between any two events: each diff is what leads from one catalog to the next. */
  check(): void {
    const { live, published, errors } = this.rig;
    expect([...errors, ...this.#faults]).toEqual([]);
    for (const { diff, catalog } of published.slice(this.#checked)) {
      const old = new Map(this.#catalog.models.map((model) => [model.id, model]));
      const now = new Map(catalog.models.map((model) => [model.id, model]));
      expect(diff.added).toEqual([...now.keys()].filter((id) => !old.has(id)));
      expect(diff.removed).toEqual([...old.keys()].filter((id) => !now.has(id)));
      for (const { id, problem, stale } of diff.broken) {
        const earlier = old.get(id);
        const isNew = (word?: string, before?: string): boolean => word !== undefined && word !== before;
        expect(isNew(problem, earlier?.problem) || isNew(stale, earlier?.stale), `${id} is news`).toBe(true);
      }
      for (const [id, { problem }] of now) {
        if (problem === undefined || problem === old.get(id)?.problem) continue;
        expect(diff.broken.map((model) => model.id)).toContain(id);
      }
      for (const [id, { problem }] of old) {
        if (problem === undefined || now.get(id)?.problem !== undefined || !now.has(id)) continue;
        expect(diff.changed).toContain(id);
      }
      this.#catalog = catalog;
    }
    this.#checked = published.length;
    expect(live.current.models).toEqual(this.#catalog.models);
  }

  /** An outcome that is looked at when it is there. */
  #later(outcome: Promise<void>): void {
    this.#pending.push(outcome.catch((fault: unknown) => this.#faults.push(fault)));
  }

  /** Lets everything come to its end; then the catalog is what is on disk, with all that is wrong with it. */
  async end(): Promise<void> {
    const { live, facts } = this.rig;
    this.scans.release();
    facts.release();
    await soon('all that was asked', Promise.all(this.#pending));
    this.check();
    // What reading has found of a file that changed under it a later scan puts right.
    for (let round = 0; round < 3; round++) {
      await soon('a reload', live.reload());
      await untilRead(this.rig);
      vi.advanceTimersByTime(longMs);
      this.check();
    }
    await soon('the last reload', live.reload());
    await untilRead(this.rig);
    for (const name of names) {
      expect(this.#shown(name), `${name} at the end`).toBe(this.#expected(name));
      const kind = existsSync(this.#directory) ? this.#disk.get(name)?.kind : undefined;
      const problem = live.current.resolve(name)?.problem;
      if (kind === 'empty') expect(problem).toMatch(/is empty$/);
      else if (kind === 'unread' && this.#wereUnfinished.has(name))
        expect([undefined, verdicts.unfinished]).toContain(problem);
      else expect(problem, name).toBe(kind === undefined ? undefined : verdicts[kind]);
    }
    this.#checkSection();
    const isUnfinished = live.current.models.some(({ problem }) => problem === 'is unfinished');
    expect(vi.getTimerCount()).toBe(isUnfinished ? 1 : 0);
    live.close();
    expect(vi.getTimerCount()).toBe(0);
  }

  #checkSection(): void {
    const section = this.rig.live.current.resolve('s');
    if (this.#section === 'none') expect(section).toBeUndefined();
    else if (this.#section === 'broken') expect(section?.stale ?? section?.problem).toContain("'words'");
    else if (this.#section === 'no file')
      expect(section?.stale ?? 'does not exist').toContain('does not exist');
    else {
      expect(byKey(section?.options ?? new Map())['ctx-size']).toBe(String(this.#section.ctx));
      expect(section?.stale).toBeUndefined();
    }
  }

  /** The size of the file that the catalog knows. */
  #shown(name: string): string | undefined {
    return this.rig.live.current.resolve(name)?.version?.split('@')[0];
  }

  #expected(name: string): string | undefined {
    return existsSync(this.#directory) ? this.#disk.get(name)?.sizeBytes?.toString() : undefined;
  }
}

type Step = fc.AsyncCommand<Walk, Walk>;

/** One thing that can happen; afterwards what must always be true is. */
function step(
  label: string,
  happens: (walk: Walk) => void | Promise<void>,
  isPossible: (walk: Walk) => boolean = () => true,
): Step {
  return {
    toString: () => label,
    check: isPossible,
    run: async (walk) => {
      await happens(walk);
      walk.check();
    },
  };
}

const name = fc.constantFrom(...names);
const kinds = fc.constantFrom<Kind | 'empty'>('good', 'good', 'bad', 'unfinished', 'unread', 'empty');

const write = fc.tuple(name, kinds).map(([file, kind]) =>
  step(
    `${file} is ${kind}`,
    (walk) => walk.write(file, kind),
    (walk) => walk.isThere,
  ),
);
const remove = name.map((file) =>
  step(
    `${file} is removed`,
    (walk) => walk.remove(file),
    (walk) => walk.isThere,
  ),
);
const section = fc
  .constantFrom({ ctx: 1 }, { ctx: 2 }, 'broken' as const, 'none' as const, 'no file' as const)
  .map((form) => step(`section is ${JSON.stringify(form)}`, (walk) => walk.writeSection(form)));
const directory = fc.constant(step('the directory goes or comes back', (walk) => walk.toggleDirectory()));
const reload = fc.constant(step('reload', (walk) => walk.reload()));
const vet = name.map((file) => step(`vet ${file}`, (walk) => walk.vet(file)));
const learn = fc.constant(step('learn', ({ rig }) => rig.live.learn()));
const letScanGo = fc.constant(step('a scan is let go', ({ scans }) => scans.letGo()));
const hold = fc.constant(step('readings are held', ({ rig }) => rig.facts.hold()));
const releaseOne = fc.constant(step('one reading', ({ rig }) => rig.facts.releaseOne()));
const release = fc.constant(step('readings are released', ({ rig }) => rig.facts.release()));
const pass = fc
  .constantFrom(50, 100, longMs)
  .map((ms) => step(`${ms} ms pass`, () => void vi.advanceTimersByTime(ms)));
const turn = fc.constant(step('some turns', turns));

/** How often each thing happens among the others. */
const steps = [
  ...[write, write, write, remove, section, directory, vet, learn, hold, release],
  ...[reload, reload, reload, letScanGo, letScanGo, letScanGo],
  ...[releaseOne, releaseOne, pass, pass, pass, turn, turn, turn],
];

it('shows what is on disk, whatever changes, is read, is asked or comes late in between', async () => {
  const walk = fc.asyncProperty(fc.commands(steps, { maxCommands: 60, size: 'max' }), async (commands) => {
    // A walk that failed must not leave its timers to those that look for a smaller one.
    vi.clearAllTimers();
    const real = new Walk();
    await real.begin();
    await fc.asyncModelRun(() => ({ model: real, real }), commands);
    await real.end();
  });
  await fc.assert(walk, { numRuns: walks });
});
