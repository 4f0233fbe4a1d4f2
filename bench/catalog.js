/**
 * `npm run bench:catalog`: what thousands of models cost that nobody has loaded: the start, the list, and a reload,
 * next to the native router on the same files in one run. See docs/benchmarks.md.
 */
/* global AbortSignal */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tmpdir } from 'node:os';
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import { findLlamaServer, noBinaryMessage } from '../dist/config/binary.js';
import { BenchError } from './command.js';
import { startNative, startOurs } from './contenders.js';
import { stopServers } from './processes.js';
import { median } from './statistics.js';

const resultsDirectory = fileURLToPath(new URL('results/', import.meta.url));

/** The size that each model's file claims to have; none of it is on the disk. Bytes. */
const sparseBytes = 4 * 2 ** 30;
const answerMs = 120_000;
const lists = 10;

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(error instanceof BenchError ? `bench: ${error.message}` : error);
  process.exitCode = 1;
}

async function main(args) {
  const { values } = parseArgs({
    args,
    options: { models: { type: 'string', default: '10000' }, rounds: { type: 'string', default: '3' } },
  });
  const [models, rounds] = [Number(values.models), Number(values.rounds)];
  if (!(models > 0 && rounds > 0))
    throw new BenchError('--models and --rounds are whole numbers of at least 1');
  const found = findLlamaServer({ explicit: undefined, env: process.env });
  if (found === undefined) throw new BenchError(noBinaryMessage());

  const directory = await mkdtemp(join(tmpdir(), 'llama-supervisor-bench-'));
  try {
    const modelsDir = join(directory, 'models');
    await mkdir(modelsDir);
    for (let n = 0; n < models; n++)
      writeSparseModel(join(modelsDir, `model-${String(n).padStart(5, '0')}.gguf`));
    const measured = { native: [], ours: [] };
    // The first round of each is not counted: it fills what is kept between starts, and the system's own caches.
    for (let round = -1; round < rounds; round++) {
      for (const [name, start] of [
        ['native', startNative],
        ['ours', startOurs],
      ]) {
        const home = join(directory, name);
        await mkdir(home, { recursive: true });
        const setting = { binary: found.path, directory: home, modelsDir };
        const times = await measure(start, setting, models, round);
        if (round >= 0) measured[name].push(times);
        await rm(join(modelsDir, addedName(round)), { force: true });
        await stopServers();
      }
    }
    report(measured, models, rounds);
    await mkdir(resultsDirectory, { recursive: true });
    const file = join(
      resultsDirectory,
      `catalog-${new Date().toISOString().replaceAll(':', '-').slice(0, 19)}.json`,
    );
    await writeFile(file, `${JSON.stringify({ models, rounds, measured }, undefined, 1)}\n`);
  } finally {
    await stopServers();
    await rm(directory, { recursive: true, force: true });
  }
}

/** @returns one round's times, in milliseconds */
async function measure(start, setting, models, round) {
  const begin = performance.now();
  const { port } = await start(setting);
  const startMs = performance.now() - begin;
  const url = `http://127.0.0.1:${port}/models`;

  await list(url, models);
  const times = [];
  for (let n = 0; n < lists; n++) times.push((await list(url, models)).ms);
  writeSparseModel(join(setting.modelsDir, addedName(round)));
  const reload = await list(`${url}?reload=1`, models + 1);
  return { start: startMs, list: median(times), reload: reload.ms };
}

/** Asks for the list and checks that it is whole. */
async function list(url, models) {
  const begin = performance.now();
  const response = await fetch(url, { signal: AbortSignal.timeout(answerMs) });
  const text = await response.text();
  const ms = performance.now() - begin;
  const { data } = JSON.parse(text);
  if (data.length !== models) throw new BenchError(`${url} lists ${data.length} models instead of ${models}`);
  return { ms };
}

function addedName(round) {
  return `added-${round}.gguf`;
}

/** A GGUF header that says what a model is (version 3, one pair of metadata, no tensors), and a hole. */
function writeSparseModel(path) {
  const text = (words) => Buffer.concat([u64(words.length), Buffer.from(words)]);
  const file = openSync(path, 'w');
  const stringType = 8;
  writeSync(
    file,
    Buffer.concat([
      ...[Buffer.from('GGUF'), u32(3), u64(0), u64(1)],
      ...[text('general.architecture'), u32(stringType), text('llama')],
    ]),
  );
  ftruncateSync(file, sparseBytes);
  closeSync(file);
}

function u32(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function report({ native, ours }, models, rounds) {
  console.log(`${models} models that nobody has loaded, medians of ${rounds} rounds, ms\n`);
  console.log(`${'what'.padEnd(34)}${'native'.padStart(10)}${'ours'.padStart(10)}${'ratio'.padStart(10)}`);
  for (const [key, title] of [
    ['start', 'start, until it answers'],
    ['list', 'GET /models'],
    ['reload', 'GET /models?reload=1, one added'],
  ]) {
    const [theirs, own] = [native, ours].map((list) => median(list.map((round) => round[key])));
    const ratio = median(ours.map((round, at) => round[key] / native[at][key]));
    const cells = [theirs, own].map((ms) => ms.toFixed(1).padStart(10));
    console.log(`${title.padEnd(34)}${cells.join('')}${ratio.toFixed(2).padStart(10)}`);
  }
}
