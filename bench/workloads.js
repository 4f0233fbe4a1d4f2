/** What is asked, how often at a time, and what must be answered. */
import { countingWords } from '../dist/demo/known-answer-model.js';

/** The model that all contenders serve, and the words it says. */
export const model = { id: 'counter', words: countingWords(200) };

/** Enough for every stream at once, so that none waits for a place in the model. */
export const maxStreams = 32;

const text = 'benchmark';

/** In a known-answer model each byte is a token, and three special tokens come before them. */
const tokens = { tokens: Array.from(Buffer.from(text), (byte) => byte + 3) };

const smallPost = {
  method: 'POST',
  path: '/tokenize',
  body: JSON.stringify({ model: model.id, content: text }),
  check: sameJson(tokens),
};

/**
 * @typedef {object} Workload
 * @property {string} title
 * @property {string} method
 * @property {string} path
 * @property {string} body
 * @property {number} concurrency requests at a time
 * @property {boolean} [streamed] llama-server closes the connection after such an answer, so each takes a new one
 * @property {(body: Buffer) => number} check gives the number of events in a right answer, throws on a wrong one
 */

/** @type {Record<string, Workload>} */
export const workloads = {
  'post-1': { title: 'small POST, 1 at a time', concurrency: 1, ...smallPost },
  'post-16': { title: 'small POST, 16 at a time', concurrency: 16, ...smallPost },
  'post-64': { title: 'small POST, 64 at a time', concurrency: 64, ...smallPost },
  streams: {
    title: `${maxStreams} streams of ${model.words.length} words`,
    concurrency: maxStreams,
    ...stream(model.words.length),
  },
  'first-byte': { title: 'stream of 2 words, 1 at a time', concurrency: 1, ...stream(2) },
};

/** A chat whose answer is as many of the model's words, each an event. */
function stream(length) {
  const messages = [{ role: 'user', content: 'Count.' }];
  return {
    method: 'POST',
    path: '/v1/chat/completions',
    body: JSON.stringify({ model: model.id, messages, stream: true, max_tokens: length }),
    streamed: true,
    check: sameWords(model.words.slice(0, length).join(' ')),
  };
}

function sameJson(expected) {
  const wanted = Buffer.from(JSON.stringify(expected));
  return function checkJson(body) {
    if (!body.equals(wanted)) throw new Error(`wrong answer: ${excerpt(body.toString())}`);
    return 0;
  };
}

function sameWords(expected) {
  return function checkWords(body) {
    const events = body.toString().split('\n\n');
    if (events.pop() !== '' || events.at(-1) !== 'data: [DONE]') {
      throw new Error(`a stream without its end: ${excerpt(body.toString().slice(-200))}`);
    }
    const said = events.slice(0, -1).map(wordOf).join('');
    if (said !== expected) throw new Error(`wrong words: ${excerpt(said)}`);
    return events.length;
  };
}

function wordOf(event) {
  if (!event.startsWith('data: ')) throw new Error(`not an event with data: ${excerpt(event)}`);
  return JSON.parse(event.slice('data: '.length)).choices[0].delta.content ?? '';
}

function excerpt(string) {
  return JSON.stringify(string.slice(0, 200));
}
