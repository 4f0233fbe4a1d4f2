// What finding the model's name costs, against parsing the body for it: `npm run build`, then
// `node bench/model-name.js`. Both sides get the body in the chunks a socket would give, and take turns in
// one run, so that the ratio means something on a busy machine.

import { modelScannerFor } from '../dist/http/model-name/index.js';

const CHUNK_BYTES = 64 * 1024;
const LARGE_BODY_BYTES = 20 * 1024 * 1024;
const ROUNDS = 15;
const ROUND_MS = 40;

const bodies = {
  'chat, 300 B': chatBody(300),
  'one base64 image, 20 MB': imageBody(LARGE_BODY_BYTES),
  'small messages with escapes, 20 MB': messagesBody(LARGE_BODY_BYTES),
};

function chatBody(bytes) {
  const body = {
    model: 'ggml-org/Qwen3-0.6B-GGUF:Q4_0',
    messages: [
      { role: 'system', content: 'You are a helpful assistant.' },
      { role: 'user', content: '' },
    ],
    temperature: 0.7,
    max_tokens: 128,
    stream: true,
  };
  body.messages[1].content = 'word '.repeat(bytes / 5).slice(0, bytes - JSON.stringify(body).length);
  return JSON.stringify(body);
}

function imageBody(bytes) {
  const url = `data:image/png;base64,${Buffer.alloc((bytes / 4) * 3, 'pixels').toString('base64')}`;
  const content = [
    { type: 'text', text: 'What is this?' },
    { type: 'image_url', image_url: { url } },
  ];
  return JSON.stringify({ model: 'vision', messages: [{ role: 'user', content }] });
}

function messagesBody(bytes) {
  const message = { role: 'user', content: 'He said:\n\t"It is \\path\\to\\file", and left.\n' };
  const messages = new Array(Math.floor(bytes / (JSON.stringify(message).length + 1))).fill(message);
  return JSON.stringify({ messages, model: 'chat' });
}

function inChunks(text) {
  const body = Buffer.from(text);
  const chunks = [];
  for (let at = 0; at < body.length; at += CHUNK_BYTES) chunks.push(body.subarray(at, at + CHUNK_BYTES));
  return chunks;
}

function byParsing(chunks) {
  return JSON.parse(Buffer.concat(chunks).toString()).model;
}

function byScanning(chunks) {
  const scanner = modelScannerFor('application/json');
  for (const chunk of chunks) scanner.push(chunk);
  return scanner.end().name;
}

/** Milliseconds per call, over as many calls as fill a round. */
function timeRound(find, chunks) {
  const start = performance.now();
  let calls = 0;
  do {
    find(chunks);
    calls++;
  } while (performance.now() - start < ROUND_MS);
  return (performance.now() - start) / calls;
}

function median(numbers) {
  return numbers.sort((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

console.log('body'.padEnd(36), 'JSON.parse ms'.padStart(14), 'scan ms'.padStart(10), 'ratio'.padStart(7));
for (const [title, text] of Object.entries(bodies)) {
  const chunks = inChunks(text);
  if (byParsing(chunks) !== byScanning(chunks)) throw new Error(`${title}: the two disagree`);
  const parsing = [];
  const scanning = [];
  for (let round = 0; round < ROUNDS; round++) {
    parsing.push(timeRound(byParsing, chunks));
    scanning.push(timeRound(byScanning, chunks));
  }
  const [parseMs, scanMs] = [median(parsing), median(scanning)];
  console.log(
    title.padEnd(36),
    parseMs.toFixed(4).padStart(14),
    scanMs.toFixed(4).padStart(10),
    `${(parseMs / scanMs).toFixed(1)}x`.padStart(7),
  );
}
