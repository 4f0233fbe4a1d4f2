/**
 * The load generator: a process of its own, so that it shares no event loop with what it measures. It is told
 * what to do by messages (`Order`) and answers each with a `Tally`.
 *
 * @typedef {object} Order
 * @property {string} workload one of `workloads.js`
 * @property {number} port on 127.0.0.1
 * @property {boolean} keepAlive whether a connection carries one request after the other
 * @property {number} seconds for how long requests are begun; those begun are waited for
 *
 * @typedef {object} Tally
 * @property {number} seconds from the first request to the last answer
 * @property {number} answers that were right
 * @property {number} events of streams
 * @property {Spread} latencyMs from the sending of a request to the end of its answer
 * @property {Spread} firstByteMs from the sending of a request to the first byte of the body of its answer
 * @property {number} connections that were opened
 * @property {number} resent requests whose kept connection was closed under them before a byte was answered
 * @property {number} errors answers that were wrong or cut, and connections that failed
 * @property {string} [firstError]
 *
 * @typedef {{ p50: number, p99: number }} Spread
 */
import { connect } from 'node:net';
import { HttpAnswer } from './http-answer.js';
import { quantile } from './statistics.js';
import { workloads } from './workloads.js';

/** Something is broken, and more of the same would say nothing new. */
const MAX_ERRORS = 100;

process.on('message', async (order) => process.send(await generate(order)));
process.on('disconnect', () => process.exit());
// Ctrl-C reaches the whole process group; the process that gives the orders ends this one.
process.on('SIGINT', () => {});

/** @param {Order} order @returns {Promise<Tally>} */
async function generate({ workload: name, port, keepAlive: mayKeepAlive, seconds }) {
  const { method, path, body, concurrency, streamed, check } = workloads[name];
  const keepAlive = mayKeepAlive && !streamed;
  const head = [`${method} ${path} HTTP/1.1`, `Host: 127.0.0.1:${port}`, 'Content-Type: application/json'];
  head.push(`Content-Length: ${Buffer.byteLength(body)}`, ...(keepAlive ? [] : ['Connection: close']));
  const request = Buffer.from(`${head.join('\r\n')}\r\n\r\n${body}`);

  const startedAt = performance.now();
  const load = {
    port,
    keepAlive,
    request,
    check,
    endsAt: startedAt + seconds * 1000,
    latencies: [],
    firstBytes: [],
    tally: { answers: 0, events: 0, connections: 0, resent: 0, errors: 0, firstError: undefined },
  };
  await Promise.all(Array.from({ length: concurrency }, () => new Client(load).run()));
  return {
    ...load.tally,
    seconds: (performance.now() - startedAt) / 1000,
    latencyMs: spread(load.latencies),
    firstByteMs: spread(load.firstBytes),
  };
}

function spread(samples) {
  const sorted = Float64Array.from(samples).sort();
  return { p50: quantile(sorted, 0.5), p99: quantile(sorted, 0.99) };
}

/** One client of many: sends the next request when the answer to the last one is there. */
class Client {
  #load;
  #socket;
  /** Of the current request: whether its connection carried another one before. */
  #reused = false;
  #answer;
  #bytesSeen = false;
  #sentAt = 0;
  #finish;

  constructor(load) {
    this.#load = load;
  }

  run() {
    return new Promise((resolve) => {
      this.#finish = resolve;
      this.#next();
    });
  }

  #next() {
    const { endsAt, tally } = this.#load;
    this.#sentAt = performance.now();
    if (this.#sentAt >= endsAt || tally.errors >= MAX_ERRORS) {
      this.#close();
      this.#finish();
    } else {
      this.#send();
    }
  }

  #send() {
    this.#answer = new HttpAnswer();
    this.#bytesSeen = false;
    this.#reused = this.#socket !== undefined;
    this.#socket ??= this.#open();
    this.#socket.write(this.#load.request);
  }

  #open() {
    const { port, tally } = this.#load;
    tally.connections += 1;
    const socket = connect({ host: '127.0.0.1', port, noDelay: true });
    let cause = 'the connection was closed';
    socket.on('data', (bytes) => this.#receive(bytes));
    socket.on('error', (error) => (cause = error.message));
    socket.on('end', () => socket.destroy());
    // A connection that was given up is no longer this one, and its end means nothing.
    socket.on('close', () => socket === this.#socket && this.#lose(cause));
    return socket;
  }

  #close() {
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.destroy();
  }

  #lose(cause) {
    this.#socket = undefined;
    if (this.#answer === undefined) return;
    // What every HTTP client does with a kept connection that turns out to be dead (RFC 9110, 9.2.2). The time
    // goes on, since the user waits.
    if (this.#reused && !this.#bytesSeen) {
      this.#load.tally.resent += 1;
      this.#send();
    } else {
      this.#fail(cause);
    }
  }

  #receive(bytes) {
    // Bytes after the end of an answer were asked for by nobody.
    if (this.#answer === undefined) return this.#fail('bytes without a request');
    this.#bytesSeen = true;
    try {
      if (this.#answer.push(bytes)) this.#end();
    } catch (error) {
      this.#fail(error.message);
    }
  }

  #end() {
    const { keepAlive, latencies, firstBytes, tally, check } = this.#load;
    const answer = this.#answer;
    this.#answer = undefined;
    const endedAt = performance.now();
    if (!keepAlive || answer.closes) this.#close();
    if (answer.status !== 200) throw new Error(`status ${answer.status}: ${answer.body.toString()}`);
    tally.events += check(answer.body);
    tally.answers += 1;
    latencies.push(endedAt - this.#sentAt);
    firstBytes.push(answer.firstByteAt - this.#sentAt);
    this.#next();
  }

  #fail(cause) {
    const { tally } = this.#load;
    tally.errors += 1;
    tally.firstError ??= cause;
    this.#answer = undefined;
    this.#close();
    // Not at once: a port that refuses would otherwise be asked without a pause.
    setImmediate(() => this.#next());
  }
}
