import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { describe, expect, test } from 'vitest';
import { fakeLlamaServer, writeFakeModel } from '../helpers/fake-llama-server.js';
import { runMarker } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

const script = fileURLToPath(new URL('../../bin/llama-supervisor.js', import.meta.url));
const example = fileURLToPath(new URL('../../presets.example.ini', import.meta.url));

/** Shared, so that the fake is asked for its options once. */
const cacheHome = tempDir();

/** Runs `llama-supervisor config check ARGS` as a shell would, in an empty directory of its own unless told. */
async function configCheck(args: readonly string[], env: Record<string, string> = {}, cwd = tempDir()) {
  const { exitCode, stdout, stderr } = await execa(process.execPath, [script, 'config', 'check', ...args], {
    cwd,
    env: {
      PATH: process.env['PATH'],
      [runMarker]: process.env[runMarker],
      XDG_CACHE_HOME: cacheHome,
      LLAMA_CACHE: tempDir(),
      LLAMA_SERVER_BIN: fakeLlamaServer,
      ...env,
    },
    extendEnv: false,
    reject: false,
    stdin: 'ignore',
    timeout: 20_000,
  });
  return { exitCode, stdout, stderr };
}

/** A directory with `presets.ini` of these lines. */
function withPresets(...lines: string[]): string {
  const directory = tempDir();
  writeFileSync(join(directory, 'presets.ini'), lines.join('\n'));
  return directory;
}

test('a good file is one line and exit code 0', async () => {
  const directory = withPresets('[m]', `model = ${writeFakeModel(tempDir(), 'm')}`);
  expect(await configCheck(['presets.ini'], {}, directory)).toEqual({
    exitCode: 0,
    stdout: 'presets.ini: nothing is wrong',
    stderr: '',
  });
});

test('all that is wrong is said with place and remedy, and the exit code is 1', async () => {
  const directory = withPresets('[m]', 'model = no.gguf', 'ctxsize = 1', '[n]', 'alias = m');
  const { exitCode, stdout, stderr } = await configCheck(['presets.ini'], {}, directory);
  expect({ exitCode, stderr }).toEqual({ exitCode: 1, stderr: '' });
  expect(stdout.split('\n')).toEqual([
    expect.stringMatching(
      /^presets\.ini:2: error: \[m\] model: 'no\.gguf' does not exist; a relative path starts/,
    ),
    "presets.ini:3: error: [m] unknown option 'ctxsize', did you mean 'ctx-size'?",
    expect.stringMatching(/^presets\.ini:4: error: \[n\] names no model: give it/),
    expect.stringMatching(/^presets\.ini:5: warning: \[n\] alias 'm' is the id of a model/),
    'presets.ini: 3 errors, 1 warning',
  ]);
});

test('a warning alone is exit code 1, too: something is lost', async () => {
  const directory = withPresets('[m]', `model = ${writeFakeModel(tempDir(), 'm')}`, 'port = 1');
  const { exitCode, stdout } = await configCheck(['presets.ini'], {}, directory);
  expect(exitCode).toBe(1);
  expect(stdout).toMatch(/^presets\.ini:3: warning: .*\npresets\.ini: 0 errors, 1 warning$/);
});

test('--json prints the same for programs', async () => {
  const directory = withPresets('[m]', 'tmep = 1', 'port = 1');
  const { exitCode, stdout } = await configCheck(['--json', 'presets.ini'], {}, directory);
  expect(exitCode).toBe(1);
  expect(JSON.parse(stdout)).toEqual({
    file: 'presets.ini',
    ok: false,
    errors: [{ line: 2, section: 'm', message: "unknown option 'tmep', did you mean 'temp'?" }],
    warnings: [{ line: 3, section: 'm', message: "'port' is the router's own and is ignored here" }],
  });
});

describe('a section may name a model', () => {
  const sections = ['[local]', 'temp = 0'];

  test('of --models-dir', async () => {
    const models = tempDir();
    writeFakeModel(models, 'local');
    const directory = withPresets(...sections);
    expect((await configCheck(['presets.ini', '--models-dir', models], {}, directory)).exitCode).toBe(0);
    expect((await configCheck(['presets.ini'], {}, directory)).exitCode).toBe(1);
  });

  test('of the directory that start would take from the environment or llama.cpp’s config file', async () => {
    const models = tempDir();
    writeFakeModel(models, 'local');
    const directory = withPresets(...sections);
    expect((await configCheck(['presets.ini'], { LLAMA_ARG_MODELS_DIR: models }, directory)).exitCode).toBe(
      0,
    );

    const configHome = tempDir();
    mkdirSync(join(configHome, 'llama.cpp'));
    writeFileSync(join(configHome, 'llama.cpp', 'config.ini'), `[*]\nmodels-dir = ${models}\n`);
    expect((await configCheck(['presets.ini'], { XDG_CONFIG_HOME: configHome }, directory)).exitCode).toBe(0);
  });
});

describe('exit code 2 and one message on stderr tell that nothing was checked', () => {
  async function refusal(args: readonly string[], env: Record<string, string> = {}): Promise<string> {
    const { exitCode, stdout, stderr } = await configCheck(args, env);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toMatch(/^llama-supervisor: ./);
    expect(stderr).not.toMatch(/^ +at /m);
    return stderr;
  }

  test('when the file is not there', async () => {
    expect(await refusal(['no.ini'])).toContain("'no.ini' does not exist");
  });

  test('when no file is named, or an option is wrong', async () => {
    expect(await refusal([])).toContain('file');
    expect(await refusal([example, '--jsno'])).toContain('--json');
  });

  test('when the directory of models is not there', async () => {
    expect(await refusal([example, '--models-dir', '/nowhere/at/all'])).toContain("'/nowhere/at/all'");
  });

  test('when there is no llama-server whose options could count', async () => {
    const path = join(tempDir(), 'another-program');
    writeFileSync(path, '#!/bin/sh\necho "usage: another-program"\n');
    chmodSync(path, 0o755);
    expect(await refusal([example, '--llama-server', join(tempDir(), 'none')])).toMatch(
      /none, which does not exist/,
    );
    expect(await refusal([example, '--llama-server', path])).toContain('lists no options');
  });
});

test('presets.example.ini has no fault but that its files are not on this machine', async () => {
  const { exitCode, stdout } = await configCheck([example, '--json']);
  const { errors, warnings } = JSON.parse(stdout) as { errors: { message: string }[]; warnings: unknown[] };
  expect(warnings).toEqual([]);
  expect(errors.filter(({ message }) => !/^[a-z-]+: '\/srv\//.test(message))).toEqual([]);
  expect(exitCode).toBe(errors.length === 0 ? 0 : 1);
});

test('--help says what the exit codes mean', async () => {
  const { exitCode, stdout } = await configCheck(['--help']);
  expect(exitCode).toBe(0);
  expect(stdout).toMatch(/Exit code: 0 nothing is wrong, 1 something is, 2 the file could not be checked/);
});
