import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import {
  counting,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeHubModel,
  writeModels,
} from '../helpers/known-answer-models.js';
import { alive, canListProcesses, descendants, runMarker } from '../helpers/processes.js';
import { rawRequest } from '../helpers/raw-http.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { chat, get, streamChat } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

/** Shared, so that the binary is asked for its options once. */
const cacheHome = tempDir();

/** Nothing of this user's own; the same for the binary by itself and for the supervisor. */
function environment(more: Record<string, string> = {}): Record<string, string | undefined> {
  return {
    PATH: process.env['PATH'],
    [runMarker]: process.env[runMarker],
    HOME: cacheHome,
    XDG_CACHE_HOME: cacheHome,
    LLAMA_CACHE: join(cacheHome, 'models'),
    ...more,
  };
}

function run(command: readonly [string, ...string[]], env: Record<string, string> = {}) {
  const [file, ...args] = command;
  const subprocess = execa(file, args, {
    cwd: cacheHome,
    env: environment(env),
    extendEnv: false,
    reject: false,
    stdin: 'ignore',
    timeout: 30_000,
  });
  atEndOfTest(() => void subprocess.kill('SIGKILL'));
  return subprocess;
}

function supervisor(args: readonly string[], env?: Record<string, string>) {
  return run([process.execPath, script, 'start', '--llama-server', realLlamaServer(), ...args], env);
}

/**
 * What a command answers and how it ends, when it is run by itself and in our place. Its log is left out: a thread of
 * its own writes that, and does not get to its end where the answer ends the process.
 */
async function bothWays(args: readonly string[], env?: Record<string, string>) {
  const ended = await Promise.all([
    run([realLlamaServer(), ...args], env),
    supervisor([...ourOptions, ...args], env),
  ]);
  const [native, ours] = ended.map(({ exitCode, signal, stdout }) => ({ exitCode, signal, stdout }));
  return { native, ours, stderr: ended[1].stderr };
}

/** Some of our own options, in each of their forms; llama-server knows none of them. */
const ourOptions = ['--queue-max', '5', '--queue-timeout=9', '--no-watch', '--log-format', 'json'];

describe('a question', () => {
  test.each([
    ['--list-devices', /^Available devices:/],
    ['--cache-list', /^number of models in cache: 1\n.*org\/repo:Q4_0/],
    ['-cl', /^number of models in cache: 1\n/],
    ['--completion-bash', /^_llama_completions\(\) \{/],
  ])('%s is answered by the binary, word for word', async (question, answer) => {
    const hubCache = tempDir();
    await writeHubModel(hubCache, 'org/repo', 'model-Q4_0.gguf', sayingItsName('model'));
    const { native, ours, stderr } = await bothWays([question], { LLAMA_CACHE: hubCache });
    expect(ours).toEqual(native);
    expect(stderr).not.toContain('llama-supervisor');
    expect(ours).toMatchObject({ exitCode: 0, stdout: expect.stringMatching(answer) as string });
  });

  test('--version is answered by both: ours first, then that of the binary', async () => {
    const { native, ours, stderr } = await bothWays(['--version']);
    expect(ours).toEqual({
      ...native,
      stdout: expect.stringMatching(/^llama-supervisor \d+\.\d+\.\d+/) as string,
    });
    expect(stderr).toMatch(/version: \d+\.\d+/);
  });

  test('is answered without the verb, too, and also where a model is named', async () => {
    const { exitCode, stdout } = await run([
      process.execPath,
      script,
      '--llama-server',
      realLlamaServer(),
      '-m',
      '/no/such/model.gguf',
      '--list-devices',
    ]);
    expect({ exitCode, stdout }).toMatchObject({
      exitCode: 0,
      stdout: expect.stringMatching(/^Available devices:/) as string,
    });
  });
});

describe('a start that fails', () => {
  test.each([
    ['a file that is not there', ['-m', '/no/such/model.gguf'], /failed to open GGUF file/],
    [
      'a repository that is not in the cache, offline',
      ['-hf', 'me/none', '--offline'],
      /failed to load model/,
    ],
    [
      'a repository of which nothing is known, offline',
      ['-hf', 'me/none:Q8_0', '--offline'],
      /failed to load model/,
    ],
  ])(
    'with %s fails as that of the binary does, with its words and its exit code',
    async (_what, args, words) => {
      const port = String(await freePort());
      const other = String(await freePort());
      const native = await run([realLlamaServer(), ...args, '--port', port]);
      const ours = await supervisor([...ourOptions, ...args, '--port', other]);
      expect(ours.exitCode).toBe(native.exitCode);
      expect(ours.exitCode).toBe(1);
      expect(ours.stderr).not.toContain('llama-supervisor');
      expect(ours.stderr).toMatch(words);
      expect(ours.stdout).toBe('');
    },
  );

  test('with a file that is no model says so in the words of the binary', async () => {
    const junk = join(tempDir(), 'junk.gguf');
    writeFileSync(junk, 'This was never a model.');
    const { exitCode, stderr } = await supervisor(['-m', junk, '--port', '0']);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('invalid magic');
  });

  test('with an option that nobody knows is refused by us, before the binary runs', async () => {
    const { exitCode, stderr } = await supervisor(['-m', '/no/such/model.gguf', '--ctx-siz', '1']);
    expect(exitCode).toBe(1);
    expect(stderr).toBe('llama-supervisor: unknown option --ctx-siz: did you mean --ctx-size?');
  });
});

describe('a model on the command line', () => {
  async function serve(args: readonly string[], env?: Record<string, string>) {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    const fixed = ['--port', String(port), '--host', '127.0.0.1', '--threads', '1'];
    const subprocess = supervisor([...ourOptions, ...args, ...fixed], env);
    let output = '';
    subprocess.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    subprocess.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await eventually(
      'the model is served',
      async () => {
        if (subprocess.exitCode !== null) throw new Error(`it exited: ${output}`);
        return (await rawRequest(`${url}/health`)).status === 200;
      },
      { deadlineMs: 30_000 },
    );
    return { url, subprocess };
  }

  test('is served by the binary as if we were not there', async () => {
    const dir = await writeModels({ model: sayingItsName('model') });
    const { url } = await serve(['-m', join(dir, 'model.gguf')]);
    expect(await chat(url, 'whatever')).toBe(nameAnswer('model'));
    expect((await get(url, '/props')).json).toMatchObject({ model_path: join(dir, 'model.gguf') });
    expect((await get(url, '/props')).json).not.toHaveProperty('role');
    // A route that only one model by itself has an answer for without being told which.
    expect((await get(url, '/slots')).status).toBe(200);
  });

  // It has no word about SIGHUP, so that ends it as it ends any program.
  test.each([
    ['SIGTERM', { exitCode: 0, signal: undefined }],
    ['SIGINT', { exitCode: 0, signal: undefined }],
    ['SIGHUP', { exitCode: undefined, signal: 'SIGHUP' }],
  ] as const)('gets %s from us and ends in its own way, which is ours', async (sent, ending) => {
    const dir = await writeModels({ model: sayingItsName('model') });
    const { subprocess } = await serve(['-m', join(dir, 'model.gguf')]);
    subprocess.kill(sent);
    const { exitCode, signal, stdout } = await subprocess;
    expect({ exitCode, signal, stdout }).toEqual({ ...ending, stdout: '' });
  });

  test('may be named by the environment, or be one of the cache', async () => {
    const dir = await writeModels({ model: sayingItsName('model') });
    const named = await serve([], { LLAMA_ARG_MODEL: join(dir, 'model.gguf') });
    expect(await chat(named.url, 'whatever')).toBe(nameAnswer('model'));

    const hubCache = tempDir();
    await writeHubModel(hubCache, 'org/repo', 'model-Q4_0.gguf', sayingItsName('cached'));
    const cached = await serve(['-hf', 'org/repo:Q4_0', '--offline'], { LLAMA_CACHE: hubCache });
    expect(await chat(cached.url, 'whatever')).toBe(nameAnswer('cached'));
  });

  test.skipIf(!canListProcesses)(
    'whose process is killed takes us with it, by the same signal (needs /proc)',
    async () => {
      const dir = await writeModels({ model: sayingItsName('model') });
      const { subprocess } = await serve(['-m', join(dir, 'model.gguf')]);
      const pid = subprocess.pid ?? 0;
      // Where Node can replace its process, there is only this one.
      const binary = descendants(pid).at(-1)?.pid ?? pid;
      process.kill(binary, 'SIGKILL');
      const { signal, exitCode } = await subprocess;
      expect({ signal, exitCode }).toEqual({ signal: 'SIGKILL', exitCode: undefined });
    },
  );

  test.skipIf(!canListProcesses)('ends when we are killed (needs /proc)', async () => {
    const dir = await writeModels({ model: sayingItsName('model') });
    const { subprocess } = await serve(['-m', join(dir, 'model.gguf')]);
    const pid = subprocess.pid ?? 0;
    const all = [pid, ...descendants(pid).map((child) => child.pid)];
    process.kill(pid, 'SIGKILL');
    await subprocess;
    await eventually('nothing of it runs', () => !all.some(alive), { deadlineMs: 5_000 });
  });

  test('streams all it says', async () => {
    const numbers = counting(200);
    const dir = await writeModels({ numbers });
    const { url } = await serve(['-m', join(dir, 'numbers.gguf')]);
    const stream = streamChat(url, 'whatever');
    expect((await stream.ended()).complete).toBe(true);
    expect(stream.pieces()).toEqual(piecesOf(numbers));
  });
});
