import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { freePort } from '../helpers/free-port.js';
import { rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

it.each([
  ['gone', (stdout: NodeJS.ReadableStream & { destroy(): unknown }) => void stdout.destroy()],
  // Nobody reads: the pipe holds 64 KiB.
  ['stuck', () => undefined],
])(
  'a reader of the log that is %s keeps no request waiting, and the supervisor from ending neither',
  async (_, treat) => {
    const home = tempDir();
    const port = await freePort();
    const child = spawn(
      process.execPath,
      [
        ...[script, 'start', '--port', String(port), '--log-format', 'json', '--log-level', 'debug'],
        ...['--llama-server', fakeLlamaServer],
      ],
      {
        env: {
          ...process.env,
          LLAMA_CACHE: join(home, 'models'),
          XDG_CACHE_HOME: home,
          XDG_RUNTIME_DIR: home,
        },
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    atEndOfTest(() => {
      child.kill('SIGKILL');
    });
    treat(child.stdout);
    const health = () => rawRequest(`http://127.0.0.1:${port}/health`);
    await eventually('it answers', async () => (await health()).status === 200, { deadlineMs: 20_000 });
    // Each is a line of the log, far more in all than the pipe holds.
    for (let request = 0; request < 1000; request += 1) expect((await health()).status).toBe(200);

    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    expect(await withDeadline('it has ended', exited, 10_000)).toEqual([0, null]);
  },
);
