#!/usr/bin/env node
// Makes a clone ready to run: packages, compiled sources, a llama-server. With arguments it then goes on as the
// command line (`node bin/setup.js start --demo`). It runs before anything is installed, so it uses nothing but
// Node; and it runs before every start and test, so looking at what is in place must cost next to nothing. Its
// syntax is that of Node 12, which some distributions still install, so that an old Node gets a message and not
// a syntax error: no `?.`, no `??`, no top-level await.
import { spawn } from 'child_process';
import { createHash } from 'crypto';
import fs from 'fs';
import os from 'os';
import path from 'path';
import { fileURLToPath } from 'url';

const NODE_FLOOR = { major: 20, minor: 19 };
const ROOT = fileURLToPath(new URL('..', import.meta.url));
const SRC = path.join(ROOT, 'src');
const DIST = path.join(ROOT, 'dist');
const COMPILED_FROM = path.join(DIST, '.compiled-from');

/** What a person is told without a stack, and the status the process then ends with. */
class SetupError extends Error {
  constructor(message, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

refuseOldNode();
main(process.argv.slice(2)).catch((error) => {
  // An unusable binary that was named explicitly comes with a message for people, too.
  const isForPeople = error instanceof SetupError || error.name === 'UnusableBinaryError';
  console.error(isForPeople ? error.message : error);
  process.exit(error instanceof SetupError ? error.exitCode : 1);
});

async function main(args) {
  await prepare(givenBinary(args));
  if (args.length === 0) return;
  const cli = await import('../dist/cli.js');
  await cli.main(args);
}

function refuseOldNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > NODE_FLOOR.major || (major === NODE_FLOOR.major && minor >= NODE_FLOOR.minor)) return;
  const floor = `${NODE_FLOOR.major}.${NODE_FLOOR.minor}`;
  console.error(`llama-supervisor needs Node ${floor} or newer; this is ${process.version}.`);
  process.exit(1);
}

/** The value of `--llama-server`, of which the last one counts. */
function givenBinary(args) {
  const flag = '--llama-server';
  const last = args.findLastIndex((arg) => arg === flag || arg.startsWith(`${flag}=`));
  if (last === -1) return undefined;
  return args[last] === flag ? args[last + 1] : args[last].slice(flag.length + 1);
}

async function prepare(explicit) {
  if (packagesAreInstalled() && sourcesAreCompiled() && (await hasBinary(explicit))) return;
  // Each step looks again: another set-up may have done it while this one waited for the lock.
  await alone(async () => {
    if (!packagesAreInstalled()) await installPackages();
    if (!sourcesAreCompiled()) await compileSources();
    if (!(await hasBinary(explicit))) await buildBinary();
  });
}

/**
 * npm keeps a copy of the lock file in node_modules and writes it when all else is done, so a missing copy is an
 * unfinished installation, and another version in it an outdated one.
 */
function packagesAreInstalled() {
  const wanted = readJson(path.join(ROOT, 'package-lock.json'));
  const installed = readJson(path.join(ROOT, 'node_modules', '.package-lock.json'));
  if (wanted === undefined || installed === undefined) return false;
  return Object.entries(wanted.packages).every(
    ([location, { version, integrity, optional, devOptional }]) => {
      if (location === '') return true;
      const found = installed.packages[location];
      // An optional package is left out where it is not made for the platform.
      if (found === undefined) return optional === true || devOptional === true;
      return found.version === version && found.integrity === integrity;
    },
  );
}

function readJson(file) {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    return undefined;
  }
}

async function installPackages() {
  say('Installing packages (npm ci).');
  // Under `npm start` the npm that runs it is known, and on Windows a bare `npm` cannot be spawned.
  const running = process.env['npm_execpath'] || '';
  const npm = /npm-cli\.c?js$/.test(running) ? [process.execPath, running] : ['npm'];
  // Compiling needs the development packages even where the environment leaves them out.
  await run(
    [...npm, 'ci', '--include=dev', '--no-audit', '--no-fund'],
    'The packages could not be installed.',
  );
}

function sourcesAreCompiled() {
  try {
    return fs.readFileSync(COMPILED_FROM, 'utf8') === sourcesStamp();
  } catch {
    return false;
  }
}

/** Names, sizes and times of all that is compiled: it differs after an edit, a deletion and a renaming. */
function sourcesStamp() {
  const configs = fs.readdirSync(ROOT).filter((name) => /^tsconfig.*\.json$/.test(name));
  const files = [...configs.map((name) => path.join(ROOT, name)), ...filesUnder(SRC)].sort();
  const hash = createHash('sha256');
  for (const file of files) {
    const { size, mtimeMs } = fs.statSync(file);
    hash.update(`${path.relative(ROOT, file)} ${size} ${mtimeMs}\n`);
  }
  return hash.digest('hex');
}

function filesUnder(directory) {
  return fs
    .readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

async function compileSources() {
  say('Compiling.');
  // Taken first, so that an edit made during the compilation is seen next time.
  const stamp = sourcesStamp();
  fs.rmSync(COMPILED_FROM, { force: true });
  const tsc = path.join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
  await run(
    [process.execPath, tsc, '-p', 'tsconfig.build.json', '--noEmitOnError'],
    'The sources could not be compiled.',
  );
  // Written in place and weeded afterwards: a server that runs from dist/ never finds a file of its own missing.
  for (const file of filesUnder(DIST)) {
    const source = path.relative(DIST, file).replace(/(\.d\.ts|\.js)(\.map)?$/, '.ts');
    if (!fs.existsSync(path.join(SRC, source))) fs.rmSync(file);
  }
  fs.writeFileSync(COMPILED_FROM, stamp);
}

async function hasBinary(explicit) {
  const { findLlamaServer } = await import('../dist/config/binary.js');
  return findLlamaServer({ explicit, env: process.env }) !== undefined;
}

async function buildBinary() {
  say('No llama-server here yet: building one with ./build-llama.sh. This takes some minutes, once.');
  await run(
    ['bash', path.join(ROOT, 'build-llama.sh')],
    'llama-server could not be built. `./build-llama.sh --help` lists the ways; --llama-server PATH or ' +
      'LLAMA_SERVER_BIN names one that you have.',
  );
}

function say(message) {
  process.stderr.write(`${message}\n`);
}

/**
 * Runs a command to its end with its output on standard error, which leaves standard output to the command line.
 * A signal to this process ends the command first, so that nothing goes on behind the user's back.
 */
function run([command, ...commandArgs], whenItFails) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, commandArgs, { cwd: ROOT, stdio: ['ignore', 2, 2] });
    let received;
    const forward = (signal) => {
      received = received || signal;
      child.kill(signal);
    };
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
    for (const signal of signals) process.on(signal, forward);
    child.on('error', (error) => reject(new SetupError(`${whenItFails} (${command}: ${error.message})`)));
    child.on('close', (code) => {
      for (const signal of signals) process.off(signal, forward);
      if (received !== undefined) {
        reject(new SetupError('The set-up was interrupted.', 128 + os.constants.signals[received]));
      } else if (code === 0) {
        resolve();
      } else {
        reject(new SetupError(whenItFails));
      }
    });
  });
}

/**
 * Runs `work` while no other set-up of this clone does: `npm start` and `npm test` in two terminals must not
 * install into one folder at once. The lock file lies outside the clone, because `npm ci` empties node_modules.
 */
async function alone(work) {
  const given = process.env['XDG_CACHE_HOME'] || '';
  const cache = path.isAbsolute(given) ? given : path.join(os.homedir(), '.cache');
  const clone = createHash('sha256').update(ROOT).digest('hex').slice(0, 12);
  const lock = path.join(cache, 'llama-supervisor', `setup-${clone}.lock`);
  fs.mkdirSync(path.dirname(lock), { recursive: true });
  await takeLock(lock);
  const release = () => {
    const holder = holderOf(lock);
    if (holder !== undefined && holder.pid === process.pid) fs.rmSync(lock, { force: true });
  };
  process.on('exit', release);
  // A lock that is gone is no reason to stop: whatever took it away thought this process dead.
  const beat = setInterval(() => fs.utimes(lock, new Date(), new Date(), () => {}), 1000);
  try {
    await work();
  } finally {
    clearInterval(beat);
    process.off('exit', release);
    release();
  }
}

/**
 * Waits as long as the holder lives and shows it: its process id exists, and the lock file is touched every
 * second. The id alone would not do, since after a restart of the machine it may be another program's.
 */
async function takeLock(lock) {
  const silenceMs = 20_000;
  let touched;
  let touchedAt = performance.now();
  let told = false;
  for (;;) {
    try {
      fs.writeFileSync(lock, String(process.pid), { flag: 'wx' });
      return;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const holder = holderOf(lock);
    if (holder === undefined) continue;
    if (holder.touched !== touched) {
      touched = holder.touched;
      touchedAt = performance.now();
    }
    if (!isAlive(holder.pid) || performance.now() - touchedAt > silenceMs) {
      breakLock(lock, holder);
      continue;
    }
    if (!told && holder.pid !== 0) {
      say(`Another set-up of this clone is running (process ${holder.pid}): waiting for it.`);
      told = true;
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

/** Who holds the lock: process 0 is a holder that has not yet written its id. */
function holderOf(lock) {
  try {
    return { pid: Number(fs.readFileSync(lock, 'utf8')), touched: fs.statSync(lock).mtimeMs };
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Of several that find a dead holder's lock one moves it away; who got the next holder's puts it back. */
function breakLock(lock, holder) {
  const moved = `${lock}.${process.pid}`;
  try {
    fs.renameSync(lock, moved);
  } catch {
    return;
  }
  const found = holderOf(moved);
  if (found !== undefined && found.pid !== holder.pid) fs.renameSync(moved, lock);
  fs.rmSync(moved, { force: true });
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}
