import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { recordedTable } from '../unit/config/recorded-help.js';
import { fakeLlamaServer } from '../helpers/fake-llama-server.js';
import { runMarker } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));

/** What `llama-supervisor ARGS` prints; fails when it is not printed well. */
async function printed(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await execa(process.execPath, [script, ...args], {
    cwd: tempDir(),
    env: {
      PATH: process.env['PATH'],
      [runMarker]: process.env[runMarker],
      XDG_CACHE_HOME: tempDir(),
      XDG_CONFIG_HOME: tempDir(),
      ...env,
    },
    extendEnv: false,
    reject: false,
    stdin: 'ignore',
    timeout: 20_000,
  });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
  return stdout;
}

const withFake = ['--llama-server', fakeLlamaServer];

describe('start --help', () => {
  test('prints the options of the binary, then ours in groups', async () => {
    const help = await printed(['start', ...withFake, '--help']);
    for (const { firstName } of recordedTable.options) expect(help).toMatch(`\n  ${firstName}`);
    const at = ['Sampling params:', '--top-k', 'Where to listen:', '--queue-max'].map((text) =>
      help.indexOf(text),
    );
    expect(Math.min(...at)).toBeGreaterThan(0);
    expect(at).toEqual(at.toSorted((a, b) => a - b));
    expect(help.split('\n').filter((line) => line.length > 110 && !line.includes('://'))).toEqual([]);
  });

  test.each([[['--help']], [['-h']], [['--usage']], [['start', '-h']], [['start', '--usage']]])(
    'is the same as %j',
    async (args) => {
      const env = { LLAMA_SERVER_BIN: fakeLlamaServer };
      expect(await printed(args, env)).toBe(await printed(['start', '--help'], env));
    },
  );

  test('prints ours, and why there are no others, when there is no binary', async () => {
    const help = await printed(['start', '--help', '--llama-server', '/nowhere/llama-server']);
    expect(help.replaceAll('\n', ' ')).toContain(
      'cannot be shown: --llama-server names /nowhere/llama-server, which does not exist',
    );
    for (const option of ['--models-dir', '--watch', '--queue-max']) expect(help).toContain(`\n  ${option}`);
    expect(help).not.toContain('--top-k');
  });

  test('prints ours, and why there are no others, when the binary fails', async () => {
    const broken = join(tempDir(), 'llama-server');
    writeFileSync(broken, '#!/bin/sh\necho "no such library" >&2\nexit 127\n');
    chmodSync(broken, 0o755);
    const help = await printed(['--help', '--llama-server', broken]);
    expect(help).toMatch(/cannot be shown: .*no such library/s);
    expect(help).toContain('\n  --queue-max');
  });

  test('prints both although a config file of llama.cpp is broken, which only a start must mind', async () => {
    const config = tempDir();
    mkdirSync(join(config, 'llama.cpp'));
    writeFileSync(join(config, 'llama.cpp', 'config.ini'), 'not a line of a config file\n');
    expect(await printed(['--help', ...withFake], { XDG_CONFIG_HOME: config })).toContain('\n  --top-k');
  });
});
