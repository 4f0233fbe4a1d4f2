import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { afterEach, expect, test, vi } from 'vitest';
import { parentDeathPrefix } from '../../../src/instance/parent-death.js';
import { eventually } from '../../helpers/eventually.js';
import { alive, sigkill } from '../../helpers/processes.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { tempDir } from '../../helpers/temp-dir.js';

afterEach(() => {
  vi.unstubAllEnvs();
  vi.resetModules();
});

const canSetIt = spawnSync('setpriv', ['--pdeathsig', 'KILL', '--', 'true']).status === 0;
const reason = canSetIt ? '' : ' (skipped: no setpriv with --pdeathsig here)';

test.skipIf(!canSetIt)(`the prefix makes a command die with its parent, at once${reason}`, async () => {
  // It tells its process id itself: by then the signal is set, whatever the parent was doing meanwhile.
  const command = [...parentDeathPrefix(), 'sh', '-c', 'echo $$; exec sleep 300'];
  const parent = spawn('sh', ['-c', '"$@" & wait', 'sh', ...command], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const [output] = (await once(parent.stdout, 'data')) as [Buffer];
  const child = Number(output.toString());
  atEndOfTest(() => sigkill(child));
  expect(alive(child)).toBe(true);
  sigkill(parent.pid ?? NaN);
  await eventually('the child has ended', () => !alive(child), { deadlineMs: 5_000 });
});

test.skipIf(!canSetIt)(`the command keeps its process id: setpriv becomes it${reason}`, async () => {
  const [file = 'setpriv', ...args] = [...parentDeathPrefix(), 'sh', '-c', 'echo $$'] as string[];
  const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  const [output] = (await once(child.stdout, 'data')) as [Buffer];
  expect(Number(output.toString())).toBe(child.pid);
});

test('the prefix is empty where there is no setpriv, so that the command runs without it', async () => {
  vi.stubEnv('PATH', tempDir());
  const fresh = await import('../../../src/instance/parent-death.js');
  expect(fresh.parentDeathPrefix()).toEqual([]);
});

test('the prefix is empty on a system that has no parent-death signal', async () => {
  vi.spyOn(process, 'platform', 'get').mockReturnValue('darwin');
  const fresh = await import('../../../src/instance/parent-death.js');
  expect(fresh.parentDeathPrefix()).toEqual([]);
  vi.restoreAllMocks();
});
