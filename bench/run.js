/**
 * `npm run bench`: what the router costs, measured side by side with other ways to reach the same model. See
 * docs/benchmarks.md.
 */
import { fork, spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, release, tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findLlamaServer, noBinaryMessage } from '../dist/config/binary.js';
import { writeKnownAnswerModel } from '../dist/demo/known-answer-model.js';
import { BenchError, interruption, optionValues, runCommand } from './command.js';
import { hasNginx, startDirect, startNative, startNginx, startOurs } from './contenders.js';
import { cpuSeconds, stopServers } from './processes.js';
import { monotonicUs, mostExpensive, readProfile } from './profile.js';
import { renderTable, summarise } from './report.js';
import { model, workloads } from './workloads.js';

const HELP = `npm run bench -- [options]

  --rounds N        rounds of each workload and contender (default 5)
  --seconds S       length of a round (default 1)
  --only WORKLOAD   one of ${Object.keys(workloads).join(', ')}; may be repeated
  --quick           2 rounds of 0.3 s: shows that all works, not how fast
  --profile         llama-supervisor alone, under node --cpu-prof: prints where its time went
  --help
`;

/** How much longer than its round a generator may take: for answers begun, and the loading of the model. */
const patienceMs = 60_000;

const resultsDirectory = fileURLToPath(new URL('results/', import.meta.url));
const generatorScript = fileURLToPath(new URL('load-generator.js', import.meta.url));

runCommand('bench', main);

async function main(args) {
  const options = readOptions(args);
  if (options.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const directory = await mkdtemp(join(tmpdir(), 'llama-supervisor-bench-'));
  try {
    return await Promise.race([bench(options, directory), interruption()]);
  } finally {
    await stopServers();
    await rm(directory, { recursive: true, force: true });
  }
}

function readOptions(args) {
  const values = optionValues(
    args,
    {
      rounds: { type: 'string' },
      seconds: { type: 'string' },
      only: { type: 'string', multiple: true, default: Object.keys(workloads) },
      quick: { type: 'boolean', default: false },
      profile: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
    HELP,
  );
  const { only, quick, profile, help } = values;
  const rounds = Number(values.rounds ?? (quick ? 2 : 5));
  const seconds = Number(values.seconds ?? (quick ? 0.3 : 1));
  if (!Number.isInteger(rounds) || rounds < 1) throw new BenchError('--rounds is not a positive integer');
  if (!(seconds > 0 && seconds <= 600)) throw new BenchError('--seconds is not between 0 and 600');
  const unknown = only.find((name) => !Object.hasOwn(workloads, name));
  if (unknown !== undefined) {
    throw new BenchError(`--only ${unknown}: not one of ${Object.keys(workloads).join(', ')}`);
  }
  return { rounds, seconds, only, profile, help };
}

async function bench(options, directory) {
  const found = findLlamaServer({ explicit: undefined, env: process.env });
  if (found === undefined) throw new BenchError(noBinaryMessage());
  const modelsDir = join(directory, 'models');
  await mkdir(modelsDir);
  await writeKnownAnswerModel(join(modelsDir, `${model.id}.gguf`), { name: model.id, words: model.words });
  await mkdir(resultsDirectory, { recursive: true });

  // Numbers that are not there (NaN) do not pass as JSON.
  const generator = fork(generatorScript, { serialization: 'advanced' });
  try {
    const setting = { binary: found.path, directory, modelsDir };
    if (options.profile) return await profile(options, generator, setting);
    return await compare(options, generator, setting);
  } finally {
    generator.disconnect();
  }
}

async function compare(options, generator, setting) {
  const [loadBefore] = loadavg();
  if (loadBefore > cpus().length / 2) {
    say(
      `this machine is busy (load average ${loadBefore.toFixed(1)}): trust the CPU times more than the others`,
    );
  }
  const contenders = await startContenders(setting);
  say('warming up');
  for (const workload of options.only) {
    for (const contender of contenders) {
      await measure(generator, contender, workload, options.seconds / 2);
    }
  }
  const rounds = await measureRounds(options, generator, contenders);
  const rows = summarise(rounds);

  console.log(`\n${renderTable(rows, workloads)}\n`);
  if (!contenders.some(({ name }) => name === 'nginx')) console.log('nginx: not installed, so not measured.');
  console.log(`Kept in ${await keepResults(options, setting.binary, { loadBefore, rows, rounds })}`);
  return reportErrors(rounds);
}

async function startContenders(setting) {
  say('starting direct, native, nginx, ours');
  const direct = await startDirect(setting);
  const native = await startNative(setting);
  const nginx = hasNginx() ? [await startNginx(setting, direct)] : [];
  const ours = await startOurs(setting);
  return [direct, native, ...nginx, ours];
}

async function measureRounds({ only, rounds, seconds }, generator, contenders) {
  const measured = {};
  for (const workload of only) {
    say(workloads[workload].title);
    const byContender = Object.fromEntries(contenders.map(({ name }) => [name, []]));
    for (let round = 0; round < rounds; round++) {
      for (const contender of contenders) {
        byContender[contender.name].push(await measure(generator, contender, workload, seconds));
      }
    }
    measured[workload] = byContender;
  }
  return measured;
}

/** One round. The routers' processes are looked up each time: nginx may replace a worker. */
async function measure(generator, { port, keepAlive, routerPids }, workload, seconds) {
  const pids = routerPids();
  const before = cpuSeconds(pids);
  const tally = await order(generator, { workload, port, keepAlive, seconds });
  return { ...tally, cpuSeconds: pids.length === 0 ? Number.NaN : cpuSeconds(pids) - before };
}

function order(generator, message) {
  return new Promise((resolve, reject) => {
    const settle = (result) => {
      clearTimeout(timer);
      generator.off('message', settle).off('exit', onExit);
      if (result instanceof Error) reject(result);
      else resolve(result);
    };
    const onExit = () => settle(new Error('the load generator ended'));
    const late = () => settle(new Error(`${message.workload} on port ${message.port} did not end`));
    const timer = setTimeout(late, message.seconds * 1000 + patienceMs);
    generator.once('message', settle).once('exit', onExit);
    generator.send(message);
  });
}

/** @returns {Promise<string>} the file that holds the table and every round, as JSON */
async function keepResults({ rounds: count, seconds }, binary, results) {
  const file = join(resultsDirectory, `${stamp()}.json`);
  const version = spawnSync(binary, ['--version'], { encoding: 'utf8' });
  const machine = {
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    system: `${process.platform} ${release()}`,
    node: process.version,
    llamaServer: `${version.stdout}${version.stderr}`.trim(),
  };
  await writeFile(file, `${JSON.stringify({ machine, count, seconds, ...results }, undefined, 1)}\n`);
  return relative(process.cwd(), file);
}

/** Says what went wrong for whom. @returns {number} the exit status: 1 when ours answered wrong or not at all */
function reportErrors(rounds) {
  let status = 0;
  for (const [workload, byContender] of Object.entries(rounds)) {
    for (const [contender, list] of Object.entries(byContender)) {
      const errors = list.reduce((sum, round) => sum + round.errors, 0);
      const resent = list.reduce((sum, round) => sum + round.resent, 0);
      if (resent > 0) console.log(`${workload}, ${contender}: ${resent} requests met a closed connection.`);
      if (errors === 0) continue;
      const { firstError } = list.find((round) => round.errors > 0);
      console.log(`${workload}, ${contender}: ${errors} errors, the first: ${firstError}`);
      if (contender === 'ours') status = 1;
    }
  }
  return status;
}

async function profile({ only, rounds, seconds }, generator, setting) {
  const profileDir = join(resultsDirectory, `profile-${stamp()}`);
  const ours = await startOurs({ ...setting, profileDir });
  const windows = [];
  for (const workload of only) {
    say(workloads[workload].title);
    await measure(generator, ours, workload, seconds);
    const fromUs = monotonicUs();
    await measure(generator, ours, workload, rounds * seconds);
    windows.push({ workload, fromUs, toUs: monotonicUs() });
  }
  // The profile is written when the process ends.
  await stopServers();
  const [name] = await readdir(profileDir);
  const file = join(profileDir, name);
  const read = await readProfile(file);
  console.log(relative(process.cwd(), file));
  for (const { workload, ...window } of windows) {
    console.log(`\n${workload}: ${mostExpensive(read, window, 'part', 15)}`);
    console.log(`\n${workload}: ${mostExpensive(read, window, 'name', 30)}`);
  }
  return 0;
}

function stamp() {
  return new Date().toISOString().replaceAll(':', '-').slice(0, 19);
}

function say(message) {
  process.stderr.write(`${message}\n`);
}
