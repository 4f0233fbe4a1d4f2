import {
  appendFileSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import {
  endless,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeHubModel,
  writeModels,
} from '../helpers/known-answer-models.js';
import { argvOf, childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  errorIn,
  get,
  listModels,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
} from '../helpers/supervisor-client.js';
import type { SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

/** Writes a file as an editor does that never shows half of it. */
function replaceFile(path: string, text: string): void {
  writeFileSync(`${path}.new`, text);
  renameSync(`${path}.new`, path);
}

async function ids(url: string): Promise<string[]> {
  return (await listModels(url)).map(({ id }) => id);
}

async function untilListed(url: string, wanted: string[]): Promise<void> {
  await eventually(`${wanted.join(', ')} are listed`, async () => {
    const listed = await ids(url);
    if (listed.join() !== wanted.join()) throw new Error(`the list is ${listed.join(', ')}`);
    return true;
  });
}

/** The value that follows an option in a running child's arguments. */
function argument(pid: number | undefined, name: string): string | undefined {
  const argv = argvOf(pid ?? 0);
  const at = argv.indexOf(name);
  return at === -1 ? undefined : argv[at + 1];
}

/** A line of the log about a model. */
function logged(supervisor: SupervisorProcess, msg: string, model: string) {
  return supervisor.log().filter((line) => line.msg === msg && line['model'] === model);
}

describe('models on disk', () => {
  it('are served when they appear and unlisted when they go, in a directory and in the cache', async () => {
    const dir = await writeModels({ first: sayingItsName('first') });
    const cache = tempDir();
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir],
      env: { LLAMA_CACHE: undefined, HF_HUB_CACHE: join(cache, 'not', 'there', 'yet') },
    });
    expect(await ids(url)).toEqual(['first']);

    await writeModels({ second: sayingItsName('second'), 'folder/weights': sayingItsName('weights') }, dir);
    await writeHubModel(
      join(cache, 'not', 'there', 'yet'),
      'org/repo',
      'repo-Q4_0.gguf',
      sayingItsName('hub'),
    );
    await untilListed(url, ['first', 'folder', 'org/repo:Q4_0', 'second']);
    expect(await chat(url, 'second')).toBe(nameAnswer('second'));
    expect(await chat(url, 'folder')).toBe(nameAnswer('weights'));
    expect(await chat(url, 'org/repo:Q4_0')).toBe(nameAnswer('hub'));

    rmSync(join(dir, 'second.gguf'));
    rmSync(join(cache, 'not'), { recursive: true });
    await untilListed(url, ['first', 'folder']);
    const refused = await post(url, '/v1/chat/completions', question('second'));
    expect(refused.status).toBe(400);
  });

  it('that go while they are busy finish the answers they have begun', async () => {
    const talker = endless();
    const dir = await writeModels({ talker });
    const supervisor = await startRealSupervisor({ args: ['--models-dir', dir] });
    const { url } = supervisor;
    const stream = streamChat(url, 'talker', { max_tokens: 5000 });
    await stream.untilPieces(1);
    rmSync(join(dir, 'talker.gguf'));
    await untilListed(url, []);
    expect((await stream.ended()).complete).toBe(true);
    expect(stream.pieces()).toEqual(piecesOf(talker, 5000));
    const stopping = await eventually(
      'it is stopped',
      () => logged(supervisor, 'model.stopping', 'talker')[0],
    );
    expect(stopping['reason']).toBe('removed');
    await eventually('its process is gone', () => childrenOf(supervisor).length === 0);
  });

  it('that are still being written are failed with the reason, refused, and served once they are whole', async () => {
    const whole = readFileSync(join(await writeModels({ big: sayingItsName('big') }), 'big.gguf'));
    const dir = await writeModels({ other: sayingItsName('other') });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    expect(await chat(url, 'other')).toBe(nameAnswer('other'));
    const { pid } = await modelEntry(url, 'other');

    const file = join(dir, 'big.gguf');
    const half = Math.floor(whole.length / 2);
    writeFileSync(file, whole.subarray(0, half));
    const { status } = await eventually('it is listed as failed', async () => {
      const entry = await modelEntry(url, 'big');
      return entry.status.failed === true && entry;
    });
    expect(status).toMatchObject({ value: 'unloaded', error: { reason: 'model_invalid' } });
    expect(status.error?.message).toMatch(/big\.gguf' is still being written/);
    const refused = await post(url, '/v1/chat/completions', question('big'));
    expect(refused.status).toBe(503);
    expect(errorIn(refused.text).message).toMatch(/still being written/);
    expect((await modelEntry(url, 'other')).pid).toBe(pid);

    appendFileSync(file, whole.subarray(half));
    await eventually('it is served', async () => (await modelEntry(url, 'big')).status.failed !== true);
    expect(await chat(url, 'big')).toBe(nameAnswer('big'));
  });

  it('that are truncated are never loaded, and no model has to make room for them', async () => {
    const dir = await writeModels({ cut: sayingItsName('cut'), other: sayingItsName('other') });
    const supervisor = await startRealSupervisor({
      args: ['--models-dir', dir, '--models-max', '1', '--no-watch'],
    });
    const { url } = supervisor;
    expect(await chat(url, 'other')).toBe(nameAnswer('other'));
    const { pid } = await modelEntry(url, 'other');
    truncateSync(join(dir, 'cut.gguf'), 500_000);
    for (const path of ['/v1/chat/completions', '/models/load']) {
      const refused = await post(url, path, question('cut'));
      expect(refused.status).toBe(503);
      expect(errorIn(refused.text)).toMatchObject({ reason: 'model_invalid', model: 'cut' });
    }
    expect((await modelEntry(url, 'other')).pid).toBe(pid);
    expect(logged(supervisor, 'model.loading', 'cut')).toEqual([]);
  });

  it('that are replaced are served in their new form, without a restart', async () => {
    const dir = await writeModels({ model: sayingItsName('old') });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    expect(await chat(url, 'model')).toBe(nameAnswer('old'));
    const fresh = await writeModels({ model: sayingItsName('brand-new') });
    renameSync(join(fresh, 'model.gguf'), join(dir, 'model.gguf'));
    await untilStatus(url, 'model', 'unloaded');
    expect(await chat(url, 'model')).toBe(nameAnswer('brand-new'));
  });
});

describe('a presets file that is edited', () => {
  async function serve(sections: (dir: string) => string, args: string[] = []) {
    const dir = await writeModels({ a: endless('a-'), b: endless('b-') });
    const file = join(tempDir(), 'presets.ini');
    writeFileSync(file, sections(dir));
    const supervisor = await startRealSupervisor({ args: ['--models-preset', file, ...args] });
    return { dir, file, supervisor, url: supervisor.url };
  }
  const both = (dir: string, contextOfA: number) =>
    `[one]\nmodel = ${dir}/a.gguf\nctx-size = ${contextOfA}\n[two]\nmodel = ${dir}/b.gguf\n`;

  it('leaves unchanged models and their streams alone, and starts the changed one anew', async () => {
    const { dir, file, url } = await serve((models) => both(models, 256));
    await chat(url, 'one', { max_tokens: 1 });
    const stream = streamChat(url, 'two', { max_tokens: 5000 });
    await stream.untilPieces(1);
    const before = [await modelEntry(url, 'one'), await modelEntry(url, 'two')];
    expect(argument(before[0]?.pid, '--ctx-size')).toBe('256');

    replaceFile(file, both(dir, 512));
    await untilStatus(url, 'one', 'unloaded');
    await chat(url, 'one', { max_tokens: 1 });
    const after = [await modelEntry(url, 'one'), await modelEntry(url, 'two')];
    expect(argument(after[0]?.pid, '--ctx-size')).toBe('512');
    expect(after[1]?.pid).toBe(before[1]?.pid);
    expect((await stream.ended()).complete).toBe(true);
    expect(stream.pieces()).toEqual(piecesOf(endless('b-'), 5000));
  });

  it('lets a busy model end its answers first, and the request that waited gets the new form', async () => {
    const { dir, file, supervisor, url } = await serve((models) => both(models, 8192));
    const stream = streamChat(url, 'one', { max_tokens: 6000 });
    await stream.untilPieces(1);
    const old = await modelEntry(url, 'one');
    replaceFile(file, both(dir, 512));
    await eventually('the change is seen', () =>
      supervisor.log().some(({ msg, changed }) => msg === 'catalog.changed' && String(changed) === 'one'),
    );
    const meanwhile = chat(url, 'one', { max_tokens: 2 });
    expect((await stream.ended()).complete).toBe(true);
    expect(stream.pieces()).toEqual(piecesOf(endless('a-'), 6000));
    expect(await meanwhile).toBe('a-1 a-2');
    const fresh = await modelEntry(url, 'one');
    expect(fresh.pid).not.toBe(old.pid);
    expect(argument(fresh.pid, '--ctx-size')).toBe('512');
  });

  it('tells a request when the old form is still busy after --fair-after', async () => {
    const { dir, file, supervisor, url } = await serve(
      (models) => both(models, 65536),
      ['--fair-after', '1'],
    );
    const stream = streamChat(url, 'one', { max_tokens: -1 });
    await stream.untilPieces(1);
    replaceFile(file, both(dir, 512));
    await eventually('the change is seen', () =>
      supervisor.log().some(({ msg }) => msg === 'catalog.changed'),
    );
    const refused = await post(url, '/v1/chat/completions', question('one'));
    expect(refused.status).toBe(503);
    expect(errorIn(refused.text)).toMatchObject({ reason: 'model_changing', model: 'one' });
    expect(refused.headers['retry-after']).toMatch(/^\d+$/);
    const pieces = stream.pieces().length;
    await stream.untilPieces(pieces + 10);
  });

  it('keeps the last good form of a section that is broken now, marked, and says what is wrong', async () => {
    const { dir, file, supervisor, url } = await serve((models) => both(models, 256));
    await chat(url, 'one', { max_tokens: 1 });
    const { pid } = await modelEntry(url, 'one');
    replaceFile(
      file,
      `[one]\nmodel = ${dir}/a.gguf\nctx-sise = 512\n[two]\nmodel = ${dir}/b.gguf\nctx-size = 512\n`,
    );
    const stale = await eventually('it is marked', async () => {
      const entry = (await modelEntry(url, 'one')) as { stale?: string; pid?: number };
      return entry.stale !== undefined && entry;
    });
    expect(stale.stale).toMatch(/presets\.ini:3: unknown option 'ctx-sise', did you mean 'ctx-size'/);
    expect(stale.pid).toBe(pid);
    expect(await chat(url, 'one', { max_tokens: 2 })).toBe('a-1 a-2');
    await chat(url, 'two', { max_tokens: 1 });
    expect(argument((await modelEntry(url, 'two')).pid, '--ctx-size')).toBe('512');
    await eventually(
      'it is told',
      () => logged(supervisor, 'model is served in its last good form', 'one').length === 1,
    );

    replaceFile(file, both(dir, 256));
    await eventually('the mark is gone', async () => !('stale' in (await modelEntry(url, 'one'))));
    expect((await modelEntry(url, 'one')).pid).toBe(pid);
  });

  it('that vanishes costs no model', async () => {
    const { file, url } = await serve((models) => both(models, 256));
    rmSync(file);
    await eventually('both are marked', async () =>
      (await listModels(url)).every((entry) => 'stale' in entry),
    );
    expect(await chat(url, 'two', { max_tokens: 1 })).toBe('b-1');
  });
});

describe('without watching', () => {
  it.each([
    [
      'GET /models?reload=1',
      async ({ url }: SupervisorProcess) => {
        await get(url, '/models?reload=1');
      },
    ],
    [
      'SIGHUP',
      async (supervisor: SupervisorProcess) => {
        process.kill(supervisor.pid, 'SIGHUP');
        await eventually('it has looked', () => supervisor.log().some(({ msg }) => msg === 'reloaded'));
      },
    ],
  ])('%s looks for models, and nothing else does', async (_name, reload) => {
    const dir = await writeModels({ first: sayingItsName('first') });
    const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--no-watch'] });
    await writeModels({ second: sayingItsName('second') }, dir);
    expect(await ids(supervisor.url)).toEqual(['first']);
    await reload(supervisor);
    expect(await ids(supervisor.url)).toEqual(['first', 'second']);
    expect(await chat(supervisor.url, 'second')).toBe(nameAnswer('second'));
  });

  it('a sleeping disk is no matter: --watch-polling sees changes, too', async () => {
    const dir = tempDir();
    mkdirSync(join(dir, 'models'));
    const { url } = await startRealSupervisor({
      args: ['--models-dir', join(dir, 'models'), '--watch-polling'],
    });
    await writeModels({ late: sayingItsName('late') }, join(dir, 'models'));
    await untilListed(url, ['late']);
  });
});

it('a keys file that is edited counts from then on; of one that is emptied none is left', async () => {
  const dir = await writeModels({ model: sayingItsName('model') });
  const file = join(tempDir(), 'keys');
  writeFileSync(file, '# ours\nold-key\n');
  const supervisor = await startRealSupervisor({
    args: ['--models-dir', dir, '--api-key', 'fixed', '--api-key-file', file],
  });
  const { url } = supervisor;
  const accepted = async (key: string) =>
    (await get(url, '/models', { authorization: `Bearer ${key}` })).status === 200;
  expect([await accepted('fixed'), await accepted('old-key'), await accepted('new-key')]).toEqual([
    true,
    true,
    false,
  ]);

  replaceFile(file, 'new-key\n');
  await eventually('the new key is accepted', () => accepted('new-key'));
  expect([await accepted('fixed'), await accepted('old-key')]).toEqual([true, false]);

  replaceFile(file, '# none\n');
  await eventually('the new key is refused', async () => !(await accepted('new-key')));
  expect([await accepted('fixed'), await accepted('')]).toEqual([true, false]);
});
