/** What is done to the supervisor while it serves: its children are killed and stopped, models change and are unloaded. */
import { setTimeout as delay } from 'node:timers/promises';
import { Arrivals } from './arrivals.js';
import { isAlive } from './process-table.js';
import { judge } from './requests.js';
import { ids, loadable } from './served-models.js';

/** Between two faults, on average. */
const meanIntervalMs = 1_200;

/** How long a child may be stopped: shorter than any of its limits. */
const stoppedMs = [200, 4_000];

/** How long one is stopped that is to be taken for hung: until it has been killed, if anybody asks it. */
const hungMs = 30_000;

/** How long a file may be gone. */
const absentMs = [300, 3_000];

export class Faults {
  #options;
  #arrivals;
  /** Children that are stopped: they are left to what they are stopped for. */
  #stopped = new Set();
  #actions = [
    [5, () => this.#killChild()],
    [3, () => this.#stopChild()],
    [1, () => this.#hangChild()],
    [3, () => this.#unload({ force: false })],
    [1, () => this.#unload({ force: true })],
    [3, () => this.#load()],
    [2, () => this.#change(ids.preset, (models) => models.changePreset())],
    [3, () => this.#replace()],
    [1, () => this.#guestLeaves()],
    [1, () => this.#reload()],
  ];

  /**
   * @param {object} options
   * @param {() => import('./life.js').Life} options.life the current one
   * @param {import('./client.js').Client} options.client
   * @param {import('./served-models.js').ServedModels} options.models
   * @param {import('./random.js').Random} options.random
   * @param {import('./fault-ledger.js').FaultLedger} options.ledger
   * @param {import('./tally.js').Tally} options.tally
   */
  constructor(options) {
    this.#options = options;
    const { random } = options;
    this.#arrivals = new Arrivals({ random, meanMs: meanIntervalMs, arrive: () => this.#do() });
  }

  start() {
    this.#arrivals.start();
  }

  /** Nothing new is done; settles when everything has been undone that is to be. */
  pause() {
    return this.#arrivals.pause();
  }

  #do() {
    const { random, tally } = this.#options;
    const action = random.weighted(this.#actions);
    const fault = action().catch((error) =>
      tally.complain('fault', `the soak itself failed: ${error.stack}`),
    );
    this.#arrivals.follow(fault);
  }

  async #killChild() {
    const child = await this.#anyChild();
    if (child === undefined) return;
    const end = this.#options.ledger.begin('child killed', child.model);
    signal(child.identity, 'SIGKILL');
    end();
  }

  async #stopChild() {
    const { random, ledger } = this.#options;
    const child = await this.#anyChild();
    if (child === undefined) return;
    const end = ledger.begin('child stopped', child.model);
    this.#stopped.add(child.identity.pid);
    signal(child.identity, 'SIGSTOP');
    await delay(random.between(...stoppedMs));
    signal(child.identity, 'SIGCONT');
    this.#stopped.delete(child.identity.pid);
    end();
  }

  async #hangChild() {
    const child = await this.#anyChild();
    if (child === undefined) return;
    const end = this.#options.ledger.begin('child hung', child.model);
    this.#stopped.add(child.identity.pid);
    signal(child.identity, 'SIGSTOP');
    const deadline = performance.now() + hungMs;
    while (isAlive(child.identity) && performance.now() < deadline && !this.#arrivals.isPausing) {
      await delay(100);
    }
    signal(child.identity, 'SIGCONT');
    this.#stopped.delete(child.identity.pid);
    end();
  }

  async #unload({ force }) {
    const { random, ledger } = this.#options;
    const model = random.pick(loadable);
    const end = ledger.begin(force ? 'model unloaded by force' : 'model unloaded', model);
    await this.#order(
      'unload',
      '/models/unload',
      { model, ...(force ? { force } : {}) },
      'model_not_running',
    );
    end();
  }

  async #load() {
    const { random, ledger } = this.#options;
    const model = random.pick(loadable);
    const end = ledger.begin('model loaded', model);
    await this.#order('load', '/models/load', { model }, 'model_already_running');
    end();
  }

  #replace() {
    const model = this.#options.random.pick(ids.replaced);
    return this.#change(model, (models) => models.replace(model));
  }

  /** The supervisor is told, or is to find out. */
  async #change(model, change) {
    const { models, ledger, random, life } = this.#options;
    const end = ledger.begin('model changed', model);
    const settle = await change(models);
    const told = random.pick(['by request', 'by signal', 'by the file system alone']);
    // A process that has only just been started knows no signals yet: this one would end it.
    if (told === 'by signal' && life().facts.servedAfterMs !== undefined) life().signal('SIGHUP');
    if (told === 'by request' && (await this.#reloadByRequest())) settle();
    end();
  }

  async #guestLeaves() {
    const { models, ledger, random } = this.#options;
    if (this.#isGuestAway) return;
    this.#isGuestAway = true;
    const end = ledger.begin('model removed', ids.guest);
    await models.removeGuest();
    if (random.chance(0.5)) await this.#reloadByRequest();
    await delay(random.between(...absentMs));
    await models.returnGuest();
    // Only a reload that was answered says that it is known again.
    for (let tries = 0; !(await this.#reloadByRequest()) && tries < 100; tries++) await delay(100);
    end();
    this.#isGuestAway = false;
  }

  #isGuestAway = false;

  async #reload() {
    const end = this.#options.ledger.begin('reload');
    await this.#reloadByRequest();
    end();
  }

  /** @returns {Promise<boolean>} whether the supervisor has read everything again */
  async #reloadByRequest() {
    const { client, tally } = this.#options;
    const exchange = await client.ask({ path: '/models?reload=1' });
    const outcome = judge(exchange, {}, ({ data }) => (Array.isArray(data) ? undefined : 'no list'));
    tally.add('reload', outcome);
    return outcome.result === 'right';
  }

  /** It may be refused because there is nothing to be done any more: somebody else was faster. */
  async #order(kind, path, json, idleReason) {
    const { client, tally } = this.#options;
    const exchange = await client.ask({ method: 'POST', path, json });
    const facts = { model: json.model };
    const outcome = judge(exchange, facts, ({ success }) =>
      success === true ? undefined : `success: ${success}`,
    );
    const isIdle = outcome.reason === idleReason;
    tally.add(kind, isIdle ? { ...outcome, result: 'right', reason: undefined } : outcome);
  }

  /** Mostly one that is answering just now. */
  async #anyChild() {
    const { life, client, random } = this.#options;
    const children = life()
      .children()
      .filter(({ identity }) => !this.#stopped.has(identity.pid));
    if (children.length === 0) return undefined;
    if (random.chance(0.3)) return random.pick(children);
    const { text, status } = await client.ask({ path: '/models' });
    const listed = status === 200 ? JSON.parse(text).data : [];
    const busy = new Set(listed.filter(({ in_flight }) => in_flight > 0).map(({ id }) => id));
    const answering = children.filter(({ model }) => busy.has(model));
    return random.pick(answering.length > 0 ? answering : children);
  }
}

function signal(identity, name) {
  // Its number may be another's by now.
  if (!isAlive(identity)) return;
  try {
    process.kill(identity.pid, name);
  } catch {
    // It has just gone.
  }
}
