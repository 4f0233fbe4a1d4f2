/** What the helper child serves, end to end and beside the native router: the web UI, tools, MCP servers, the proxy. */
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { beforeAll, describe, expect, it, type TestContext } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { alive, canListProcesses, descendants, sigkill, type ProcessInfo } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawRequest, type RawResponse } from '../helpers/raw-http.js';
import { argvOf, childrenOf, realLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { sseData } from '../helpers/sse.js';
import { chat } from '../helpers/supervisor-client.js';
import {
  launchSupervisor,
  type LaunchedSupervisor,
  type SupervisorProcess,
} from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { openSocket } from '../http/raw-socket.js';
import { jsonIn, wireError } from '../http/serve-fakes.js';
import { nativeRefusal, OracleHome, startNative } from './native-oracle.js';

/** Shared, so that the binary is asked for its options once and not by every supervisor. */
const cacheHome = tempDir();

/** Ours and the native router, started alike. */
interface Both {
  readonly ours: SupervisorProcess;
  readonly native: string;
}

async function startBoth(args: readonly string[], env: Record<string, string> = {}): Promise<Both> {
  const [ours, native] = await Promise.all([
    startRealSupervisor({ args: [...args], env, cacheHome }),
    startNative(new OracleHome(), { args, env }),
  ]);
  return { ours, native: native.url };
}

const gzip = { 'accept-encoding': 'gzip' };

/** All of an answer that a browser goes by. */
function essence({ status, headers, body }: RawResponse) {
  const names = [
    'content-type',
    'content-encoding',
    'content-length',
    'etag',
    'cache-control',
    'cross-origin-embedder-policy',
    'cross-origin-opener-policy',
    'last-modified',
    'content-range',
  ];
  return {
    status,
    headers: Object.fromEntries(names.map((name) => [name, headers[name]])),
    body: body.toString('base64'),
  };
}

/** The answer to a path that no client would normalise. */
async function asIs(
  url: string,
  path: string,
  headers: readonly string[] = [],
): Promise<{ status: number; text: string }> {
  const socket = openSocket(Number(new URL(url).port));
  const head = [`GET ${path} HTTP/1.1`, 'Host: localhost', 'Connection: close', ...headers];
  socket.send(`${head.join('\r\n')}\r\n\r\n`);
  const text = await socket.closed(`the answer to ${path}`);
  return { status: Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1]), text };
}

/** The helper among the processes of a supervisor: the llama-server without a model. */
function helpersOf(supervisor: LaunchedSupervisor): ProcessInfo[] {
  return childrenOf(supervisor).filter(({ pid }) => !argvOf(pid).includes('--model'));
}

describe('the web UI that is built into the binary', () => {
  let both: Both;
  let prefixed: SupervisorProcess;
  let assets: string[];

  beforeAll(async () => {
    both = await startBoth([]);
    prefixed = await startRealSupervisor({ args: ['--api-prefix', '/a/b'], cacheHome });
    assets = await assetsOf(both.native);
  });

  /** Every path that the page, its manifest and its service worker name. */
  async function assetsOf(url: string): Promise<string[]> {
    const text = async (path: string) => {
      const { status, body } = await rawRequest(url + path, { headers: gzip });
      return status === 200 ? gunzipSync(body).toString() : '';
    };
    const [page, worker, manifest] = await Promise.all(['/', '/sw.js', '/manifest.webmanifest'].map(text));
    const named = [
      ...(page?.matchAll(/(?:href|src)="(?:\.\/)?([\w./-]+\.\w+)"/g) ?? []),
      ...(worker?.matchAll(/url:"(?:\.\/)?([\w./-]+\.\w+)"/g) ?? []),
      ...(manifest?.matchAll(/"src":"(?:\.\/)?([\w./-]+\.\w+)"/g) ?? []),
    ].map(([, path = '']) => `/${path}`);
    const known = [
      '/',
      '/index.html',
      '/sw.js',
      '/manifest.webmanifest',
      '/build.json',
      '/_app/version.json',
    ];
    return page === '' ? [] : [...new Set([...known, ...named])];
  }

  function needUi(context: TestContext): void {
    if (assets.length === 0)
      context.skip('this llama-server was built without a web UI (./build-llama.sh --ui)');
  }

  it('arrives byte for byte as from the native router, every part of it', async (context) => {
    needUi(context);
    expect(assets.filter((path) => /\.(js|css|png|svg|json|webmanifest)$/.test(path)).length).toBeGreaterThan(
      50,
    );
    for (const path of assets) {
      const [native, ours, below] = await Promise.all(
        [both.native, both.ours.url, prefixed.url].map((url) => rawRequest(url + path, { headers: gzip })),
      );
      expect([path, native?.status]).toEqual([path, 200]);
      expect([path, essence(ours as RawResponse)]).toEqual([path, essence(native as RawResponse)]);
      expect([path, essence(below as RawResponse)]).toEqual([path, essence(native as RawResponse)]);
    }
  });

  it('arrives whole when a service worker asks for all of it at once', async (context) => {
    needUi(context);
    const answers = await Promise.all(
      assets.map((path) => rawRequest(both.ours.url + path, { headers: gzip })),
    );
    expect(answers.map(({ status, complete }) => [status, complete])).toEqual(assets.map(() => [200, true]));
    expect(canListProcesses ? helpersOf(both.ours).length : 1).toBe(1);
  });

  it('is not sent again to who has it, and has its headers for HEAD', async (context) => {
    needUi(context);
    for (const path of assets.slice(0, 12)) {
      const { etag } = (await rawRequest(both.native + path, { headers: gzip })).headers;
      const requests: RawRequest[] = [
        { method: 'HEAD', headers: gzip },
        ...(etag === undefined ? [] : [etag, `W/${etag}`]).map((tag) => ({
          headers: { ...gzip, 'if-none-match': tag },
        })),
        { headers: { ...gzip, 'if-none-match': '"another"' } },
        { headers: { ...gzip, range: 'bytes=2-9' } },
      ];
      for (const request of requests) {
        const [native, ours] = await Promise.all(
          [both.native, both.ours.url].map((url) => rawRequest(url + path, request)),
        );
        expect([path, request, essence(ours as RawResponse)]).toEqual([
          path,
          request,
          essence(native as RawResponse),
        ]);
      }
    }
  });

  it('is plain text for clients that do not take gzip, which the native router refuses', async (context) => {
    needUi(context);
    for (const path of assets) {
      const compressed = await rawRequest(both.native + path, { headers: gzip });
      const plain = await rawRequest(both.ours.url + path);
      expect([path, plain.status, plain.headers['content-encoding']]).toEqual([path, 200, undefined]);
      const wanted =
        compressed.headers['content-encoding'] === 'gzip' ? gunzipSync(compressed.body) : compressed.body;
      expect([path, plain.body.equals(wanted)]).toEqual([path, true]);
    }
    expect((await rawRequest(`${both.native}/`)).status).toBe(415);
  });

  it('ends where its files end, as in the native router', async () => {
    for (const path of ['/nope.js', '/index.htm', '/_app', '/_app/', '//', '/sw.js/', '/../sw.js', '/.']) {
      const [native, ours] = await Promise.all([asIs(both.native, path), asIs(both.ours.url, path)]);
      expect([path, ours.status]).toEqual([path, native.status]);
    }
  });

  it('is found below a prefix only, and from the prefix itself', async (context) => {
    needUi(context);
    const { origin } = new URL(prefixed.url);
    expect((await rawRequest(`${origin}/`)).status).toBe(404);
    const response = await rawRequest(`${origin}/a/b`);
    expect([response.status, response.headers.location]).toEqual([302, '/a/b/']);
  });

  it.skipIf(!canListProcesses)('comes from a helper that finds no models', async () => {
    await rawRequest(`${both.ours.url}/`);
    const [helper] = helpersOf(both.ours);
    expect(helper).toBeDefined();
    const environment = readFileSync(`/proc/${helper?.pid ?? 0}/environ`, 'utf8').split('\0');
    const key = environment
      .find((entry) => entry.startsWith('LLAMA_API_KEY='))
      ?.slice('LLAMA_API_KEY='.length);
    const argv = argvOf(helper?.pid ?? 0);
    const url = `http://127.0.0.1:${argv[argv.indexOf('--port') + 1] ?? ''}`;
    expect((await rawRequest(`${url}/models`)).status).toBe(401);
    const models = await rawRequest(`${url}/models`, { headers: { authorization: `Bearer ${key ?? ''}` } });
    expect(jsonIn(models)).toEqual({ data: [], object: 'list' });
  });
});

describe('with keys', () => {
  it('the same is public as in the native router', async () => {
    const { ours, native } = await startBoth(['--api-key', 'secret', '--tools', 'get_info']);
    const paths = [
      ...['/', '/index.html', '/sw.js', '/build.json', '/manifest.webmanifest', '/favicon.svg'],
      ...['/nope.js', '/_app/nope', '/tools', '/cors-proxy', '/models', '/props', '/health'],
    ];
    for (const path of paths) {
      for (const key of [undefined, 'wrong', 'secret']) {
        const headers = { ...gzip, ...(key === undefined ? {} : { authorization: `Bearer ${key}` }) };
        const [expected, found] = await Promise.all(
          [native, ours.url].map((url) => rawRequest(url + path, { headers })),
        );
        expect([path, key, found?.status]).toEqual([path, key, expected?.status]);
      }
    }
  });
});

describe('without a web UI', () => {
  it('there is nothing at /, and no helper is started to say so', async () => {
    const { ours, native } = await startBoth(['--no-ui']);
    for (const path of ['/', '/index.html', '/sw.js', '/tools', '/cors-proxy?url=http://127.0.0.1:1/']) {
      const [expected, found] = await Promise.all(
        [native, ours.url].map((url) => rawRequest(url + path, { headers: gzip })),
      );
      expect([path, found?.status]).toEqual([path, expected?.status]);
    }
    expect(wireError(await rawRequest(`${ours.url}/`), 404, 'not_found_error').message).toBe(
      'File Not Found',
    );
    const [nativeOff, oursOff] = await Promise.all(
      [native, ours.url].map((url) => rawRequest(`${url}/tools`, jsonPost({ tool: 'get_info' }))),
    );
    expect(essence(oursOff as RawResponse)).toEqual(essence(nativeOff as RawResponse));
    if (canListProcesses) expect(helpersOf(ours)).toEqual([]);
  });
});

describe('a directory in place of the web UI', () => {
  let both: Both;
  let prefixed: SupervisorProcess;

  beforeAll(async () => {
    const root = tempDir();
    const site = join(root, 'site');
    mkdirSync(join(site, 'docs'), { recursive: true });
    writeFileSync(join(root, 'outside.txt'), 'private');
    writeFileSync(join(site, 'index.html'), '<h1>mine</h1>');
    writeFileSync(join(site, 'a b.txt'), 'blank');
    writeFileSync(join(site, 'docs/index.html'), 'docs');
    writeFileSync(join(site, 'big.bin'), Buffer.alloc(3 * 1024 * 1024, 'x'));
    writeFileSync(join(site, 'models'), 'a file named like a route');
    symlinkSync(join(root, 'outside.txt'), join(site, 'link.txt'));
    both = await startBoth(['--path', site]);
    prefixed = await startRealSupervisor({ args: ['--path', site, '--api-prefix', '/p'], cacheHome });
  });

  it('is served as by the native router', async () => {
    for (const path of [
      '/',
      '/index.html',
      '/a%20b.txt',
      '/docs/',
      '/docs/index.html',
      '/big.bin',
      '/nope',
    ]) {
      for (const request of [
        {},
        { headers: gzip },
        { headers: { range: 'bytes=1-3' } },
        { method: 'HEAD' },
      ]) {
        const [native, ours, below] = await Promise.all(
          [both.native, both.ours.url, prefixed.url].map((url) => rawRequest(url + path, request)),
        );
        const status = native?.status;
        expect([path, request, ours?.status, below?.status]).toEqual([path, request, status, status]);
        if (status === 404) continue;
        expect([path, request, essence(ours as RawResponse)]).toEqual([
          path,
          request,
          essence(native as RawResponse),
        ]);
        expect(below?.body.equals((native as RawResponse).body)).toBe(true);
      }
    }
  });

  it('shows nothing that lies outside of it', async () => {
    for (const path of [
      ...['/../outside.txt', '/%2e%2e/outside.txt', '/docs/../../outside.txt', '/..%2foutside.txt'],
      ...['/%2e%2e%2foutside.txt', '/docs/%2e%2e/%2e%2e/outside.txt', '/..\\outside.txt', '/link.txt'],
    ]) {
      const [native, ours, below] = await Promise.all([
        asIs(both.native, path),
        asIs(both.ours.url, path),
        asIs(prefixed.url, `/p${path}`),
      ]);
      expect([path, native.text.includes('private')]).toEqual([path, false]);
      for (const { status, text } of [ours, below]) {
        expect([path, text.includes('private')]).toEqual([path, false]);
        expect([400, 403, 404]).toContain(status);
      }
    }
  });

  it('redirects to its directories below the prefix', async () => {
    expect((await rawRequest(`${both.ours.url}/docs`)).headers.location).toBe('/docs/');
    expect((await rawRequest(`${prefixed.url}/docs`)).headers.location).toBe('/p/docs/');
  });

  it('hides no route behind a file of the same name', async () => {
    expect(jsonIn(await rawRequest(`${both.ours.url}/models`))).toMatchObject({ object: 'list' });
  });

  it('is refused at the start when it is not there, as by the native router', async () => {
    const args = ['--path', '/no/such/directory'];
    expect(await nativeRefusal(new OracleHome(), { args })).toContain('static assets path not found');
    const ours = launchSupervisor({ args, llamaServer: realLlamaServer(), cacheHome });
    expect(await ours.exited).toMatchObject({ code: 1 });
    expect(ours.output()).toMatch(/--path: '\/no\/such\/directory' is no directory/);
  });
});

/** An MCP server that speaks over its standard streams, with one tool that answers with its argument and its pid. */
const mcpServer = `
const { createInterface } = require('node:readline');
const reply = (id, result) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', id, result }) + '\\n');
createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, method, params } = JSON.parse(line);
  if (method === 'initialize') {
    reply(id, {
      protocolVersion: params.protocolVersion,
      capabilities: { tools: {} },
      serverInfo: { name: 'parrot', version: '1' },
    });
  } else if (method === 'tools/list') {
    const inputSchema = { type: 'object', properties: { text: { type: 'string' } } };
    reply(id, { tools: [{ name: 'say', description: 'Says it again.', inputSchema }] });
  } else if (method === 'tools/call') {
    reply(id, { content: [{ type: 'text', text: params.arguments.text + ' ' + process.pid }] });
  }
}).on('close', () => process.exit());
`;

describe('tools', () => {
  let both: Both;
  let files: string;
  let modelsDir: string;

  beforeAll(async () => {
    files = tempDir();
    writeFileSync(join(files, 'note.txt'), 'one\ntwo\nthree\n');
    const script = join(tempDir(), 'mcp.cjs');
    writeFileSync(script, mcpServer);
    const config = join(tempDir(), 'mcp.json');
    const parrot = { command: process.execPath, args: [script] };
    writeFileSync(config, JSON.stringify({ mcpServers: { parrot } }));
    modelsDir = await writeModels({ alpha: sayingItsName('alpha') });
    both = await startBoth(['--tools', 'all', '--mcp-servers-config', config, '--models-dir', modelsDir]);
  });

  it('are listed as by the native router, those of MCP servers included', async () => {
    const [native, ours] = await Promise.all(
      [both.native, both.ours.url].map((url) => rawRequest(`${url}/tools`)),
    );
    expect(essence(ours as RawResponse)).toEqual(essence(native as RawResponse));
    const names = (jsonIn(ours as RawResponse) as { tool: string }[]).map(({ tool }) => tool);
    expect(names).toEqual(expect.arrayContaining(['read_file', 'exec_shell_command', 'parrot_say']));
  });

  it.each([
    ['a call', { tool: 'read_file', params: { path: 'note.txt', start_line: 2, end_line: 2 } }, 200],
    ['a call without parameters', { tool: 'get_info' }, 200],
    ['a tool that is not there', { tool: 'nope' }, 404],
    ['a call that fails', { tool: 'read_file', params: { path: 'nope.txt' } }, 200],
    ['a body without a tool', { params: {} }, 400],
  ])('answer as in the native router: %s', async (_, call, status) => {
    const request = jsonPost(call);
    const headers = { ...request.headers, 'x-tool-cwd': files };
    const [native, ours] = await Promise.all(
      [both.native, both.ours.url].map((url) => rawRequest(`${url}/tools`, { ...request, headers })),
    );
    expect([ours?.status, native?.status]).toEqual([status, status]);
    expect(essence(ours as RawResponse)).toEqual(essence(native as RawResponse));
  });

  it('stream what a command prints as it is printed', async () => {
    const marker = join(files, 'marker');
    const command = `echo begun; touch '${marker}'; while [ -e '${marker}' ]; do sleep 0.05; done; echo done`;
    const call = { tool: 'exec_shell_command', params: { command, timeout: 30 }, stream: true };
    const exchange = rawExchange(`${both.ours.url}/tools`, jsonPost(call));
    await eventually('the first line is there', () => exchange.received().toString().includes('begun'));
    expect((await exchange.head).headers['content-type']).toBe('text/event-stream');
    expect(exchange.received().toString()).not.toContain('done');
    await rawRequest(
      `${both.ours.url}/tools`,
      jsonPost({ ...call, stream: false, params: { command: `rm '${marker}'` } }),
    );
    const { body, complete } = await exchange.ended;
    expect(complete).toBe(true);
    expect(sseData(body).length).toBeGreaterThan(1);
    expect(body.toString()).toContain('done');
  });

  // The binary looks for its client whenever the command has printed something.
  it.skipIf(!canListProcesses)('that print end when their client leaves', async () => {
    const call = {
      tool: 'exec_shell_command',
      params: { command: 'echo pid $$; while sleep 0.1; do echo; done', timeout: 60 },
    };
    const exchange = rawExchange(`${both.ours.url}/tools`, jsonPost({ ...call, stream: true }));
    const pid = await eventually('the command runs', () =>
      Number(/pid (\d+)/.exec(exchange.received().toString())?.[1] ?? 0),
    );
    expect(alive(pid)).toBe(true);
    exchange.abort();
    await eventually('the command has ended', () => !alive(pid));
  });

  it('of an MCP server are called', async () => {
    const call = { tool: 'parrot_say', params: { text: 'pieces of eight' } };
    const response = await rawRequest(`${both.ours.url}/tools`, jsonPost(call));
    expect(response.status).toBe(200);
    expect(response.body.toString()).toMatch(/pieces of eight \d+/);
  });

  it.skipIf(!canListProcesses)('are the helper’s alone: the models’ processes do not have them', async () => {
    expect(await chat(both.ours.url, 'alpha')).toBe(nameAnswer('alpha'));
    const models = childrenOf(both.ours).filter(({ pid }) => argvOf(pid).includes('--model'));
    expect(models).toHaveLength(1);
    for (const { pid } of models) {
      expect(argvOf(pid).filter((arg) => /^--(tools|mcp)/.test(arg))).toEqual([]);
      expect(descendants(pid)).toEqual([]);
    }
  });

  it.skipIf(!canListProcesses)(
    'are there again after the helper was killed, and what it had started is gone',
    async () => {
      const say = () =>
        rawRequest(`${both.ours.url}/tools`, jsonPost({ tool: 'parrot_say', params: { text: 'pid' } }));
      const pid = Number(/pid (\d+)/.exec((await say()).body.toString())?.[1]);
      const [helper] = helpersOf(both.ours);
      expect(alive(pid)).toBe(true);
      sigkill(helper?.pid ?? NaN);
      await eventually('the MCP server is gone', () => !alive(pid));
      expect(await say()).toMatchObject({ status: 200 });
      expect(helpersOf(both.ours).map((found) => found.pid)).not.toContain(helper?.pid);
      expect(await chat(both.ours.url, 'alpha')).toBe(nameAnswer('alpha'));
    },
  );
});

describe('tools that the binary does not have', () => {
  it('are told of at the start, in its words, as the native router does', async () => {
    const modelsDir = await writeModels({ alpha: sayingItsName('alpha') });
    const supervisor = launchSupervisor({
      args: ['--models-dir', modelsDir, '--tools', 'nonsense'],
      llamaServer: realLlamaServer(),
      cacheHome,
    });
    const { code } = await withDeadline('its exit', supervisor.exited, 20_000);
    expect({ code, output: supervisor.output() }).toMatchObject({
      code: 1,
      output: expect.stringContaining('unknown tool "nonsense". available tools: read_file') as string,
    });
    await eventually('nothing is left', () => supervisor.family().length === 0);
  });
});

describe('the proxy for MCP servers', () => {
  it('reaches another server as the native router’s does', async () => {
    const target = createServer((req, res) => {
      const { method, url, headers } = req;
      const chunks: Buffer[] = [];
      req.on('data', (chunk: Buffer) => chunks.push(chunk));
      req.on('end', () => {
        res.writeHead(201, { 'content-type': 'application/json', 'mcp-session-id': 'abc' });
        const { authorization, cookie, 'x-own': own } = headers;
        res.end(
          JSON.stringify({ method, url, authorization, cookie, own, body: Buffer.concat(chunks).toString() }),
        );
      });
    }).listen(0, '127.0.0.1');
    await once(target, 'listening');
    atEndOfTest(() => void target.close());
    const { port } = target.address() as AddressInfo;

    const { ours, native } = await startBoth(['--ui-mcp-proxy', '--api-key', 'secret']);
    const path = `/cors-proxy?url=${encodeURIComponent(`http://127.0.0.1:${port}/mcp?x=1`)}`;
    const headers = {
      authorization: 'Bearer secret',
      cookie: 'session=1',
      'content-type': 'application/json',
      'x-llama-server-proxy-header-authorization': 'Bearer of the target',
      'x-llama-server-proxy-header-x-own': 'yes',
      'x-own': 'no',
    };
    for (const request of [{ headers }, { headers, method: 'POST', body: '{"jsonrpc": "2.0"}' }]) {
      const [expected, found] = await Promise.all(
        [native, ours.url].map((url) => rawRequest(url + path, request)),
      );
      expect([found?.status, found?.headers['mcp-session-id']]).toEqual([201, 'abc']);
      expect(found?.body.toString()).toBe(expected?.body.toString());
      expect(jsonIn(found as RawResponse)).toMatchObject({
        authorization: 'Bearer of the target',
        own: 'yes',
      });
      expect(jsonIn(found as RawResponse)).not.toHaveProperty('cookie');
    }
    for (const bad of ['', '?url=', '?url=ftp%3A%2F%2Fa', '?url=http%3A%2F%2Fu%3Ap%40127.0.0.1']) {
      const [expected, found] = await Promise.all(
        [native, ours.url].map((url) => rawRequest(`${url}/cors-proxy${bad}`, { headers })),
      );
      expect([bad, found?.status, found?.body.toString()]).toEqual([
        bad,
        expected?.status,
        expected?.body.toString(),
      ]);
    }
  });
});

describe('the routes that pages of other origins may not use', () => {
  const page = ['Origin: http://evil.example', 'Sec-Fetch-Site: cross-site'];
  const args = ['--ui-mcp-proxy', '--tools', 'get_info', '--cors-origins', '*'];
  const asked: string[] = [];
  let target: string;

  beforeAll(async () => {
    const server = createServer((req, res) => {
      asked.push(req.url ?? '');
      res.end('inside');
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    atEndOfTest(() => void server.close());
    target = `?url=http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  });

  /** Spellings of a path: some are it to one reader only, some to none. */
  function spellings(name: string): string[] {
    const code = name.charCodeAt(0);
    const rest = name.slice(1);
    const hex = code.toString(16);
    const overlong = (code + 0x40).toString(16);
    const mixed = name.replace(/[a-m]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
    return [
      ...[`/${name}`, `/%${hex}${rest}`, `/%u00${hex}${rest}`, `/%U00${hex}${rest}`, `/%25${hex}${rest}`],
      ...[`/%25u00${hex}${rest}`, `/%u002f${name}`, `/%2f${name}`, `/%5c${name}`, `//${name}`, `/./${name}`],
      ...[`/%2e/${name}`, `/%u002e/${name}`, `/x/../${name}`, `/x/%2e%2e/${name}`, `/x/%u002e%u002e/${name}`],
      ...[`/x%2f..%2f${name}`, `/\\${name}`, `/x\\../${name}`, `/x\\y/${name}`, `/${name}/`, `/${name};a=b`],
      ...[`/${name}%3b`, `/${name}%00`, `/${name}%u0000`, `/${name}%0a`, `/${name}%20`, `/${name}#`],
      ...[`/${name}%23`, `/${name}%3f`, `/${name}%`, `/${name}%7`, `/${name.toUpperCase()}`],
      ...[`/%c1%${overlong}${rest}`, `/%e0%81%${overlong}${rest}`],
      ...[`/${mixed.replace('o', '%u006f')}`, `/${mixed.replace(/s$/, '%u0073').replace(/y$/, '%u0079')}`],
    ];
  }

  it.each(['', '/llama'])(
    'are refused to them however they are spelt, under the prefix %j',
    async (prefix) => {
      const ours = await startRealSupervisor({ args: [...args, '--api-prefix', prefix], cacheHome });
      for (const path of [...spellings('cors-proxy'), ...spellings('tools')]) {
        const { status, text } = await asIs(ours.url, prefix + path + target, page);
        expect([path, status]).toEqual([path, expect.toBeOneOf([400, 403, 404])]);
        expect([path, text]).toEqual([path, expect.not.stringMatching(/inside|get_info/)]);
      }
      expect(asked).toEqual([]);
      for (const path of ['/cors-proxy', '/%63ors-proxy']) {
        expect((await asIs(ours.url, prefix + path + target)).text).toContain('inside');
      }
      asked.length = 0;
    },
  );

  it('have one name each, where the binary knows more', async () => {
    const { ours, native } = await startBoth(args);
    for (const path of ['/%u0063ors-proxy', '/cors%u002dproxy']) {
      expect([path, (await asIs(native, path + target)).status]).toEqual([path, 200]);
      expect([path, (await asIs(ours.url, path + target)).status]).toEqual([path, 404]);
    }
    asked.length = 0;
  });
});

describe('/props', () => {
  const file = join(tempDir(), 'ui.json');
  writeFileSync(file, '{"from": "file", "nested": {"a": [1, 2.5, null]}}');
  const text = '{"from":"text"}';

  it.each<[string, string[], Record<string, string>]>([
    ['nothing', [], {}],
    ['defaults for the web UI', ['--ui-config', text], {}],
    ['a file of them', ['--ui-config-file', file], {}],
    ['both, the file last', ['--ui-config', text, '--ui-config-file', file], {}],
    ['both, the text last', ['--ui-config-file', file, '--ui-config', text], {}],
    ['both, in the environment', [], { LLAMA_ARG_UI_CONFIG: text, LLAMA_ARG_UI_CONFIG_FILE: file }],
    ['the text above the environment’s file', ['--webui-config', text], { LLAMA_ARG_UI_CONFIG_FILE: file }],
    ['settings that are no object', ['--ui-config', '[1]'], {}],
    ['the proxy', ['--ui-mcp-proxy'], {}],
    ['an agent', ['--agent'], {}],
    ['an agent without the proxy', ['--agent', '--no-ui-mcp-proxy'], {}],
    ['no agent after the proxy', ['--ui-mcp-proxy', '--no-agent'], {}],
    ['an agent in the environment', [], { LLAMA_ARG_AGENT: '1' }],
    ['no agent in the environment', [], { LLAMA_ARG_NO_AGENT: '1', LLAMA_ARG_UI_MCP_PROXY: '1' }],
  ])('says of %s what the native router says', async (_, args, env) => {
    const { ours, native } = await startBoth(args, env);
    const [expected, found] = await Promise.all(
      [native, ours.url].map(
        async (url) => jsonIn(await rawRequest(`${url}/props`)) as Record<string, unknown>,
      ),
    );
    expect(found).toEqual(expected);
    expect(expected?.['role']).toBe('router');
  });

  it.each<[string, string[], string, RegExp]>([
    [
      'text that is not JSON',
      ['--ui-config', '{nonsense'],
      'failed to parse UI config',
      /--ui-config: .*is not JSON/,
    ],
    [
      'a file that is not there',
      ['--ui-config-file', '/no/ui.json'],
      '/no/ui.json',
      /--ui-config-file: .*no\/ui\.json/,
    ],
  ])('is not there at all with %s: both refuse to start', async (_, args, native, ours) => {
    expect(await nativeRefusal(new OracleHome(), { args })).toContain(native);
    const launched = launchSupervisor({ args, llamaServer: realLlamaServer(), cacheHome });
    expect(await launched.exited).toMatchObject({ code: 1 });
    expect(launched.output()).toMatch(ours);
  });
});

describe.skipIf(!canListProcesses)('the end of the supervisor', () => {
  async function withHelper(): Promise<{ supervisor: SupervisorProcess; members: ProcessInfo[] }> {
    const supervisor = await startRealSupervisor({
      args: ['--tools', 'exec_shell_command', '--drain-timeout', '0.5'],
      cacheHome,
    });
    const command = 'sleep 300';
    const call = { tool: 'exec_shell_command', params: { command, timeout: 60 }, stream: true };
    const exchange = rawExchange(`${supervisor.url}/tools`, jsonPost(call));
    exchange.ended.catch(() => undefined);
    const members = await eventually('the tool runs', () => {
      const [helper] = helpersOf(supervisor);
      const below = helper === undefined ? [] : descendants(helper.pid);
      return below.length > 0 && helper !== undefined && [helper, ...below];
    });
    return { supervisor, members };
  }

  it('by SIGKILL leaves no helper behind, and nothing that it has started', async () => {
    const { supervisor, members } = await withHelper();
    await supervisor.kill();
    await eventually('all are gone', () => !members.some(({ pid }) => alive(pid)), { deadlineMs: 5_000 });
  });

  it('by a drain lets its work end, and takes no more of it', async () => {
    const supervisor = await startRealSupervisor({ args: ['--tools', 'exec_shell_command'], cacheHome });
    const gate = join(tempDir(), 'gate');
    const call = (command: string) =>
      jsonPost({ tool: 'exec_shell_command', params: { command, timeout: 60 } });
    const command = `until [ -e '${gate}' ]; do sleep 0.05; done; echo finished`;
    const working = rawExchange(`${supervisor.url}/tools`, call(command));
    await eventually('the tool runs', () =>
      helpersOf(supervisor).some(({ pid }) => descendants(pid).length > 0),
    );
    expect((await rawRequest(`${supervisor.url}/drain`, { method: 'POST' })).status).toBe(200);
    const refused = await rawRequest(`${supervisor.url}/tools`, call('echo late'));
    expect([refused.status, refused.headers['retry-after'], jsonIn(refused)]).toEqual([
      503,
      expect.stringMatching(/^\d+$/),
      { error: expect.objectContaining({ reason: 'shutting_down' }) as unknown },
    ]);
    writeFileSync(gate, '');
    const { status, body } = await working.ended;
    expect([status, body.toString()]).toEqual([200, expect.stringContaining('finished')]);
    expect(await withDeadline('its end', supervisor.exited, 10_000)).toMatchObject({ code: 0 });
  });

  it('by SIGTERM waits for its work no longer than for that of models, and leaves nothing behind', async () => {
    const { supervisor, members } = await withHelper();
    await supervisor.stop('SIGTERM');
    expect(supervisor.log()).toContainEqual(
      expect.objectContaining({
        msg: 'not finished within --drain-timeout; cutting it',
        process: 'helper',
        inFlight: 1,
      }),
    );
    await eventually('all are gone', () => !members.some(({ pid }) => alive(pid)), { deadlineMs: 5_000 });
  });
});

describe('llama.cpp’s config file', () => {
  it.skipIf(!canListProcesses)('gives the helper its tools, and no model', async () => {
    const modelsDir = await writeModels({ alpha: sayingItsName('alpha') });
    const config = tempDir();
    mkdirSync(join(config, 'llama.cpp'));
    writeFileSync(
      join(config, 'llama.cpp/config.ini'),
      `[*]\nmodels-dir = ${modelsDir}\ntools = get_info\napi-prefix = /from/file\n`,
    );
    const supervisor = await startRealSupervisor({
      env: { XDG_CONFIG_HOME: config },
      cacheHome,
      args: ['--log-level', 'debug'],
    });
    expect(new URL(supervisor.url).pathname).toBe('/from/file');
    expect(jsonIn(await rawRequest(`${supervisor.url}/models`))).toMatchObject({ data: [{ id: 'alpha' }] });
    const tools = jsonIn(await rawRequest(`${supervisor.url}/tools`)) as { tool: string }[];
    expect(tools.map(({ tool }) => tool)).toEqual(['get_info']);
    await eventually('the helper has said what it found', () =>
      supervisor
        .log()
        .some(({ msg, line }) => msg === 'helper' && String(line).includes('Available models (0)')),
    );
  });
});
