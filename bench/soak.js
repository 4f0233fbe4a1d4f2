/**
 * `npm run soak -- --minutes N`: the supervisor under random traffic and faults, with models whose answers are known. Every
 * answer has to be right, or an error that something which was done here explains.
 */
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { findLlamaServer, noBinaryMessage } from '../dist/config/binary.js';
import { BenchError, interruption, optionValues, runCommand } from './command.js';
import { renderReport } from './soak/report.js';
import { Soak } from './soak/soak.js';

const HELP = `npm run soak -- [options]

  --minutes N   how long (default 1; fractions are allowed)
  --rate N      requests per second on average, bursts apart (default 15)
  --seed TEXT   repeats the choices of an earlier run, as far as timing allows
  --json FILE   the report as JSON, too
  --help

Ends with 1 when something is not 0 that must be. Its files are kept then.
`;

/** A process that is just ending may still be writing into it. */
const gone = { recursive: true, force: true, maxRetries: 5, retryDelay: 50 };

runCommand('soak', main);

async function main(args) {
  const options = readOptions(args);
  if (options.help) {
    process.stdout.write(HELP);
    return 0;
  }
  // Processes, their memory and their descriptors are counted there.
  if (!existsSync('/proc/self/fd')) throw new BenchError('this system has no /proc, which the soak needs');
  const found = findLlamaServer({ explicit: undefined, env: process.env });
  if (found === undefined) throw new BenchError(noBinaryMessage());

  const directory = await mkdtemp(join(tmpdir(), 'llama-supervisor-soak-'));
  const soak = new Soak({ ...options, binary: found.path, directory, say });
  // The last resort, however this process ends; what it cannot see to, being killed, the kernel does.
  process.on('exit', () => soak.killAll());
  say(`seed ${options.seed}, ${options.seconds} s, files in ${directory}`);
  const outcome = await Promise.race([soak.run(), interruption()]);
  soak.killAll();
  if (typeof outcome === 'number') {
    await rm(directory, gone);
    return outcome;
  }

  process.stdout.write(renderReport(outcome));
  if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(outcome, undefined, 1)}\n`);
  if (outcome.failed.length > 0) {
    say(`what the supervisor wrote is in ${soak.logFile}`);
    return 1;
  }
  await rm(directory, gone);
  return 0;
}

function readOptions(args) {
  const values = optionValues(
    args,
    {
      minutes: { type: 'string', default: '1' },
      rate: { type: 'string', default: '15' },
      seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 32)) },
      json: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
    HELP,
  );
  const [minutes, rate] = [Number(values.minutes), Number(values.rate)];
  if (!(minutes > 0)) throw new BenchError('--minutes is not a number above 0');
  if (!(rate > 0 && rate <= 1000)) throw new BenchError('--rate is not a number between 0 and 1000');
  return { seconds: minutes * 60, rate, seed: values.seed, json: values.json, help: values.help };
}

function say(message) {
  process.stderr.write(`${message}\n`);
}
