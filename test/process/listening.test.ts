import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeBehaviourEnv, writeFakeModel } from '../helpers/fake-llama-server.js';
import { freePort } from '../helpers/free-port.js';
import { jsonPost, rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import {
  launchSupervisor,
  startSupervisor,
  type LaunchedSupervisor,
  type SupervisorProcess,
} from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

/** The help of the fake llama-server is read once for the whole file. */
const cacheHome = tempDir();

function start(...args: string[]): Promise<SupervisorProcess> {
  return startSupervisor({ args, cacheHome });
}

/** What a start writes that is refused. */
async function refusal(...args: string[]): Promise<string> {
  const launched = launchSupervisor({ args, cacheHome });
  const { code } = await withDeadline('the start is refused', launched.exited, 20_000);
  expect(code, launched.output()).toBe(1);
  return launched.output();
}

function agentThrough(socketPath: string): Agent {
  return new Agent({ socketPath } as object);
}

async function statusThrough(socketPath: string): Promise<number> {
  return (await rawRequest('http://localhost/health', { agent: agentThrough(socketPath) })).status;
}

/** The names and contents of its run files. */
function runFiles({ home }: LaunchedSupervisor): [string, unknown][] {
  const directory = join(home, 'runtime', 'llama-supervisor');
  return readdirSync(directory).map((name) => [
    name,
    JSON.parse(readFileSync(join(directory, name), 'utf8')),
  ]);
}

function listening(supervisor: LaunchedSupervisor) {
  return supervisor.log().find(({ msg }) => msg === 'listening');
}

test('a start that is refused when its helper runs already ends all the same, with the helper', async () => {
  const other = await start();
  const launched = launchSupervisor({ args: ['--tools', 'all', '--port', String(other.port)], cacheHome });
  const { code } = await withDeadline('the start is refused', launched.exited, 20_000);
  expect(code, launched.output()).toBe(1);
  expect(launched.output()).toContain('EADDRINUSE');
  await eventually('nothing of it is left', () => launched.family().length === 0);
});

describe('a supervisor on Unix sockets alone', () => {
  test('says so in its log and its run file, and leaves nothing behind', async () => {
    const path = join(tempDir(), 'it.sock');
    const supervisor = await start('--host', path, '--api-prefix', '/llama', '--api-key', 'k');
    expect(listening(supervisor)).toMatchObject({ url: `unix:${path}` });
    const [[name, content] = [], ...more] = runFiles(supervisor);
    expect(more).toEqual([]);
    expect(name).toMatch(/^unix-[0-9a-f]{16}\.json$/);
    const { apiKey, ...rest } = content as { apiKey: string };
    expect(rest).toEqual({ pid: supervisor.pid, url: 'http://localhost/llama', socketPath: path });
    const response = await rawRequest('http://localhost/llama/models', {
      agent: agentThrough(path),
      headers: { authorization: `Bearer ${apiKey}` },
    });
    expect(response.status).toBe(200);

    expect(await supervisor.stop()).toEqual({ code: 0, signal: null });
    expect(existsSync(path)).toBe(false);
    expect(runFiles(supervisor)).toEqual([]);
  });

  test('does not meet another one, although the port of both is the default', async () => {
    const directory = tempDir();
    const runtime = tempDir();
    const [first = '', second = ''] = ['a.sock', 'b.sock'].map((name) => join(directory, name));
    const begin = (path: string) =>
      startSupervisor({
        args: ['--host', path, '--port', '8080'],
        cacheHome,
        env: { XDG_RUNTIME_DIR: runtime },
      });
    const one = await begin(first);
    await begin(second);
    expect(readdirSync(join(runtime, 'llama-supervisor'))).toHaveLength(2);
    await one.stop();
    expect(existsSync(first)).toBe(false);
    expect(await statusThrough(second)).toBe(200);
    expect(readdirSync(join(runtime, 'llama-supervisor'))).toHaveLength(1);
  });

  test('takes the place of one that was killed, and of none that lives', async () => {
    const path = join(tempDir(), 'it.sock');
    const killed = await start('--host', path);
    await killed.kill();
    expect(existsSync(path)).toBe(true);
    const next = await start('--host', path);
    expect(await statusThrough(path)).toBe(200);
    expect(await refusal('--host', path)).toMatch(/it\.sock: another program listens there/);
    expect(await statusThrough(path)).toBe(200);
    await next.stop();
    expect(existsSync(path)).toBe(false);
  });
});

test('the first address of several is announced, the others beside it; a socket after every port', async () => {
  const path = join(tempDir(), 'it.sock');
  const supervisor = await start('--host', `${path},127.0.0.1`);
  expect(listening(supervisor)).toMatchObject({ url: supervisor.url, also: [`unix:${path}`] });
  expect(runFiles(supervisor)).toEqual([
    [`${supervisor.port}.json`, { pid: supervisor.pid, url: supervisor.url }],
  ]);
  expect(await statusThrough(path)).toBe(200);
  expect((await rawRequest(`${supervisor.url}/health`)).status).toBe(200);
});

test('a start on an address that cannot be had ends with the address and the remedy, and takes none', async () => {
  const path = join(tempDir(), 'it.sock');
  const output = await refusal('--host', `${path},203.0.113.1`);
  expect(output).toMatch(
    /llama-supervisor: cannot listen on 203\.0\.113\.1:0 \(EADDRNOTAVAIL\): this machine has no such address/,
  );
  expect(existsSync(path)).toBe(false);
});

test('a stop lets answers on every address end, and refuses what is new on each', async () => {
  const path = join(tempDir(), 'it.sock');
  const models = tempDir();
  writeFakeModel(models, 'alpha');
  const supervisor = await startSupervisor({
    args: ['--models-dir', models, '--host', `127.0.0.1,${path}`],
    env: fakeBehaviourEnv({ tokenIntervalMs: 50 }),
    cacheHome,
  });
  const stream = (url: string, agent?: Agent): RawExchange => {
    const request = jsonPost({ model: 'alpha', stream: true, max_tokens: 20, messages: [] });
    const exchange = rawExchange(`${url}/v1/chat/completions`, { ...request, ...(agent && { agent }) });
    atEndOfTest(() => exchange.abort());
    return exchange;
  };
  const kept = new Agent({ keepAlive: true, socketPath: path } as object);
  atEndOfTest(() => kept.destroy());
  const streams = [stream(supervisor.url), stream('http://localhost', kept)];
  await eventually('both flow', () => streams.every((answer) => answer.received().length > 0));

  const exited = supervisor.stop();
  await eventually('it is ending', () => supervisor.output().includes('shutting down'));
  expect((await rawRequest(`${supervisor.url}/health`)).status).toBe(503);
  expect(await statusThrough(path)).toBe(503);
  for (const { ended } of streams) {
    const { complete, body } = await ended;
    expect(complete).toBe(true);
    expect(body.toString()).toMatch(/data: \[DONE\]\n\n$/);
  }
  expect(await exited).toEqual({ code: 0, signal: null });
});

test('a second signal leaves no socket behind either', async () => {
  const path = join(tempDir(), 'it.sock');
  const models = tempDir();
  writeFakeModel(models, 'alpha');
  const supervisor = await startSupervisor({
    args: ['--models-dir', models, '--host', path],
    env: fakeBehaviourEnv({ tokenIntervalMs: 100 }),
    cacheHome,
  });
  const request = jsonPost({ model: 'alpha', stream: true, max_tokens: 10_000, messages: [] });
  const endless = rawExchange('http://localhost/v1/chat/completions', {
    ...request,
    agent: agentThrough(path),
  });
  await eventually('it flows', () => endless.received().length > 0);
  process.kill(supervisor.pid, 'SIGTERM');
  await eventually('it is ending', () => supervisor.output().includes('shutting down'));
  expect(await supervisor.stop('SIGTERM')).toEqual({ code: 1, signal: null });
  expect(existsSync(path)).toBe(false);
  expect(runFiles(supervisor)).toEqual([]);
});

test('--reuse-port: two supervisors share a port and its connections, or the start is refused by name', async () => {
  const port = String(await freePort());
  const args = ['--reuse-port', '--port', port];
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major < 22 || (major === 22 && minor < 12) || (major === 23 && minor < 1)) {
    const output = await refusal(...args);
    expect(output).toContain(
      `--reuse-port needs Node 22.12, 23.1 or newer; this is ${process.versions.node}`,
    );
    return;
  }
  const runtime = tempDir();
  const begin = (key: string) =>
    startSupervisor({ args: [...args, '--api-key', key], cacheHome, env: { XDG_RUNTIME_DIR: runtime } });
  const first = await begin('first');
  const second = await begin('second');
  const file = join(runtime, 'llama-supervisor', `${port}.json`);
  // Whose key is valid tells who has answered.
  const seen = new Set<number>();
  await eventually('both have answered', async () => {
    const headers = { authorization: 'Bearer first' };
    return seen.add((await rawRequest(`${second.url}/models`, { headers })).status).size === 2;
  });
  expect([...seen].sort()).toEqual([200, 401]);

  // The run file is the second's by now.
  await first.stop();
  expect(JSON.parse(readFileSync(file, 'utf8'))).toMatchObject({ pid: second.pid });
  expect((await rawRequest(`${second.url}/health`)).status).toBe(200);
  await second.stop();
  expect(existsSync(file)).toBe(false);
});
