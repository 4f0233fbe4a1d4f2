/** Several addresses and Unix sockets, with the native router as the oracle. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { Agent } from 'node:http';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, question } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';
import { OracleHome, spawnNative, type NativeProcess } from './native-oracle.js';

const hasIpv6 = Object.values(networkInterfaces()).some((list) =>
  list?.some(({ address }) => address === '::1'),
);

/** Where a list of models can be asked for, as a client finds it. */
type Ask = (path: string, body?: object) => Promise<RawResponse>;

const at =
  (url: string): Ask =>
  (path, body) =>
    rawRequest(url + path, body && jsonPost(body));

const through =
  (socketPath: string): Ask =>
  (path, body) =>
    rawRequest(`http://localhost${path}`, {
      ...(body && jsonPost(body)),
      agent: new Agent({ socketPath } as object),
    });

async function idsAt(ask: Ask): Promise<string[]> {
  const { status, body } = await ask('/v1/models');
  expect(status).toBe(200);
  return (JSON.parse(body.toString()) as { data: { id: string }[] }).data.map(({ id }) => id);
}

async function chatAt(ask: Ask, model: string): Promise<string> {
  const { status, body } = await ask('/v1/chat/completions', question(model));
  expect(status, body.toString()).toBe(200);
  return (JSON.parse(body.toString()) as { choices: [{ message: { content: string } }] }).choices[0].message
    .content;
}

/** The addresses that the native router names in its log, once it has named so many. */
function announced({ child, output }: NativeProcess, count: number): Promise<string[]> {
  return eventually(
    `the native router names ${count} addresses`,
    () => {
      if (child.exitCode !== null) throw new Error(`it ended: ${output()}`);
      const found = [...output().matchAll(/listening on (\S+)\n/g)].map(([, address = '']) => address);
      return found.length === count && found;
    },
    { deadlineMs: 30_000 },
  );
}

async function end({ child }: NativeProcess, signal: NodeJS.Signals): Promise<void> {
  const exited = once(child, 'exit');
  child.kill(signal);
  await withDeadline(`the native router ends by ${signal}`, exited, 15_000);
}

describe.skipIf(!hasIpv6)('on 127.0.0.1, ::1 and a Unix socket (needs ::1)', () => {
  it('both serve all of them on one port, and we name them in our log as it does', async () => {
    const models = await writeModels({ alpha: sayingItsName('alpha') });
    const directory = tempDir();
    const hostsFor = (name: string) => ['127.0.0.1', '::1', join(directory, name)].join();

    const port = await freePort();
    const native = spawnNative(new OracleHome(), {
      args: ['--models-dir', models, '--host', hostsFor('native.sock'), '--port', String(port)],
    });
    const [ipv4 = '', ipv6 = '', unix = ''] = await announced(native, 3);
    expect([ipv4, ipv6, unix]).toEqual([
      `http://127.0.0.1:${port}`,
      `http://[::1]:${port}`,
      `unix://${directory}/native.sock`,
    ]);
    for (const ask of [at(ipv4), at(ipv6), through(join(directory, 'native.sock'))]) {
      expect(await idsAt(ask)).toEqual(['alpha']);
    }

    const supervisor = await startRealSupervisor({
      args: ['--models-dir', models, '--host', hostsFor('ours.sock')],
    });
    const line = supervisor.log().find(({ msg }) => msg === 'listening');
    expect([line?.['url'], line?.['also']]).toEqual([
      `http://127.0.0.1:${supervisor.port}`,
      [`http://[::1]:${supervisor.port}`, `unix:${directory}/ours.sock`],
    ]);
    for (const ask of [
      at(supervisor.url),
      at(`http://[::1]:${supervisor.port}`),
      through(join(directory, 'ours.sock')),
    ]) {
      expect(await idsAt(ask)).toEqual(['alpha']);
      expect(await chatAt(ask, 'alpha')).toBe(nameAnswer('alpha'));
    }
  });

  it('the native router refuses port 0 for several addresses, which all get the same here', async () => {
    const args = ['--host', '127.0.0.1,::1', '--port', '0'];
    const { child, output } = spawnNative(new OracleHome(), { args });
    await eventually('the native router ends', () => child.exitCode !== null);
    expect(output()).toContain('--port 0 is not supported with multiple TCP addresses');

    const { port } = await startRealSupervisor({ args });
    expect(await idsAt(at(`http://[::1]:${port}`))).toEqual([]);
  });
});

describe('a Unix socket', () => {
  it('that a native router has left behind is no obstacle to us, and is one to the next of it', async () => {
    const path = join(tempDir(), 'left.sock');
    const home = new OracleHome();
    const args = ['--host', path];
    const first = spawnNative(home, { args });
    await announced(first, 1);
    await end(first, 'SIGTERM');
    expect(existsSync(path)).toBe(true);
    const second = spawnNative(home, { args });
    await eventually('the native router ends', () => second.child.exitCode !== null);
    expect(second.output()).toContain(`couldn't bind HTTP server socket, hostname: ${path}`);

    const supervisor = await startRealSupervisor({ args });
    expect(await idsAt(through(path))).toEqual([]);
    await supervisor.stop();
    expect(existsSync(path)).toBe(false);
  });

  it('of a native router that serves is left to it', async () => {
    const path = join(tempDir(), 'native.sock');
    const native = spawnNative(new OracleHome(), { args: ['--host', path] });
    await announced(native, 1);
    await expect(startRealSupervisor({ args: ['--host', path] })).rejects.toThrow(
      `cannot listen on the socket ${path}: another program listens there`,
    );
    expect(await idsAt(through(path))).toEqual([]);
  });

  it('alone serves a chat, a stream of events and the controls, as curl asks for them', async () => {
    const models = await writeModels({ alpha: sayingItsName('alpha') });
    const path = join(tempDir(), 'ours.sock');
    await startRealSupervisor({ args: ['--models-dir', models, '--host', path] });
    const ask = through(path);
    expect(await chatAt(ask, 'alpha')).toBe(nameAnswer('alpha'));
    expect((await ask('/models/unload', { model: 'alpha' })).body.toString()).toBe('{"success":true}');

    const json = JSON.stringify({ ...question('alpha'), stream: true });
    const curl = ['-sS', '--max-time', '30', '--unix-socket', path, 'http://localhost/v1/chat/completions'];
    const streamed = execFileSync('curl', [...curl, '-H', 'Content-Type: application/json', '-d', json]);
    expect(streamed.toString()).toMatch(/^data: .*\n\ndata: \[DONE\]\n\n$/s);
  });
});

it('a host name is listened on as well', async () => {
  const models = await writeModels({ alpha: sayingItsName('alpha') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', models, '--host', 'localhost'] });
  expect(url).toMatch(/^http:\/\/localhost:\d+$/);
  expect(await chat(url, 'alpha')).toBe(nameAnswer('alpha'));
});
