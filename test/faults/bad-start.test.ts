/** Flags, variables and files that a start is given and cannot use: refused in time with what to do, or told and left out. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { execa } from 'execa';
import { describe, expect, it } from 'vitest';
import { withDeadline } from '../helpers/eventually.js';
import { writeFakeModel } from '../helpers/fake-llama-server.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { launchSupervisor, startSupervisor, type SupervisorOptions } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { serveFakes } from '../http/serve-fakes.js';

/** Shared, so that the fake is asked for its options once. */
const cacheHome = tempDir();
const isRoot = process.getuid?.() === 0;
const canMakePipes = process.platform !== 'win32';

/** A start that has to end by itself, with exit code 1 and one message without a stack. */
async function refusal(args: string[], options: Omit<SupervisorOptions, 'args'> = {}): Promise<string> {
  const supervisor = launchSupervisor({ ...options, args, cacheHome });
  const exit = await withDeadline('the start is refused', supervisor.exited, 50_000);
  const output = supervisor.output();
  expect({ exit, output }).toMatchObject({ exit: { code: 1, signal: null } });
  expect(output).not.toMatch(/^ +at /m);
  expect(output).not.toContain('"listening"');
  expect(output.length).toBeLessThan(4_000);
  const message = /^llama-supervisor: .*/ms.exec(output)?.[0] ?? '';
  expect(message).not.toMatch(/undefined|RangeError|call stack|\[object/);
  return message;
}

function fileOf(contents: string | Buffer, name = 'file'): string {
  const path = join(tempDir(), name);
  writeFileSync(path, contents);
  return path;
}

function pipe(): string {
  const path = join(tempDir(), 'pipe');
  execFileSync('mkfifo', [path]);
  return path;
}

const binary = Buffer.from(Array.from({ length: 5_000 }, (_, at) => (at * 7 + (at >> 8)) & 0xff));

describe('flags and variables', () => {
  it.each([
    ['LLAMA_ARG_MODELS_MAX', 'many', /whole number.*'many'/],
    ['LLAMA_SUPERVISOR_QUEUE_MAX', '0', /at least 1.*'0'/],
    ['LLAMA_SUPERVISOR_QUEUE_MAX', '99999999999999999999', /from 1 to \d+, not '99999999999999999999'/],
    ['LLAMA_SUPERVISOR_HANG_TIMEOUT', '1e999', /seconds.*'1e999'/],
    ['LLAMA_SUPERVISOR_BODY_MAX', '-1', /bytes.*'-1'/],
    ['LLAMA_SUPERVISOR_LOG_LEVEL', 'loud', /expected one of .*'loud'/],
    ['LLAMA_ARG_API_KEY_FILE', '/nowhere/at/all', /\/nowhere\/at\/all.*ENOENT/],
  ])('%s=%s is refused, and the message names the variable', async (name, value, message) => {
    const text = await refusal([], { env: { [name]: value } });
    expect(text).toMatch(new RegExp(`^llama-supervisor: ${name}: `));
    expect(text).toMatch(message);
  });

  it.each([
    ['a number of 50,000 digits', '--queue-max', '1'.repeat(50_000)],
    ['a text of 50,000 letters', '--queue-max', 'x'.repeat(50_000)],
    ['a name of 50,000 letters', `--${'x'.repeat(50_000)}`, '1'],
    ['control characters', '--log-level', '\u001b[31m\nforged'],
    ['nothing', '--queue-max', ''],
  ])('%s on the command line: refused in a message that can be read', async (_what, name, value) => {
    const text = await refusal([name, value]);
    expect(text).toContain(name.slice(0, 12));
    expect(text.trimEnd().split('\n')).toHaveLength(1);
    expect(text.length).toBeLessThan(1_200);
    expect(text.trimEnd()).not.toMatch(/\p{Cc}/u);
  });

  it('of a flag that is given twice the last counts', async () => {
    const text = await refusal(['--queue-max', '5', '--queue-max', 'last']);
    expect(text).toContain("'last'");
  });
});

describe('a file that is named and cannot be used', () => {
  it.each([
    ['missing', () => join(tempDir(), 'missing'), /'.*missing' does not exist/],
    ['a directory', () => tempDir(), /cannot be read: EISDIR/],
    ['of 50 MB', () => fileOf(Buffer.alloc(50_000_000, 'x = 1\n')), /is over 16777216 bytes/],
    ['without an end', () => '/dev/zero', /gives more than 16777216 bytes/],
  ])('presets %s: refused', async (_what, path, message) => {
    expect(await refusal(['--models-preset', path()])).toMatch(message);
  });

  it.skipIf(isRoot)('presets that this user may not read: refused (root may read anything)', async () => {
    const path = fileOf('[a]\n');
    chmodSync(path, 0);
    expect(await refusal(['--models-preset', path])).toMatch(/cannot be read: EACCES/);
  });

  it.each([
    ['missing', () => join(tempDir(), 'missing'), /ENOENT/],
    ['a directory', () => tempDir(), /EISDIR/],
    ['empty', () => fileOf('# only this\n\n'), /holds no key/],
    ['binary', () => fileOf(binary), /line \d+ is no text that a header can carry/],
    [
      'in UTF-16',
      () => fileOf(Buffer.from('\ufeffkey\r\n', 'utf16le')),
      /line 1 is no text that a header can carry/,
    ],
    ['with bare carriage returns', () => fileOf('# keys\nkey-1\rkey-2\r'), /line 2 is no text/],
  ])('keys %s: refused, for it would let in everybody or nobody', async (_what, path, message) => {
    const file = path();
    const text = await refusal(['--api-key-file', file]);
    expect(text).toContain(file);
    expect(text).toMatch(message);
    expect(text).not.toContain('key-1');
  });

  it('keys with a line of 20 MB besides good ones: the good ones are taken', async () => {
    const file = fileOf(`${'x'.repeat(20_000_000)}\ngood\n`);
    const service = await serveFakes({ models: { alpha: {} }, args: ['--api-key-file', file] });
    const status = async (key: string) =>
      (await rawRequest(`${service.url}/props`, { headers: { authorization: `Bearer ${key}` } })).status;
    expect([await status('good'), await status('x'.repeat(20_000))]).toEqual([200, 401]);
  });

  it.each([
    ['missing', () => join(tempDir(), 'missing'), /ENOENT/],
    ['a directory', () => tempDir(), /EISDIR/],
    ['without an end', () => '/dev/zero', /gives more than 16777216 bytes/],
    ['no JSON', () => fileOf('theme = dark'), /is not JSON/],
  ])('settings of the web UI %s: refused', async (_what, path, message) => {
    const text = await refusal(['--ui-config-file', path()]);
    expect(text).toContain('--ui-config-file: ');
    expect(text).toMatch(message);
  });

  // A pipe without a writer held the start for ever, and with it the exit of the process.
  it.skipIf(!canMakePipes)(
    'a pipe that nobody writes into, for keys, presets, TLS or the web UI: refused in time',
    async () => {
      const configHome = tempDir();
      mkdirSync(join(configHome, 'llama.cpp'));
      execFileSync('mkfifo', [join(configHome, 'llama.cpp', 'config.ini')]);
      const [keys, presets, tls, ui, config] = await Promise.all([
        refusal(['--api-key-file', pipe()]),
        refusal(['--models-preset', pipe()]),
        refusal(['--ssl-key-file', pipe(), '--ssl-cert-file', fileOf('')]),
        refusal(['--ui-config-file', pipe()]),
        refusal([], { env: { XDG_CONFIG_HOME: configHome } }),
      ]);
      expect(keys).toMatch(/--api-key-file: .*a pipe that has not given its text/);
      expect(presets).toMatch(/--models-preset .*a pipe that has not given its text/);
      expect(tls).toMatch(/--ssl-key-file: .*a pipe that has not given its text/);
      expect(ui).toMatch(/--ui-config-file: .*a pipe that has not given its text/);
      expect(config).toMatch(/config\.ini cannot be read \(it is no regular file\)/);
    },
  );
});

it.skipIf(!canMakePipes)(
  'keys, presets and settings of the web UI come through pipes that are written into a moment later',
  async () => {
    const [keys, presets, ui] = [pipe(), pipe(), pipe()];
    const model = writeFakeModel(tempDir(), 'alpha');
    // All at once: in which order they are read is not what this is about.
    const script = `sleep 0.5
      printf 'key-1\\n' >"$1" &
      printf '[alpha]\\nmodel = %s\\n' "$4" >"$2" &
      printf '{"theme":1}' >"$3" &
      wait`;
    const writer = execa('sh', ['-c', script, 'sh', keys, presets, ui, model], { timeout: 30_000 });
    const service = await startSupervisor({
      args: ['--api-key-file', keys, '--models-preset', presets, '--ui-config-file', ui],
      cacheHome,
    });
    await writer;
    // A pipe gives its text once: what has been read of it stays.
    process.kill(service.pid, 'SIGHUP');
    const headers = { authorization: 'Bearer key-1', 'content-type': 'application/json' };
    const response = await rawRequest(`${service.url}/infill`, { ...jsonPost({ model: 'alpha' }), headers });
    expect(response.status, response.body.toString()).toBe(200);
    expect((await rawRequest(`${service.url}/infill`, jsonPost({ model: 'alpha' }))).status).toBe(401);
    const props = await rawRequest(`${service.url}/props`, { headers });
    expect(JSON.parse(props.body.toString())).toMatchObject({ ui_settings: { theme: 1 } });
  },
);

describe('presets that can be read in part', () => {
  const alpha = (): string => `model = ${writeFakeModel(tempDir(), 'alpha')}`;

  it.each<[string, (model: string) => string | Buffer, RegExp]>([
    ['a byte order mark', (model) => `\ufeff[alpha]\n${model}\n`, /byte order mark/],
    ['a section that is there twice', (model) => `[alpha]\nctx-size = 1\n[alpha]\n${model}\n`, /is repeated/],
    [
      'an unknown key elsewhere',
      (model) => `[alpha]\n${model}\n[beta]\nctxsize = 1\n${model}\n`,
      /did you mean 'ctx-size'/,
    ],
    [
      'an inclusion of itself, which there is not',
      (model) => `include = presets.ini\n[alpha]\n${model}\n`,
      /unknown option 'include'/,
    ],
    [
      'noise before the first section',
      (model) => Buffer.concat([binary, Buffer.from(`\n[alpha]\n${model}\n`)]),
      /is not valid UTF-8|there are many warnings/,
    ],
    [
      'a line of 10 MB',
      (model) => `${'y'.repeat(10_000_000)}\n[alpha]\n${model}\n`,
      /is over 131072 bytes long/,
    ],
    ['a line at fault of some length', (model) => `${'y'.repeat(100_000)}\n[alpha]\n${model}\n`, /y{200}…'/],
    // More faults than a call can have arguments ended the start: "Maximum call stack size exceeded".
    [
      '150,000 lines at fault',
      (model) => `${'y\n'.repeat(150_000)}[alpha]\n${model}\n`,
      /there are many warnings/,
    ],
    [
      'a section of 150,000 wrong lines',
      (model) => `[alpha]\n${model}\n[beta]\n${'y = 1\n'.repeat(150_000)}`,
      /more lines are at fault/,
    ],
  ])('with %s: what is good is served, the rest is told once and briefly', async (_what, text, told) => {
    const presets = fileOf(text(alpha()), 'presets.ini');
    const service = await serveFakes({ models: { other: {} }, args: ['--models-preset', presets] });
    for (let n = 0; n < 2; n++) {
      expect((await service.use('alpha')).alias).toBe('alpha');
      expect((await rawRequest(`${service.url}/models?reload=1`)).status).toBe(200);
    }
    const lines = service.supervisor
      .output()
      .split('\n')
      .filter((line) => told.test(line));
    expect(lines).toHaveLength(1);
    expect(lines[0]?.length).toBeLessThan(16_000);
  });

  it('with bare carriage returns as line ends is read', async () => {
    const presets = fileOf(`[alpha]\r${alpha()}\rctx-size = 512\r`);
    const service = await serveFakes({ models: {}, args: ['--models-preset', presets] });
    await service.use('alpha');
    const [start] = service.journal.of('start', 'alpha');
    expect(start?.argv[start.argv.indexOf('--ctx-size') + 1]).toBe('512');
  });

  it('in UTF-16 is told to be in no encoding that can be read', async () => {
    const presets = fileOf(Buffer.from(`\ufeff[alpha]\n${alpha()}\n`, 'utf16le'));
    const service = await serveFakes({ models: { other: {} }, args: ['--models-preset', presets] });
    expect(service.supervisor.output()).toContain('is not valid UTF-8; save the file as UTF-8');
    expect((await service.use('other')).alias).toBe('other');
  });

  it('with the same wrong key in each of 10,000 sections is read again, and each is told what was meant', async () => {
    const sections = Array.from(
      { length: 10_000 },
      (_, at) => `[section-${at}]\nmodel = /none/${at}.gguf\nctxsize = 1\n`,
    );
    const presets = fileOf(`[alpha]\n${alpha()}\n`);
    const service = await serveFakes({ models: {}, args: ['--models-preset', presets] });
    await service.use('alpha');
    writeFileSync(presets, `[alpha]\n${alpha()}\n${sections.join('')}`);
    const response = await withDeadline(
      'the reload',
      rawRequest(`${service.url}/models?reload=1`),
      // On a quiet machine it takes about one second.
      45_000,
    );
    expect(response.status).toBe(200);
    const { data } = JSON.parse(response.body.toString()) as { data: { id: string }[] };
    expect(data.length).toBe(10_001);
    const refused = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'section-9999' }));
    expect(refused.body.toString()).toContain("did you mean 'ctx-size'?");
  });
});
