import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { describe, expect, test } from 'vitest';
import { ChildProcess } from '../../src/instance/child-process.js';
import { childEnvironment } from '../../src/instance/child-environment.js';
import { killAccount, KernelKills } from '../../src/instance/kernel-kills.js';
import { OrphanGuard } from '../../src/instance/orphan-guard.js';
import { outOfMemory } from '../../src/instance/out-of-memory.js';
import { childMarkerVariable } from '../../src/instance/protocol.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { sigkill } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';

/**
 * The real llama-server with so little address space that something does not fit. Only Linux holds a process to it; a
 * build for a GPU may need more only to start.
 */
async function startWithin(mebibytes: number, args: readonly string[]) {
  const dir = await writeModels({ small: sayingItsName('small') });
  const guard = new OrphanGuard(pino({ level: 'silent' }));
  const kills = new KernelKills(killAccount());
  const { claim: kernelKill, end } = kills.watch();
  const said: string[] = [];
  const child = new ChildProcess({
    command: [
      ...['sh', '-c', `ulimit -v ${mebibytes * 1024}; exec "$@"`, 'sh'],
      ...[realLlamaServer(), '--model', join(dir, 'small.gguf'), '--host', '127.0.0.1', '--port', '0'],
      ...['--threads', '1', '--threads-http', '2', '--no-warmup', ...args],
    ],
    environment: { ...childEnvironment(process.env), [childMarkerVariable]: '1' },
    guard,
    onMessage: ({ kind }) => said.push(kind),
    onLine: () => undefined,
    onExit: () => undefined,
  });
  atEndOfTest(async () => {
    child.signal('SIGKILL');
    await withDeadline('the llama-server is gone', child.exited, 10_000);
    end();
    guard.close();
  });
  return {
    child,
    isReady: () => said.includes('ready'),
    verdict: async () => {
      const exit = await withDeadline('the llama-server ends', child.exited, 30_000);
      return outOfMemory({
        exit,
        phase: said.includes('ready') ? 'running' : 'loading',
        lastLines: child.lastLines(),
        kernelKill,
      });
    },
  };
}

describe.runIf(process.platform === 'linux')('the real llama-server', () => {
  test.each([
    ['what it computes with', ['--ctx-size', '2000000'], /insufficient memory \(attempted to allocate/],
    ['the cells of its KV cache', ['--ctx-size', '20000000'], /std::bad_alloc/],
  ])('that has no room for %s has run out of memory', async (_, args, words) => {
    const { verdict } = await startWithin(1_024, args);
    expect(await verdict()).toEqual({ kind: 'host', words: expect.stringMatching(words) as string });
  });

  test('that has no room to map its model has run out of memory', async () => {
    const dir = await writeModels({ large: sayingItsName('large') });
    const model = join(dir, 'large.gguf');
    // A hole: it takes no room on the disk.
    truncateSync(model, 4 * 1024 ** 3);
    const { verdict } = await startWithin(1_024, ['--model', model]);
    expect(await verdict()).toEqual({
      kind: 'host',
      words: expect.stringContaining('mmap failed: Cannot allocate memory') as string,
    });
  });

  test('that has room, and is killed by hand, has not', async () => {
    const { child, isReady, verdict } = await startWithin(4_096, ['--ctx-size', '256']);
    await eventually('it is ready', isReady, { deadlineMs: 30_000 });
    sigkill(child.pid ?? NaN);
    expect(await verdict()).toBeUndefined();
  });

  test('that cannot read its model has not', async () => {
    const { verdict } = await startWithin(4_096, ['--model', '/dev/null']);
    expect(await verdict()).toBeUndefined();
  });
});
