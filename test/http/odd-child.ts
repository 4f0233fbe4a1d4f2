import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { jsonPost } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';

/**
 * How a child answers: each text is written as it stands, a number is a pause of so many milliseconds, and an end
 * closes or resets the connection or kills the process. One that is `leaving` takes no new connection from then on, and
 * dies a moment later.
 */
export type Script = (string | number | { end: Ending | 'leaving' })[];
export type Ending = 'close' | 'reset' | 'die';

/**
 * An executable that stands in for a llama-server of before the child protocol: it is healthy at once, asks for its key on /props, and answers
 * POST /infill byte for byte as the request's member `script` says, on the bare socket.
 */
export function oddChild(): string {
  const path = join(tempDir(), 'odd-child');
  writeFileSync(path, `#!/usr/bin/env node\n${source}`);
  chmodSync(path, 0o755);
  return path;
}

/** The request that is answered so. */
export function scripted(script: Script): ReturnType<typeof jsonPost> {
  return jsonPost({ model: 'alpha', script });
}

const source = `
const { createServer } = require('node:http');
const { spawnSync } = require('node:child_process');
const { setTimeout: delay } = require('node:timers/promises');

const argv = process.argv.slice(2);
if (!argv.includes('--port')) {
  // Help and version are those of the fake.
  process.exit(spawnSync(${JSON.stringify(fakeLlamaServer)}, argv, { stdio: 'inherit' }).status);
}

const server = createServer(async (req, res) => {
  const pieces = [];
  for await (const piece of req) pieces.push(piece);
  if (req.method === 'GET') {
    const refused = req.url === '/props' && req.headers.authorization !== 'Bearer ' + process.env.LLAMA_API_KEY;
    res.writeHead(refused ? 401 : 200, { 'content-type': 'application/json' }).end('{"status":"ok"}');
  }
  else await play(JSON.parse(Buffer.concat(pieces)).script, req.socket);
});
server.listen(Number(argv[argv.indexOf('--port') + 1]), '127.0.0.1');
console.error('odd child: its last words');

async function play(script, socket) {
  socket.on('error', () => undefined);
  for (const step of script) {
    if (typeof step === 'number') await delay(step);
    else if (step.end === 'close') socket.end();
    else if (step.end === 'reset') socket.resetAndDestroy();
    else if (step.end === 'leaving') {
      server.close();
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), 100);
    }
    else if (step.end === 'die') process.kill(process.pid, 'SIGKILL');
    else await new Promise((written) => socket.write(step, 'latin1', written));
  }
}
`;
