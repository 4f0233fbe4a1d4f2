/** The ways to reach one model that are compared: with nothing between, and through each of the routers. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import getPort from 'get-port';
import { descendantsOf, startServer } from './processes.js';
import { maxStreams, model } from './workloads.js';

const supervisorScript = fileURLToPath(new URL('../bin/llama-supervisor.js', import.meta.url));

/**
 * @typedef {object} Contender
 * @property {'direct' | 'native' | 'nginx' | 'ours'} name
 * @property {number} port
 * @property {boolean} keepAlive whether clients keep their connections
 * @property {() => number[]} routerPids the processes that route; none without a router
 *
 * @typedef {object} Setting
 * @property {string} binary the llama-server that runs the model, alone and behind both routers that start it
 * @property {string} directory an empty one, for logs, caches and configuration
 * @property {string} modelsDir
 * @property {string | undefined} profileDir ours then runs under `node --cpu-prof`
 */

/** One thread, so that the model leaves a core to what is measured; a slot of 512 tokens for each stream. */
const modelOptions = [
  '--threads',
  '1',
  '--parallel',
  String(maxStreams),
  '--ctx-size',
  String(maxStreams * 512),
];

/** llama-server with the model on its command line. @param {Setting} setting @returns {Promise<Contender>} */
export async function startDirect({ binary, directory, modelsDir }) {
  const modelFile = join(modelsDir, `${model.id}.gguf`);
  return start('direct', directory, {
    command: binary,
    args: (port) => ['--host', '127.0.0.1', '--port', String(port), '--model', modelFile, ...modelOptions],
  });
}

/** The same llama-server without a model: it is a router then. @param {Setting} setting @returns {Promise<Contender>} */
export async function startNative({ binary, directory, modelsDir }) {
  const native = await start('native', directory, {
    command: binary,
    args: (port) => [
      ...['--host', '127.0.0.1', '--port', String(port), '--models-dir', modelsDir, ...modelOptions],
    ],
  });
  // It closes the connection after every proxied answer, and to a client that asks for keep-alive it announces
  // the opposite. Asking for the close is faster for it: otherwise each request meets a dead connection first.
  return { ...native, keepAlive: false, routerPids: () => [native.pid] };
}

/** @param {Setting} setting @returns {Promise<Contender>} */
export async function startOurs({ binary, directory, modelsDir, profileDir }) {
  const profiling = profileDir === undefined ? [] : ['--cpu-prof', '--cpu-prof-dir', profileDir];
  const ours = await start('ours', directory, {
    command: process.execPath,
    args: (port) => [
      ...[...profiling, supervisorScript, 'start', '--llama-server', binary, '--log-format', 'json'],
      ...['--host', '127.0.0.1', '--port', String(port), '--models-dir', modelsDir, ...modelOptions],
    ],
  });
  return { ...ours, routerPids: () => [ours.pid] };
}

/** nginx in front of the direct llama-server. @param {Setting} setting @param {Contender} direct @returns {Promise<Contender>} */
export async function startNginx({ directory }, direct) {
  const prefix = join(directory, 'nginx');
  mkdirSync(prefix);
  const configFile = join(prefix, 'nginx.conf');
  const nginx = await start('nginx', directory, {
    command: 'nginx',
    args: (port) => {
      writeFileSync(configFile, nginxConfig(port, direct.port));
      return ['-p', prefix, '-c', configFile, '-e', 'error.log', '-g', 'daemon off;'];
    },
  });
  // The master process only starts the worker and waits.
  return { ...nginx, routerPids: () => descendantsOf(nginx.pid) };
}

/** @returns {boolean} whether there is an nginx on PATH */
export function hasNginx() {
  try {
    execFileSync('nginx', ['-v'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

function nginxConfig(port, upstreamPort) {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${name};`,
  );
  return `
worker_processes 1;
pid nginx.pid;
events { worker_connections 1024; }
http {
  ${temporary.join(' ')}
  access_log access.log;
  upstream direct { server 127.0.0.1:${upstreamPort}; keepalive 64; }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://direct;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
`;
}

async function start(name, directory, { command, args }) {
  const port = await getPort({ host: '127.0.0.1' });
  const child = await startServer({
    name,
    command,
    args: args(port),
    env: cleanEnvironment(join(directory, `${name}-home`)),
    logFile: join(directory, `${name}.log`),
    url: `http://127.0.0.1:${port}/health`,
  });
  return { name, port, pid: child.pid, keepAlive: true, routerPids: () => [] };
}

/** Without what would configure a contender, and with directories of its own. */
function cleanEnvironment(home) {
  const foreign = /^(LLAMA|HF|HUGGINGFACE|AIP|XDG|NODE_OPTIONS)/;
  const kept = Object.entries(process.env).filter(([name]) => !foreign.test(name));
  const own = Object.fromEntries(
    ['XDG_CACHE_HOME', 'XDG_STATE_HOME', 'XDG_RUNTIME_DIR', 'LLAMA_CACHE', 'HF_HOME'].map((name) => {
      const path = join(home, name.toLowerCase());
      mkdirSync(path, { recursive: true, mode: 0o700 });
      return [name, path];
    }),
  );
  return { ...Object.fromEntries(kept), ...own };
}
