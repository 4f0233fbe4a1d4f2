/** One client of the supervisor: asks, and tells how it went without ever throwing. */
import { Agent, request } from 'node:http';
import { connect } from 'node:net';
import { HttpAnswer } from '../http-answer.js';

/**
 * @typedef {object} Question
 * @property {string} [method]
 * @property {string} path
 * @property {unknown} [json] the body; a string is sent as it is
 * @property {Record<string, string>} [headers]
 * @property {(chunk: Buffer) => void} [read] takes the body in chunks
 * @property {AbortController} [leaving] leaves when it is aborted
 * @property {number} [patienceMs] how long the answer may take as a whole
 *
 * @typedef {object} Exchange
 * @property {'complete' | 'refused' | 'reset' | 'cut' | 'left' | 'late'} end whole; no connection; a connection lost
 *   before the answer began, or within it; left by us; given up by us because it took too long
 * @property {string} cause of a lost connection
 * @property {number} status 0 without an answer
 * @property {import('node:http').IncomingHttpHeaders} headers
 * @property {string} text the body, unless `read` took it
 * @property {number} startedAt
 * @property {number} firstByteAt of the body; NaN without one
 * @property {number} endedAt
 */

/** Nothing here takes that long: who has no answer by then waits for ever. */
const defaultPatienceMs = 120_000;

export class Client {
  #port;
  #agent = new Agent({ keepAlive: true });

  constructor(port) {
    this.#port = port;
  }

  /** @param {Question} question @param {{ kept: boolean }} [connection] whether a kept connection will do @returns {Promise<Exchange>} */
  async ask(question, { kept = true } = {}) {
    const startedAt = performance.now();
    const first = await this.#attempt(question, kept ? this.#agent : new Agent());
    // What every client does with a kept connection that turns out to be dead (RFC 9112, 9.3.1).
    const isDead = first.end === 'reset' && first.isReused;
    const exchange = isDead ? await this.#attempt(question, new Agent()) : first;
    return { ...exchange, startedAt };
  }

  /**
   * Posts, and rests after each chunk that it reads, so that the sender has to wait. On a bare connection: Node's client
   * throws away what it has buffered when an answer is cut, and with it the event that says why.
   *
   * @param {Pick<Question, 'path' | 'json' | 'patienceMs'>} question
   * @param {() => number} restMs
   * @returns {Promise<Exchange>} with `text` as far as it came
   */
  askSlowly({ path, json, patienceMs = defaultPatienceMs }, restMs) {
    const startedAt = performance.now();
    const answer = new HttpAnswer();
    const body = JSON.stringify(json);
    const head = [`POST ${path} HTTP/1.1`, `Host: 127.0.0.1:${this.#port}`, 'Connection: close'];
    head.push('Content-Type: application/json', `Content-Length: ${Buffer.byteLength(body)}`);
    return new Promise((resolve) => {
      const socket = connect({ host: '127.0.0.1', port: this.#port });
      const settle = (end, cause = '') => {
        clearTimeout(timer);
        clearTimeout(resting);
        socket.destroy();
        const { status, firstByteAt } = answer;
        const facts = { status, headers: headersIn(received), text: answer.body.toString(), startedAt };
        resolve({ ...facts, firstByteAt: firstByteAt || Number.NaN, endedAt: performance.now(), end, cause });
      };
      const lose = (cause) => settle(answer.status === 0 ? 'reset' : 'cut', cause);
      const timer = setTimeout(() => settle('late', `no end within ${patienceMs} ms`), patienceMs);
      let resting;
      let received = '';
      socket.on('data', (bytes) => {
        if (answer.status === 0) received += bytes.toString('latin1');
        try {
          if (answer.push(bytes)) return settle('complete');
        } catch (error) {
          return lose(error.message);
        }
        socket.pause();
        resting = setTimeout(() => socket.resume(), restMs());
      });
      socket.on('end', () => lose('the connection was closed'));
      socket.on('error', ({ code }) => (code === 'ECONNREFUSED' ? settle('refused') : lose(code)));
      socket.write(`${head.join('\r\n')}\r\n\r\n${body}`);
    });
  }

  /** Gives up the connections that are kept. */
  close() {
    this.#agent.destroy();
    this.#agent = new Agent({ keepAlive: true });
  }

  #attempt(
    { method = 'GET', path, json, headers = {}, read, leaving, patienceMs = defaultPatienceMs },
    agent,
  ) {
    const body = json === undefined || typeof json === 'string' ? json : JSON.stringify(json);
    const exchange = {
      end: undefined,
      cause: '',
      status: 0,
      headers: {},
      text: '',
      startedAt: performance.now(),
      firstByteAt: Number.NaN,
      endedAt: Number.NaN,
      isReused: false,
    };
    return new Promise((resolve) => {
      const contentType = body === undefined ? {} : { 'Content-Type': 'application/json' };
      const outgoing = request({
        ...{ host: '127.0.0.1', port: this.#port, agent, method, path },
        headers: { ...contentType, ...headers },
      });
      const settle = (end, cause = '') => {
        if (exchange.end !== undefined) return;
        clearTimeout(timer);
        leaving?.signal.removeEventListener('abort', onLeave);
        Object.assign(exchange, { end, cause, endedAt: performance.now(), isReused: outgoing.reusedSocket });
        if (end !== 'complete') outgoing.destroy();
        resolve(exchange);
      };
      const onLeave = () => settle('left');
      const timer = setTimeout(() => settle('late', `no end within ${patienceMs} ms`), patienceMs);
      leaving?.signal.addEventListener('abort', onLeave, { once: true });
      if (leaving?.signal.aborted) onLeave();

      outgoing.on('error', (error) => {
        if (exchange.status !== 0) settle('cut', error.message);
        else settle(error.code === 'ECONNREFUSED' ? 'refused' : 'reset', error.code ?? error.message);
      });
      outgoing.on('response', (incoming) => {
        exchange.status = incoming.statusCode;
        exchange.headers = incoming.headers;
        const isRead = incoming.statusCode === 200 ? read : undefined;
        take(incoming, exchange, isRead).then(
          () => settle('complete'),
          (error) => settle('cut', error.message),
        );
      });
      outgoing.end(body);
    });
  }
}

/** By events, because an iterator reads ahead: what it has read would be lost when the answer is cut. */
function take(incoming, exchange, read) {
  const chunks = [];
  return new Promise((resolve, reject) => {
    incoming.on('data', (chunk) => {
      if (Number.isNaN(exchange.firstByteAt)) exchange.firstByteAt = performance.now();
      if (read) read(chunk);
      else chunks.push(chunk);
    });
    incoming.on('end', () => {
      exchange.text = Buffer.concat(chunks).toString();
      resolve();
    });
    incoming.on('error', reject);
  });
}

/** @param {string} received from the first byte of the answer on */
function headersIn(received) {
  const [, ...lines] = received.split('\r\n\r\n', 1)[0].split('\r\n');
  return Object.fromEntries(
    lines.map((line) => [line.split(':', 1)[0].toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
  );
}
