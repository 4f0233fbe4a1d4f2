/** The models of the run, what each of them says, and since when: files and presets change while they are served. */
import { mkdir, rename, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { countingWords, writeKnownAnswerModel } from '../../dist/demo/known-answer-model.js';

/**
 * @typedef {{ words: readonly string[], loop: boolean }} Answer
 *
 * @typedef {object} Version one form of a model
 * @property {number} number
 * @property {number} from when its files began to be there. Milliseconds of `performance.now()`
 * @property {number} written when they were there
 * @property {number} until when the supervisor has surely heard that it is the old one
 */

/** Slots, fewer than there are models. */
export const modelsMax = 3;

/** For how long after a change a supervisor that only watches may take it for the old. */
const watchingMs = 20_000;

const counter = (prefix, length) => countingWords(length).map((word) => `${prefix}${word}`);

const longAgo = new Date('2020-01-01');

/** The models that chat; `says` gives the words of a version. */
const talkers = [
  // Their files are replaced.
  { id: 'soak-ada', says: (version) => ['I', 'am', 'soak-ada,', `version-${version}.`] },
  { id: 'soak-bob', says: (version) => ['I', 'am', 'soak-bob,', `version-${version}.`] },
  // Its section in the presets changes.
  { id: 'soak-preset', says: () => ['I', 'am', 'soak-preset.'] },
  // Its file comes and goes.
  { id: 'soak-guest', says: () => ['I', 'am', 'soak-guest.'] },
  // Every event has a number of its own.
  { id: 'soak-count', says: () => counter('count-', 80) },
  { id: 'soak-long', says: () => counter('long-', 600) },
  // Never stops by itself.
  { id: 'soak-endless', says: () => counter('lap-', 50), loop: true },
];

export const ids = {
  talkers: talkers.map(({ id }) => id),
  counters: ['soak-count', 'soak-long'],
  replaced: ['soak-ada', 'soak-bob'],
  preset: 'soak-preset',
  guest: 'soak-guest',
  endless: 'soak-endless',
  embedding: 'soak-embed',
  broken: 'soak-broken',
};

/** All that can be loaded. */
export const loadable = [...ids.talkers, ids.embedding];

export class ServedModels {
  directory;
  presetFile;
  #aside;
  /** @type {Map<string, Version[]>} */
  #versions = new Map();
  #changing = Promise.resolve();

  /** @param {string} root an empty directory */
  constructor(root) {
    this.directory = join(root, 'models');
    this.presetFile = join(root, 'presets.ini');
    // On the same file system, so that a file is there as a whole or not at all.
    this.#aside = join(root, 'aside');
  }

  async make() {
    await mkdir(this.directory);
    await mkdir(this.#aside);
    for (const { id } of talkers) {
      await this.#write(id, 1);
      this.#versions.set(id, [{ number: 1, from: 0, written: 0, until: Number.POSITIVE_INFINITY }]);
    }
    await writeKnownAnswerModel(this.#file(ids.embedding), {
      name: ids.embedding,
      words: ['soak'],
      pooling: 'mean',
    });
    await writeFile(this.#file(ids.broken), 'GGUF, or so it says');
    // One that has just been written may be a copy that goes on, and is looked at again and again.
    await utimes(this.#file(ids.broken), longAgo, longAgo);
    await this.#writePresets();
  }

  /** @returns {Answer[]} what the model may say to a request of that time */
  answersOf(id, startedAt, endedAt) {
    const { says, loop = false } = talkers.find((talker) => talker.id === id);
    const versions = this.#versionsIn(id, startedAt, endedAt);
    // A model whose words stay has one answer in all versions.
    const answers = new Map(versions.map(({ number }) => [says(number).join(' '), says(number)]));
    return Array.from(answers.values(), (words) => ({ words, loop }));
  }

  /** @returns {number[]} the context sizes that the model may have at that time */
  contextSizesOf(id, startedAt, endedAt) {
    return this.#versionsIn(id, startedAt, endedAt).map(({ number }) => contextSize(number));
  }

  /** Gives a model another file. @returns {Promise<() => void>} to be called when the supervisor has surely read it */
  replace(id) {
    return this.#change(id, (version) => this.#write(id, version.number));
  }

  /** Changes a model's section. @returns as `replace` */
  changePreset() {
    return this.#change(ids.preset, () => this.#writePresets());
  }

  async removeGuest() {
    await rename(this.#file(ids.guest), join(this.#aside, 'guest'));
  }

  async returnGuest() {
    await rename(join(this.#aside, 'guest'), this.#file(ids.guest));
  }

  /** A supervisor that was started at this time serves: it has read what was there then. */
  settleAll(startedAt) {
    for (const [id, versions] of this.#versions) {
      this.#settle(
        id,
        versions.findLast(({ written }) => written <= startedAt),
      );
    }
  }

  #versionsIn(id, startedAt, endedAt) {
    return this.#versions.get(id).filter(({ from, until }) => from <= endedAt && until >= startedAt);
  }

  /** One after the other: a change that takes longer must not undo the one after it. */
  #change(id, write) {
    const changed = this.#changing.then(async () => {
      const version = this.#begin(id);
      await write(version);
      version.written = performance.now();
      return () => this.#settle(id, version);
    });
    this.#changing = changed.catch(() => undefined);
    return changed;
  }

  #begin(id) {
    const versions = this.#versions.get(id);
    const now = performance.now();
    versions.at(-1).until = now + watchingMs;
    const number = versions.at(-1).number + 1;
    const version = { number, from: now, written: Number.POSITIVE_INFINITY, until: Number.POSITIVE_INFINITY };
    versions.push(version);
    return version;
  }

  /** The versions before it are gone from now on. */
  #settle(id, version) {
    const now = performance.now();
    for (const earlier of this.#versions.get(id)) {
      if (earlier.number < version.number) earlier.until = Math.min(earlier.until, now);
    }
  }

  async #write(id, version) {
    const { says, loop = false } = talkers.find((talker) => talker.id === id);
    const unfinished = join(this.#aside, id);
    await writeKnownAnswerModel(unfinished, { name: id, words: says(version), loop });
    await rename(unfinished, this.#file(id));
  }

  async #writePresets() {
    const version = this.#versions.get(ids.preset).at(-1).number;
    const unfinished = join(this.#aside, 'presets.ini');
    const sections = [
      ['[*]', 'ctx-size = 4096'],
      [`[${ids.preset}]`, `ctx-size = ${contextSize(version)}`],
      [`[${ids.endless}]`, 'ctx-size = 32768'],
      [`[${ids.embedding}]`, 'embeddings = true'],
    ];
    await writeFile(unfinished, sections.map((lines) => `${lines.join('\n')}\n`).join('\n'));
    await rename(unfinished, this.presetFile);
  }

  #file(id) {
    return join(this.directory, `${id}.gguf`);
  }
}

/** Each version differs from the one before it. */
function contextSize(version) {
  return 1024 + 256 * (version % 8);
}
