import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { eventually } from '../../helpers/eventually.js';
import { canListProcesses, sigkill } from '../../helpers/processes.js';
import { launchSupervisor, startSupervisor, uncaughtErrorIn } from '../../helpers/supervisor-process.js';
import { tempDir } from '../../helpers/temp-dir.js';

/** A script in place of the supervisor, so that the helper is tested without one. */
function standIn(code: string): string {
  const path = join(tempDir(), 'stand-in.mjs');
  writeFileSync(path, code);
  return path;
}

const listening = `console.log(JSON.stringify({ level: 30, msg: 'listening', url: 'http://127.0.0.1:4321/' }));`;

test('waits for the listening line and stops by SIGTERM', async () => {
  const script = standIn(`
    console.log('not json');
    console.log(JSON.stringify({ level: 30, msg: 'starting', argv: process.argv.slice(2) }));
    ${listening}
    process.on('SIGTERM', () => process.exit(5));
    setInterval(() => {}, 1000);
  `);
  const supervisor = await startSupervisor({
    script,
    args: ['--port', '99', '-c', '1'],
    llamaServer: '/some/binary',
  });
  expect(supervisor).toMatchObject({ url: 'http://127.0.0.1:4321', port: 4321 });
  expect(supervisor.log()[0]?.['argv']).toEqual(
    ['start', '--host', '127.0.0.1', '--log-format', 'json', '--llama-server', '/some/binary'].concat(
      ['--port', '99', '-c', '1'], // Given by the test, so the default port is not repeated.
    ),
  );
  expect(await supervisor.stop()).toEqual({ code: 5, signal: null });
  expect(supervisor.hasExited()).toBe(true);
});

test('gives directories of its own and only the environment that the test asks for', async () => {
  const script = standIn(`console.log(JSON.stringify({ msg: 'env', env: process.env }));`);
  const cacheHome = tempDir();
  const supervisor = launchSupervisor({
    script,
    cacheHome,
    env: { LLAMA_ARG_CTX_SIZE: '512', PATH: undefined },
  });
  expect(await supervisor.exited).toEqual({ code: 0, signal: null });
  const env = supervisor.log()[0]?.['env'] as Record<string, string>;
  expect(env).toMatchObject({
    XDG_CACHE_HOME: cacheHome,
    XDG_STATE_HOME: join(supervisor.home, 'state'),
    XDG_RUNTIME_DIR: join(supervisor.home, 'runtime'),
    LLAMA_CACHE: join(supervisor.home, 'models'),
    LLAMA_ARG_CTX_SIZE: '512',
  });
  expect(env).not.toHaveProperty('PATH');
});

test('a start that ends before it listens rejects with what was written', async () => {
  const script = standIn(`console.error('no such preset'); process.exit(1);`);
  await expect(startSupervisor({ script })).rejects.toThrow(
    /exited before it listened; it wrote:\nno such preset/,
  );
});

test('a start that never listens rejects at its deadline', async () => {
  const script = standIn(`setInterval(() => {}, 1000);`);
  await expect(startSupervisor({ script, listenMs: 300 })).rejects.toThrow(
    'the supervisor listens: not within 300 ms',
  );
});

test.skipIf(!canListProcesses)('sees the processes that a killed supervisor leaves', async () => {
  const script = standIn(`
    import { spawn } from 'node:child_process';
    spawn('sleep', ['64'], { detached: true, stdio: 'ignore' });
    ${listening}
    setInterval(() => {}, 1000);
  `);
  const supervisor = await startSupervisor({ script });
  await eventually('the child runs', () => supervisor.family().some(({ command }) => command === 'sleep 64'));
  expect(await supervisor.kill()).toEqual({ code: null, signal: 'SIGKILL' });
  const [orphan] = supervisor.family();
  expect(orphan?.command).toBe('sleep 64');
  expect(orphan?.ppid).not.toBe(supervisor.pid);
  for (const { pid } of supervisor.family()) sigkill(pid);
  await eventually('it is gone', () => supervisor.family().length === 0);
});

describe('an error that nobody handled is found in the output', () => {
  test.each([
    ['Error: boom\n    at x\n\nNode.js v20.19.0\n', 'Node.js v20.19.0'],
    [
      '[UnhandledPromiseRejection: This error originated]',
      '[UnhandledPromiseRejection: This error originated]',
    ],
    [
      '(node:1) MaxListenersExceededWarning: Possible leak',
      '(node:1) MaxListenersExceededWarning: Possible leak',
    ],
    ['{"level":50,"msg":"uncaught exception"}', '{"level":50,"msg":"uncaught exception"}'],
    ['{"level":60,"msg":"cannot go on"}', '{"level":60,"msg":"cannot go on"}'],
  ])('%j', (output, found) => {
    expect(uncaughtErrorIn(`{"level":30,"msg":"listening"}\n${output}`)).toBe(found);
  });

  test('an ordinary log has none', () => {
    expect(
      uncaughtErrorIn('{"level":50,"msg":"model failed","reason":"exited"}\nrubbish\n{"level":'),
    ).toBeUndefined();
  });
});
