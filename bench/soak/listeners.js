/** Clients of `GET /models/sse` that listen all the time, and check that what they hear is possible. */
import { setTimeout as delay } from 'node:timers/promises';
import { EventSplitter, excerpt } from './event-check.js';
import { ids, loadable } from './served-models.js';

const reconnectMs = 100;

const knownEvents = [
  'model_status',
  'status_change',
  'model_remove',
  'models_reload',
  'download_progress',
  'download_finished',
  'download_failed',
];

/** What may follow what. A stream begins in the middle: of the first status nothing is known. */
const statusesAfter = {
  unloaded: ['loading', 'unloaded'],
  loading: ['loading', 'loaded', 'unloaded'],
  loaded: ['sleeping', 'unloaded'],
  sleeping: ['loading', 'unloaded'],
};

export class Listeners {
  #client;
  #tally;
  #count;
  #leaving = new AbortController();
  #running = [];
  /** Records that were heard. */
  heard = 0;

  constructor({ client, tally, count }) {
    this.#client = client;
    this.#tally = tally;
    this.#count = count;
  }

  start() {
    this.#leaving = new AbortController();
    this.#running = Array.from({ length: this.#count }, () => this.#listen(this.#leaving));
  }

  async pause() {
    this.#leaving.abort();
    await Promise.all(this.#running);
  }

  async #listen(leaving) {
    while (!leaving.signal.aborted) {
      const statuses = new Map();
      const splitter = new EventSplitter();
      const read = (chunk) => {
        for (const event of splitter.push(chunk)) this.#hear(event, statuses);
      };
      const exchange = await this.#client.ask(
        { path: '/models/sse', leaving, read, patienceMs: 2 ** 31 - 1 },
        { kept: false },
      );
      if (exchange.end !== 'left') this.#tally.add('listener', ended(exchange));
      await delay(reconnectMs);
    }
  }

  #hear({ data, comment }, statuses) {
    if (data === '' && comment !== '') return;
    this.heard += 1;
    let record;
    try {
      record = JSON.parse(data);
    } catch {
      return this.#tally.complain('listener', `not JSON: ${excerpt(data)}`);
    }
    const { model, event, data: told = {} } = record;
    const known = ['*', ids.broken, ...loadable];
    if (!known.includes(model) || !knownEvents.includes(event)) {
      return this.#tally.complain('listener', `an unknown record: ${excerpt(data)}`);
    }
    if (told.status === undefined) return;
    const before = statuses.get(model);
    statuses.set(model, told.status);
    if (before !== undefined && !statusesAfter[before].includes(told.status)) {
      this.#tally.complain('listener', `${model} was ${before} and became ${told.status}`);
    }
  }
}

function ended(exchange) {
  const facts = { isStream: false, pieces: 0, resumable: false, ...exchange };
  const { end, status, cause, text } = exchange;
  if (end !== 'complete') return { ...facts, result: 'error', reason: end, message: cause };
  if (status === 200) return { ...facts, result: 'error', reason: 'ended', message: 'in order' };
  const { reason, message } = parse(text)?.error ?? {};
  return { ...facts, result: 'error', reason: reason ?? `status ${status}`, message };
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
