/**
 * What strangers can do to a server, and read of it: web pages that make their visitors' browsers ask, whoever reaches an
 * address that has no key, and names that lead out of the cache.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { Agent } from 'node:http';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { openSocket } from '../http/raw-socket.js';
import { jsonIn, serveFakes, wireError, type FakeService, type ListEntry } from '../http/serve-fakes.js';
import { eventually } from '../helpers/eventually.js';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { startStandInHub } from '../helpers/stand-in-hub.js';
import { startSupervisor } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { writeLink, writeRepo } from '../unit/models/tree.js';

const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === '::1'),
);

/** What changes something, in the order in which it is asked for: the last ends the server. */
const changing: readonly (readonly [method: string, path: string, body?: unknown])[] = [
  ['POST', '/models/load', { model: 'beta' }],
  ['POST', '/models/unload', { model: 'alpha' }],
  ['POST', '/models', { model: 'me/model:Q4_0' }],
  ['DELETE', '/models?model=alpha'],
  ['GET', '/models?reload=1'],
  ['GET', '/v1/models?reload=1'],
  ['POST', '/props', { model: 'alpha' }],
  ['POST', '/lora-adapters', { model: 'alpha' }],
  ['POST', '/slots/0?action=erase', { model: 'alpha' }],
  ['GET', '/tools'],
  ['POST', '/tools', {}],
  ['GET', '/cors-proxy?url=http://127.0.0.1:1/'],
  ['POST', '/cors-proxy?url=http://127.0.0.1:1/', {}],
  ['POST', '/drain'],
];

const mozilla = 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0';

/** As browsers send them for pages that are not of this server. */
const hostile: readonly (readonly [page: string, headers: Record<string, string>])[] = [
  ['a page of another site', { Origin: 'https://evil.example', 'Sec-Fetch-Site': 'cross-site' }],
  ['one of which the browser tells the origin only', { Origin: 'http://evil.example' }],
  ['one of which the browser tells the site only', { 'Sec-Fetch-Site': 'cross-site' }],
  ['a page without an origin', { Origin: 'null', 'Sec-Fetch-Site': 'cross-site' }],
  ['a page whose own name points here', { Origin: 'http://evil.example', Host: 'evil.example' }],
  ['a look of such a page, without an origin', { 'User-Agent': mozilla, Host: 'evil.example' }],
];

function send(
  url: string,
  [method, path, body]: (typeof changing)[number],
  headers: Record<string, string>,
  agent?: Agent,
): Promise<RawResponse> {
  const json = body === undefined ? { method } : { ...jsonPost(body), method };
  const all = { ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers };
  return rawRequest(url + path, { ...json, headers: all, ...(agent && { agent }) });
}

describe('without an API key', () => {
  let service: FakeService;
  /** Every way to it. */
  let doors: readonly (readonly [url: string, agent?: Agent])[];

  beforeAll(async () => {
    const socketPath = join(tempDir(), 'it.sock');
    const hosts = ['127.0.0.1', ...(hasIpv6 ? ['::1'] : []), socketPath];
    service = await serveFakes({
      models: { alpha: {}, beta: {} },
      args: ['--host', hosts.join(','), '--tools', 'get_info', '--ui-mcp-proxy'],
    });
    const { port } = service.supervisor;
    doors = [
      [`http://127.0.0.1:${port}`],
      ...(hasIpv6 ? [[`http://[::1]:${port}`] as const] : []),
      ['http://localhost', new Agent({ socketPath } as object)],
    ];
    await service.use('alpha');
  });

  it.each(hostile)('%s changes nothing, on any address', async (_page, headers) => {
    const work = service.journal.of('request').length;
    for (const [url, agent] of doors) {
      for (const request of changing) {
        const error = wireError(await send(url, request, headers, agent), 403, 'permission_error');
        expect([request[1], error.reason]).toEqual([request[1], 'origin_foreign']);
        expect(error.message).toMatch(/(?:--allowed-hosts evil\.example|--cors-origins), or .*--api-key/);
      }
    }
    // Alpha stays loaded and was asked nothing, beta was not loaded, and new work is taken.
    expect(service.journal.of('request')).toHaveLength(work);
    expect((await service.list()).map(({ id, status }) => [id, status.value])).toEqual([
      ['alpha', 'loaded'],
      ['beta', 'unloaded'],
    ]);
    expect((await rawRequest(`${service.url}/readyz`)).status).toBe(200);
  });

  it('a client that is no browser changes what it likes, by any name', async () => {
    const { url, supervisor } = await serveFakes({
      models: { alpha: {}, beta: {} },
      args: ['--tools', 'get_info', '--ui-mcp-proxy'],
      env: { LLAMA_ARG_OFFLINE: '1' },
    });
    // Only looks at what acts on this machine and its network are taken for a page's whatever they say.
    const looks = ['/tools', '/cors-proxy?url=http://127.0.0.1:1/'];
    for (const request of changing) {
      const [method, path] = request;
      const Host = method === 'GET' && looks.includes(path) ? '127.0.0.1' : 'gpu-box.example:8080';
      const answer = await send(url, request, { Host, 'User-Agent': 'curl/8.5.0' });
      expect([path, answer.body.toString()]).toEqual([path, expect.not.stringContaining('origin_foreign')]);
    }
    // The last of them was heard.
    await expect(supervisor.exited).resolves.toMatchObject({ code: 0 });
  });

  it('what only asks a model, or looks, is as open to pages as --cors-origins says', async () => {
    const headers = { Origin: 'http://evil.example', Host: 'evil.example' };
    const chat = await rawRequest(`${service.url}/v1/chat/completions`, {
      ...jsonPost({ model: 'alpha', messages: [] }),
      headers,
    });
    const list = await rawRequest(`${service.url}/models`, { headers });
    expect([chat.status, list.status]).toEqual([200, 200]);
  });

  it('an --allowed-hosts that is no host is refused at the start, with what it should be', async () => {
    const start = serveFakes({ models: {}, args: ['--allowed-hosts', 'https://gpu-box'] });
    await expect(start).rejects.toThrow(/--allowed-hosts: 'https:\/\/gpu-box' is no host: give names as/);
  });
});

describe('an address that other machines reach', () => {
  /** Its warnings of that. It listens on every address of this machine, which is the subject, for a moment. */
  async function warnings(args: string[], env: Record<string, string> = {}): Promise<unknown[]> {
    const supervisor = await startSupervisor({ args: ['--no-ui', ...args], env });
    await supervisor.stop();
    return supervisor.log().filter(({ msg }) => String(msg).includes('NO API KEY'));
  }

  it('is warned of once when there is no key, with the address and what to do', async () => {
    const socketPath = join(tempDir(), 'it.sock');
    const found = await warnings(['--host', `${socketPath},0.0.0.0`]);
    const address = expect.stringMatching(/^http:\/\/0\.0\.0\.0:\d+$/) as string;
    const msg = expect.stringMatching(
      /^NO API KEY: whoever reaches http:\/\/0\.0\.0\.0:\d+ may .*--api-key.*--host 127\.0\.0\.1/,
    ) as string;
    const warn = 40;
    expect(found).toEqual([expect.objectContaining({ level: warn, addresses: [address], msg })]);
  });

  it.each<[string, string[], Record<string, string>?]>([
    ['where a key is asked for', ['--host', '0.0.0.0', '--api-key', 'k']],
    ['on loopback, by name, too', ['--host', 'localhost']],
    ['on a Unix socket', ['--host', './it.sock']],
    [
      'where only Vertex AI reaches it',
      ['--host', '0.0.0.0'],
      { AIP_MODE: 'PREDICTION', AIP_HTTP_PORT: '0' },
    ],
  ])('is not warned of %s', async (_where, args, env) => {
    expect(await warnings(args, env)).toEqual([]);
  });
});

describe('secrets', () => {
  /** All of them have it in them. */
  const mark = 'S3CRET';
  const token = `hf_${mark}${'x'.repeat(34)}`;
  const key = `sk-${mark}`;
  let service: FakeService;
  /** All that was answered. */
  const answers: string[] = [];

  async function ask(path: string, options: Parameters<typeof rawRequest>[1] = {}): Promise<number> {
    const answer = await rawRequest(`${service.url}${path}`, options);
    answers.push(JSON.stringify(answer.rawHeaders), answer.body.toString());
    return answer.status;
  }

  beforeAll(async () => {
    const keyFile = join(tempDir(), 'keys');
    writeFileSync(keyFile, `${key}\n`);
    service = await serveFakes({
      models: { alpha: {}, tail: {}, indented: {}, bare: {}, headed: {}, other: {} },
      forAll: { printWhenReady: ['ready'] },
      presets: [
        '[alpha]',
        `hf-token = ${token}`,
        `api-key = sk-own-${mark}`,
        '[tail]',
        `hf-token = ${token}#${mark}`,
        `api-key = ${mark};${mark}`,
        `mcp-servers-json = {"mcpServers":{"a":{"env":{"KEY":"${mark}#1"}}}}`,
        '[indented]',
        `  hf-token = ${token}`,
        '[bare]',
        `HF_TOKEN ${token}`,
        `--hf-token=${token}`,
        `[headed] hf-token = ${token}`,
        '[remote]',
        `model-url = https://me:${mark}@127.0.0.1:1/model.gguf`,
        '[other]',
        `mmproj-url = https://${mark}@127.0.0.1:1/model.gguf`,
      ].join('\n'),
      args: ['--api-key-file', keyFile, '--log-level', 'debug'],
      env: {
        HF_TOKEN: token,
        LLAMA_API_KEY: `sk-env-${mark}`,
        HF_ENDPOINT: `http://me:${mark}@127.0.0.1:1/`,
      },
    });

    const headers = { Authorization: `Bearer ${key}` };
    for (const model of ['remote', 'other', 'bare', 'indented', 'tail', 'alpha']) {
      await ask('/v1/completions', { ...jsonPost({ model }), headers });
    }
    const paths = ['/models', '/v1/models', '/models?reload=1', '/props', '/nowhere'];
    for (const path of paths) {
      await ask(`${path}${path.includes('?') ? '&' : '?'}api_key=${key}`, { headers });
      // Refused: in the query there is none.
      await ask(`${path}${path.includes('?') ? '&' : '?'}api_key=${key}`);
    }
    for (const wrong of [`Bearer ${mark}`, `Basic ${mark}`, mark]) {
      expect(await ask('/models', { headers: { Authorization: wrong } })).toBe(401);
      expect(await ask('/models/load', { method: 'POST', headers: { 'X-Api-Key': wrong } })).toBe(401);
    }
    expect(await ask('/models', { ...jsonPost({ model: 'me/model:Q4_0' }), headers })).toBe(502);
    expect(await ask('/models/load', { ...jsonPost({ model: 'nobody' }), headers })).toBe(404);
    const events = rawExchange(`${service.url}/models/sse`, { headers });
    await ask('/models/unload', { ...jsonPost({ model: 'remote' }), headers });
    await eventually('the unload is told', () => events.received().includes('unloaded'));
    answers.push(events.received().toString());
    events.abort();
    for (const request of [`GET /models?k=${mark} HTTP/1.1\r\nHost: a b\r\n\r\n`, `GET ${mark}\r\n\r\n`]) {
      const client = openSocket(service.supervisor.port);
      client.send(request);
      answers.push(await client.receives('the refusal', /\r\n\r\n.*\}/s));
    }
  });

  it('are in no answer: lists, properties, events and errors', () => {
    expect(answers.join('\n')).toContain('https://***@127.0.0.1:1/model.gguf');
    expect(answers.filter((text) => text.includes(mark))).toEqual([]);
  });

  it.skipIf(!canListProcesses)('are on no command line, and reach their child all the same', () => {
    const { supervisor, journal } = service;
    const commands = supervisor.family().map(({ command }) => command);
    expect(commands).toContainEqual(expect.stringContaining('--alias alpha'));
    expect(commands.filter((command) => command.includes(mark))).toEqual([]);
    const [remote] = journal.of('start', 'remote');
    expect(remote?.argv.join(' ')).not.toContain(mark);
    expect(remote?.env['LLAMA_ARG_MODEL_URL']).toBe(`https://me:${mark}@127.0.0.1:1/model.gguf`);
    expect(journal.of('start', 'alpha')[0]?.env['HF_TOKEN']).toBe(token);
  });

  it('that are made for this run are told to nobody either', async () => {
    const { supervisor, journal, url } = service;
    const file = join(supervisor.home, 'runtime', 'llama-supervisor', `${supervisor.port}.json`);
    const { apiKey } = JSON.parse(readFileSync(file, 'utf8')) as { apiKey: string };
    const ofChildren = journal.of('start').map(({ env }) => env['LLAMA_API_KEY'] ?? '');
    const commands = supervisor.family().map(({ command }) => command);
    for (const made of [apiKey, ...ofChildren]) {
      expect(made).toMatch(/^\S{32,}$/);
      expect([...answers, ...commands, supervisor.output()].filter((text) => text.includes(made))).toEqual(
        [],
      );
    }
    // A child's key opens nothing here.
    const headers = { Authorization: `Bearer ${ofChildren[0]}` };
    expect((await rawRequest(`${url}/models`, { headers })).status).toBe(401);
  });

  it('are in no line of the log, also where a presets file is written wrongly', async () => {
    // By then all is written.
    await service.supervisor.stop();
    const lines = service.supervisor.output().split('\n');
    // What was said instead.
    for (const said of [
      "'hf-token' is cut",
      "'api-key' is cut",
      "'mcp-servers-json' is cut",
      "'hf-token ***' is indented",
      "'HF_TOKEN ***'",
    ]) {
      expect(lines).toContainEqual(expect.stringContaining(said));
    }
    expect(lines.filter((line) => line.includes(mark))).toEqual([]);
  });
});

describe('names that lead out of the cache', () => {
  const names = [
    '..',
    '../..',
    '../outside',
    'me/..',
    'me/../../outside',
    '/outside/file.gguf',
    'me/model/../../outside',
    'me/model:../../outside',
    'me/model:Q4_0/../..',
    'me\\..\\..\\outside',
    'me/mo\0del',
    'me/model:Q4_0\0',
    'me/model\n',
    'me/model:Q4_0\n',
    '%2e%2e/outside',
    'me/%2e%2e',
    'models--me--model',
    '~/outside',
    '-me/model',
    ' me/model',
  ];
  const encodings = ['..%2f..%2foutside', '%252e%252e/outside', 'me%2f..%2f..', '%00', '%0a', '%ff', '%zz'];
  const sentinel = 'not of the cache';
  let home: string;
  let url: string;
  let hub: Awaited<ReturnType<typeof startStandInHub>>;

  /** All files outside of the cache, by path. */
  function outside(): Record<string, string> {
    const files = readdirSync(home, { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
    const paths = files.map((file) => join(file.parentPath, file.name));
    const foreign = paths.filter((path) => !path.startsWith(join(home, 'cache/')));
    return Object.fromEntries(foreign.map((path) => [path, readFileSync(path, 'utf8')]));
  }

  beforeAll(async () => {
    home = tempDir();
    const cache = join(home, 'cache');
    for (const path of ['outside/file.gguf', 'outside.gguf', 'models--me--outside/snapshots/x/a-Q4_0.gguf']) {
      mkdirSync(join(home, path, '..'), { recursive: true });
      writeFileSync(join(home, path), sentinel);
    }
    // A model whose file, and one whose snapshot, is a link that leads out.
    const snapshot = writeRepo(cache, 'me/linked', []);
    writeLink(join(snapshot, 'linked-Q4_0.gguf'), join(home, 'outside/file.gguf'));
    writeRepo(cache, 'me/there', ['there-Q4_0.gguf']);
    hub = await startStandInHub();
    ({ url } = await startSupervisor({
      args: ['--no-watch'],
      env: { LLAMA_CACHE: cache, HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: undefined },
      llamaServer: realLlamaServer(),
    }));
  });

  it.each(names)('%j is downloaded by nobody: the hub is not asked', async (model) => {
    const before = outside();
    const answer = await rawRequest(`${url}/models`, jsonPost({ model }));
    expect(wireError(answer, 400, 'invalid_request_error').reason).toBe('hub_name_invalid');
    expect(hub.requests).toEqual([]);
    expect(outside()).toEqual(before);
  });

  it.each([...names.map(encodeURIComponent), ...encodings])('%s is deleted by nobody', async (name) => {
    const before = outside();
    const answer = await rawRequest(`${url}/models?model=${name}`, { method: 'DELETE' });
    expect([400, 404]).toContain(answer.status);
    expect(outside()).toEqual(before);
    const { data } = jsonIn(await rawRequest(`${url}/models`)) as { data: ListEntry[] };
    expect(data.map(({ id }) => id)).toEqual(expect.arrayContaining(['me/there:Q4_0', 'me/linked:Q4_0']));
  });

  it('of a link, DELETE removes the link and not what it leads to', async () => {
    const before = outside();
    const answer = await rawRequest(`${url}/models?model=me/linked:Q4_0`, { method: 'DELETE' });
    expect(answer.status, answer.body.toString()).toBe(200);
    expect(outside()).toEqual(before);
  });

  it('in what a hub lists are not downloaded, and the model beside them is', async () => {
    const before = outside();
    const weights = knownAnswerModel({ name: 'me', ...sayingItsName('me') });
    hub.publish('evil/model', {
      'model-Q4_0.gguf': weights,
      '../../../../outside/mmproj-Q4_0.gguf': 'eyes',
      [join(home, 'outside/mmproj-F16.gguf')]: 'eyes',
      'a/../../../../../outside/mmproj-Q8_0.gguf': 'eyes',
    });
    expect((await rawRequest(`${url}/models`, jsonPost({ model: 'evil/model:Q4_0' }))).status).toBe(200);
    const entry = await eventually('the model is listed', async () => {
      const { data } = jsonIn(await rawRequest(`${url}/models`)) as { data: ListEntry[] };
      return data.find(({ id, status }) => id === 'evil/model:Q4_0' && status.value === 'unloaded');
    });
    expect(entry.status).not.toHaveProperty('failed');
    expect(outside()).toEqual(before);
    const bytes = hub.requests.filter(({ route, method }) => route === 'resolve' && method === 'GET');
    expect(new Set(bytes.map((request) => request.url.split('/').at(-1)))).toEqual(
      new Set(['model-Q4_0.gguf']),
    );
  });

  it('in what a hub lists are a model of nobody', async () => {
    hub.publish('worse/model', { '../../../outside/model-Q4_0.gguf': 'weights' });
    const answer = await rawRequest(`${url}/models`, jsonPost({ model: 'worse/model' }));
    expect(wireError(answer, 404, 'not_found_error').message).toContain('holds no GGUF model');
  });
});
