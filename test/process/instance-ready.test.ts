import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';
import { runInstance, type InstanceRun } from './run-instance.js';

const stateLine = (state: string, payload: unknown = null): string =>
  `cmd_child_to_router:state:${JSON.stringify({ state, payload })}`;

/** A child of a few lines of JavaScript, for what the fake does not do; `port` is the one it was given. */
function scripted(code: string): { command: (port: number) => string[] } {
  const file = join(tempDir(), 'child.mjs');
  writeFileSync(
    file,
    `import { createServer } from 'node:http';\nconst port = Number(process.argv[2]);\n${code}`,
  );
  return { command: (port) => [process.execPath, file, String(port)] };
}

const answersHealth = `createServer((_req, res) => res.end('ok')).listen(port, '127.0.0.1');`;

function eventTypes({ events }: InstanceRun): string[] {
  return events.map(({ type }) => type);
}

describe('a child that speaks the protocol', () => {
  test('is ready when it says so, with what it says of itself', async () => {
    const run = runInstance({ behaviour: { loadMs: 300 }, args: ['--ctx-size', '512'] });
    await run.reaches('ready');

    expect(run.instance.state).toMatchObject({ info: { id: 'alpha', meta: { n_ctx: 512 } } });
    expect(eventTypes(run)).toEqual(['model.loading', 'model.progress', 'model.progress', 'model.loaded']);
    const [start] = run.journal.of('start');
    expect(run.events[0]).toMatchObject({ pid: start?.pid, port: start?.port });
    expect(run.events[1]).toMatchObject({ progress: { current: 'text_model', value: 0 } });
    expect(run.events[2]).toMatchObject({ progress: { current: 'text_model', value: 1 } });
    expect(run.events[3]).toMatchObject({ info: { id: 'alpha' } });
  });

  test('shows its progress while it loads', async () => {
    const { instance } = runInstance({ behaviour: { neverReady: true } });
    await eventually('progress', () => instance.state.name === 'loading' && instance.state.progress);
    expect(instance.state).toMatchObject({
      name: 'loading',
      progress: { stages: ['text_model'], current: 'text_model', value: 0 },
    });
    expect(instance.upstream).toBeUndefined();
  });

  test('leads a process group of its own and is told nothing but the marker of a child', async () => {
    const run = runInstance();
    await run.reaches('ready');
    const [start] = run.journal.of('start');
    expect(start).toMatchObject({ pid: run.instance.pid, pgid: run.instance.pid, port: run.instance.port });
    expect(start?.env).toMatchObject({ LLAMA_SERVER_ROUTER_PORT: '1', LLAMA_ARG_ENDPOINT_METRICS: '1' });
  });

  test('is not ready because it is healthy: only its ready line counts', async () => {
    const run = runInstance(
      scripted(`
        console.log('${stateLine('loading', { value: 0 })}');
        ${answersHealth}
        setTimeout(() => console.log('${stateLine('ready', { id: 'late' })}'), 1200);
      `),
    );
    await eventually('the child answers /health', async () => {
      return (await rawRequest(`http://127.0.0.1:${run.instance.port}/health`)).status === 200;
    });
    // Longer than a healthy child without the protocol has to wait to be taken as ready.
    await delay(500);
    expect(run.instance.state.name).toBe('loading');
    await run.reaches('ready');
    expect(run.instance.state).toMatchObject({ info: { id: 'late' } });
  });

  test('is not hurt by broken and unknown state lines: they are its log', async () => {
    const rubbish = [
      'cmd_child_to_router:state:{"state":"read',
      stateLine('dancing'),
      `prefix ${stateLine('ready')}`,
    ];
    const run = runInstance({ behaviour: { printWhileLoading: rubbish, loadMs: 50 } });
    await run.reaches('ready');
    expect(run.log).toEqual(expect.arrayContaining(rubbish));
    expect(run.instance.state).toMatchObject({ info: { id: 'alpha' } });
  });

  test('says it on standard output: the same line among its errors is a log line', async () => {
    const forged = stateLine('ready', { id: 'forged' });
    const run = runInstance(
      scripted(`
        ${answersHealth}
        console.log('${stateLine('loading')}');
        console.error('${forged}');
        setTimeout(() => console.log('${stateLine('ready', { id: 'true' })}'), 500);
      `),
    );
    await eventually('the forged line is read', () => run.log.includes(forged));
    expect(run.instance.state.name).toBe('loading');
    await run.reaches('ready');
    expect(run.instance.state).toMatchObject({ info: { id: 'true' } });
  });

  test('sleeps, and wakes with progress when it is used, with the info it gave at first', async () => {
    const run = runInstance({ behaviour: { sleepAfterMs: 80, loadMs: 40 } });
    await run.reaches('sleeping');
    expect(run.instance.state).toMatchObject({ info: { id: 'alpha' } });
    const post = jsonPost({ content: 'wake up' });
    await rawRequest(`http://127.0.0.1:${run.instance.port}/tokenize`, {
      ...post,
      headers: { ...post.headers, ...run.authorization() },
    });
    await eventually(
      'it has slept twice',
      () => run.states.filter((name) => name === 'sleeping').length === 2,
    );

    const afterLoading = run.states.slice(run.states.indexOf('ready'));
    expect(afterLoading).toEqual(['ready', 'sleeping', 'waking', 'waking', 'ready', 'sleeping']);
    expect(run.instance.state).toMatchObject({ name: 'sleeping', info: { id: 'alpha' } });
    expect(eventTypes(run).slice(-5)).toEqual([
      'model.sleeping',
      'model.waking',
      'model.waking',
      'model.awake',
      'model.sleeping',
    ]);
    run.instance.stop('unloaded');
    expect(await run.outcome()).toEqual({ kind: 'stopped', reason: 'unloaded', exitCode: 0 });
  });
});

describe('a child that does not speak the protocol', () => {
  test('is ready when it is healthy', async () => {
    const run = runInstance({ behaviour: { noProtocol: true, loadMs: 300 } });
    await run.reaches('ready');
    expect(run.instance.state).toEqual({ name: 'ready', info: undefined });
    expect(eventTypes(run)).toEqual(['model.loading', 'model.loaded']);
  });

  test('is healthy only for who has its key when there is an API prefix', async () => {
    const run = runInstance({
      behaviour: { noProtocol: true },
      args: ['--api-prefix', '/llama'],
      apiPrefix: '/llama',
    });
    await run.reaches('ready');
  });

  test('is not ready while its health route does not answer', async () => {
    const run = runInstance({ behaviour: { noProtocol: true, hangs: ['/health'] }, loadTimeoutMs: 1000 });
    expect(await run.outcome()).toMatchObject({ kind: 'failed', phase: 'loading' });
    expect(run.states).not.toContain('ready');
  });
});

describe('output', () => {
  test('without a newline, or without end, never blocks the child, and little of it is kept', async () => {
    const bytes = 16 * 1024 * 1024;
    const run = runInstance({
      behaviour: { printWithoutNewline: bytes, chatty: 20_000, dieOnRequest: { code: 9 } },
    });
    await run.reaches('ready');
    await eventually(
      'it chatters on',
      () => run.log.filter((line) => line.includes('chatter')).length > 2000,
    );

    const longest = Math.max(...run.log.map((line) => line.length));
    expect(longest).toBeLessThanOrEqual(64 * 1024);
    await rawRequest(`http://127.0.0.1:${run.instance.port}/tokenize`, {
      method: 'POST',
      headers: run.authorization(),
    }).catch(() => undefined);
    const outcome = await run.outcome();
    expect(outcome).toMatchObject({ kind: 'failed', phase: 'running', message: 'exited with code 9' });
    const lastLines = outcome.kind === 'failed' ? outcome.lastLines : [];
    expect(lastLines).toHaveLength(40);
    for (const line of lastLines) expect(line.length).toBeLessThanOrEqual(501);
  });
});
