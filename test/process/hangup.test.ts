import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { fakeBehaviourEnv, fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { alive, sigkill } from '../helpers/processes.js';
import { launchSupervisor } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

/** Runs its arguments on a terminal of their own, prints their process id, and closes the terminal at a line on stdin. */
const terminal = `
import os, pty, sys
pid, master = pty.fork()
if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])
print(pid, flush=True)
text = b""
while b"listening" not in text: text += os.read(master, 4096)
print("listening", flush=True)
sys.stdin.readline()
os.close(master)
os.waitpid(pid, 0)
print("ended", flush=True)
`;

it('a terminal that is closed ends the supervisor, while SIGHUP alone has the disk looked at', async () => {
  const home = tempDir();
  const child = spawn(
    'python3',
    [
      ...['-c', terminal, process.execPath, script, 'start', '--port', '0', '--log-format', 'json'],
      ...['--llama-server', fakeLlamaServer],
    ],
    {
      env: { ...process.env, LLAMA_CACHE: join(home, 'models'), XDG_CACHE_HOME: home, XDG_RUNTIME_DIR: home },
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  const pid = Number(await eventually('its process id', () => /^\d+/.exec(said)?.[0]));
  atEndOfTest(() => {
    child.kill('SIGKILL');
    sigkill(pid);
  });
  await eventually('it listens', () => said.includes('listening'), { deadlineMs: 20_000 });

  process.kill(pid, 'SIGHUP');
  await eventually('it has taken the signal', () => pendingHangups(pid) === 0);
  expect(alive(pid)).toBe(true);
  child.stdin.write('\n');
  await eventually('it has ended', () => said.includes('ended'));
});

it('SIGHUP during the start, when there is nothing to be read again yet, does not end it', async () => {
  const supervisor = launchSupervisor({
    args: ['--tools', 'all'],
    env: fakeBehaviourEnv({ hangs: ['/health'] }),
  });
  const { pid } = supervisor;
  await eventually('it has looked for models', () =>
    supervisor.log().some(({ msg }) => msg === 'looking for models in'),
  );
  process.kill(pid, 'SIGHUP');
  await eventually('it has taken the signal', () => pendingHangups(pid) === 0);
  await expect(withDeadline('its end', supervisor.exited, 500)).rejects.toThrow('not within');
});

/** Whether SIGHUP (1) was sent to the process and not taken yet, by the kernel's word. */
function pendingHangups(pid: number): number {
  const masks = readFileSync(`/proc/${pid}/status`, 'utf8').matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm);
  return [...masks].reduce((sum, [, mask = '0']) => sum + Number(BigInt(`0x${mask}`) & 1n), 0);
}
