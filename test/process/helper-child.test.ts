import { once } from 'node:events';
import { readdirSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';
import getPort from 'get-port';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { RouterError } from '../../src/errors.js';
import { HelperChild, type HelperChildOptions, type RunningHelper } from '../../src/instance/helper-child.js';
import { KernelKills } from '../../src/instance/kernel-kills.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeBehaviourEnv, fakeLlamaServer, type FakeBehaviour } from '../helpers/fake-llama-server.js';
import { newJournal, type Journal } from '../helpers/journal.js';
import { alive, sigkill } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

interface HelperRun {
  readonly helper: HelperChild;
  readonly journal: Journal;
  readonly log: readonly Record<string, unknown>[];
  /** Where it was told to look for models. */
  readonly modelCache: string;
  ready(): Promise<RunningHelper>;
  /** Its refusal; fails the test when there is none. */
  refusal(): Promise<RouterError>;
  /** Waits until every process of it is gone, those that it started included. */
  nothingLeft(): Promise<void>;
}

interface RunOptions extends Partial<HelperChildOptions> {
  readonly behaviour?: FakeBehaviour;
}

/** A helper that is not started yet, on a fake llama-server; killed at the end of the test. */
function newHelper({ behaviour = {}, env = {}, ...options }: RunOptions = {}): HelperRun {
  const journal = newJournal();
  const modelCache = join(tempDir(), 'no-models');
  const log: Record<string, unknown>[] = [];
  const write = (record: string): void => void log.push(JSON.parse(record) as Record<string, unknown>);
  const logger = pino({ level: 'debug', base: null }, { write });
  const guard = new OrphanGuard(logger);
  const helper = new HelperChild({
    binary: fakeLlamaServer,
    args: [],
    env: { ...process.env, ...journal.env, ...fakeBehaviourEnv(behaviour), ...env },
    modelCache,
    guard,
    log: logger,
    kernelKills: new KernelKills(undefined),
    startTimeoutMs: 20_000,
    stopTimeoutMs: 10_000,
    silenceTimeoutMs: 10_000,
    ...options,
  });
  const ready = () => withDeadline('the helper is ready', helper.ready(new AbortController().signal), 15_000);
  const nothingLeft = async (): Promise<void> => {
    const members = [
      ...journal.of('start').map(({ pid }) => pid),
      ...journal.of('grandchild').map(({ grandchildPid }) => grandchildPid),
    ];
    await eventually('no process is left', () => !members.some(alive), { deadlineMs: 5_000 });
  };
  atEndOfTest(async () => {
    helper.kill();
    await nothingLeft();
    guard.close();
  });
  return {
    helper,
    journal,
    log,
    modelCache,
    ready,
    refusal: async () => {
      const error: unknown = await ready().then(
        () => 'it is ready',
        (reason: unknown) => reason,
      );
      if (error instanceof RouterError) return error;
      throw new Error(`not refused: ${String(error)}`);
    },
    nothingLeft,
  };
}

/** Asks the helper for a path; what it answered. */
async function ask({ upstream }: RunningHelper, path: string, withKey = true): Promise<number> {
  let finish: ((reusable: boolean) => void) | undefined;
  const status = await new Promise<number>((resolve, reject) => {
    let code = 0;
    finish = upstream.dispatch(
      { method: 'GET', path, headers: [], body: null, withKey },
      {
        onRequestStart: () => undefined,
        onResponseStart: (_controller, statusCode) => (code = statusCode),
        onResponseData: () => undefined,
        onResponseEnd: () => resolve(code),
        onResponseError: (_controller, error) => reject(error),
      },
    );
  });
  finish?.(false);
  return status;
}

async function takenPort(): Promise<number> {
  const stranger = createServer((socket) => socket.destroy()).listen(0, '127.0.0.1');
  await once(stranger, 'listening');
  atEndOfTest(() => void stranger.close());
  return (stranger.address() as AddressInfo).port;
}

describe('the start of a helper', () => {
  test('comes with the first need, and only once for all who ask meanwhile', async () => {
    const run = newHelper();
    expect(run.journal.of('start')).toEqual([]);
    const [first, ...others] = await Promise.all([run.ready(), run.ready(), run.ready()]);
    expect(others).toEqual([first, first]);
    expect(await run.ready()).toBe(first);
    expect(run.journal.of('start')).toHaveLength(1);
  });

  test('is on loopback, without a prefix, in a process group of its own and with a key of its own', async () => {
    const run = newHelper({ args: ['--tools', 'all'], env: { LLAMA_API_KEY: "the clients'" } });
    const running = await run.ready();
    const [start] = run.journal.of('start');
    expect(start?.argv).toEqual(['--host', '127.0.0.1', '--port', String(start?.port), '--tools', 'all']);
    expect(start?.pgid).toBe(start?.pid);
    expect(start?.env['LLAMA_API_KEY']).toMatch(/^[\w-]{32}$/);
    expect(await ask(running, '/props')).toBe(200);
    expect(await ask(running, '/props', false)).toBe(401);
  });

  test('finds no model: an empty cache, and of the environment only what a helper serves', async () => {
    const run = newHelper({
      env: {
        LLAMA_CACHE: '/models',
        LLAMA_ARG_MODEL: 'a.gguf',
        LLAMA_ARG_MODELS_DIR: '/models',
        LLAMA_ARG_NO_MODELS_AUTOLOAD: '1',
        LLAMA_ARG_CTX_SIZE: '512',
        LLAMA_ARG_DEVICE: 'CUDA0',
        LLAMA_ARG_API_PREFIX: '/llama',
        LLAMA_ARG_REUSE_PORT: '1',
        LLAMA_SERVER_ROUTER_PORT: '1',
        AIP_MODE: 'PREDICTION',
        LLAMA_ARG_TOOLS: 'read_file',
        LLAMA_ARG_NO_UI: '1',
      },
    });
    await run.ready();
    const env = run.journal.of('start')[0]?.env ?? {};
    const options = Object.entries(env).filter(([name]) => /^(?:LLAMA|AIP)_(?!API_KEY)/.test(name));
    expect(Object.fromEntries(options)).toEqual({
      LLAMA_CACHE: run.modelCache,
      LLAMA_ARG_TOOLS: 'read_file',
      LLAMA_ARG_NO_UI: '1',
      LLAMA_ARG_THREADS_HTTP: '64',
      ...Object.fromEntries(
        ['MODEL', 'HF_REPO', 'DOCKER_REPO', 'MODELS_DIR', 'MODELS_PRESET', 'API_PREFIX']
          .concat('SSL_KEY_FILE', 'SSL_CERT_FILE')
          .map((name) => [`LLAMA_ARG_${name}`, '']),
      ),
    });
    expect(readdirSync(run.modelCache)).toEqual([]);
  });

  test('does without the directory where it cannot be made', async () => {
    const file = join(tempDir(), 'file');
    writeFileSync(file, '');
    const run = newHelper({ modelCache: join(file, 'no-models') });
    expect(await ask(await run.ready(), '/health')).toBe(200);
  });

  test('is made once more when its port was taken meanwhile', async () => {
    const ports = [await takenPort(), await getPort()];
    const given = [...ports];
    const run = newHelper({ freePort: () => Promise.resolve(given.shift() ?? 0) });
    await run.ready();
    expect(run.journal.of('start').map(({ port }) => port)).toEqual(ports);
  });

  test('goes on when the one who asked has left', async () => {
    const run = newHelper();
    const client = new AbortController();
    const asked = run.helper.ready(client.signal);
    client.abort();
    await expect(asked).rejects.toMatchObject({ code: 'client_gone' });
    await run.ready();
    expect(run.journal.of('start')).toHaveLength(1);
  });

  test('writes what the helper prints into our log, for debugging', async () => {
    const run = newHelper();
    const { pid } = await run.ready().then(() => run.helper);
    await eventually('its lines are in the log', () =>
      run.log.some(
        ({ level, msg, line, pid: of }) =>
          level === 20 && msg === 'helper' && of === pid && String(line).includes('listening on http'),
      ),
    );
  });
});

describe('a helper that does not become ready', () => {
  test('is refused with its last lines, and not started again for each request', async () => {
    const run = newHelper({ behaviour: { exitWhileLoading: { code: 3, lines: ['unknown tool "x"'] } } });
    const error = await run.refusal();
    expect(error).toMatchObject({
      code: 'helper_failed',
      status: 503,
      message:
        'the llama-server that serves the web UI and tools exited with code 3; it said: unknown tool "x"',
    });
    expect(error.details.lastLines?.at(-1)).toBe('unknown tool "x"');
    expect(error.headers['Retry-After']).toBe('1');

    // The next one waits for the end of the first pause; after the second failure the pause is longer.
    await run.refusal();
    expect(run.journal.of('start')).toHaveLength(2);
    const atOnce = await Promise.all([run.refusal(), run.refusal(), run.refusal()]);
    expect(atOnce.map(({ code }) => code)).toEqual(Array(3).fill('helper_failed'));
    expect(atOnce[0].details.lastLines?.at(-1)).toBe('unknown tool "x"');
    expect(atOnce[0].headers['Retry-After']).toBe('2');
    expect(run.journal.of('start')).toHaveLength(2);
  });

  test('is killed at the deadline', async () => {
    const run = newHelper({ behaviour: { hangs: ['/props'] }, startTimeoutMs: 1_000 });
    expect((await run.refusal()).message).toMatch(/was not ready within 1 s \(--load-timeout\)/);
    await run.nothingLeft();
  });

  test('is one that is not there', async () => {
    const run = newHelper({ binary: '/no/such/llama-server' });
    // With the parent-death guard in front of it, it is that guard which says so.
    const { code, message, details } = await run.refusal();
    expect(code).toBe('helper_failed');
    expect([message, ...(details.lastLines ?? [])].join('\n')).toMatch(/No such file|ENOENT/);
  });

  test('is served once it can start', async () => {
    const failing: FakeBehaviour = { exitWhileLoading: { lines: ['not yet'] } };
    const run = newHelper({ behaviour: { byStart: [failing] } });
    await run.refusal();
    expect(await ask(await run.ready(), '/health')).toBe(200);
  });
});

describe('a helper that dies', () => {
  test('is started again when it is needed next, on another connection', async () => {
    const run = newHelper();
    const first = await run.ready();
    sigkill(run.helper.pid ?? NaN);
    const { message } = await withDeadline('it has ended', first.ended, 5_000);
    expect(message).toBe('was ended by SIGKILL');
    expect(run.journal.of('start')).toHaveLength(1);

    const second = await run.ready();
    expect(second).not.toBe(first);
    expect(run.journal.of('start')).toHaveLength(2);
    expect(await ask(second, '/props')).toBe(200);
    await expect(ask(first, '/health')).rejects.toThrow('the child is gone');
    expect(run.log.some(({ level, msg }) => level === 40 && String(msg).includes('has ended'))).toBe(true);
  });

  test('of the kernel, for want of memory, says so, and no other child is taken for the one that was killed', async () => {
    let count = 3;
    const kernelKills = new KernelKills({ file: 'memory.events', count: () => count });
    const run = newHelper({ kernelKills });
    const watch = kernelKills.watch();
    const { ended } = await run.ready();
    count += 1;
    sigkill(run.helper.pid ?? NaN);
    const { message } = await withDeadline('the helper ends', ended, 10_000);
    expect(message).toContain('was ended by SIGKILL because it ran out of');
    expect(message).toContain('memory.events');
    expect(watch.claim()).toBeUndefined();
  });

  test('takes what it started with it', async () => {
    const run = newHelper({ behaviour: { forkGrandchild: true } });
    const { ended } = await run.ready();
    sigkill(run.helper.pid ?? NaN);
    await withDeadline('it has ended', ended, 5_000);
    await run.nothingLeft();
  });
});

describe('the stop of a helper', () => {
  test('is SIGTERM, and no start after it', async () => {
    const run = newHelper({ behaviour: { forkGrandchild: true } });
    await run.ready();
    await withDeadline('it is stopped', run.helper.stop(), 5_000);
    expect(run.journal.of('stopping').map(({ why }) => why)).toEqual(['SIGTERM']);
    await run.nothingLeft();
    expect(await run.refusal()).toMatchObject({ code: 'shutting_down' });
    expect(run.journal.of('start')).toHaveLength(1);
    expect(run.log.filter(({ level }) => Number(level) >= 40)).toEqual([]);
  });

  test('is SIGKILL for one that does not listen', async () => {
    const run = newHelper({ behaviour: { ignoreSigterm: true }, stopTimeoutMs: 200 });
    await run.ready();
    await withDeadline('it is stopped', run.helper.stop(), 5_000);
    expect(run.journal.of('ignored')).toHaveLength(1);
    await run.nothingLeft();
  });

  test('ends a start at once, and tells those who wait for it', async () => {
    const run = newHelper({ behaviour: { hangs: ['/props'] } });
    const waiting = run.refusal();
    await eventually('it is being started', () => run.journal.of('start').length === 1);
    await withDeadline('it is stopped', run.helper.stop(), 5_000);
    expect(await waiting).toMatchObject({ code: 'shutting_down' });
    await run.nothingLeft();
  });

  test('before there was a start is nothing, and may be asked for twice', async () => {
    const run = newHelper();
    await run.helper.stop();
    await run.helper.stop();
    expect(await run.refusal()).toMatchObject({ code: 'shutting_down' });
    expect(run.journal.of('start')).toEqual([]);
  });
});
