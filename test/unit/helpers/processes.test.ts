import { readFileSync } from 'node:fs';
import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { expectNothingLeft } from '../../helpers/global-setup.js';
import { alive, canListProcesses, descendants, killTree, processesWithEnv } from '../../helpers/processes.js';

/** Runs a shell script that is killed, with all below it, when the test is over. */
function runShell(script: string, env: NodeJS.ProcessEnv = {}): ChildProcess & { pid: number } {
  const child = spawn('sh', ['-c', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
  });
  const { pid } = child;
  if (pid === undefined) throw new Error('cannot run sh');
  atEndOfTest(() => killTree(pid));
  return Object.assign(child, { pid });
}

test('a process is alive until it has ended', async () => {
  const child = runShell('exec sleep 60');
  expect(alive(child.pid)).toBe(true);
  child.kill('SIGKILL');
  await once(child, 'exit');
  expect(alive(child.pid)).toBe(false);
});

// Elsewhere there is no /proc to read them from.
describe.skipIf(!canListProcesses)('on Linux', () => {
  test('a zombie is not alive', async () => {
    // The short sleep ends when its parent has become the long one, which never waits for it.
    const parent = runShell('sleep 0.2 & echo $!; exec sleep 60');
    const [line] = (await once(parent.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
    const zombie = Number(line.toString());
    await eventually('it has ended', () => !alive(zombie));
    expect(() => process.kill(zombie, 0)).not.toThrow();
  });

  test('descendants lists children and grandchildren with their commands, and killTree ends them all', async () => {
    const parent = runShell('sh -c "sleep 61; true" & wait');
    const below = await eventually('the grandchild runs', () => {
      const found = descendants(parent.pid);
      return found.some(({ command }) => command === 'sleep 61') && found;
    });
    expect(below).toHaveLength(2);
    expect(below[0]?.ppid).toBe(parent.pid);
    expect(below[1]).toMatchObject({ command: 'sleep 61', ppid: below[0]?.pid });

    killTree(parent.pid);
    await eventually('all are gone', () => ![parent.pid, ...below.map(({ pid }) => pid)].some(alive));
  });

  test('killTree refuses what this run did not start, and this process itself', () => {
    expect(() => {
      killTree(1);
    }).toThrow('refusing to kill 1');
    expect(() => {
      killTree(process.pid);
    }).toThrow(`refusing to kill ${process.pid}`);
  });

  test('a process is found by a variable that it inherited, also through another process', async () => {
    const value = randomUUID();
    runShell('sleep 62; true', { SOME_MARKER: value });
    // Between fork and exec the sleep still looks like the shell.
    await eventually('both run', () => {
      const commands = processesWithEnv('SOME_MARKER', value).map(({ command }) => command);
      return commands.length === 2 && commands.includes('sleep 62');
    });
    expect(processesWithEnv('SOME_MARKER', value.slice(0, -1))).toEqual([]);
  });

  test('the leak check of the test run sees an orphan, names it and ends it', async () => {
    const run = randomUUID();
    // The shell ends at once, so that the sleep loses its parent as the child of a killed supervisor does.
    const shell = runShell('sleep 63 >/dev/null 2>&1 & echo $!', { LLAMA_SUPERVISOR_TEST_RUN: run });
    const [line] = (await once(shell.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
    const orphan = Number(line.toString());
    // Between fork and exec it still looks like the shell.
    await eventually('it is the sleep', () =>
      readFileSync(`/proc/${orphan}/cmdline`, 'utf8').startsWith('sleep\0'),
    );
    await expect(expectNothingLeft(run, 0)).rejects.toThrow(
      new RegExp(`the tests left processes behind:\\npid ${orphan} .*: sleep 63`),
    );

    // It was killed once it was named.
    await eventually('the orphan is gone', () => !alive(orphan));
    await expect(expectNothingLeft(run, 0)).resolves.toBeUndefined();
  });
});
