/** One life of the supervisor: a whole process from its start to its end, and what is to be seen of it from outside. */
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parentDeathPrefix } from '../../dist/instance/parent-death.js';
import { BenchError } from '../command.js';
import { Client } from './client.js';
import {
  descriptorsOf,
  familyOf,
  identityOf,
  isAlive,
  listenersOn,
  markedWith,
  membersOf,
  optionIn,
  residentBytes,
} from './process-table.js';

const supervisorScript = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

const pollMs = 10;
const startDeadlineMs = 60_000;
const sampleMs = 500;

/** How long processes may outlive their supervisor. */
const orphanGraceMs = 5_000;

/**
 * Descriptors come and go for a moment: the number counts that stays for so long. At the start it has to be the smallest,
 * without the thread that has read the models' files and ends when it has been idle for five seconds.
 */
const steadyMs = 500;
const steadyAtStartMs = 5_500;
const steadyDeadlineMs = 15_000;

export class Life {
  #options;
  #process;
  #exited;
  #sampling;
  /** All processes that were seen below it. @type {Map<string, import('./process-table.js').Identity>} */
  #family = new Map();
  #ports = new Set();
  #startKinds = new Map();
  /** What is known of it when it is over. */
  facts;

  /**
   * Starts it.
   *
   * @param {object} options
   * @param {number} options.number
   * @param {number} options.port
   * @param {readonly string[]} options.args
   * @param {NodeJS.ProcessEnv} options.env
   * @param {string} options.mark `NAME=VALUE` in `env` by which its processes are known
   * @param {string} options.logFile
   * @param {number} options.modelsMax
   * @param {(about: string, detail: string) => void} options.complain
   */
  constructor(options) {
    const { number, port, args, env, logFile } = options;
    this.#options = options;
    this.#ports.add(port);
    const log = openSync(logFile, 'a');
    const [command, ...words] = [
      ...parentDeathPrefix(),
      process.execPath,
      supervisorScript,
      'start',
      ...args,
    ];
    // A process group of its own: Ctrl-C is for the soak, which then ends the supervisor in order.
    this.#process = spawn(command, words, { env, detached: true, stdio: ['ignore', log, log] });
    closeSync(log);
    this.facts = {
      number,
      pid: this.#process.pid,
      servedAfterMs: undefined,
      bareStartMs: undefined,
      end: undefined,
      exit: undefined,
      descriptors: { start: undefined, end: undefined, leaked: 0, more: [] },
      memoryMiB: { start: undefined, peak: 0, end: undefined, childrenPeak: 0 },
      orphans: [],
    };
    this.#exited = new Promise((resolve) => {
      this.#process.once('exit', (code, signal) => resolve(signal ?? code));
      this.#process.once('error', (error) => resolve(error.message));
    }).then((exit) => {
      this.facts.exit = exit;
      clearInterval(this.#sampling);
      return exit;
    });
  }

  get pid() {
    return this.#process.pid;
  }

  /** Its end: the exit code or the signal. */
  get exited() {
    return this.#exited;
  }

  get hasExited() {
    return this.facts.exit !== undefined;
  }

  /** Its llama-servers that run now. @returns {{ model: string, identity: import('./process-table.js').Identity }[]} */
  children() {
    return familyOf(this.pid).flatMap((identity) => {
      const model = optionIn(identity, '--alias');
      return model === undefined || !identity.command.includes('llama-server') ? [] : [{ model, identity }];
    });
  }

  /** Settles when it serves. @throws BenchError when it does not */
  async serving() {
    const client = new Client(this.#options.port);
    const bareStart = bareStartMs();
    const begin = performance.now();
    for (;;) {
      const { status } = await client.ask({ path: '/health', patienceMs: 1_000 }, { kept: false });
      if (status === 200) break;
      const isLate = performance.now() - begin > startDeadlineMs;
      if (this.hasExited || isLate) {
        const how = isLate ? `does not serve after ${startDeadlineMs / 1000} s` : `ended: ${this.facts.exit}`;
        throw new BenchError(`life ${this.facts.number} of the supervisor ${how}`);
      }
      await delay(pollMs);
    }
    this.facts.servedAfterMs = Math.round(performance.now() - begin);
    this.facts.bareStartMs = await bareStart;
    this.#sampling = setInterval(() => this.#sample(), sampleMs);
  }

  signal(name) {
    if (this.hasExited) return;
    this.#look();
    this.#process.kill(name);
  }

  /** To be called while nothing is asked of it and no model is loaded. */
  async measureStart() {
    const held = await this.#steadyDescriptors(steadyAtStartMs);
    this.#startKinds = countKinds(held);
    this.facts.descriptors.start = held.length;
    this.facts.descriptors.kinds = Object.fromEntries(this.#startKinds);
    this.facts.memoryMiB.start = mebibytes(residentBytes(this.pid));
  }

  /** The same again; what is open more than at the start has leaked. */
  async measureEnd() {
    const { descriptors, memoryMiB } = this.facts;
    const deadline = performance.now() + steadyDeadlineMs;
    let held = await this.#steadyDescriptors(steadyMs);
    while (held.length > descriptors.start && performance.now() < deadline)
      held = await this.#steadyDescriptors(steadyMs);
    descriptors.end = held.length;
    descriptors.leaked = Math.max(0, held.length - descriptors.start);
    if (descriptors.leaked > 0) descriptors.more = more(countKinds(held), this.#startKinds);
    memoryMiB.end = mebibytes(residentBytes(this.pid));
  }

  /** To be called when it has exited: whether it has taken everything with it. What is left is killed. */
  async countOrphans() {
    const deadline = performance.now() + orphanGraceMs;
    let left = this.#left();
    while (left.length > 0 && performance.now() < deadline) {
      await delay(50);
      left = this.#left();
    }
    this.facts.orphans = left.map(({ what }) => what);
    for (const { identity } of left) kill(identity);
  }

  /** Kills it and all that it has started, without waiting. */
  killAll() {
    this.#look();
    if (!this.hasExited && this.#process.pid !== undefined) this.#process.kill('SIGKILL');
    for (const { identity } of this.#left()) kill(identity);
  }

  #sample() {
    const children = this.#look();
    const { memoryMiB } = this.facts;
    const sum = children.reduce((total, { identity }) => total + residentBytes(identity.pid), 0);
    memoryMiB.peak = Math.max(memoryMiB.peak, mebibytes(residentBytes(this.pid)));
    memoryMiB.childrenPeak = Math.max(memoryMiB.childrenPeak, mebibytes(sum));
    // One may have gone and another come while they were looked at: only those count that are there at one moment.
    if (children.length <= this.#options.modelsMax) return;
    const atOnce = children.filter(({ identity }) => isAlive(identity));
    if (atOnce.length > this.#options.modelsMax) {
      const names = atOnce.map(({ model, identity: { pid } }) => `${model} (${pid})`).join(', ');
      this.#options.complain('limit', `${atOnce.length} models run at once: ${names}`);
    }
  }

  /** Remembers who is there, so that they are found when their parent has gone. */
  #look() {
    for (const identity of familyOf(this.pid)) this.#family.set(`${identity.pid} ${identity.born}`, identity);
    const children = this.children();
    for (const { identity } of children) this.#ports.add(Number(optionIn(identity, '--port')));
    return children;
  }

  /** What is there of it besides itself: by process, by process group, by mark, by port. */
  #left() {
    const seen = [...this.#family.values()];
    // That of the soak is none of its.
    const groups = new Set(seen.map(({ group }) => group));
    groups.delete(identityOf(process.pid)?.group);
    const processes = [...seen.filter(isAlive), ...membersOf(groups), ...markedWith(this.#options.mark)];
    const left = new Map();
    for (const identity of processes) {
      if (identity.pid === this.pid) continue;
      left.set(identity.pid, { what: `process ${identity.pid}: ${identity.command}`, identity });
    }
    for (const { port, owner } of listenersOn(this.#ports)) {
      // A port that has become free may be a stranger's by now.
      const isStrangers = owner !== undefined && !left.has(owner.pid);
      if (!isStrangers) left.set(`port ${port}`, { what: `port ${port} is listened on`, identity: owner });
    }
    return [...left.values()];
  }

  async #steadyDescriptors(ms) {
    const deadline = performance.now() + steadyDeadlineMs;
    let held = descriptorsOf(this.pid);
    let since = performance.now();
    while (performance.now() - since < ms && performance.now() < deadline) {
      await delay(50);
      const now = descriptorsOf(this.pid);
      if (now.length !== held.length) since = performance.now();
      held = now;
    }
    return held;
  }
}

function kill(identity) {
  if (identity === undefined || !isAlive(identity)) return;
  try {
    process.kill(identity.pid, 'SIGKILL');
  } catch {
    // It has just gone.
  }
}

/** How long a process of Node's takes that does nothing: the measure of how busy the machine is. Milliseconds. */
function bareStartMs() {
  const begin = performance.now();
  return new Promise((resolve, reject) => {
    const bare = spawn(process.execPath, ['--eval', '0'], { env: {}, stdio: 'ignore' });
    bare.once('error', reject);
    bare.once('exit', () => resolve(Math.round(performance.now() - begin)));
  });
}

/** `socket:[123]` and `pipe:[456]` are all different; of what kind they are is what says something. */
function countKinds(descriptors) {
  const counts = new Map();
  for (const target of descriptors) {
    const kind = target.replace(/\[\d+\]$/, '');
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return counts;
}

function more(now, before) {
  return [...now]
    .map(([kind, count]) => [kind, count - (before.get(kind) ?? 0)])
    .filter(([, count]) => count > 0)
    .map(([kind, count]) => `${count} ${kind}`);
}

function mebibytes(bytes) {
  return Math.round(bytes / 2 ** 20);
}
