import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { UnusableBinaryError } from '../../../src/config/binary.js';
import { loadOptionTable, type AskOptions } from '../../../src/config/help.js';

/** As much help as it takes to be a llama-server. */
const HELP = ['-m,    --model FNAME   model', '--host HOST   host', '--port PORT   port'].join('\n');

let root: string;
let cacheDir: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'help-'));
  cacheDir = join(root, 'cache');
});
afterEach(() => {
  rmSync(root, { recursive: true });
});

interface FakeBinary {
  readonly help?: string;
  readonly version?: string;
  readonly devices?: string;
}

/** A shell script that answers the three questions and notes each in `asked`. */
function binary({
  help = `cat <<'END'\n${HELP}\nEND`,
  version = ':',
  devices = ':',
}: FakeBinary = {}): string {
  const path = join(root, 'llama-server');
  const cases = [`--help)\n${help}\n;;`, `--version)\n${version}\n;;`, `--list-devices)\n${devices}\n;;`];
  writeFileSync(path, `#!/bin/sh\necho "$1" >>'${root}/asked'\ncase "$1" in\n${cases.join('\n')}\nesac\n`);
  chmodSync(path, 0o755);
  return path;
}

function asked(): string[] {
  return existsSync(join(root, 'asked'))
    ? readFileSync(join(root, 'asked'), 'utf8').trim().split('\n').sort()
    : [];
}

function cacheFile(): string {
  const [name = ''] = readdirSync(join(cacheDir, 'help'));
  return join(cacheDir, 'help', name);
}

const ALL_QUESTIONS = ['--help', '--list-devices', '--version'];
const withGpu = { devices: "echo '  CUDA0: NVIDIA X (24 MiB, 23 MiB free)'" };

async function failureOf(path: string, options: AskOptions = {}): Promise<string> {
  const error: unknown = await loadOptionTable(path, cacheDir, options).then(
    () => 'it did not fail',
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(UnusableBinaryError);
  return (error as Error).message;
}

describe('asking a binary', () => {
  it('reads its options, and the version that it prints among log lines on standard error', async () => {
    const facts = await loadOptionTable(
      binary({
        version:
          "printf '0.00.000.414 I srv  llama_server: init\\nversion: 1.2.3 (build 7, commit abc12)\\n' >&2",
      }),
      cacheDir,
    );
    expect(facts.table.options.map(({ key }) => key)).toEqual(['model', 'host', 'port']);
    expect(facts).toMatchObject({ version: '1.2.3 (build 7, commit abc12)', buildInfo: 'b7-abc12' });
  });

  it('understands the version of older binaries, and does without one', async () => {
    const older = await loadOptionTable(binary({ version: "echo 'version: 6123 (abc12)'" }), cacheDir);
    expect(older).toMatchObject({ version: '6123 (abc12)', buildInfo: 'b6123-abc12' });
    const silent = await loadOptionTable(binary({ version: 'exit 3' }), cacheDir);
    expect(silent).toMatchObject({ version: 'unknown', buildInfo: 'unknown' });
  });

  it('names the families of its devices, then CPU', async () => {
    const devices = [
      'Available devices:',
      '  CUDA0: NVIDIA GeForce RTX 3090 (24576 MiB, 23000 MiB free)',
      '  CUDA1: NVIDIA GeForce RTX 3090 (24576 MiB, 23000 MiB free)',
      '  Vulkan0: Some (A) card (100 MiB, 90 MiB free)',
    ];
    const facts = await loadOptionTable(
      binary({ devices: `cat <<'END'\n${devices.join('\n')}\nEND` }),
      cacheDir,
    );
    expect(facts.backends).toEqual(['CUDA', 'Vulkan', 'CPU']);
  });

  it('takes a failing device list for none', async () => {
    const facts = await loadOptionTable(binary({ devices: 'kill -ABRT $$' }), cacheDir);
    expect(facts.backends).toEqual(['CPU']);
  });

  it('gives the unified program its subcommand first, and remembers each subcommand by itself', async () => {
    const path = join(root, 'llama');
    const answers = HELP.replaceAll("'", '');
    writeFileSync(
      path,
      `#!/bin/sh\n[ "$1" = serve ] && shift || exit 1\n[ "$1" = --help ] && printf '%s\\n' '${answers}'\nexit 0\n`,
    );
    chmodSync(path, 0o755);
    const facts = await loadOptionTable(path, cacheDir, { env: { LLAMA_APP_CMD: 'serve' } });
    expect(facts.table.options.map(({ key }) => key)).toEqual(['model', 'host', 'port']);
    expect(await failureOf(path, { env: { LLAMA_APP_CMD: '' } })).toContain('exit code 1');
  });

  it('keeps the config file from it, which is judged elsewhere, except where devices are listed', async () => {
    const says = `echo "$XDG_CONFIG_HOME" >>'${root}/config-homes'`;
    await loadOptionTable(
      binary({
        help: `${says}\ncat <<'END'\n${HELP}\nEND`,
        devices: says.replace('config-homes', 'of-devices'),
      }),
      cacheDir,
      { env: { ...process.env, XDG_CONFIG_HOME: '/somewhere' } },
    );
    expect(readFileSync(join(root, 'config-homes'), 'utf8')).toBe('/dev/null\n');
    expect(readFileSync(join(root, 'of-devices'), 'utf8')).toBe('/somewhere\n');
  });

  it('keeps the text of its help', async () => {
    expect((await loadOptionTable(binary(), cacheDir)).help).toBe(HELP);
  });

  it('keeps from it the variables that would change its answers', async () => {
    const env = {
      PATH: process.env['PATH'],
      LLAMA_ARG_PORT: 'bad',
      AIP_MODE: 'PREDICTION',
      HF_TOKEN: 'kept',
    };
    await loadOptionTable(binary({ version: `env >'${root}/environment'` }), cacheDir, { env });
    const seen = readFileSync(join(root, 'environment'), 'utf8');
    expect(seen).toMatch(/^HF_TOKEN=kept$/m);
    expect(seen).not.toMatch(/^(?:LLAMA|AIP)_/m);
  });
});

describe('a binary that is of no use', () => {
  it('is named when it is missing, cannot run or is for another machine', async () => {
    const missing = join(root, 'missing');
    expect(await failureOf(missing)).toBe(`${missing} cannot be read: does it exist?`);
    const plain = binary();
    chmodSync(plain, 0o644);
    expect(await failureOf(plain)).toMatch(/--help could not be run \(EACCES\)/);
    writeFileSync(plain, '\x7fELF of no machine');
    chmodSync(plain, 0o755);
    expect(await failureOf(plain)).toMatch(/--help could not be run|--help ended with/);
  });

  it('is quoted when it fails', async () => {
    const path = binary({ help: "echo 'error while loading shared libraries: libcuda.so.1' >&2; exit 127" });
    expect(await failureOf(path)).toBe(
      `${path} --help ended with exit code 127: error while loading shared libraries: libcuda.so.1`,
    );
    expect(await failureOf(binary({ help: 'kill -ILL $$' }))).toMatch(/--help was ended by SIGILL/);
  });

  it('is told from a llama-server by its options', async () => {
    expect(await failureOf(binary({ help: "echo 'usage: true'" }))).toMatch(/--help lists no options/);
    expect(await failureOf(binary({ help: "echo '-a, --all   list all'" }))).toMatch(
      /--help lists other options/,
    );
    expect(existsSync(cacheDir)).toBe(false);
  });

  it('is stopped when it hangs, together with what it started', async () => {
    const path = binary({ help: `sleep 300 & echo $! >'${root}/grandchild'\nwait` });
    expect(await failureOf(path, { timeoutMs: 1000 })).toBe(
      `${path} --help gave no answer within 1 s and was stopped`,
    );
    const pid = Number(readFileSync(join(root, 'grandchild'), 'utf8'));
    await vi.waitUntil(() => !isRunning(pid), { timeout: 5000, interval: 20 });
  });

  it('is stopped when it prints without end', async () => {
    expect(await failureOf(binary({ help: 'yes' }))).toMatch(/--help printed more than 1024 KiB/);
  });
});

/** A killed grandchild may stay a zombie where nothing reaps orphans; it runs no more. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

describe('the cache', () => {
  it('saves asking again', async () => {
    const path = binary(withGpu);
    const first = await loadOptionTable(path, cacheDir);
    expect(asked()).toEqual(ALL_QUESTIONS);
    expect(await loadOptionTable(path, cacheDir)).toEqual(first);
    expect(asked()).toEqual(ALL_QUESTIONS);
  });

  it('remembers devices, but not that there were none', async () => {
    const path = binary({ devices: `cat '${root}/devices' 2>/dev/null` });
    expect((await loadOptionTable(path, cacheDir)).backends).toEqual(['CPU']);
    writeFileSync(join(root, 'devices'), '  ROCm0: AMD (24 MiB, 23 MiB free)\n');
    expect((await loadOptionTable(path, cacheDir)).backends).toEqual(['ROCm', 'CPU']);
    rmSync(join(root, 'devices'));
    expect((await loadOptionTable(path, cacheDir)).backends).toEqual(['ROCm', 'CPU']);
  });

  it('is not used for a binary that changed, and holds one entry for it', async () => {
    await loadOptionTable(binary(withGpu), cacheDir);
    const facts = await loadOptionTable(binary({ ...withGpu, version: "echo 'version: 2 (b)'" }), cacheDir);
    expect(facts.version).toBe('2 (b)');
    expect(readdirSync(join(cacheDir, 'help'))).toHaveLength(1);
  });

  it.each([
    ['cut off', (text: string) => text.slice(0, text.length / 2)],
    ['empty', () => ''],
    ['of another shape', () => '{"answers":{"help":5}}'],
    ['of another help', (text: string) => text.replaceAll('--host', 'host')],
  ])('is rewritten when it is %s', async (_, damage) => {
    const path = binary(withGpu);
    const first = await loadOptionTable(path, cacheDir);
    const good = readFileSync(cacheFile(), 'utf8');
    writeFileSync(cacheFile(), damage(good));
    expect(await loadOptionTable(path, cacheDir)).toEqual(first);
    expect(readFileSync(cacheFile(), 'utf8')).toBe(good);
  });

  it('that cannot be written costs only time', async () => {
    writeFileSync(cacheDir, 'a file where the directory should be');
    expect((await loadOptionTable(binary(), cacheDir)).table.options).toHaveLength(3);
  });
});
