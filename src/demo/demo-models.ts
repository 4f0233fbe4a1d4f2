/** The models that `npm start` offers, so that a fresh clone has something to talk to. */
import { randomUUID } from 'node:crypto';
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { countingWords, knownAnswerModel } from './known-answer-model.js';
import type { KnownAnswerSpec } from './known-answer-model.js';

export interface DemoModel {
  /** What a client names; the file is `<id>.gguf`. */
  id: string;
  spec: Omit<KnownAnswerSpec, 'name'>;
  /** What llama-server must be started with for this model, as preset keys and values. */
  options: Readonly<Record<string, string>>;
}

export const demoModels: readonly DemoModel[] = [
  {
    id: 'demo-hello',
    spec: {
      words: (
        'Hello! I am demo-hello, a tiny model that llama-supervisor made for you. ' +
        'Name another one in your next request, and it will answer instead.'
      ).split(' '),
    },
    options: {},
  },
  { id: 'demo-counter', spec: { words: countingWords(100) }, options: {} },
  {
    id: 'demo-embeddings',
    spec: { words: 'I am demo-embeddings: send me text at /v1/embeddings'.split(' '), pooling: 'mean' },
    options: { embeddings: 'true' },
  },
];

/**
 * Makes every demo model in `dir` that is missing there or is not what this version makes, and leaves all
 * other files alone. Two processes may do it at once, and a server may be running the old files.
 *
 * @returns `dir`, to be served as a models directory, and the presets file that goes with it
 * @throws the file system's error when `dir` cannot be read or written
 */
export async function ensureDemoModels(dir: string): Promise<{ directory: string; presetFile: string }> {
  await mkdir(dir, { recursive: true });
  for (const { id, spec } of demoModels) {
    await ensureContent(join(dir, `${id}.gguf`), knownAnswerModel({ name: id, ...spec }));
  }
  const presetFile = join(dir, 'presets.ini');
  await ensureContent(presetFile, Buffer.from(demoPresets()));
  return { directory: dir, presetFile };
}

/** What the demo models must be started with, as a presets file. */
function demoPresets(): string {
  return demoModels
    .filter(({ options }) => Object.keys(options).length > 0)
    .map(({ id, options }) => [
      `[${id}]`,
      ...Object.entries(options).map(([key, value]) => `${key} = ${value}`),
      '',
    ])
    .flat()
    .join('\n');
}

/** Comparing the bytes notices a changed maker and a damaged file alike, in a few milliseconds. */
async function ensureContent(file: string, wanted: Buffer): Promise<void> {
  const found = await readIfThere(file);
  if (!found?.equals(wanted)) await replaceFile(file, wanted);
}

async function readIfThere(file: string): Promise<Buffer | undefined> {
  try {
    return await readFile(file);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Readers see the old file or the new one, never a part: a rename replaces at once. */
async function replaceFile(file: string, bytes: Buffer): Promise<void> {
  const temporary = `${file}.${randomUUID()}.tmp`;
  try {
    await writeFile(temporary, bytes);
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
