import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import {
  runDownloadWorker,
  type DownloadOptions,
  type DownloadOutcome,
  type DownloadProgress,
} from '../../src/instance/download-worker.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { alive } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

const token = `hf_${'a'.repeat(34)}`;

/** What a worker does once it has said its result: it waits to be dismissed, for ever if need be. */
const awaitDismissal = 'read -r command; [ "$command" = cmd_router_to_child:exit ] && echo dismissed; exit 0';

interface WorkerRun {
  readonly lines: readonly string[];
  readonly progress: readonly DownloadProgress[];
  readonly guard: OrphanGuard;
  cancel(): void;
  /** The worker's process, once it has told its id by `echo pid $$`. */
  pid(): Promise<number>;
  /** Its end, 15 s at most. */
  outcome(): Promise<DownloadOutcome>;
}

/** Runs a shell script as the download worker; ended at the end of the test. */
function runWorker(script: string, options: Partial<DownloadOptions> = {}): WorkerRun {
  const binary = join(tempDir(), 'llama-server');
  writeFileSync(binary, `#!/bin/sh\n${script}\n`);
  chmodSync(binary, 0o755);
  const guard = new OrphanGuard(pino({ enabled: false }));
  const cancel = new AbortController();
  const lines: string[] = [];
  const progress: DownloadProgress[] = [];
  const outcome = runDownloadWorker({
    binary,
    hfRepo: 'me/model:Q4_0',
    environment: process.env,
    token: undefined,
    guard,
    silenceTimeoutMs: 20_000,
    signal: cancel.signal,
    onProgress: (step) => progress.push(step),
    onLine: (line) => lines.push(line),
    ...options,
  });
  atEndOfTest(async () => {
    cancel.abort();
    await withDeadline('the worker is gone', outcome, 10_000);
    guard.close();
  });
  return {
    lines,
    progress,
    guard,
    cancel: () => cancel.abort(),
    pid: () =>
      eventually('the worker tells its id', () =>
        Number(lines.find((line) => line.startsWith('pid '))?.slice(4) ?? 0),
      ),
    outcome: () => withDeadline('the worker ends', outcome, 15_000),
  };
}

/** A state line as the worker prints it, after a newline that ends what its log has left open. */
function say(state: string, payload: unknown): string {
  return `printf '\\n%s\\n' 'cmd_child_to_router:state:${JSON.stringify({ state, payload })}'`;
}

const finished = say('downloading', { result: 'download_finished' });
const failed = say('downloading', { result: 'download_failed' });

describe('a worker that reports', () => {
  test('success is dismissed, and the download has finished', async () => {
    const run = runWorker(`echo starting >&2\n${finished}\n${awaitDismissal}`);
    expect(await run.outcome()).toEqual({
      kind: 'finished',
      message: "llama-server has downloaded 'me/model:Q4_0'",
      lastLines: ['starting', 'dismissed'],
    });
  });

  test('failure is dismissed, and the download has failed, with what it wrote last', async () => {
    const run = runWorker(`echo E no space left >&2\n${failed}\n${awaitDismissal}`);
    expect(await run.outcome()).toEqual({
      kind: 'failed',
      how: 'reported',
      message: "llama-server could not download 'me/model:Q4_0'",
      lastLines: ['E no space left', 'dismissed'],
    });
  });

  test('and does not go when dismissed is killed', async () => {
    const run = runWorker(`trap '' TERM\necho pid $$\n${finished}\nwhile :; do sleep 0.1; done`);
    const pid = await run.pid();
    expect((await run.outcome()).kind).toBe('finished');
    expect(alive(pid)).toBe(false);
  });
});

describe('progress', () => {
  test('is told of each file as it comes, and is no line of the log', async () => {
    const file = (name: string, downloaded: number, total: number): string =>
      say('downloading', { url: `http://hub/${name}`, downloaded, total });
    const run = runWorker(
      [file('a', 0, 0), file('b', 0, 20), file('a', 5, 10), finished, awaitDismissal].join('\n'),
    );
    await run.outcome();
    expect(run.progress).toEqual([
      { url: 'http://hub/a', downloadedBytes: 0, totalBytes: 0 },
      { url: 'http://hub/b', downloadedBytes: 0, totalBytes: 20 },
      { url: 'http://hub/a', downloadedBytes: 5, totalBytes: 10 },
    ]);
    expect(run.lines.filter((line) => line !== '')).toEqual(['dismissed']);
  });

  test('does not push the reason of a failure out of the last lines', async () => {
    const step = say('downloading', { url: 'http://hub/a', downloaded: 1, total: 2 });
    const run = runWorker(
      `echo E the reason\nfor n in $(seq 200); do ${step}; done\n${failed}\n${awaitDismissal}`,
    );
    expect((await run.outcome()).lastLines).toContain('E the reason');
    expect(run.progress).toHaveLength(200);
  });

  test('that is broken, of another state or of another kind is a line of the log', async () => {
    const odd = [
      `echo 'cmd_child_to_router:state:{"state":'`,
      `echo 'cmd_child_to_router:state:null'`,
      say('downloading', null),
      say('downloading', { url: 1, downloaded: 1, total: 1 }),
      say('downloading', { result: 'download_paused' }),
      say('uploading', { result: 'download_finished' }),
    ];
    const run = runWorker([...odd, failed, awaitDismissal].join('\n'));
    expect((await run.outcome()).kind).toBe('failed');
    expect(run.progress).toEqual([]);
    expect(run.lines.filter((line) => line.startsWith('cmd_child_to_router'))).toHaveLength(odd.length);
  });
});

describe('a worker that ends without a result', () => {
  test.each([
    ['exit 1', 'ended without a result, with exit code 1'],
    ['exit 0', 'ended without a result, with exit code 0'],
    ['kill -SEGV $$', 'was ended by SIGSEGV'],
  ])('by %s has failed, with what it wrote last', async (end, how) => {
    const run = runWorker(`echo what is wrong >&2\n${end}`);
    expect(await run.outcome()).toEqual({
      kind: 'failed',
      how: 'exited',
      message: `the download of 'me/model:Q4_0' ${how}`,
      lastLines: ['what is wrong'],
    });
  });

  test('because it cannot be started has failed', async () => {
    const run = runWorker('', { binary: join(tempDir(), 'none') });
    const { kind, message, lastLines } = await run.outcome();
    expect(kind).toBe('failed');
    expect([message, ...lastLines].join('\n')).toMatch(/none.*(no such file|ENOENT)/i);
  });

  test('because the guard has killed it, as it does when the supervisor is gone, has failed', async () => {
    const run = runWorker('echo pid $$\nsleep 600');
    const pid = await run.pid();
    run.guard.close();
    expect(await run.outcome()).toMatchObject({ kind: 'failed' });
    expect(alive(pid)).toBe(false);
  });
});

describe('a worker of which nothing is heard', () => {
  test('is killed at once and has failed', async () => {
    // Asked to exit, it would remove what the next download can go on with.
    const run = runWorker('echo pid $$\nread -r command && echo heard $command', { silenceTimeoutMs: 300 });
    const pid = await run.pid();
    expect(await run.outcome()).toMatchObject({
      kind: 'failed',
      how: 'silent',
      message: "nothing was heard of the download of 'me/model:Q4_0' for 0.3 s",
    });
    expect(alive(pid)).toBe(false);
    expect(run.lines.some((line) => line.startsWith('heard'))).toBe(false);
  });

  test('is one that tells nothing, not one that takes its time', async () => {
    const step = say('downloading', { url: 'http://hub/a', downloaded: 1, total: 2 });
    const run = runWorker(`for n in 1 2 3 4; do sleep 0.4; ${step}; done\n${finished}\n${awaitDismissal}`, {
      silenceTimeoutMs: 1_200,
    });
    expect((await run.outcome()).kind).toBe('finished');
  });
});

describe('a worker that is silent while bytes come', () => {
  const waiting = 'until [ -e "$GO" ]; do sleep 0.05; done';

  test('is at work: a thousandth of a large file takes its time', async () => {
    const go = join(tempDir(), 'go');
    let bytes = 0;
    const run = runWorker(`${waiting}\n${finished}\n${awaitDismissal}`, {
      silenceTimeoutMs: 100,
      receivedBytes: () => Promise.resolve((bytes += 1)),
      environment: { ...process.env, GO: go },
    });
    await eventually('it was asked for what has come a few times', () => bytes >= 4);
    writeFileSync(go, '');
    expect((await run.outcome()).kind).toBe('finished');
  });

  test.each([
    ['that come no more', () => Promise.resolve(7)],
    ['of which nobody can tell', () => Promise.reject(new Error('the disk is gone'))],
  ])('%s is given up', async (_, receivedBytes) => {
    const run = runWorker(waiting, { silenceTimeoutMs: 200, receivedBytes });
    expect(await run.outcome()).toMatchObject({ kind: 'failed', how: 'silent' });
  });
});

describe('a download that is interrupted', () => {
  test('ends its worker at once, which has no time to remove what has come', async () => {
    const interrupt = new AbortController();
    const run = runWorker('echo pid $$\nread -r command && echo heard $command', {
      interrupt: interrupt.signal,
    });
    const pid = await run.pid();
    interrupt.abort();
    expect(await run.outcome()).toEqual({
      kind: 'interrupted',
      message: "the download of 'me/model:Q4_0' was interrupted",
      lastLines: [`pid ${pid}`],
    });
    expect(alive(pid)).toBe(false);
  });

  test('before it has begun starts nothing', async () => {
    const run = runWorker('echo started', { interrupt: AbortSignal.abort() });
    expect(await run.outcome()).toMatchObject({ kind: 'interrupted', lastLines: [] });
    expect(run.lines).toEqual([]);
  });
});

describe('the command line of a worker', () => {
  test('begins with the subcommand that makes the unified program a server, if there is one', async () => {
    const run = runWorker('echo "$@"; exit 1', {
      args: ['--alias', 'me/model'],
      environment: { PATH: process.env['PATH'], LLAMA_APP_CMD: 'serve' },
    });
    expect((await run.outcome()).lastLines).toEqual(['serve --alias me/model']);
  });
});

describe('a download that is cancelled', () => {
  test('asks the worker to exit, which can tidy up', async () => {
    const run = runWorker(`echo pid $$\n${awaitDismissal}`);
    const pid = await run.pid();
    run.cancel();
    expect(await run.outcome()).toEqual({
      kind: 'cancelled',
      message: "the download of 'me/model:Q4_0' was cancelled",
      lastLines: [`pid ${pid}`, 'dismissed'],
    });
  });

  test('kills a worker that does not listen, and what it has started', async () => {
    const run = runWorker('sleep 600 &\necho child $!\necho pid $$\nwait');
    const pid = await run.pid();
    const child = Number(run.lines.find((line) => line.startsWith('child '))?.slice(6));
    run.cancel();
    expect((await run.outcome()).kind).toBe('cancelled');
    expect(alive(pid)).toBe(false);
    await eventually('the grandchild is gone', () => !alive(child));
  });

  test('before it has begun starts nothing', async () => {
    const run = runWorker('echo started', { signal: AbortSignal.abort() });
    expect(await run.outcome()).toMatchObject({ kind: 'cancelled', lastLines: [] });
    expect(run.lines).toEqual([]);
  });
});

describe('the environment of a worker', () => {
  const environment = {
    PATH: process.env['PATH'],
    HF_ENDPOINT: 'http://hub',
    HF_TOKEN: 'of the environment',
    LLAMA_CACHE: '/models',
    LLAMA_ARG_HF_REPO: 'of/the-environment',
    LLAMA_ARG_HF_FILE: 'other.gguf',
    LLAMA_ARG_MODEL_URL: 'http://hub/other.gguf',
    LLAMA_ARG_MCP_SERVERS_CONFIG: 'mcp.json',
    LLAMA_ARG_TOOLS: 'all',
    LLAMA_ARG_NO_MMPROJ_AUTO: '1',
    LLAMA_ARG_SPEC_TYPE: 'draft-mtp',
  };

  async function seen(options: Partial<DownloadOptions>): Promise<Record<string, string>> {
    const run = runWorker(
      `env > "$0.env"; ${finished}\nwhile read -r line; do echo "$line"; done < "$0.env"`,
      {
        environment,
        ...options,
      },
    );
    await run.outcome();
    const pairs = run.lines.map((line) => /^(\w+)=(.*)$/.exec(line)).filter((pair) => pair !== null);
    return Object.fromEntries(pairs.map(([, name = '', value = '']) => [name, value]));
  }

  test('makes it one, and of the options it leaves those that say what belongs to a model', async () => {
    const env = await seen({});
    expect(env).toMatchObject({
      LLAMA_SERVER_CHILD_MODE: 'download',
      LLAMA_SERVER_ROUTER_PORT: expect.any(String) as string,
      HF_ENDPOINT: 'http://hub',
      LLAMA_CACHE: '/models',
    });
    const options = Object.entries(env).filter(([name]) => name.startsWith('LLAMA_ARG_'));
    expect(Object.fromEntries(options)).toEqual({
      LLAMA_ARG_HF_REPO: 'me/model:Q4_0',
      LLAMA_ARG_NO_MMPROJ_AUTO: '1',
      LLAMA_ARG_SPEC_TYPE: 'draft-mtp',
    });
  });

  test('holds the token, which is not on its command line', async () => {
    // Not HF_TOKEN itself: a line with it would be struck out.
    const script = `[ "$HF_TOKEN" = "${token}" ] && [ $# = 0 ] && echo as it should; exit 1`;
    const run = runWorker(script, { token, environment });
    expect((await run.outcome()).lastLines).toEqual(['as it should']);
  });
});

describe('secrets', () => {
  test('are struck out of what a worker tells, wherever they came from', async () => {
    const url = 'http://me:pass-word@hub:80/me/model@v2.gguf';
    const script = [
      `echo "E token ${token} and hf_other" >&2`,
      `echo "Download '${url}' failed"`,
      say('downloading', { url, downloaded: 1, total: 2 }),
      'exit 1',
    ].join('\n');
    const environment = {
      PATH: process.env['PATH'],
      HF_TOKEN: 'hf_other',
      HF_ENDPOINT: 'http://me:pass-word@hub:80/',
    };
    const run = runWorker(script, { token, environment });
    const { lastLines } = await run.outcome();
    expect(lastLines).toEqual(
      expect.arrayContaining(['E token *** and ***', "Download 'http://***@hub:80/me/model@v2.gguf' failed"]),
    );
    expect(run.lines).toEqual(expect.arrayContaining([...lastLines]));
    expect(run.progress).toEqual([
      { url: 'http://***@hub:80/me/model@v2.gguf', downloadedBytes: 1, totalBytes: 2 },
    ]);
  });
});
