import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { Agent, createServer } from 'node:http';
import { type AddressInfo } from 'node:net';
import getPort from 'get-port';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import {
  fakeBehaviourEnv,
  fakeLlamaServer,
  setFakeBehaviour,
  writeFakeModel,
  type FakeBehaviour,
} from '../helpers/fake-llama-server.js';
import { newJournal } from '../helpers/journal.js';
import { alive, canListProcesses } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { tempDir } from '../helpers/temp-dir.js';

interface Launch {
  behaviour?: FakeBehaviour;
  args?: string[];
  env?: NodeJS.ProcessEnv;
  /** A child of a router by default, as the supervisor starts it. */
  isChild?: boolean;
}

interface StateLine {
  state: string;
  payload: unknown;
}

interface Native {
  content: string;
}

interface Echo {
  alias: string;
  method: string;
  url: string;
  headers: Record<string, string>;
  body: { length: number; sha256: string };
  connection: { remotePort: number; requests: number };
}

/** Starts one fake as the leader of its own process group, which is killed at the end of the test. */
async function launch({ behaviour = {}, args = [], env = {}, isChild = true }: Launch = {}) {
  const port = await getPort();
  const model = writeFakeModel(tempDir(), 'alpha', behaviour);
  const journal = newJournal();
  const child = spawn(fakeLlamaServer, ['--port', String(port), '--alias', 'alpha', '-m', model, ...args], {
    env: { ...process.env, ...journal.env, ...(isChild && { LLAMA_SERVER_ROUTER_PORT: '8080' }), ...env },
    detached: true,
  });
  killGroupAtEnd(child);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => (stdout += chunk));
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
  const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const states = () =>
    stdout
      .split('\n')
      .filter((line) => line.startsWith('cmd_child_to_router:state:'))
      .map((line) => JSON.parse(line.replace('cmd_child_to_router:state:', '')) as StateLine);
  const url = `http://127.0.0.1:${port}`;
  return {
    child,
    model,
    journal,
    port,
    url,
    states,
    stdout: () => stdout,
    stderr: () => stderr,
    exit: () => withDeadline('the fake exits', exited, 5_000),
    ready: () => eventually('the fake is ready', () => stderr.includes('listening on ')),
    state: (state: string) =>
      eventually(`the fake says ${state}`, () => states().some((line) => line.state === state)),
    post: (path: string, body: unknown) => rawRequest(url + path, jsonPost(body)),
    get: (path: string) => rawRequest(url + path),
  };
}

function killGroupAtEnd({ pid }: ChildProcessWithoutNullStreams): void {
  if (pid === undefined) throw new Error(`cannot run ${fakeLlamaServer}`);
  atEndOfTest(() => {
    try {
      process.kill(-pid, 'SIGKILL');
    } catch {
      // The whole group has ended already.
    }
  });
}

function json(response: { body: Buffer }): unknown {
  return JSON.parse(response.body.toString());
}

describe('told about itself', () => {
  test('prints a version, a help with options, and no devices', () => {
    const run = (flag: string) => spawnSync(fakeLlamaServer, [flag], { encoding: 'utf8', timeout: 10_000 });
    expect(run('--version')).toMatchObject({
      status: 0,
      stderr: expect.stringMatching(/^version: .*de3ff81/m) as string,
    });
    expect(run('--help')).toMatchObject({
      status: 0,
      stdout: expect.stringContaining('--ctx-size N') as string,
    });
    expect(run('--list-devices')).toMatchObject({
      status: 0,
      stdout: expect.stringContaining('(none)') as string,
    });
  });
});

describe('the child protocol', () => {
  test('reports progress from 0 to 1 and then ready with the model info, each on a line of its own', async () => {
    const fake = await launch({ behaviour: { loadMs: 450 }, args: ['-c', '512'] });
    await fake.state('ready');

    const states = fake.states();
    const progress = states.slice(0, -1);
    expect(progress.map(({ state }) => state)).toEqual(['loading', 'loading', 'loading']);
    expect(progress.map(({ payload }) => payload)).toEqual(
      [0, 0.5, 1].map((value) => ({ stages: ['text_model'], current: 'text_model', value })),
    );
    expect(states.at(-1)).toMatchObject({
      state: 'ready',
      payload: { id: 'alpha', owned_by: 'llamacpp', meta: { n_ctx: 512 } },
    });
    expect(fake.stdout()).toMatch(/^\ncmd_child_to_router:state:\{/);
  });

  test('is not spoken without LLAMA_SERVER_ROUTER_PORT, nor when noProtocol says so', async () => {
    const alone = await launch({ isChild: false });
    const old = await launch({ behaviour: { noProtocol: true } });
    await Promise.all([alone.ready(), old.ready()]);
    old.child.stdin.end();
    expect((await old.get('/health')).status).toBe(200);
    expect(alone.stdout() + old.stdout()).toBe('');
    expect(old.journal.of('exit')).toEqual([]);
  });

  test('the exit command stops a loaded child with code 0', async () => {
    const fake = await launch();
    await fake.state('ready');
    fake.child.stdin.write('cmd_router_to_child:exit\n');
    expect(await fake.exit()).toEqual([0, null]);
    expect(fake.journal.of('stopping')).toMatchObject([{ why: 'exit command' }]);
  });

  test('the end of stdin ends a loaded child with code 1', async () => {
    const fake = await launch();
    await fake.state('ready');
    fake.child.stdin.end();
    expect(await fake.exit()).toEqual([1, null]);
  });

  test('neither the exit command nor the end of stdin is noticed while loading', async () => {
    const fake = await launch({ behaviour: { neverReady: true } });
    await fake.state('loading');
    fake.child.stdin.end('cmd_router_to_child:exit\n');
    await once(fake.child.stdin, 'close');
    expect((await fake.get('/health')).status).toBe(503);
    expect(fake.journal.of('stopping')).toEqual([]);
    fake.child.kill('SIGTERM');
    expect(await fake.exit()).toEqual([null, 'SIGTERM']);
  });

  test('a model-less one is a router: it serves, reports nothing and does not watch stdin', async () => {
    const port = await getPort();
    const child = spawn(fakeLlamaServer, ['--port', String(port)], {
      env: { ...process.env, LLAMA_SERVER_ROUTER_PORT: '8080' },
      detached: true,
    });
    killGroupAtEnd(child);
    let stdout = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => (stdout += chunk));
    child.stdin.end();
    const health = () => rawRequest(`http://127.0.0.1:${port}/health`);
    await eventually('it serves', async () => (await health()).status === 200);
    expect(stdout).toBe('');
    expect(alive(child.pid ?? 0)).toBe(true);
  });
});

describe('HTTP', () => {
  test('answers 503 Loading model until it is loaded', async () => {
    const fake = await launch({ behaviour: { neverReady: true } });
    await fake.state('loading');
    for (const answer of [await fake.get('/health'), await fake.post('/completion', {})]) {
      expect(answer.status).toBe(503);
      expect(json(answer)).toEqual({
        error: { code: 503, message: 'Loading model', type: 'unavailable_error' },
      });
    }
  });

  test('wants the key of LLAMA_API_KEY on everything but health', async () => {
    const fake = await launch({ env: { LLAMA_API_KEY: 'secret' } });
    await fake.ready();
    const statusOf = async (path: string, headers = {}) =>
      (await rawRequest(fake.url + path, { headers })).status;
    expect(await statusOf('/health')).toBe(200);
    expect(await statusOf('/slots')).toBe(401);
    expect(await statusOf('/slots', { authorization: 'Bearer wrong' })).toBe(401);
    expect(await statusOf('/slots', { authorization: 'Bearer secret' })).toBe(200);
    expect(await statusOf('/v1/models', { 'x-api-key': 'secret' })).toBe(200);
  });

  test('under --api-prefix only prefixed paths exist, and even health wants the key', async () => {
    const fake = await launch({ args: ['--api-prefix', '/llm'], env: { LLAMA_API_KEY: 'secret' } });
    await fake.ready();
    const headers = { authorization: 'Bearer secret' };
    expect((await fake.get('/llm/health')).status).toBe(401);
    expect((await rawRequest(`${fake.url}/llm/health`, { headers })).status).toBe(200);
    expect((await rawRequest(`${fake.url}/health`, { headers })).status).toBe(404);
  });

  test('says its alias and counts, in one piece and streamed, in the three shapes', async () => {
    const fake = await launch();
    await fake.ready();
    const chat = await fake.post('/v1/chat/completions', { messages: [], max_tokens: 3 });
    expect(json(chat)).toMatchObject({
      model: 'alpha',
      choices: [{ message: { role: 'assistant', content: 'alpha 1 2 3' }, finish_reason: 'stop' }],
    });
    expect(json(await fake.post('/v1/completions', { max_tokens: 2 }))).toMatchObject({
      choices: [{ text: 'alpha 1 2' }],
    });
    expect(json(await fake.post('/completion', {}))).toMatchObject({
      content: 'alpha 1 2 3 4 5',
      stop: true,
    });

    const stream = await fake.post('/chat/completions', { stream: true, max_tokens: 200 });
    expect(stream.headers['content-type']).toBe('text/event-stream');
    const data = sseData(stream.body);
    expect(data.at(-1)).toBe('[DONE]');
    const deltas = data
      .slice(0, -1)
      .map(
        (text) =>
          (JSON.parse(text) as { choices: [{ delta: { content?: string | null } }] }).choices[0].delta,
      );
    const counted = Array.from({ length: 200 }, (_, at) => ` ${at + 1}`);
    expect(deltas.map(({ content }) => content ?? '').filter(Boolean)).toEqual(['alpha', ...counted]);

    const native = sseData((await fake.post('/completion', { stream: true, n_predict: 1 })).body);
    expect(native.map((text) => JSON.parse(text) as unknown)).toMatchObject([
      { content: 'alpha', stop: false },
      { content: ' 1', stop: false },
      { content: '', stop: true },
    ]);
  });

  test('answers the looking routes, and tokenizes a word at a time', async () => {
    const fake = await launch({
      args: ['-c', '1024', '--parallel', '2'],
      env: { LLAMA_ARG_ENDPOINT_METRICS: '1' },
    });
    await fake.ready();
    expect(json(await fake.get('/v1/models'))).toMatchObject({ data: [{ id: 'alpha' }] });
    expect(json(await fake.get('/props'))).toMatchObject({
      default_generation_settings: { n_ctx: 1024 },
      model_alias: 'alpha',
      model_path: fake.model,
      echo: { method: 'GET', url: '/props' },
    });
    expect(json(await fake.get('/slots'))).toEqual([
      { id: 0, is_processing: false },
      { id: 1, is_processing: false },
    ]);
    expect((await fake.get('/metrics')).body.toString()).toContain('llamacpp:requests_processing 0\n');
    expect(json(await fake.post('/tokenize', { content: 'one two  three' }))).toEqual({ tokens: [0, 1, 2] });
    expect((await fake.get('/nowhere')).status).toBe(404);
    expect((await fake.get('/completion')).status).toBe(404);
    expect((await fake.post('/completion', undefined)).status).toBe(500);
  });

  test('a slot is processing while a stream runs', async () => {
    const fake = await launch({ behaviour: { tokenIntervalMs: 20 }, args: ['-np', '1'] });
    await fake.ready();
    const stream = rawExchange(`${fake.url}/completion`, jsonPost({ stream: true, n_predict: -1 }));
    await stream.head;
    expect(json(await fake.get('/slots'))).toEqual([{ id: 0, is_processing: true }]);
    stream.abort();
    await eventually('the slot is free', async () => {
      expect(json(await fake.get('/slots'))).toEqual([{ id: 0, is_processing: false }]);
      return true;
    });
  });

  test('echoes method, url, headers and the digest of the exact bytes', async () => {
    const fake = await launch({ behaviour: { echo: { status: 418, headers: { 'x-made-up': ['a', 'b'] } } } });
    await fake.ready();
    const body = Buffer.from([0x00, 0xff, 0x0a, 0x22, 0x80]);
    const answer = await rawRequest(`${fake.url}/infill?model=alpha&x=%2F`, {
      method: 'POST',
      headers: { 'X-Odd': 'value' },
      body,
    });
    expect(answer.status).toBe(418);
    expect(answer.rawHeaders.join(' ')).toContain('x-made-up a x-made-up b');
    expect(json(answer)).toMatchObject({
      alias: 'alpha',
      method: 'POST',
      url: '/infill?model=alpha&x=%2F',
      headers: { 'x-odd': 'value', 'content-length': '5' },
      body: { length: 5, sha256: createHash('sha256').update(body).digest('hex') },
    });
  });

  test('counts the requests of a connection and closes it when they are used up', async () => {
    const fake = await launch({ behaviour: { requestsPerConnection: 2 } });
    await fake.ready();
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    atEndOfTest(() => {
      agent.destroy();
    });
    const ask = async () => json(await rawRequest(`${fake.url}/infill`, { ...jsonPost({}), agent })) as Echo;
    const [first, second, third] = [await ask(), await ask(), await ask()];
    expect([first, second, third].map(({ connection }) => connection.requests)).toEqual([1, 2, 1]);
    expect(second.connection.remotePort).toBe(first.connection.remotePort);
    expect(third.connection.remotePort).not.toBe(first.connection.remotePort);
  });
});

describe('the journal', () => {
  test('tells start, requests with their bytes, answers and exit', async () => {
    const fake = await launch({ args: ['--some-new-flag', 'x'], env: { LLAMA_API_KEY: 'secret' } });
    await fake.ready();
    const body = JSON.stringify({ n_predict: 2, stream: true });
    await rawRequest(`${fake.url}/completion`, { method: 'POST', headers: { 'x-api-key': 'secret' }, body });
    fake.child.kill('SIGTERM');
    expect(await fake.exit()).toEqual([0, null]);

    const { pid } = fake.child;
    expect(fake.journal.all()).toMatchObject([
      {
        event: 'start',
        pid,
        alias: 'alpha',
        port: fake.port,
        argv: expect.arrayContaining(['--some-new-flag', 'x']) as string[],
        env: { LLAMA_API_KEY: 'secret', LLAMA_SERVER_ROUTER_PORT: '8080' },
        pgid: canListProcesses ? pid : null,
      },
      {
        event: 'request',
        id: 1,
        method: 'POST',
        url: '/completion',
        headers: { 'x-api-key': 'secret' },
        body: { length: body.length, sha256: createHash('sha256').update(body).digest('hex') },
      },
      { event: 'answered', id: 1, status: 200, chunks: 3 },
      { event: 'stopping', why: 'SIGTERM' },
      { event: 'exit', code: 0 },
    ]);
    expect(fake.journal.of('start', 'beta')).toEqual([]);
  });

  test('tells that a client left a stream, and that one left an answer in one piece', async () => {
    const fake = await launch({ behaviour: { tokenIntervalMs: 5, nonStreamMs: 60_000 } });
    await fake.ready();
    const stream = rawExchange(`${fake.url}/completion`, jsonPost({ stream: true, n_predict: -1 }));
    await eventually('three words have come', () => sseData(stream.received()).length >= 3);
    stream.abort();
    await eventually('the stream is cancelled', () => fake.journal.of('cancelled').length === 1);

    const whole = rawExchange(`${fake.url}/completion`, jsonPost({}));
    await eventually('it has arrived', () => fake.journal.of('request').length === 2);
    whole.abort();
    const cancelled = await eventually('both are cancelled', () => fake.journal.of('cancelled')[1]);
    expect(cancelled).toMatchObject({ id: 2, chunks: 0 });
    expect(fake.journal.of('cancelled')[0]?.chunks).toBeGreaterThanOrEqual(3);
    expect(fake.journal.of('answered')).toEqual([]);
  });

  test('a reader that stops reading stops the words', async () => {
    const fake = await launch({ args: ['--metrics'] });
    await fake.ready();
    const stream = rawExchange(`${fake.url}/completion`, jsonPost({ stream: true, n_predict: -1 }));
    stream.pause();
    await stream.head;
    const wordsSaid = async () => {
      const metrics = (await fake.get('/metrics')).body.toString();
      return Number(/^llamacpp:tokens_predicted_total (\d+)$/m.exec(metrics)?.[1]);
    };
    let before = -1;
    const stalled = await eventually(
      'the buffers between are full and nothing moves',
      async () => {
        const now = await wordsSaid();
        const hasStalled = now === before;
        before = now;
        return hasStalled && now;
      },
      { intervalMs: 200 },
    );
    expect(json(await fake.get('/slots'))).toContainEqual({ id: 0, is_processing: true });
    stream.resume();
    await eventually('the words go on', async () => (await wordsSaid()) > stalled);
    stream.abort();
    await eventually('it is cancelled', () => fake.journal.of('cancelled').length === 1);
  });
});

describe('misbehaviour', () => {
  test('exitWhileLoading prints its lines and exits with its code, or dies by its signal', async () => {
    const exits = await launch({
      behaviour: { exitWhileLoading: { code: 3, lines: ['out of memory', 'sorry'] } },
    });
    const crashes = await launch({ behaviour: { exitWhileLoading: { signal: 'SIGSEGV' } } });
    expect(await exits.exit()).toEqual([3, null]);
    await eventually('its last words have come', () => exits.stderr().endsWith('out of memory\nsorry\n'));
    expect(await crashes.exit()).toEqual([null, 'SIGSEGV']);
  });

  test('a taken port and bindFails look the same: the bind message and exit 1', async () => {
    const blocker = createServer().listen(0, '127.0.0.1');
    await once(blocker, 'listening');
    atEndOfTest(() => {
      blocker.close();
    });
    const { port } = blocker.address() as AddressInfo;
    const truly = await launch({ args: ['--port', String(port)] });
    const feigned = await launch({ behaviour: { bindFails: true } });
    for (const fake of [truly, feigned]) {
      expect(await fake.exit()).toEqual([1, null]);
      await eventually('it says why', () =>
        fake.stderr().includes("couldn't bind HTTP server socket, hostname: 127.0.0.1"),
      );
    }
  });

  test('byStart gives each start of a model its own behaviour', async () => {
    const journal = newJournal();
    const behaviour = { byStart: [{ bindFails: true }, { exitWhileLoading: { code: 7 } }] };
    const again = () => launch({ behaviour, env: journal.env });
    expect(await (await again()).exit()).toEqual([1, null]);
    expect(await (await again()).exit()).toEqual([7, null]);
    const third = await again();
    await third.state('ready');
    expect(journal.of('start', 'alpha')).toHaveLength(3);
  });

  test('FAKE_LLAMA is for every fake, its models for one, and the file beside the model wins', async () => {
    const env = fakeBehaviourEnv({ chunks: 1 }, { beta: { chunks: 2 } });
    const alpha = await launch({ env });
    const beta = await launch({ env, args: ['--alias', 'beta'] });
    const betaWithFile = await launch({ env, args: ['--alias', 'beta'], behaviour: { chunks: 3 } });
    await Promise.all([alpha.ready(), beta.ready(), betaWithFile.ready()]);
    const contentOf = async (fake: typeof alpha) =>
      (json(await fake.post('/completion', {})) as Native).content;
    expect(await contentOf(alpha)).toBe('alpha 1');
    expect(await contentOf(beta)).toBe('beta 1 2');
    expect(await contentOf(betaWithFile)).toBe('beta 1 2 3');
  });

  test('a healthy child turns bad when its file changes: errors, then silence', async () => {
    const fake = await launch();
    await fake.ready();
    expect((await fake.post('/completion', {})).status).toBe(200);

    setFakeBehaviour(fake.model, { errorStatus: 500 });
    expect(json(await fake.post('/completion', {}))).toEqual({
      error: { code: 500, message: 'fake failure', type: 'server_error' },
    });
    expect((await fake.get('/health')).status).toBe(200);

    setFakeBehaviour(fake.model, { hangs: ['/health'] });
    const health = rawExchange(`${fake.url}/health`);
    await eventually('the probe has arrived', () => fake.journal.of('request').at(-1)?.url === '/health');
    expect((await fake.get('/slots')).status).toBe(200);
    expect(health.received()).toHaveLength(0);
    expect(fake.journal.of('answered').filter(({ url }) => url === '/health')).toHaveLength(1);
    health.abort();
  });

  test('ignores SIGTERM and the exit command when told to, and says so in the journal', async () => {
    const fake = await launch({ behaviour: { ignoreSigterm: true, ignoreExitCommand: true } });
    await fake.ready();
    fake.child.kill('SIGTERM');
    fake.child.stdin.write('cmd_router_to_child:exit\n');
    await eventually('both have come', () => fake.journal.of('ignored').length === 2);
    expect((await fake.get('/health')).status).toBe(200);
    fake.child.kill('SIGKILL');
    expect(await fake.exit()).toEqual([null, 'SIGKILL']);
  });

  test('ignores SIGTERM also while it loads', async () => {
    const fake = await launch({ behaviour: { ignoreSigterm: true, neverReady: true } });
    await fake.state('loading');
    fake.child.kill('SIGTERM');
    await eventually('it was ignored', () => fake.journal.of('ignored').length === 1);
    expect((await fake.get('/health')).status).toBe(503);
  });

  test('a slow stop goes on serving until its time is over; a second SIGTERM ends it with code 1', async () => {
    const fake = await launch({ behaviour: { stopMs: 60_000 } });
    await fake.ready();
    fake.child.kill('SIGTERM');
    await eventually('it is stopping', () => fake.journal.of('stopping').length === 1);
    expect((await fake.get('/health')).status).toBe(200);
    fake.child.kill('SIGTERM');
    expect(await fake.exit()).toEqual([1, null]);
  });

  test('dieMidStream breaks the connection after exactly so many words', async () => {
    const byCode = await launch({ behaviour: { dieMidStream: { afterChunks: 3, code: 9 } } });
    const bySignal = await launch({ behaviour: { dieMidStream: { afterChunks: 3, signal: 'SIGKILL' } } });
    await Promise.all([byCode.ready(), bySignal.ready()]);
    for (const fake of [byCode, bySignal]) {
      const broken = await fake.post('/completion', { stream: true, n_predict: 50 });
      expect(broken.complete).toBe(false);
      expect(sseData(broken.body).map((text) => (JSON.parse(text) as Native).content)).toEqual([
        'alpha',
        ' 1',
        ' 2',
      ]);
    }
    expect(await byCode.exit()).toEqual([9, null]);
    expect(await bySignal.exit()).toEqual([null, 'SIGKILL']);
    expect(bySignal.journal.of('exit')).toMatchObject([{ signal: 'SIGKILL' }]);
  });

  test('dieOnRequest closes the connection without a byte', async () => {
    const fake = await launch({ behaviour: { dieOnRequest: true } });
    await fake.ready();
    await expect(fake.post('/infill', {})).rejects.toThrow(/socket hang up|ECONNRESET/);
    expect(await fake.exit()).toEqual([1, null]);
    expect(fake.journal.of('request')).toHaveLength(1);
  });

  test('falls asleep when idle, and the next work wakes it with a ready that has no payload', async () => {
    const fake = await launch({ behaviour: { sleepAfterMs: 50 } });
    await fake.state('sleeping');
    expect((await fake.get('/health')).status).toBe(200);
    expect(fake.states().at(-1)).toEqual({ state: 'sleeping', payload: null });

    setFakeBehaviour(fake.model, { sleepAfterMs: 60_000 });
    expect((await fake.post('/completion', {})).status).toBe(200);
    const said = fake.states().map(({ state }) => state);
    expect(said).toEqual(['loading', 'loading', 'ready', 'sleeping', 'loading', 'loading', 'ready']);
    expect(fake.states().at(-1)).toEqual({ state: 'ready', payload: null });
  });

  test('forks a grandchild into its own process group that outlives it', async () => {
    const fake = await launch({ behaviour: { forkGrandchild: { ignoreSigterm: true } } });
    await fake.ready();
    const pid = fake.journal.of('grandchild')[0]?.grandchildPid ?? 0;
    const group = -(fake.child.pid ?? 0);
    // It ignores SIGTERM from the moment that the shell has run its first command.
    const command = () => spawnSync('ps', ['-o', 'args=', '-p', String(pid)], { encoding: 'utf8' }).stdout;
    await eventually('the grandchild sleeps', () => command().startsWith('sleep'));
    process.kill(group, 'SIGTERM');
    expect(await fake.exit()).toEqual([0, null]);
    expect(alive(pid)).toBe(true);
    process.kill(group, 'SIGKILL');
    await eventually('the grandchild is gone', () => !alive(pid));
  });

  test('a plain grandchild ends with a SIGTERM to the group', async () => {
    const fake = await launch({ behaviour: { forkGrandchild: true } });
    await fake.ready();
    const pid = fake.journal.of('grandchild')[0]?.grandchildPid ?? 0;
    expect(alive(pid)).toBe(true);
    process.kill(-(fake.child.pid ?? 0), 'SIGTERM');
    await eventually('the grandchild is gone', () => !alive(pid));
  });

  test('prints without a newline, chatters, and forges state lines', async () => {
    const forged = 'cmd_child_to_router:state:{"state":"nonsense","payload":1}';
    const fake = await launch({
      behaviour: {
        printWithoutNewline: 200_000,
        chatty: 2_000,
        printWhileLoading: ['early'],
        printWhenReady: [forged],
      },
    });
    await eventually('the forged line has come', () => fake.stdout().endsWith(`${forged}\n`));
    const lines = fake.stdout().split('\n');
    expect(lines[0]).toBe('early');
    expect(lines[1]).toBe('x'.repeat(200_000));
    expect(fake.states().at(-1)).toEqual({ state: 'nonsense', payload: 1 });
    await eventually('a hundred lines of chatter', () => /chatter 100$/m.test(fake.stderr()));
  });
});
