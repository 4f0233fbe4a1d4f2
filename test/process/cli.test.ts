import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import {
  fakeBehaviourEnv,
  fakeLlamaServer,
  writeFakeModel,
  type FakeBehaviour,
} from '../helpers/fake-llama-server.js';
import { newJournal } from '../helpers/journal.js';
import { alive, canListProcesses, runMarker } from '../helpers/processes.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { sseData } from '../helpers/sse.js';
import { launchSupervisor, startSupervisor, type SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

/** Shared, so that the fake is asked for its options once. */
const cacheHome = tempDir();

/** Runs `llama-supervisor ARGS` as a shell would, in its own process group, with next to no environment. */
function commandLine(args: readonly string[], env: Record<string, string> = {}) {
  const subprocess = execa(process.execPath, [script, ...args], {
    cwd: tempDir(),
    env: {
      PATH: process.env['PATH'],
      [runMarker]: process.env[runMarker],
      XDG_CACHE_HOME: cacheHome,
      XDG_RUNTIME_DIR: tempDir(),
      LLAMA_CACHE: tempDir(),
      ...env,
    },
    extendEnv: false,
    reject: false,
    detached: true,
    stdin: 'ignore',
    timeout: 20_000,
  });
  atEndOfTest(() => {
    try {
      process.kill(-(subprocess.pid ?? NaN), 'SIGKILL');
    } catch {
      // The group has ended, as it should.
    }
  });
  return subprocess;
}

const withFake = ['--llama-server', fakeLlamaServer];

describe('a command line that cannot be served', () => {
  /** What is said on stderr, when it is one message, with exit code 1 and without a stack. */
  async function refusal(args: readonly string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await commandLine(args);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: expect.stringMatching(/^llama-supervisor: ./) as string,
    });
    expect(stderr).not.toMatch(/^ +at /m);
    expect(stderr.match(/llama-supervisor: /g)).toHaveLength(1);
    expect(stdout).not.toContain('listening');
    return stderr;
  }

  test.each([
    ['--modles-dir', '--models-dir'],
    ['--que-max', '--queue-max'],
    ['--ctx-siz', '--ctx-size'],
  ])('with the wrong option %s is refused with the nearest spelling', async (wrong, right) => {
    expect(await refusal(['start', ...withFake, wrong, '1'])).toContain(
      `unknown option ${wrong}: did you mean ${right}?`,
    );
  });

  test('is refused with everything that is wrong with it at once, also without the verb', async () => {
    const message = await refusal([...withFake, '--modles-dir', 'x', '--models-max', 'many', '--port']);
    expect(message).toContain('--models-dir');
    expect(message).toMatch(/--models-max.*'many'/);
    expect(message).toMatch(/--port needs a value/);
  });

  test('that names a models directory that is not there says which', async () => {
    const missing = join(tempDir(), 'no-models');
    expect(await refusal(['start', ...withFake, '--port', '0', '--models-dir', missing])).toContain(missing);
  });

  test('that names a taken port says so, and what to do', async () => {
    const stranger = createServer().listen(0, '127.0.0.1');
    await once(stranger, 'listening');
    atEndOfTest(() => void stranger.close());
    const { port } = stranger.address() as AddressInfo;
    const message = await refusal(['start', ...withFake, '--port', String(port)]);
    expect(message).toContain(`127.0.0.1:${port}`);
    expect(message).toMatch(/another program listens there; choose another --port/);
  });

  test('that names a llama-server that cannot be used says why', async () => {
    const dir = tempDir();
    const text = join(dir, 'not-executable');
    writeFileSync(text, 'text');
    const other = join(dir, 'another-program');
    writeFileSync(other, '#!/bin/sh\necho "usage: another-program"\n');
    chmodSync(other, 0o755);
    const failing = join(dir, 'broken-llama-server');
    writeFileSync(failing, '#!/bin/sh\necho "cannot open shared object file" >&2\nexit 127\n');
    chmodSync(failing, 0o755);

    const why = (path: string) => refusal(['start', '--llama-server', path]);
    expect(await why(join(dir, 'nothing'))).toMatch(/nothing, which does not exist/);
    expect(await why(dir)).toMatch(/is a directory/);
    expect(await why(text)).toMatch(/not-executable, which is not executable/);
    expect(await why(other)).toMatch(/another-program --help lists no options/);
    expect(await why(failing)).toMatch(/broken-llama-server.*cannot open shared object file/s);
  });

  test('that is an unknown verb is refused', async () => {
    const { exitCode, stderr } = await commandLine(['strat']);
    expect({ exitCode, stderr }).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining('start') as string,
    });
  });
});

test.each([[['--help']], [['start', '--help']], [['-h']]])(
  '%j lists the options, without a binary',
  async (args) => {
    const { exitCode, stdout, stderr } = await commandLine(args, { PATH: tempDir() });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    for (const option of ['--models-dir', '--models-max', '--llama-server', '--drain-timeout']) {
      expect(stdout).toContain(option);
    }
  },
);

describe('what needs no router is run by the binary in our place', () => {
  /** A command line with a model on it, on a fake that behaves so. */
  function direct(behaviour: FakeBehaviour) {
    const model = writeFakeModel(tempDir(), 'alpha', behaviour);
    const journal = newJournal();
    return { args: ['start', ...withFake, '--port', '0', '-m', model], env: journal.env, journal, model };
  }

  test('a question about the binary is answered by it, with our options left out', async () => {
    const version = await commandLine(['start', ...withFake, '--queue-max', '5', '--version']);
    expect(version).toMatchObject({
      exitCode: 0,
      stderr: expect.stringMatching(/^version: .*de3ff81/m) as string,
    });
    const devices = await commandLine([...withFake, '--list-devices']);
    expect(devices).toMatchObject({ exitCode: 0, stdout: 'Available devices:\n  (none)' });
  });

  test('a model on the command line is served by it, with the arguments as they were given', async () => {
    const { args, env, journal, model } = direct({});
    const subprocess = commandLine([...args, '--queue-max', '5', '--ctx-size', '512', '-np', '2'], env);
    await eventuallyListening(subprocess);
    const [start] = journal.of('start');
    expect(start?.argv).toEqual(['--port', '0', '-m', model, '--ctx-size', '512', '-np', '2']);
    expect(start?.env).not.toHaveProperty('LLAMA_SERVER_ROUTER_PORT');
    process.kill(subprocess.pid ?? NaN, 'SIGTERM');
    const { exitCode, stderr } = await subprocess;
    expect(exitCode).toBe(0);
    expect(stderr).toContain(`loading model '${model}'`);
  });

  test('its exit code is ours', async () => {
    const { args, env } = direct({ exitWhileLoading: { code: 7, lines: ['no such tensor'] } });
    const { exitCode, stderr } = await commandLine(args, env);
    expect(exitCode).toBe(7);
    expect(stderr).toContain('no such tensor');
  });

  test.each(['SIGSEGV', 'SIGKILL', 'SIGTERM'] as const)('its death by %s is ours', async (signal) => {
    const { args, env } = direct({ exitWhileLoading: { signal } });
    const { signal: ours, exitCode } = await commandLine(args, env);
    expect({ ours, exitCode }).toEqual({ ours: signal, exitCode: undefined });
  });

  test.each(['SIGTERM', 'SIGINT'] as const)('%s reaches it, and it ends in its own time', async (signal) => {
    const { args, env, journal } = direct({ stopMs: 200 });
    const subprocess = commandLine(args, env);
    await eventuallyListening(subprocess);
    process.kill(subprocess.pid ?? NaN, signal);
    expect((await subprocess).exitCode).toBe(0);
    expect(journal.of('stopping').map(({ why }) => why)).toEqual([signal]);
  });

  test('Ctrl-C, which a terminal sends to the whole group, reaches it once: twice would mean "at once"', async () => {
    const { args, env, journal } = direct({ stopMs: 400 });
    const subprocess = commandLine(args, env);
    await eventuallyListening(subprocess);
    process.kill(-(subprocess.pid ?? NaN), 'SIGINT');
    expect((await subprocess).exitCode).toBe(0);
    expect(journal.of('exit').map(({ code }) => code)).toEqual([0]);
  });

  test.skipIf(!canListProcesses)('it does not outlive us when we are killed (needs /proc)', async () => {
    const { args, env, journal } = direct({ neverReady: true, ignoreSigterm: true });
    const launched = launchSupervisor({ args: args.slice(1), env, cacheHome });
    const { pid } = await eventually('the binary runs', () => journal.of('start')[0]);
    await launched.kill();
    await eventually('the binary has ended', () => !alive(pid), { deadlineMs: 5_000 });
  });

  /** To be called at once: it hears only what is printed from then on. */
  async function eventuallyListening(subprocess: ReturnType<typeof commandLine>): Promise<void> {
    let output = '';
    subprocess.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await eventually('the binary listens', () => output.includes('listening on '));
  }
});

describe('a running supervisor', () => {
  function serve(behaviour: FakeBehaviour, ...args: string[]): Promise<SupervisorProcess> {
    const models = tempDir();
    writeFakeModel(models, 'alpha');
    writeFakeModel(models, 'beta');
    return startSupervisor({
      args: ['--models-dir', models, ...args],
      env: fakeBehaviourEnv({}, { alpha: behaviour, beta: { neverReady: true } }),
      cacheHome,
    });
  }

  function stream({ url }: SupervisorProcess, model: string, words: number) {
    const request = jsonPost({ model, stream: true, max_tokens: words, messages: [] });
    const exchange = rawExchange(`${url}/v1/chat/completions`, request);
    atEndOfTest(() => exchange.abort());
    return exchange;
  }

  test('says in its run file, which is for this user only, how to reach it, and removes it at its end', async () => {
    const supervisor = await serve({});
    const directory = join(supervisor.home, 'runtime', 'llama-supervisor');
    const file = join(directory, `${supervisor.port}.json`);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(statSync(directory).mode & 0o777).toBe(0o700);
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({ pid: supervisor.pid, url: supervisor.url });
    expect(await supervisor.stop()).toEqual({ code: 0, signal: null });
    expect(existsSync(file)).toBe(false);
  });

  test('gives the command line a key of this run in its run file, where keys are asked for', async () => {
    const supervisor = await serve({}, '--api-key', 'configured');
    const file = join(supervisor.home, 'runtime', 'llama-supervisor', `${supervisor.port}.json`);
    const { apiKey } = JSON.parse(readFileSync(file, 'utf8')) as { apiKey: string };
    expect(apiKey).not.toBe('configured');
    const status = async (key: string) =>
      (await rawRequest(`${supervisor.url}/props`, { headers: { authorization: `Bearer ${key}` } })).status;
    expect(await status(apiKey)).toBe(200);
    expect(await status('configured')).toBe(200);
    expect(await status('wrong')).toBe(401);
    expect(supervisor.output()).not.toContain(apiKey);
  });

  test('serves although it cannot write its run file, and says so', async () => {
    const blocked = join(tempDir(), 'file');
    mkdirSync(blocked);
    writeFileSync(join(blocked, 'llama-supervisor'), 'not a directory');
    const supervisor = await startSupervisor({ env: { XDG_RUNTIME_DIR: blocked }, cacheHome });
    expect((await rawRequest(`${supervisor.url}/health`)).status).toBe(200);
    expect(supervisor.output()).toContain('the run file could not be written');
  });

  test('told to end by SIGTERM lets a running stream finish, and takes no new request', async () => {
    const supervisor = await serve({ tokenIntervalMs: 50 });
    const running = stream(supervisor, 'alpha', 20);
    await eventually('the stream flows', () => running.received().length > 0);
    const waiting = stream(supervisor, 'beta', 1);
    await eventually('beta loads', () => supervisor.output().includes('"model":"beta"'));

    const exited = supervisor.stop('SIGTERM');
    await eventually('it is ending', () => supervisor.output().includes('shutting down'));
    expect((await rawRequest(`${supervisor.url}/health`)).status).toBe(503);
    const refused = await waiting.ended;
    expect(refused.status).toBe(503);
    expect(JSON.parse(refused.body.toString())).toMatchObject({ error: { reason: 'shutting_down' } });

    const { complete, body } = await running.ended;
    expect(complete).toBe(true);
    const words = sseData(body)
      .slice(1, -2)
      .map(
        (data) =>
          (JSON.parse(data) as { choices: [{ delta: { content: string } }] }).choices[0].delta.content,
      );
    expect(words.join('')).toBe(`alpha ${Array.from({ length: 20 }, (_, at) => at + 1).join(' ')}`);
    expect(sseData(body).at(-1)).toBe('[DONE]');
    expect(await exited).toEqual({ code: 0, signal: null });
  });

  test('cuts a stream that is longer than the drain timeout, so that its reader sees it was cut', async () => {
    const supervisor = await serve({ tokenIntervalMs: 20 }, '--drain-timeout', '0.4');
    const running = stream(supervisor, 'alpha', -1);
    await eventually('the stream flows', () => running.received().length > 0);
    expect(await supervisor.stop('SIGTERM')).toEqual({ code: 0, signal: null });
    const { complete, body } = await running.ended;
    expect(complete).toBe(false);
    expect(body.toString()).not.toContain('[DONE]');
  });

  test('ends at once by the second signal, while a stream is running', async () => {
    const supervisor = await serve({ tokenIntervalMs: 20 });
    const running = stream(supervisor, 'alpha', -1);
    await eventually('the stream flows', () => running.received().length > 0);
    process.kill(supervisor.pid, 'SIGTERM');
    await eventually('the first is heard', () => supervisor.output().includes('once more ends at once'));
    const before = running.received().length;
    await eventually('the stream goes on', () => running.received().length > before);
    expect(supervisor.hasExited()).toBe(false);

    process.kill(supervisor.pid, 'SIGTERM');
    // Far less than the 60 s of the drain.
    expect(await withDeadline('it ends at once', supervisor.exited, 5_000)).toEqual({
      code: 1,
      signal: null,
    });
    expect((await running.ended).complete).toBe(false);
  });
});
