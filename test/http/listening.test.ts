import { once } from 'node:events';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { unlink } from 'node:fs/promises';
import { Agent } from 'node:http';
import { connect, createServer as createNetServer, type AddressInfo } from 'node:net';
import { networkInterfaces } from 'node:os';
import { basename, join, relative } from 'node:path';
import { Hono } from 'hono';
import { describe, expect, it } from 'vitest';
import type { App, HttpEnv } from '../../src/http/app.js';
import { endpointName, Listeners, requireReusePort } from '../../src/http/listening.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { rawExchange, rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';
import { appServer } from './app-server.js';

interface Opening {
  hosts: readonly string[];
  port?: number;
  reusePort?: boolean;
  apiPrefix?: string;
  /** What it answers to `GET /name`. */
  name?: string;
  /** `GET /slow` is answered when what this gives settles. */
  slowly?: () => Promise<void>;
}

/** Listens until the end of the test at the latest, with the server of a supervisor and an app of two routes. */
async function open(opening: Opening): Promise<Listeners> {
  const { hosts, port = 0, reusePort = false, apiPrefix = '', name = 'it', slowly } = opening;
  const app = new Hono<HttpEnv>()
    .get('/name', (c) => c.text(name))
    .get('/slow', async (c) => {
      await slowly?.();
      return c.text(name);
    }) as unknown as App;
  const listeners = await Listeners.open({
    settings: { hosts, port, reusePort, apiPrefix },
    scheme: 'http',
    createServer: () => appServer({ app }),
  });
  atEndOfTest(async () => {
    const closed = listeners.close();
    listeners.closeAllConnections();
    await withDeadline('the listeners close', closed, 5_000);
  });
  return listeners;
}

/** The message of a refusal; fails the test when there is none. */
async function refusal(opening: Opening): Promise<string> {
  const outcome = await open(opening).then(
    () => 'it listens',
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(Error);
  return (outcome as Error).message;
}

function portOf({ main }: Listeners): number {
  return 'port' in main ? main.port : NaN;
}

/** What is answered at a TCP address, on a connection of its own. */
async function nameAt(host: string, port: number): Promise<string> {
  return (await rawRequest(`http://${host}:${port}/name`)).body.toString();
}

/** What is answered through a socket. */
async function nameThrough(socketPath: string): Promise<string> {
  const agent = new Agent({ socketPath } as object);
  return (await rawRequest('http://localhost/name', { agent })).body.toString();
}

/** A server of somebody else's, on TCP or a socket. */
async function stranger(where: { host: string; port: number } | { path: string }): Promise<AddressInfo> {
  const server = createNetServer((socket) => socket.destroy()).listen(where);
  await once(server, 'listening');
  atEndOfTest(() => void server.close());
  return server.address() as AddressInfo;
}

/** The file of a socket whose server was killed: Node would remove it, so that it is renamed meanwhile. */
async function abandonSocket(path: string): Promise<void> {
  const server = createNetServer().listen(`${path}.open`);
  await once(server, 'listening');
  renameSync(`${path}.open`, path);
  server.close();
  await once(server, 'close');
  expect(lstatSync(path).isSocket()).toBe(true);
}

const addresses = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
const hasIpv6 = addresses.some(({ address }) => address === '::1');
const isLinux = process.platform === 'linux';

describe('several TCP addresses', () => {
  // Only Linux has all of 127.0.0.0/8 on loopback unasked.
  it.skipIf(!isLinux)('have one port, which the first of them gets when any will do', async () => {
    const listeners = await open({ hosts: ['127.0.0.1', '127.0.0.2', '127.0.0.3'] });
    const port = portOf(listeners);
    expect([listeners.main, ...listeners.others]).toEqual([
      { url: `http://127.0.0.1:${port}`, port },
      { url: `http://127.0.0.2:${port}`, port },
      { url: `http://127.0.0.3:${port}`, port },
    ]);
    for (const last of [1, 2, 3]) expect(await nameAt(`127.0.0.${last}`, port)).toBe('it');
  });

  it.skipIf(!hasIpv6)('may be of both families (needs ::1)', async () => {
    const listeners = await open({ hosts: ['127.0.0.1', '::1'] });
    const port = portOf(listeners);
    expect(listeners.others.map(endpointName)).toEqual([`http://[::1]:${port}`]);
    expect(await nameAt('127.0.0.1', port)).toBe('it');
    expect(await nameAt('[::1]', port)).toBe('it');
  });

  it.skipIf(!hasIpv6)('leave IPv4 to the others where one of them is :: (needs ::1)', async () => {
    const listeners = await open({ hosts: ['::', '127.0.0.1'] });
    const port = portOf(listeners);
    expect(await nameAt('127.0.0.1', port)).toBe('it');
    expect(await nameAt('[::1]', port)).toBe('it');
    if (isLinux) await expect(nameAt('127.0.0.2', port)).rejects.toThrow('ECONNREFUSED');
  });

  it.skipIf(!hasIpv6)('are all there are with :: alone (needs ::1)', async () => {
    const port = portOf(await open({ hosts: ['::'] }));
    expect(await nameAt('127.0.0.1', port)).toBe('it');
    expect(await nameAt('[::1]', port)).toBe('it');
  });

  it('may be host names', async () => {
    const listeners = await open({ hosts: ['localhost'], apiPrefix: '/llama' });
    expect(listeners.main.url).toBe(`http://localhost:${portOf(listeners)}/llama`);
    expect(await nameAt('localhost', portOf(listeners))).toBe('it');
  });
});

describe('an address that cannot be bound', () => {
  it.skipIf(!isLinux)('is named with its reason, and those before it are given back', async () => {
    const { port } = await stranger({ host: '127.0.0.2', port: 0 });
    const socket = join(tempDir(), 'ours.sock');
    const message = await refusal({ hosts: [socket, '127.0.0.1', '127.0.0.2'], port });
    expect(message).toBe(
      `cannot listen on 127.0.0.2:${port} (EADDRINUSE): another program listens there; choose another --port or stop it`,
    );
    await expect(nameAt('127.0.0.1', port)).rejects.toThrow('ECONNREFUSED');
    expect(existsSync(socket)).toBe(false);
  });

  it.each([
    // One for documentation, which no machine has (RFC 5737).
    [
      'no address of this machine',
      '203.0.113.1',
      /^cannot listen on 203\.0\.113\.1:0 \(EADDRNOTAVAIL\): .*no such/,
    ],
    [
      'no name',
      `${'x'.repeat(64)}.invalid`,
      /invalid:0 \((?:ENOTFOUND|EAI_AGAIN)\): no address .* check --host$/,
    ],
  ])('because it is %s says so', async (_what, host, message) => {
    expect(await refusal({ hosts: [host] })).toMatch(message);
  });
});

describe('a Unix socket', () => {
  it('is listened on next to TCP addresses, which are named before it', async () => {
    const path = join(tempDir(), 'it.sock');
    const listeners = await open({ hosts: [path, '127.0.0.1'], apiPrefix: '/llama' });
    expect(listeners.others).toEqual([{ url: 'http://localhost/llama', socketPath: path }]);
    expect(listeners.others.map(endpointName)).toEqual([`unix:${path}`]);
    expect(listeners.main).toHaveProperty('port');
    expect(await nameThrough(path)).toBe('it');
    expect(await nameAt('127.0.0.1', portOf(listeners))).toBe('it');
  });

  it('alone needs no port, and is named by its absolute path', async () => {
    const path = join(tempDir(), 'it.sock');
    const { main, others } = await open({ hosts: [relative(process.cwd(), path)] });
    expect(main).toEqual({ url: 'http://localhost', socketPath: path });
    expect(others).toEqual([]);
    expect(await nameThrough(path)).toBe('it');
  });

  it('has the permissions that the umask leaves', async () => {
    const path = join(tempDir(), 'it.sock');
    await open({ hosts: [path] });
    const file = join(path, '..', 'file');
    writeFileSync(file, '', { mode: 0o777 });
    const permissions = (of: string) => (lstatSync(of).mode & 0o777).toString(8);
    expect(permissions(path)).toBe(permissions(file));
  });

  it('is all that is in its directory, and is gone at the moment it is closed', async () => {
    const path = join(tempDir(), 'it.sock');
    const listeners = await open({ hosts: [path] });
    expect(readdirSync(join(path, '..'))).toEqual(['it.sock']);
    void listeners.close();
    expect(readdirSync(join(path, '..'))).toEqual([]);
  });

  it('that nobody listens on any more is replaced', async () => {
    const path = join(tempDir(), 'it.sock');
    await abandonSocket(path);
    await open({ hosts: [path] });
    expect(await nameThrough(path)).toBe('it');
  });

  it('that another program listens on is left to it', async () => {
    const path = join(tempDir(), 'it.sock');
    await open({ hosts: [path], name: 'the other' });
    expect(await refusal({ hosts: [path] })).toBe(
      `cannot listen on the socket ${path}: another program listens there; stop it or choose another path`,
    );
    expect(await nameThrough(path)).toBe('the other');
    expect(readdirSync(join(path, '..'))).toEqual(['it.sock']);
  });

  it('given twice under two names is refused', async () => {
    const path = join(tempDir(), 'it.sock');
    const again = `${join(path, '..')}/./it.sock`;
    expect(await refusal({ hosts: [path, again] })).toContain(again);
    expect(existsSync(path)).toBe(false);
  });

  it.each([
    ['file', (path: string) => writeFileSync(path, 'precious')],
    ['directory', (path: string) => mkdirSync(path)],
    ['symbolic link', (path: string) => symlinkSync('elsewhere.sock', path)],
  ])('never takes the place of a %s', async (_what, make) => {
    const path = join(tempDir(), 'it.sock');
    make(path);
    const { ino } = lstatSync(path);
    expect(await refusal({ hosts: [path] })).toBe(
      `cannot listen on the socket ${path}: a file that is no socket is there; remove it or choose another path`,
    );
    expect(lstatSync(path).ino).toBe(ino);
  });

  it('that is another one by now is not removed at the end', async () => {
    const path = join(tempDir(), 'it.sock');
    const first = await open({ hosts: [path] });
    await unlink(path);
    await open({ hosts: [path], name: 'the other' });
    await first.close();
    expect(await nameThrough(path)).toBe('the other');
  });

  it('whose file is gone does not disturb the end', async () => {
    const path = join(tempDir(), 'it.sock');
    const listeners = await open({ hosts: [path] });
    await unlink(path);
    await withDeadline('the listeners close', listeners.close(), 5_000);
  });

  it('has a path of at most what the kernel takes: the longest works, one byte more is refused', async () => {
    const longest = isLinux ? 107 : 103;
    const directory = tempDir();
    const pathOf = (bytes: number) => join(directory, `${'x'.repeat(bytes - directory.length - 6)}.sock`);
    expect(pathOf(longest)).toHaveLength(longest);
    await open({ hosts: [pathOf(longest)] });
    expect(await nameThrough(pathOf(longest))).toBe('it');
    expect(await refusal({ hosts: [pathOf(longest + 1)] })).toContain(
      `the path has ${longest + 1} bytes; choose one of at most ${longest}`,
    );
    expect(readdirSync(directory)).toEqual([basename(pathOf(longest))]);
  });

  it('in a directory that does not exist is refused with what to do', async () => {
    const path = join(tempDir(), 'run', 'it.sock');
    expect(await refusal({ hosts: [path] })).toBe(
      `cannot listen on the socket ${path}: the directory ${join(path, '..')} does not exist; make it first`,
    );
  });

  it('below a file is refused', async () => {
    const file = join(tempDir(), 'file');
    writeFileSync(file, 'precious');
    expect(await refusal({ hosts: [join(file, 'it.sock')] })).toMatch(/ENOTDIR.*--host/);
    expect(readFileSync(file, 'utf8')).toBe('precious');
  });

  // The superuser may write everywhere.
  it.skipIf(process.getuid?.() === 0)('in a directory of others is refused (not for root)', async () => {
    const directory = join(tempDir(), 'locked');
    mkdirSync(directory, { mode: 0o500 });
    expect(await refusal({ hosts: [join(directory, 'it.sock')] })).toMatch(/EACCES.*able to write to/);
  });
});

describe('--reuse-port', () => {
  it.each(['18.20.0', '20.20.2', '22.11.0', '23.0.0'])('is refused by name on Node %s', (version) => {
    expect(() => requireReusePort(version)).toThrow(
      `--reuse-port needs Node 22.12, 23.1 or newer; this is ${version}`,
    );
  });

  it.each(['22.12.0', '22.20.1', '23.1.0', '24.0.0', '26.10.0'])('is taken on Node %s', (version) => {
    expect(() => requireReusePort(version)).not.toThrow();
  });

  it('lets several share a port, each with connections of its own, or is refused: as this Node has it', async () => {
    const { node } = process.versions;
    if (!nodeSharesPorts(node)) {
      expect(await refusal({ hosts: ['127.0.0.1'], reusePort: true })).toContain(`this is ${node}`);
      return;
    }
    const port = portOf(await open({ hosts: ['127.0.0.1'], reusePort: true, name: 'first' }));
    await open({ hosts: ['127.0.0.1'], port, reusePort: true, name: 'second' });
    const seen = new Set<string>();
    await eventually('both have answered', async () => seen.add(await nameAt('127.0.0.1', port)).size === 2);
    expect(await refusal({ hosts: ['127.0.0.1'], port })).toContain('EADDRINUSE');
  });

  it('says nothing of Unix sockets, which have no port', async () => {
    const path = join(tempDir(), 'it.sock');
    await open({ hosts: [path], reusePort: true });
    expect(await nameThrough(path)).toBe('it');
  });
});

/** Since which version Node has it: https://nodejs.org/api/net.html#serverlistenoptions-callback. */
function nodeSharesPorts(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major === 22) return minor >= 12;
  if (major === 23) return minor >= 1;
  return major > 23;
}

describe('close', () => {
  it('takes no new connection on any address, and lets what is being answered end', async () => {
    const slow: (() => void)[] = [];
    const slowly = () => new Promise<void>((resolve) => slow.push(resolve));
    const path = join(tempDir(), 'it.sock');
    const listeners = await open({ hosts: ['127.0.0.1', path], slowly });
    const port = portOf(listeners);
    const kept = new Agent({ keepAlive: true });
    const keptThrough = new Agent({ keepAlive: true, socketPath: path } as object);
    atEndOfTest(() => {
      kept.destroy();
      keptThrough.destroy();
    });
    // On connections that both sides would keep for another request.
    const answers = [
      rawExchange(`http://127.0.0.1:${port}/slow`, { agent: kept }),
      rawExchange('http://localhost/slow', { agent: keptThrough }),
    ];
    const idle = connect(port, '127.0.0.1');
    idle.write('GET /name HTTP/1.1\r\nHost: x\r\n\r\n');
    await once(idle, 'data');
    const idleClosed = once(idle, 'close');
    idle.resume();
    await eventually('the requests have come', () => slow.length === 2);

    const closed = listeners.close();
    expect(listeners.close()).toBe(closed);
    await withDeadline('the idle connection is closed', idleClosed, 5_000);
    await expect(nameAt('127.0.0.1', port)).rejects.toThrow('ECONNREFUSED');
    await expect(nameThrough(path)).rejects.toThrow('ENOENT');
    for (const answer of slow) answer();
    for (const { ended } of answers) expect(await ended).toMatchObject({ status: 200, complete: true });
    await withDeadline('all has ended', closed, 5_000);
  });

  it('settles once everything that still runs has been cut', async () => {
    let isAsked = false;
    const never = () => {
      isAsked = true;
      return new Promise<void>(() => undefined);
    };
    const listeners = await open({ hosts: ['127.0.0.1'], slowly: never });
    const { ended } = rawExchange(`http://127.0.0.1:${portOf(listeners)}/slow`);
    const cut = expect(ended).rejects.toThrow();
    await eventually('the request has come', () => isAsked);
    const closed = listeners.close();
    listeners.closeAllConnections();
    await cut;
    await withDeadline('all has ended', closed, 5_000);
  });
});
