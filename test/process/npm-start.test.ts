import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { killTree } from '../helpers/processes.js';
import { rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';

it('npm start that is told to end takes the supervisor with it', async () => {
  const home = tempDir();
  const args = ['start', '--', '--port', '0', '--log-format', 'json', '--llama-server', fakeLlamaServer];
  const npm = spawn('npm', args, {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
    env: { ...process.env, XDG_CACHE_HOME: join(home, 'cache'), XDG_RUNTIME_DIR: home, LLAMA_CACHE: home },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  atEndOfTest(() => {
    if (npm.pid !== undefined && npm.exitCode === null) killTree(npm.pid);
  });
  let output = '';
  npm.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  const url = await eventually('it listens', () => /"url":"([^"]+)"/.exec(output)?.[1], {
    deadlineMs: 60_000,
  });
  expect((await rawRequest(`${url}/health`)).status).toBe(200);

  // A shell between npm and the supervisor would die of it alone.
  npm.kill('SIGTERM');
  await eventually('its port is closed', () =>
    rawRequest(`${url}/health`).then(
      () => false,
      () => true,
    ),
  );
  await eventually('it said that it ended in order', () => output.includes('"msg":"stopped"'));
});
