import { createHash } from 'node:crypto';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import {
  countingWords,
  writeKnownAnswerModel,
  type KnownAnswerSpec,
} from '../../src/demo/known-answer-model.js';
import { tempDir } from './temp-dir.js';

/** What a model says, and with what else it is made; its name comes from its file. */
export type KnownAnswers = Omit<KnownAnswerSpec, 'name'>;

/** A model that says which one it is: `I am NAME.` shows where a request went. */
export function sayingItsName(name: string): KnownAnswers {
  return { words: ['I', 'am', `${name}.`] };
}

/** The answer of a model that says its name. */
export function nameAnswer(name: string): string {
  return `I am ${name}.`;
}

/** A model that counts from 1 to `n`, each number after `prefix`, so that several counters can be told apart. */
export function counting(n: number, prefix = ''): KnownAnswers {
  return { words: countingWords(n).map((word) => prefix + word) };
}

/** A model that says these words over and over until it is stopped. */
export function endless(prefix = 'lap-'): KnownAnswers {
  return { ...counting(50, prefix), loop: true };
}

/**
 * The pieces of text in which a model says its first `count` words: a word each, all but the very first after a blank.
 * Those of an endless model go round and round.
 */
export function piecesOf({ words }: KnownAnswers, count = words.length): string[] {
  return Array.from({ length: count }, (_, at) => {
    const word = words[at % words.length] ?? '';
    return at === 0 ? word : ` ${word}`;
  });
}

/**
 * Writes `DIR/KEY.gguf` for each key, which may hold folders: `alpha`, or `beta/weights`. Making a model takes a few
 * milliseconds, so every test makes its own.
 *
 * @param dir default: a new temporary directory
 * @returns `dir`
 */
export async function writeModels(
  models: Readonly<Record<string, KnownAnswers>>,
  dir = tempDir(),
): Promise<string> {
  for (const [path, answers] of Object.entries(models)) {
    const file = join(dir, `${path}.gguf`);
    await mkdir(dirname(file), { recursive: true });
    await writeKnownAnswerModel(file, { name: basename(path), ...answers });
  }
  return dir;
}

/**
 * Adds a model to a Hugging Face hub cache as the hub's own clients lay it out: the bytes under `blobs` by a hash,
 * a relative link to them in the snapshot of one commit, and that commit in `refs/main`.
 *
 * @param cache the directory that `HF_HUB_CACHE` or `LLAMA_CACHE` names
 * @param repo `user/name`
 * @param file path inside the repository, with `.gguf`
 */
export async function writeHubModel(
  cache: string,
  repo: string,
  file: string,
  answers: KnownAnswers,
): Promise<void> {
  const root = join(cache, `models--${repo.replaceAll('/', '--')}`);
  const commit = createHash('sha1').update(repo).digest('hex');
  const blobs = join(root, 'blobs');
  const link = join(root, 'snapshots', commit, file);
  await mkdir(blobs, { recursive: true });
  await mkdir(dirname(link), { recursive: true });
  await mkdir(join(root, 'refs'), { recursive: true });

  // The hub names a blob by its content. Nothing reads that hash, so the file's name will do as content.
  const blob = join(blobs, createHash('sha256').update(file).digest('hex'));
  await writeKnownAnswerModel(blob, { name: basename(file, '.gguf'), ...answers });
  await symlink(relative(dirname(link), blob), link);
  await writeFile(join(root, 'refs', 'main'), commit);
}
