import { createHash } from 'node:crypto';
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { execa, execaSync } from 'execa';
import { beforeAll, describe, expect, test } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { alive, runMarker } from '../helpers/processes.js';
import { tempDir } from '../helpers/temp-dir.js';

const scriptFile = fileURLToPath(new URL('../../build-llama.sh', import.meta.url));
const fakes = fileURLToPath(new URL('../fixtures/build-llama', import.meta.url));

/** All that the script and the fakes may use besides the tools it looks for: their PATH leads nowhere else. */
const basics =
  'bash sh env seq cat chmod cp cut date dirname grep gzip id ln mkdir mktemp mv ps readlink rm sed sleep sort tail tar touch tr'.split(
    ' ',
  );

const buildTools = ['cmake', 'c++', 'ninja', 'npm', 'git', 'openssl'];

/** These fakes have a script of their own in the fixtures; others only say their version. */
const scripted = new Set(readdirSync(fakes));

interface Upstream {
  folder: string;
  commit: string;
  archive: string;
  integrity: string;
}

/** A repository that looks like llama.cpp from afar, and the npm package that carries its bundle. */
function makeUpstream(): Upstream {
  const root = tempDir();
  const folder = join(root, 'upstream');
  const packed = join(root, 'package', 'llama');
  mkdirSync(join(folder, 'include'), { recursive: true });
  mkdirSync(join(folder, 'scripts'));
  mkdirSync(packed, { recursive: true });
  for (const file of ['CMakeLists.txt', 'include/llama.h', 'scripts/ui-assets.cmake']) {
    writeFileSync(join(folder, file), `# ${file}\n`);
  }
  writeFileSync(join(folder, '.gitignore'), '/build*\n');
  const git = gitIn(folder);
  git('init', '--quiet');
  git('add', '.');
  git('commit', '--quiet', '--message', 'all of it');
  git('tag', 'b123');
  const commit = git('rev-parse', 'HEAD');
  git('checkout', '--quiet', '--detach');
  git('bundle', 'create', '--quiet', join(packed, 'gitRelease.bundle'), 'HEAD');
  const archive = join(root, 'package.tgz');
  execaSync('tar', ['-czf', archive, '-C', root, 'package']);
  const integrity = `sha512-${createHash('sha512').update(readFileSync(archive)).digest('base64')}`;
  return { folder, commit, archive, integrity };
}

function gitIn(folder: string): (...args: string[]) => string {
  const env = {
    GIT_CONFIG_GLOBAL: '/dev/null',
    GIT_AUTHOR_NAME: 'A',
    GIT_AUTHOR_EMAIL: 'a@example.org',
    GIT_COMMITTER_NAME: 'A',
    GIT_COMMITTER_EMAIL: 'a@example.org',
  };
  return (...args) => execaSync('git', args, { cwd: folder, env }).stdout;
}

function onRealPath(tool: string): string {
  for (const folder of (process.env['PATH'] ?? '').split(delimiter)) {
    const path = join(folder, tool);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  throw new Error(`this test needs ${tool} on PATH`);
}

class Machine {
  readonly root = tempDir();
  readonly repo = join(this.root, 'repo');
  readonly home = join(this.root, 'home');
  readonly bin = join(this.root, 'bin');
  readonly temp = join(this.root, 'tmp');
  readonly callsFile = join(this.root, 'calls');
  readonly compilerPid = join(this.root, 'compiler.pid');
  readonly goOnFile = join(this.root, 'go-on');
  readonly builds = join(this.home, '.cache', 'llama-supervisor', 'builds');
  readonly vendor = join(this.repo, 'vendor', 'llama.cpp');

  /** The tools are linked to fakes, but for git, openssl and node, which are the real ones. */
  constructor(tools: readonly string[] = buildTools) {
    for (const folder of [this.repo, this.home, this.bin, this.temp]) mkdirSync(folder);
    for (const tool of basics) symlinkSync(onRealPath(tool), join(this.bin, tool));
    this.install('uname', ...tools);
    this.clone(this.repo);
  }

  install(...tools: string[]): void {
    const real = new Set(['git', 'openssl', 'node']);
    for (const tool of tools) {
      const target = real.has(tool)
        ? onRealPath(tool)
        : join(fakes, scripted.has(tool) ? tool : 'says-only-its-version');
      symlinkSync(target, join(this.bin, tool));
    }
  }

  /** A clone of this project as far as the script is concerned, pinned to the upstream of this test. */
  clone(repo: string, pinned: Partial<Upstream> = {}): void {
    const { commit, integrity } = { ...upstream, ...pinned };
    const script = readFileSync(scriptFile, 'utf8')
      .replace(/^readonly PACKAGE_COMMIT='[0-9a-f]{40}'$/m, `readonly PACKAGE_COMMIT='${commit}'`)
      .replace(/^readonly PACKAGE_INTEGRITY='sha512-.*'$/m, `readonly PACKAGE_INTEGRITY='${integrity}'`);
    mkdirSync(join(repo, 'vendor', 'llama.cpp'), { recursive: true });
    writeFileSync(join(repo, 'vendor', 'llama.cpp', '.gitkeep'), '');
    writeFileSync(join(repo, 'build-llama.sh'), script, { mode: 0o755 });
  }

  start(args: readonly string[], env: Record<string, string> = {}, repo = this.repo) {
    return execa(join(repo, 'build-llama.sh'), args, {
      env: {
        PATH: this.bin,
        HOME: this.home,
        TMPDIR: this.temp,
        CALLS: this.callsFile,
        COMPILER_PID: this.compilerPid,
        GO_ON: this.goOnFile,
        FAKE_ARCHIVE: upstream.archive,
        FAKE_HEADERS: 'openssl/ssl.h',
        // The places of toolkits that the real machine may have.
        CUDA_PATH: '/nowhere',
        ROCM_PATH: '/nowhere',
        VULKAN_SDK: '/nowhere',
        [runMarker]: process.env[runMarker] ?? '',
        ...env,
      },
      extendEnv: false,
      reject: false,
      timeout: 40_000,
    });
  }

  async run(args: readonly string[], env: Record<string, string> = {}, repo = this.repo) {
    const { exitCode, stdout, stderr, timedOut } = await this.start(args, env, repo);
    if (timedOut) throw new Error(`build-llama.sh ${args.join(' ')}: not within 40 s\n${stdout}\n${stderr}`);
    return { exitCode, stdout, stderr };
  }

  /** The calls so far of the tools that build or fetch, without their probing. */
  calls(start = ''): string[] {
    if (!existsSync(this.callsFile)) return [];
    return readFileSync(this.callsFile, 'utf8')
      .split('\n')
      .filter((line) => line !== '' && line.startsWith(start));
  }

  /** Ends the wait of `FAKE_COMPILE=waits`. */
  goOn(): void {
    writeFileSync(this.goOnFile, '');
  }

  forgetCalls(): void {
    rmSync(this.callsFile, { force: true });
  }

  /** What is in the folder of builds: one folder for each build, and `current`. */
  built(): string[] {
    return readdirSync(this.builds).sort((a, b) => Number(a === 'current') - Number(b === 'current'));
  }

  cachedBinary(): string {
    return realpathSync(join(this.builds, 'current'));
  }

  /** A checkout for `--source`. */
  checkout(): string {
    const folder = join(this.root, 'checkout');
    gitIn(this.root)('clone', '--quiet', upstream.folder, folder);
    return folder;
  }
}

const compiles = 'cmake --build';

/** What a stream has brought so far. */
function collect(stream: Readable): () => string {
  let text = '';
  stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
  return () => text;
}

let upstream: Upstream;
beforeAll(() => {
  upstream = makeUpstream();
});

describe('arguments', () => {
  test('--help explains every argument and builds nothing', async () => {
    const machine = new Machine();
    const { exitCode, stdout } = await machine.run(['--help']);
    expect(exitCode).toBe(0);
    for (const word of ['auto', 'cpu', 'cuda', 'vulkan', 'rocm', 'metal']) expect(stdout).toContain(word);
    for (const flag of ['--ref TAG', '--source DIR', '--ui', '--no-ui', '--jobs N']) {
      expect(stdout).toContain(flag);
    }
    expect(machine.calls()).toEqual([]);
  });

  test.each([
    { args: ['--fast'], reason: 'unknown argument: --fast' },
    { args: ['opencl'], reason: 'unknown argument: opencl' },
    { args: ['cpu', 'cuda'], reason: 'two back ends given: cpu and cuda' },
    { args: ['--jobs', 'many'], reason: '--jobs needs a number from 1 on, not many' },
    { args: ['--jobs=0'], reason: '--jobs needs a number from 1 on, not 0' },
    { args: ['--ref'], reason: '--ref needs a value' },
    { args: ['--source='], reason: '--source needs a value' },
    { args: ['--ref', '--ui'], reason: '--ref needs a tag, not --ui' },
    { args: ['--ui', '--no-ui'], reason: '--ui and --no-ui exclude each other' },
    { args: ['--ref', 'b1', '--source', '.'], reason: '--ref and --source exclude each other' },
  ])('$args is refused with status 2 and the reason', async ({ args, reason }) => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run(args);
    expect(exitCode).toBe(2);
    expect(stderr).toContain(reason);
    expect(machine.calls()).toEqual([]);
  });

  test('--jobs is the number of files compiled at a time', async () => {
    const machine = new Machine();
    await machine.run(['cpu', '--jobs', '3']);
    expect(machine.calls(compiles).at(-1)).toMatch(/--parallel 3$/);
  });
});

describe('the choice of a back end', () => {
  test('auto takes the CPU when there is no GPU toolkit, and says what each lacks', async () => {
    const machine = new Machine();
    const { exitCode, stdout } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/Back end: cpu, because .*cuda: no CUDA compiler \(nvcc\)/);
    expect(stdout).toMatch(/rocm: no HIP compiler .*vulkan: no shader compiler/);
    const [configure] = machine.calls('cmake -S');
    expect(configure).not.toMatch(/GGML_(CUDA|HIP|VULKAN|METAL)=ON/);
  });

  test.each([
    {
      name: 'CUDA where compiler and driver answer',
      tools: ['nvcc', 'nvidia-smi'],
      env: { FAKE_GPU: 'NVIDIA Fake 4090' },
      says: 'Back end: cuda, because its toolkit works and there is: NVIDIA Fake 4090.',
      flag: '-DGGML_CUDA=ON',
    },
    {
      name: 'ROCm where its compiler is new enough and finds a GPU',
      tools: ['hipcc', 'hipconfig', 'rocm_agent_enumerator'],
      env: { FAKE_GPU: 'gfx1100', FAKE_HEADERS: 'hipblas/hipblas.h rocblas/rocblas.h' },
      says: 'Back end: rocm, because its toolkit works and there is: gfx1100.',
      flag: '-DGPU_TARGETS=gfx1100',
    },
    {
      name: 'Vulkan where its SDK is whole',
      tools: ['glslc'],
      env: { FAKE_HEADERS: 'vulkan/vulkan.h spirv/unified1/spirv.hpp' },
      says: 'Back end: vulkan, because',
      flag: '-DGGML_VULKAN=ON',
    },
    {
      name: 'Metal on macOS',
      tools: [],
      env: { FAKE_SYSTEM: 'Darwin' },
      says: 'Back end: metal, because',
      flag: '-DGGML_METAL=ON',
    },
  ])('auto takes $name, and says why', async ({ tools, env, says, flag }) => {
    const machine = new Machine([...buildTools, ...tools]);
    const { exitCode, stdout } = await machine.run([], env);
    expect(stdout).toContain(says);
    expect(exitCode).toBe(0);
    expect(machine.calls('cmake -S')[0]).toContain(flag);
  });

  test('auto does not take CUDA when the driver does not answer', async () => {
    const machine = new Machine([...buildTools, 'nvcc', 'nvidia-smi']);
    const { stdout } = await machine.run([]);
    expect(stdout).toMatch(/Back end: cpu, .*cuda: no GPU for it/);
  });

  test('auto tells the owner of an NVIDIA GPU without a CUDA compiler what to install', async () => {
    const machine = new Machine([...buildTools, 'nvidia-smi']);
    const { stdout, stderr } = await machine.run([], { FAKE_GPU: 'NVIDIA Fake 4090' });
    expect(stdout).toContain('Back end: cpu');
    expect(stderr).toMatch(/NVIDIA Fake 4090.*nvidia-cuda-toolkit/);
  });

  test.each([
    { backend: 'cuda', tools: [], lacks: 'no CUDA compiler', install: ['nvidia-cuda-toolkit'] },
    { backend: 'rocm', tools: [], lacks: 'no HIP compiler', install: ['hipcc', 'libhipblas-dev', '6.1'] },
    { backend: 'vulkan', tools: [], lacks: 'glslc', install: ['glslc', 'libvulkan-dev', 'spirv-headers'] },
    { backend: 'vulkan', tools: ['glslc'], lacks: 'no Vulkan headers', install: ['libvulkan-dev'] },
    { backend: 'metal', tools: [], lacks: 'not macOS', install: ['macOS only'] },
  ])(
    '$backend with tools $tools is refused: $lacks, with what to install',
    async ({ backend, tools, lacks, install }) => {
      const machine = new Machine([...buildTools, ...tools]);
      const { exitCode, stderr } = await machine.run([backend]);
      expect(exitCode).toBe(1);
      expect(stderr).toContain(`cannot build for ${backend}: `);
      for (const word of [lacks, ...install]) expect(stderr).toContain(word);
      expect(machine.calls('cmake')).toEqual([]);
    },
  );

  test('ROCm older than what llama.cpp takes is refused by its version', async () => {
    const machine = new Machine([...buildTools, 'hipcc', 'hipconfig']);
    const { exitCode, stderr } = await machine.run(['rocm'], { FAKE_HIP: '5.2.21153-0' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('ROCm 5.2.21153-0 is older than 6.1');
  });

  test('CUDA that is asked for is built without a GPU in the machine, for all generations', async () => {
    const machine = new Machine([...buildTools, 'nvcc']);
    const { exitCode, stderr } = await machine.run(['cuda']);
    expect(exitCode).toBe(0);
    expect(stderr).toContain('every GPU generation');
    expect(machine.calls('cmake -S')[0]).toContain('-DCMAKE_CUDA_ARCHITECTURES=all-major');
  });
});

describe('what is missing', () => {
  test('all missing build tools are named at once, with one command to install them', async () => {
    const machine = new Machine(['npm', 'openssl', 'apt-get']);
    const { exitCode, stderr } = await machine.run([]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('missing: cmake, a C++ compiler, git, ninja or make');
    expect(stderr).toContain('apt-get install cmake g++ git ninja-build');
    expect(machine.calls('npm pack')).toEqual([]);
  });

  test('make serves where there is no ninja', async () => {
    const machine = new Machine(['cmake', 'c++', 'make', 'npm', 'git', 'openssl']);
    const { exitCode } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(machine.calls('cmake -S')[0]).toContain('-G Unix Makefiles');
  });

  test("without OpenSSL's headers it builds without TLS and names the package", async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run([], { FAKE_HEADERS: '' });
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/HTTPS.*libssl-dev.*openssl-devel.*openssl@3/);
    expect(machine.calls('cmake -S')[0]).toContain('-DLLAMA_OPENSSL=OFF');
  });
});

describe('the pinned source', () => {
  test('is built, and both links lead to the binary in the cache', async () => {
    const machine = new Machine();
    const { exitCode, stdout } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('llama-server 7 (fake)');
    const binary = machine.cachedBinary();
    expect(stdout).toContain(binary);
    expect(realpathSync(join(machine.vendor, 'build', 'bin', 'llama-server'))).toBe(binary);
    expect(machine.built()).toHaveLength(2);
    const configure = machine.calls('cmake -S')[0];
    for (const flag of [
      '-G Ninja',
      '-DCMAKE_BUILD_TYPE=Release',
      '-DBUILD_SHARED_LIBS=OFF',
      '-DGGML_NATIVE=ON',
      '-DLLAMA_BUILD_UI=ON',
      '-DLLAMA_OPENSSL=ON',
    ]) {
      expect(configure).toContain(flag);
    }
  });

  test('fills vendor/ whole, and keeps .gitkeep and a build folder that was there', async () => {
    const machine = new Machine();
    mkdirSync(join(machine.vendor, 'build'));
    writeFileSync(join(machine.vendor, 'build', 'mine'), '');
    await machine.run([]);
    expect(readdirSync(machine.vendor)).toEqual(
      expect.arrayContaining(['.gitkeep', 'CMakeLists.txt', 'include']),
    );
    expect(readdirSync(join(machine.vendor, 'build')).sort()).toEqual(['bin', 'mine']);
    expect(gitIn(machine.vendor)('rev-parse', 'HEAD')).toBe(upstream.commit);
    expect(readdirSync(join(machine.repo, 'vendor'))).toEqual(['llama.cpp']);
  });

  test('a filled vendor/ is built from again without fetching', async () => {
    const machine = new Machine();
    await machine.run(['--no-ui']);
    rmSync(machine.builds, { recursive: true });
    machine.forgetCalls();
    const { exitCode } = await machine.run(['--no-ui'], { FAKE_OFFLINE: 'yes' });
    expect(exitCode).toBe(0);
    expect(machine.calls(compiles)).toHaveLength(1);
    expect(machine.calls('npm')).toEqual([]);
  });

  test.each([
    { with: 'openssl', tools: buildTools },
    { with: 'node', tools: [...buildTools.filter((tool) => tool !== 'openssl'), 'node'] },
  ])('a package that is not the pinned one, checked with $with, is not used', async ({ tools }) => {
    const machine = new Machine(tools);
    const other = `sha512-${createHash('sha512').update('other').digest('base64')}`;
    machine.clone(machine.repo, { integrity: other });
    const { exitCode, stderr } = await machine.run([]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain(upstream.integrity);
    expect(stderr).toContain(other);
    expect(machine.calls('cmake')).toEqual([]);
    expect(readdirSync(machine.vendor)).toEqual(['.gitkeep']);
    expect(readdirSync(join(machine.repo, 'vendor'))).toEqual(['llama.cpp']);
  });

  test('a bundle at another commit than the pinned one is not used', async () => {
    const machine = new Machine();
    const pinned = 'f'.repeat(40);
    machine.clone(machine.repo, { commit: pinned });
    const { exitCode, stderr } = await machine.run([]);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(new RegExp(`${upstream.commit}.*${pinned}`));
    expect(machine.calls('cmake')).toEqual([]);
    expect(readdirSync(machine.vendor)).toEqual(['.gitkeep']);
  });

  test('without a network and without a cache it says what to do instead', async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run([], { FAKE_OFFLINE: 'yes' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('ENOTFOUND');
    expect(stderr).toContain('--source DIR');
  });

  test("the user's own changes in vendor/ are never overwritten", async () => {
    const machine = new Machine();
    await machine.run([]);
    rmSync(machine.builds, { recursive: true });
    const edited = join(machine.vendor, 'CMakeLists.txt');
    writeFileSync(edited, 'mine');
    const { exitCode, stderr } = await machine.run([]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain(`--source ${machine.vendor}`);
    expect(readFileSync(edited, 'utf8')).toBe('mine');
  });

  test('files in vendor/ that are no checkout are not overwritten either', async () => {
    const machine = new Machine();
    writeFileSync(join(machine.vendor, 'notes'), 'mine');
    const { exitCode } = await machine.run([]);
    expect(exitCode).toBe(1);
    expect(readFileSync(join(machine.vendor, 'notes'), 'utf8')).toBe('mine');
  });
});

describe('other sources', () => {
  test('--ref clones the tag with its build number, and needs no network the second time', async () => {
    const machine = new Machine();
    const gitConfig = join(machine.home, '.gitconfig');
    writeFileSync(
      gitConfig,
      `[url "file://${upstream.folder}"]\n  insteadOf = https://github.com/ggml-org/llama.cpp\n`,
    );
    const first = await machine.run(['--ref', 'b123', '--no-ui']);
    expect(first.exitCode).toBe(0);
    expect(machine.calls('cmake -S')[0]).toContain('-DLLAMA_BUILD_NUMBER=123');
    expect(machine.calls('npm')).toEqual([]);

    writeFileSync(
      gitConfig,
      '[url "file:///nowhere"]\n  insteadOf = https://github.com/ggml-org/llama.cpp\n',
    );
    machine.forgetCalls();
    const second = await machine.run(['--ref', 'b123', '--no-ui']);
    expect(second.exitCode).toBe(0);
    expect(machine.calls('cmake')).toEqual([]);
  });

  test('--ref with a tag that upstream does not have is refused', async () => {
    const machine = new Machine();
    writeFileSync(
      join(machine.home, '.gitconfig'),
      `[url "file://${upstream.folder}"]\n  insteadOf = https://github.com/ggml-org/llama.cpp\n`,
    );
    const { exitCode, stderr } = await machine.run(['--ref', 'b999']);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('has no tag b999');
  });

  test('--source builds an unchanged checkout once, and a changed one every time', async () => {
    const machine = new Machine();
    const source = machine.checkout();
    await machine.run(['--source', source]);
    await machine.run(['--source', source]);
    expect(machine.calls('cmake -S')).toHaveLength(1);
    expect(machine.calls('cmake -S')[0]).toContain(`-S ${source} `);

    writeFileSync(join(source, 'CMakeLists.txt'), 'changed');
    await machine.run(['--source', source]);
    const { exitCode } = await machine.run(['--source', source]);
    expect(exitCode).toBe(0);
    expect(machine.calls('cmake -S')).toHaveLength(3);
    expect(readFileSync(join(source, 'CMakeLists.txt'), 'utf8')).toBe('changed');
  });

  test('--source refuses a folder that is not llama.cpp', async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run(['--source', machine.home]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('is not a checkout of llama.cpp');
  });
});

describe('the web UI', () => {
  test('is left out with a notice when it cannot be built', async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run([], { FAKE_UI: 'fails' });
    expect(exitCode).toBe(0);
    expect(stderr).toContain('the web UI could not be built');
    expect(machine.calls('cmake -S').at(-1)).toContain('-DLLAMA_BUILD_UI=OFF');
    expect(machine.cachedBinary()).toContain('no-ui');
  });

  test('that was asked for and cannot be built fails the build', async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run(['--ui'], { FAKE_UI: 'fails' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('building the web UI failed');
    expect(machine.built()).toEqual([]);
  });

  test('is left out with a notice when npm does not reach its registry', async () => {
    const machine = new Machine();
    const source = machine.checkout();
    const { exitCode, stderr } = await machine.run(['--source', source], { FAKE_OFFLINE: 'yes' });
    expect(exitCode).toBe(0);
    expect(stderr).toContain('npm does not reach its registry');
    expect(machine.calls('cmake -S')[0]).toContain('-DLLAMA_BUILD_UI=OFF');
  });

  test('in the cache is taken without asking the registry', async () => {
    const machine = new Machine();
    await machine.run([]);
    machine.forgetCalls();
    await machine.run([], { FAKE_OFFLINE: 'yes' });
    expect(machine.calls('npm')).toEqual([]);
    expect(machine.cachedBinary()).not.toContain('no-ui');
  });
});

describe('the cache', () => {
  test('serves a second clone without building, fetching or filling vendor/', async () => {
    const machine = new Machine();
    await machine.run([]);
    machine.forgetCalls();
    const second = join(machine.root, 'second');
    machine.clone(second);
    const { exitCode, stdout } = await machine.run([], { FAKE_OFFLINE: 'yes' }, second);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('Taken from the cache');
    expect(machine.calls('cmake')).toEqual([]);
    expect(machine.calls('npm')).toEqual([]);
    const vendor = join(second, 'vendor', 'llama.cpp');
    expect(readdirSync(vendor).sort()).toEqual(['.gitkeep', 'build']);
    expect(realpathSync(join(vendor, 'build', 'bin', 'llama-server'))).toBe(machine.cachedBinary());
  });

  test('builds again what does not run', async () => {
    const machine = new Machine();
    await machine.run([]);
    const binary = machine.cachedBinary();
    writeFileSync(binary, '#!/bin/sh\nexit 132\n');
    machine.forgetCalls();
    const { exitCode, stdout, stderr } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(stderr).toContain(`${binary} does not run here`);
    expect(machine.calls(compiles)).not.toEqual([]);
    expect(stdout).toContain('llama-server 7 (fake)');
  });

  test('does not take a binary of another compiler, back end or set of flags', async () => {
    const machine = new Machine([...buildTools, 'g++', 'nvcc']);
    const variants = [
      { args: ['cpu'], env: {} },
      { args: ['cpu'], env: { CXX: 'g++' } },
      { args: ['cpu'], env: { CXXFLAGS: '-O1' } },
      { args: ['cpu'], env: { FAKE_HEADERS: '' } },
      { args: ['cpu', '--no-ui'], env: {} },
      { args: ['cuda'], env: {} },
    ];
    for (const { args, env } of variants) await machine.run(args, env);
    const folders = machine.built().filter((name) => name !== 'current');
    expect(folders).toHaveLength(variants.length);
  });

  test('never gets a binary that does not run', async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run([], { FAKE_COMPILE: 'crashing' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('the new llama-server --version failed');
    expect(machine.built()).toEqual([]);
  });

  test("leaves a binary in vendor/ that the user's own build made", async () => {
    const machine = new Machine();
    const own = join(machine.vendor, 'build', 'bin', 'llama-server');
    mkdirSync(join(machine.vendor, 'build', 'bin'), { recursive: true });
    writeFileSync(own, 'mine');
    chmodSync(own, 0o755);
    const { exitCode, stderr } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(stderr).toContain('stays as it is');
    expect(lstatSync(own).isSymbolicLink()).toBe(false);
  });

  test("the user's LLAMA_ variables do not reach the binary that is tried", async () => {
    const machine = new Machine();
    await machine.run([]);
    writeFileSync(
      machine.cachedBinary(),
      '#!/bin/sh\n[ -z "$LLAMA_ARG_PORT" ] && echo "version: 8 (fake)"\n',
    );
    const { stdout } = await machine.run([], { LLAMA_ARG_PORT: 'none' });
    expect(stdout).toContain('llama-server 8 (fake)');
  });
});

describe('a build that does not end well', () => {
  test("a failed one shows the compiler's last lines and the log, and leaves nothing half-made", async () => {
    const machine = new Machine();
    const { exitCode, stderr } = await machine.run([], { FAKE_COMPILE: 'fails' });
    expect(exitCode).toBe(1);
    expect(stderr).toContain('compiler line 100');
    expect(stderr).toContain('compiler line 61');
    expect(stderr).not.toContain('compiler line 60\n');
    const log = /all of them in (\S+)/.exec(stderr)?.[1] ?? '';
    expect(readFileSync(log, 'utf8')).toContain('compiler line 1\n');
    expect(machine.built()).toEqual([]);
    expect(readdirSync(machine.temp)).toEqual([]);
    expect(existsSync(join(machine.vendor, 'build'))).toBe(false);
  });

  test.each([
    { signal: 'SIGTERM', status: 143 },
    { signal: 'SIGINT', status: 130 },
    { signal: 'SIGHUP', status: 129 },
  ] as const)(
    'one ended by $signal ends the compiler too and leaves nothing half-made',
    async ({ signal, status }) => {
      const machine = new Machine();
      const running = machine.start([], { FAKE_COMPILE: 'hangs' });
      const compiler = Number(
        await eventually('the compiler has started', () => readFileSync(machine.compilerPid, 'utf8')),
      );
      running.kill(signal);
      expect((await running).exitCode).toBe(status);
      expect(alive(compiler)).toBe(false);
      expect(machine.built()).toEqual([]);
      expect(readdirSync(machine.temp)).toEqual([]);
    },
  );

  test('what a killed one left is cleared away by the next, which takes over its lock', async () => {
    const machine = new Machine();
    const killed = machine.start([], { FAKE_COMPILE: 'hangs' });
    const compiler = Number(
      await eventually('the compiler has started', () => readFileSync(machine.compilerPid, 'utf8')),
    );
    killed.kill('SIGKILL');
    await killed;
    process.kill(compiler, 'SIGKILL');
    expect(machine.built()).toHaveLength(2);

    const { exitCode } = await machine.run([]);
    expect(exitCode).toBe(0);
    expect(machine.built()).toEqual([expect.stringContaining('-cpu-'), 'current']);
  });
});

test('two builds at once compile once: the second waits and takes what the first made', async () => {
  const machine = new Machine();
  const both = [
    machine.start(['--no-ui'], { FAKE_COMPILE: 'waits' }),
    machine.start(['--no-ui'], { FAKE_COMPILE: 'waits' }),
  ];
  const said = both.map(({ stdout }) => collect(stdout));
  await eventually('one waits for the other', () =>
    said.some((text) => text().includes('Another build is running')),
  );
  machine.goOn();
  expect((await Promise.all(both)).map(({ exitCode }) => exitCode)).toEqual([0, 0]);
  expect(machine.calls(compiles)).toHaveLength(1);
});

test('without a terminal the progress is printed in lines of percents', async () => {
  const machine = new Machine();
  const running = machine.start(['--no-ui', '--jobs', '2'], { FAKE_COMPILE: 'waits' });
  const said = collect(running.stdout);
  await eventually('half of it is reported', () => /^Compiling, 2 at a time: 50 %$/m.test(said()));
  machine.goOn();
  expect((await running).exitCode).toBe(0);
  expect(said()).toMatch(/^Compiling, 2 at a time: 100 %$/m);
});

test('the pinned package, its integrity and its commit have the form that the tests above replace', () => {
  const script = readFileSync(scriptFile, 'utf8');
  expect(script).toMatch(/^readonly PACKAGE='node-llama-cpp@\d+\.\d+\.\d+'$/m);
  expect(script).toMatch(/^readonly PACKAGE_COMMIT='[0-9a-f]{40}'$/m);
  expect(script).toMatch(/^readonly PACKAGE_INTEGRITY='sha512-[A-Za-z0-9+/]{86}=='$/m);
});
