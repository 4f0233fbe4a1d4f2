import { spawn, spawnSync } from 'node:child_process';
import fs, {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it, vi } from 'vitest';
import { atEndOfTest } from '../../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../../helpers/eventually.js';
import { tempDir } from '../../../helpers/temp-dir.js';
import { writeFile } from '../tree.js';
import { inotifyWatches, watchInTest } from './watcher-rig.js';

const repository = fileURLToPath(new URL('../../../../', import.meta.url));

/** The watcher and what it imports, as JavaScript that a process of its own can run; gives the script. */
function compiledWatcher(): string {
  const directory = tempDir();
  writeFileSync(join(directory, 'package.json'), '{"type":"module"}');
  symlinkSync(join(repository, 'node_modules'), join(directory, 'node_modules'));
  const modules = new Set(['watching/watcher.ts']);
  for (const path of modules) {
    const source = readFileSync(join(repository, 'src/models', path), 'utf8');
    for (const [, imported = ''] of source.matchAll(/ from '(\.[^']+)\.js';/g)) {
      modules.add(`${join(dirname(path), imported)}.ts`);
    }
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2023 },
    });
    writeFile(join(directory, path.replace(/ts$/, 'js')), outputText);
  }
  writeFileSync(
    join(directory, 'watch.js'),
    `import { readdirSync, readFileSync } from 'node:fs';
    import { startWatching } from './watching/watcher.js';
    const say = (line) => console.log(JSON.stringify(line));
    const [modelsDir, usePolling] = process.argv.slice(2);
    const watching = startWatching(
      { hubCaches: [], flatCaches: [], modelsDirs: [modelsDir], files: [] },
      { usePolling: usePolling === 'polling', onChange: () => say('change'), onNotice: say },
    );
    await watching.ready;
    say('ready');
    process.stdin.on('end', () => watching.close().then(() => say('closed'))).resume();`,
  );
  return join(directory, 'watch.js');
}

/** Watches 'modelsDir' in a process of its own; 'limit' is a line of shell that is run before, as root of a new user namespace. */
function watchInProcess(modelsDir: string, { limit = '', polling = false } = {}) {
  const run = `${limit}exec "$0" "$@"`;
  const args = [process.execPath, compiledWatcher(), modelsDir, polling ? 'polling' : 'native'];
  const child =
    limit === ''
      ? spawn('sh', ['-c', run, ...args])
      : spawn('unshare', ['--user', '--map-root-user', 'sh', '-c', run, ...args]);
  atEndOfTest(() => {
    child.kill('SIGKILL');
  });
  const lines: string[] = [];
  const errors: string[] = [];
  createInterface(child.stdout).on('line', (line) => lines.push(JSON.parse(line) as string));
  child.stderr.on('data', (chunk: Buffer) => errors.push(chunk.toString()));
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
  return {
    lines,
    until: (line: string, times = 1) =>
      eventually(
        `'${line}'`,
        () => {
          if (lines.filter((one) => one === line).length < times)
            throw new Error(errors.join('') || lines.join());
          return true;
        },
        { deadlineMs: 20_000 },
      ),
    /** Closes the watcher; the process then ends by itself if nothing is left of it. */
    close: async () => {
      child.stdin.end();
      const code = await withDeadline('nothing keeps the process alive', exited, 5_000);
      return { code, errors: errors.join('') };
    },
  };
}

function canLimitInotify(): boolean {
  const attempt = 'echo 100 > /proc/sys/user/max_inotify_watches';
  return spawnSync('unshare', ['--user', '--map-root-user', 'sh', '-c', attempt]).status === 0;
}

function manyDirectories(count: number): string {
  const dir = tempDir();
  for (let number = 0; number < count; number += 1) writeFile(join(dir, `model-${number}`, 'a.gguf'));
  return dir;
}

/** Has every further fs.watch of this process fail, as it does at the limit. */
function failToWatch(code: 'ENOSPC' | 'EMFILE'): void {
  const spy = vi.spyOn(fs, 'watch').mockImplementation((path) => {
    throw Object.assign(new Error(`${code}: watch '${String(path)}'`), { code, path });
  });
  // chokidar has imported the function by name.
  syncBuiltinESMExports();
  atEndOfTest(() => {
    spy.mockRestore();
    syncBuiltinESMExports();
  });
}

describe("at the system's limit", () => {
  it.for([
    { limit: 'max_inotify_watches', value: 3, remedy: 'sysctl fs.inotify.max_user_watches=524288' },
    { limit: 'max_inotify_instances', value: 0, remedy: 'sysctl fs.inotify.max_user_instances=1024' },
  ])('$limit, changes are looked for, with one notice of how to raise it', async (row, context) => {
    if (!canLimitInotify()) context.skip('limiting inotify needs user namespaces');
    const dir = manyDirectories(6);
    const limit = `echo ${row.value} > /proc/sys/user/${row.limit}; `;
    const { lines, until, close } = watchInProcess(dir, { limit });
    await until('ready');
    expect(lines).toEqual([expect.stringContaining(row.remedy), 'ready']);
    appendFileSync(join(dir, 'model-5', 'a.gguf'), 'more');
    await until('change', 1);
    writeFile(join(dir, 'model-6', 'a.gguf'));
    await until('change', 2);
    expect(await close()).toEqual({ code: 0, errors: '' });
    expect(lines).toEqual([expect.any(String), 'ready', 'change', 'change', 'closed']);
  });

  it.each(['ENOSPC', 'EMFILE'] as const)('reached later (%s), changes go on being told', async (code) => {
    const dir = manyDirectories(2);
    const file = writeFile(join(tempDir(), 'presets.ini'));
    const before = inotifyWatches();
    const { tellsOfCatalog, tellsOfFile, notices } = await watchInTest({ modelsDirs: [dir], files: [file] });
    failToWatch(code);
    await tellsOfCatalog('the last change that made an event', () => writeFile(join(dir, 'last', 'a.gguf')));
    await tellsOfCatalog('growth', () => appendFileSync(join(dir, 'last', 'a.gguf'), 'more'));
    await tellsOfFile('an edit', file, () => appendFileSync(file, '[a]'));
    expect(inotifyWatches()).toBe(before);
    expect(notices).toEqual([
      expect.stringMatching(/^looking for changes on disk every 5 s, because fs\.inotify\.max_user_/),
    ]);
  });
});

describe('polling', () => {
  it('tells of what appears, grows, is replaced and goes, without a notice and without a watch', async () => {
    const dir = manyDirectories(3);
    const file = writeFile(join(tempDir(), 'presets.ini'), '[a]');
    const before = inotifyWatches();
    const { tellsOfCatalog, tellsOfFile, notices } = await watchInTest(
      { modelsDirs: [dir], files: [file] },
      { usePolling: true },
    );
    await tellsOfCatalog('growth', () => appendFileSync(join(dir, 'model-1', 'a.gguf'), 'more'));
    await tellsOfCatalog('a directory', () => writeFile(join(dir, 'new', 'a.gguf')));
    await tellsOfCatalog('growth in it', () => appendFileSync(join(dir, 'new', 'a.gguf'), 'more'));
    await tellsOfCatalog('another in its place', () => {
      rmSync(join(dir, 'new'), { recursive: true });
      writeFile(join(dir, 'new', 'a.gguf'));
    });
    await tellsOfCatalog('growth of that', () => appendFileSync(join(dir, 'new', 'a.gguf'), 'more'));
    await tellsOfCatalog('its end', () => rmSync(join(dir, 'new', 'a.gguf')));
    await tellsOfFile('an edit', file, () => writeFileSync(file, '[b]'));
    expect(inotifyWatches()).toBe(before);
    expect(notices).toEqual([]);
  });

  it('leaves nothing when it is closed', async () => {
    const { until, close } = watchInProcess(manyDirectories(3), { polling: true });
    await until('ready');
    expect(await close()).toEqual({ code: 0, errors: '' });
  });
});

describe('what may not be read', () => {
  it('is skipped with one notice, and watched once it may be', async () => {
    const dir = manyDirectories(2);
    const closed = join(dir, 'model-0');
    const file = join(closed, 'a.gguf');
    chmodSync(closed, 0);
    const asRoot = becomeNobody(dir);
    const { tellsOfCatalog, notices } = await watchInTest({ modelsDirs: [dir] });
    await tellsOfCatalog('a file elsewhere', () => asRoot(() => writeFile(join(dir, 'model-1', 'b.gguf'))));
    await tellsOfCatalog('another', () => asRoot(() => writeFile(join(dir, 'model-1', 'c.gguf'))));
    expect(notices).toEqual([`changes in '${closed}' are not noticed: EACCES; let this user read them`]);
    await tellsOfCatalog('the permission', () => asRoot(() => chmodSync(closed, 0o755)));
    await tellsOfCatalog('growth', () => asRoot(() => appendFileSync(file, 'more')));
  });

  it('is summed up in one notice, said again only when there is much more of it', async () => {
    const dir = manyDirectories(1_200);
    const close = (from: number, to: number): void => {
      for (let number = from; number < to; number += 1) chmodSync(join(dir, `model-${number}`), 0);
    };
    close(0, 400);
    const asRoot = becomeNobody(dir);
    const { tellsOfCatalog, notices } = await watchInTest({ modelsDirs: [dir] });
    const notice = (count: string): unknown =>
      expect.stringMatching(
        new RegExp(`^changes in ${count} directories \\(first '${dir}/.*'\\) are not noticed: EACCES; let`),
      );
    expect(notices).toEqual([notice('400')]);
    await tellsOfCatalog('a model', () => asRoot(() => writeFile(join(dir, 'a.gguf'))));
    await tellsOfCatalog('some more', () => asRoot(() => close(400, 500)));
    expect(notices).toEqual([notice('400')]);
    await tellsOfCatalog('many more', () => asRoot(() => close(500, 1_200)));
    await tellsOfCatalog('another model', () => asRoot(() => writeFile(join(dir, 'b.gguf'))));
    expect(notices).toEqual([notice('400'), notice('1,200')]);
  });

  it('may be all of a target', async () => {
    const parent = tempDir();
    const [dir, file] = [join(parent, 'models'), writeFile(join(parent, 'presets.ini'))];
    mkdirSync(dir);
    chmodSync(dir, 0);
    chmodSync(file, 0);
    const asRoot = becomeNobody(parent);
    const { tellsOfCatalog, tellsOfFile, notices } = await watchInTest({ modelsDirs: [dir], files: [file] });
    expect(notices.toSorted()).toEqual([
      `changes in '${dir}' are not noticed: EACCES; let this user read them`,
      `changes in '${file}' are not noticed: EACCES; let this user read them`,
    ]);
    await tellsOfCatalog('the permission of the directory', () => asRoot(() => chmodSync(dir, 0o755)));
    await tellsOfCatalog('a model', () => asRoot(() => writeFile(join(dir, 'a.gguf'))));
    await tellsOfFile('the permission of the file', file, () => asRoot(() => chmodSync(file, 0o644)));
    await tellsOfFile('an edit', file, () => asRoot(() => writeFileSync(file, '[a]')));
  });
});

/** Root may read everything: it becomes somebody else until the test ends. Returns how to do one thing as before. */
function becomeNobody(directory: string): (act: () => void) => void {
  const nobody = 65_534;
  if (process.getuid?.() !== 0) return (act) => act();
  chmodSync(directory, 0o755);
  process.seteuid?.(nobody);
  atEndOfTest(() => process.seteuid?.(0));
  return (act) => {
    process.seteuid?.(0);
    act();
    process.seteuid?.(nobody);
  };
}
