/** The run: lives of the supervisor one after the other, with traffic and faults, each with a rest in which it is measured. */
import { randomUUID } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import getPort from 'get-port';
import { Client } from './client.js';
import { FaultLedger, limits } from './fault-ledger.js';
import { Faults } from './faults.js';
import { Life } from './life.js';
import { Listeners } from './listeners.js';
import { Random } from './random.js';
import { reportOf } from './report.js';
import { modelsMax, ServedModels } from './served-models.js';
import { Tally } from './tally.js';
import { queueMax, Traffic } from './traffic.js';

/** A life is a quarter of the run, between these. Milliseconds. */
const lifeMs = [3_000, 120_000];

/** How a life ends, with requests under way, and what it is in the ledger. */
const faultOf = {
  SIGKILL: 'supervisor killed',
  SIGTERM: 'supervisor drained',
  'POST /drain': 'supervisor drained',
  'SIGTERM twice': 'supervisor ended at once',
};
const ends = Object.keys(faultOf);

/** Traffic from the start of a life on, before the rest in which it is measured for the first time. */
const firstTrafficMs = [1_000, 2_000];

/** Traffic before a life ends, after the rest in which it was measured. */
const lastTrafficMs = [500, 4_000];

/** Longer than a drain may take, with all that is stopped after it. */
const endDeadlineMs = (limits.drainTimeout + 30) * 1000;

const listenerCount = 2;

/** How long the processes of models may take to go in a rest. */
const unloadDeadlineMs = 30_000;

export class Soak {
  /** What the supervisor wrote. */
  logFile;
  #options;
  #random;
  #models;
  #ledger = new FaultLedger();
  #tally = new Tally(this.#ledger);
  #client;
  #traffic;
  #faults;
  #listeners;
  /** @type {Life} */
  #life;
  #lives = [];
  #orphanCounts = [];
  #port;
  #mark = `SOAK_RUN=${randomUUID()}`;
  #endOrder;
  #isServing = false;
  /** How late the soak itself was: that is part of all waits. */
  #lag = monitorEventLoopDelay();

  /**
   * @param {object} options
   * @param {number} options.seconds
   * @param {number} options.rate arrivals per second
   * @param {number | string} options.seed
   * @param {string} options.binary
   * @param {string} options.directory an empty one
   * @param {(message: string) => void} options.say
   */
  constructor(options) {
    this.#options = options;
    this.#random = new Random(options.seed);
    this.#models = new ServedModels(options.directory);
    this.logFile = join(options.directory, 'supervisor.log');
    this.#endOrder = this.#random.named('ends').shuffled(ends);
  }

  /** @returns {Promise<import('./report.js').Report>} */
  async run() {
    const { seconds, rate } = this.#options;
    await this.#models.make();
    this.#port = await getPort({ host: '127.0.0.1' });
    this.#client = new Client(this.#port);
    const common = { client: this.#client, models: this.#models, ledger: this.#ledger, tally: this.#tally };
    this.#traffic = new Traffic({
      ...common,
      ...{ random: this.#random.named('traffic'), rate, isServing: () => this.#isServing },
    });
    this.#faults = new Faults({ ...common, random: this.#random.named('faults'), life: () => this.#life });
    this.#listeners = new Listeners({ ...common, count: listenerCount });

    this.#lag.enable();
    const startedAt = performance.now();
    try {
      await this.#live(seconds * 1000);
    } catch (error) {
      if (!(error instanceof EndedByItself)) throw error;
      this.#tally.complain('supervisor', error.message);
      this.#orphanCounts.push(this.#life.countOrphans());
      await this.#calm();
    }
    await Promise.all(this.#orphanCounts);
    return this.#report((performance.now() - startedAt) / 1000);
  }

  /** Ends everything at once, without a report. */
  killAll() {
    for (const life of this.#lives) life.killAll();
  }

  /** One life after the other, until there was traffic for so long. */
  async #live(trafficMs) {
    const random = this.#random.named('lives');
    const meanMs = Math.min(lifeMs[1], Math.max(lifeMs[0], trafficMs / 4));
    let leftMs = trafficMs;
    const wait = async (ms) => {
      await this.#wait(ms);
      leftMs -= ms;
    };
    await this.#start();
    this.#resume();
    for (;;) {
      // It is met by requests as soon as it serves. What is done once has been done then.
      await wait(random.between(...firstTrafficMs));
      await this.#rest();
      await this.#life.measureStart();
      this.#resume();
      await wait(Math.min(Math.max(leftMs, 0), meanMs * random.between(0.6, 1.4)));
      await this.#rest();
      await this.#life.measureEnd();
      if (leftMs <= 0) break;
      this.#resume();
      await wait(random.between(...lastTrafficMs));
      await this.#restart(this.#endOrder[(this.#lives.length - 1) % ends.length]);
    }
    await this.#drain(() => this.#life.signal('SIGTERM'));
  }

  async #start() {
    const { say } = this.#options;
    const number = this.#lives.length + 1;
    const begin = performance.now();
    const life = new Life({
      ...{ number, port: this.#port, mark: `${this.#mark}-${number}`, logFile: this.logFile, modelsMax },
      args: this.#args(),
      env: this.#environment(number),
      complain: (about, detail) => this.#tally.complain(about, detail),
    });
    this.#lives.push(life);
    this.#life = life;
    await life.serving();
    this.#isServing = true;
    this.#models.settleAll(begin);
    say(`life ${number}: pid ${life.pid} serves after ${life.facts.servedAfterMs} ms`);
  }

  /** Ends a life while it is being asked, and begins the next. */
  async #restart(how) {
    const life = this.#life;
    this.#options.say(`life ${life.facts.number}: ${how}`);
    life.facts.end = how;
    this.#isServing = false;
    const over = this.#ledger.begin(faultOf[how]);
    switch (how) {
      case 'SIGKILL':
        life.signal('SIGKILL');
        await this.#ended(life, 'SIGKILL');
        break;
      case 'SIGTERM':
        await this.#drain(() => life.signal('SIGTERM'));
        break;
      case 'POST /drain':
        await this.#drain(() => this.#client.ask({ method: 'POST', path: '/drain' }));
        break;
      case 'SIGTERM twice':
        life.signal('SIGTERM');
        await delay(this.#random.named(String(life.facts.number)).between(50, 1_500));
        life.signal('SIGTERM');
        // Nothing may have been left to do when the second came.
        await this.#ended(life, 1, 0);
        break;
    }
    await this.#start();
    over();
  }

  async #drain(begin) {
    const life = this.#life;
    life.facts.end ??= 'SIGTERM';
    await begin();
    await this.#ended(life, 0);
  }

  /** Settles when it has exited; the processes that it should have taken with it are looked for meanwhile. */
  async #ended(life, ...exits) {
    const time = new AbortController();
    const late = delay(endDeadlineMs, 'late', { signal: time.signal }).catch(() => undefined);
    const exit = await Promise.race([life.exited, late]);
    time.abort();
    if (exit === 'late') {
      this.#tally.complain(
        'supervisor',
        `it did not end within ${endDeadlineMs / 1000} s of ${life.facts.end}`,
      );
      life.signal('SIGKILL');
      await life.exited;
    } else if (!exits.includes(exit)) {
      this.#tally.complain('supervisor', `it ended with ${exit} instead of ${exits.join(' or ')}`);
    }
    this.#orphanCounts.push(life.countOrphans());
  }

  #resume() {
    this.#listeners.start();
    this.#traffic.start();
    this.#faults.start();
  }

  /** @throws EndedByItself when the supervisor does so meanwhile */
  async #wait(ms) {
    const time = new AbortController();
    const exit = await Promise.race([this.#life.exited, delay(ms, undefined, { signal: time.signal })]);
    time.abort();
    if (exit !== undefined) throw new EndedByItself(`it ended by itself: ${exit}`);
  }

  /** Until nothing is asked of it, and no model is loaded. */
  async #rest() {
    await this.#calm();
    const deadline = performance.now() + unloadDeadlineMs;
    for (;;) {
      const models = this.#life.children().map(({ model }) => model);
      if (models.length === 0) break;
      if (performance.now() > deadline) {
        this.#tally.complain(
          'rest',
          `not unloaded within ${unloadDeadlineMs / 1000} s: ${models.join(', ')}`,
        );
        break;
      }
      for (const model of models) {
        await this.#client.ask({ method: 'POST', path: '/models/unload', json: { model, force: true } });
      }
      await delay(100);
    }
    this.#client.close();
    if (this.#life.hasExited) throw new EndedByItself(`it ended by itself: ${this.#life.facts.exit}`);
  }

  async #calm() {
    await this.#faults.pause();
    await this.#traffic.pause();
    await this.#listeners.pause();
  }

  #args() {
    return [
      ...['--llama-server', this.#options.binary, '--host', '127.0.0.1', '--port', String(this.#port)],
      ...['--models-dir', this.#models.directory, '--models-preset', this.#models.presetFile],
      ...['--models-max', String(modelsMax), '--queue-max', String(queueMax)],
      ...['--queue-timeout', String(limits.queueTimeout), '--load-timeout', String(limits.loadTimeout)],
      ...['--fair-after', String(limits.fairAfter), '--drain-timeout', String(limits.drainTimeout)],
      ...['--hang-timeout', String(limits.hangTimeout)],
      ...['--stream-ping-after', String(limits.streamPingAfter)],
      ...['--stream-ping-interval', String(limits.streamPingInterval)],
      '--restore',
      // One thread each: the models are tiny, and many run at a time.
      ...['--threads', '1', '--log-format', 'json', '--log-level', 'info'],
    ];
  }

  /** Without what would configure the supervisor, with directories of its own, and marked. */
  #environment(number) {
    const foreign = /^(LLAMA|HF|HUGGINGFACE|AIP|XDG|STATE|RUNTIME|NODE_OPTIONS)/;
    const kept = Object.entries(process.env).filter(([name]) => !foreign.test(name));
    const own = ['XDG_CACHE_HOME', 'XDG_STATE_HOME', 'XDG_RUNTIME_DIR', 'LLAMA_CACHE'].map((name) => {
      const path = join(this.#options.directory, 'home', name.toLowerCase());
      mkdirSync(path, { recursive: true, mode: 0o700 });
      return [name, path];
    });
    const [name, value] = `${this.#mark}-${number}`.split('=');
    return { ...Object.fromEntries([...kept, ...own]), [name]: value };
  }

  #report(seconds) {
    const { seed, rate } = this.#options;
    return reportOf({
      ...{ seed, rate, seconds, restarts: this.#lives.slice(1).map(({ facts }) => facts) },
      tally: this.#tally.report,
      ownLagMs: Math.round(this.#lag.max / 1e6),
      recordsHeard: this.#listeners.heard,
      faults: this.#ledger.counts,
      lives: this.#lives.map(({ facts }) => facts),
      log: readFileSync(this.logFile, 'utf8'),
    });
  }
}

/** Nobody has told the supervisor to. */
class EndedByItself extends Error {}
