import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { writeKnownAnswerModel } from '../../src/demo/known-answer-model.js';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { nameAnswer, sayingItsName, writeHubModel } from '../helpers/known-answer-models.js';
import { argvOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, get, listModels, modelEntry, type ModelEntry } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';
import { boolPair, ggufWith, stringPair } from '../unit/models/gguf-header.js';

/** What is kept of a download beside the file: its origin, and in some versions its ETag in a file of its own. */
function writeTraces(file: string): void {
  const url = 'https://huggingface.co/org/repo/resolve/main/file.gguf';
  const origin = { etag: '"0123"', lastModified: 'Thu, 29 Feb 2024 12:00:00 GMT', url };
  writeFileSync(`${file}.json`, JSON.stringify(origin));
  writeFileSync(`${file}.etag`, '"0123"');
}

/** A model as an earlier llama.cpp left it after a download; it says the name of its file. */
async function writeFlatModel(cache: string, name: string): Promise<string> {
  const file = join(cache, `${name}.gguf`);
  await writeKnownAnswerModel(file, { name, ...sayingItsName(name) });
  writeTraces(file);
  return file;
}

/** What the hub said of `user/repo:tag` at that time. */
function writeManifest(cache: string, repo: string, tag: string, model: string, mmproj?: string): void {
  const file = (rfilename: string) => ({ rfilename, size: 1, lfs: { sha256: '0'.repeat(64), size: 1 } });
  const manifest = { ggufFile: file(model), ...(mmproj !== undefined && { mmprojFile: file(mmproj) }) };
  const name = `manifest=${repo.replace('/', '=')}=${tag}.json`;
  writeFileSync(join(cache, name), JSON.stringify(manifest));
}

/** A cache with two quantisations of one repository, of which the one without a tag means the first. */
async function writeFlatCache(): Promise<string> {
  const cache = tempDir();
  await writeFlatModel(cache, 'org_tiny-GGUF_tiny-Q4_K_M');
  await writeFlatModel(cache, 'org_tiny-GGUF_tiny-Q8_0');
  writeManifest(cache, 'org/tiny-GGUF', 'latest', 'tiny-Q4_K_M.gguf');
  writeManifest(cache, 'org/tiny-GGUF', 'Q8_0', 'tiny-Q8_0.gguf');
  return cache;
}

async function start(env: Record<string, string | undefined>, args: string[] = []) {
  // Nobody listens there: whatever asks the hub fails.
  const endpoint = `http://127.0.0.1:${await freePort()}/`;
  return await startRealSupervisor({ args, env: { HF_ENDPOINT: endpoint, ...env } });
}

function named(models: readonly ModelEntry[]) {
  return models.map(({ id, aliases, source }) => ({ id, aliases, source }));
}

describe('the cache of an earlier llama.cpp', () => {
  it('is served by ids of the hub, and by the repository that was downloaded without a tag', async () => {
    const cache = await writeFlatCache();
    await writeFlatModel(cache, 'stories15M-q4_0');
    writeFileSync(join(cache, 'org_tiny-GGUF_tiny-F16.gguf.downloadInProgress'), 'half of it');
    const { url } = await start({ LLAMA_CACHE: cache });
    expect(named(await listModels(url))).toEqual([
      { id: 'org/tiny-GGUF:Q4_K_M', aliases: ['org/tiny-GGUF'], source: 'cache' },
      { id: 'org/tiny-GGUF:Q8_0', aliases: [], source: 'cache' },
      { id: 'stories15M-q4_0', aliases: [], source: 'cache' },
    ]);
    for (const [asked, file] of [
      ['org/tiny-GGUF:Q4_K_M', 'org_tiny-GGUF_tiny-Q4_K_M'],
      ['org/tiny-GGUF', 'org_tiny-GGUF_tiny-Q4_K_M'],
      ['org/tiny-GGUF:Q8_0', 'org_tiny-GGUF_tiny-Q8_0'],
      ['stories15M-q4_0', 'stories15M-q4_0'],
    ] as const) {
      expect(await chat(url, asked)).toBe(nameAnswer(file));
    }
    // The alias means the model that was loaded by its id, in a query, too.
    expect((await get(url, `/props?model=${encodeURIComponent('org/tiny-GGUF')}`)).json).toMatchObject({
      model_path: join(cache, 'org_tiny-GGUF_tiny-Q4_K_M.gguf'),
    });
  });

  it('gives a model the projector that its manifest names', async () => {
    const cache = tempDir();
    await writeFlatModel(cache, 'org_eyes-GGUF_eyes-Q4_0');
    const pairs = [stringPair('general.architecture', 'clip'), boolPair('clip.has_vision_encoder', true)];
    const projector = join(cache, 'org_eyes-GGUF_mmproj-eyes-f16.gguf');
    writeFileSync(projector, ggufWith({ pairs }));
    writeTraces(projector);
    writeManifest(cache, 'org/eyes-GGUF', 'latest', 'eyes-Q4_0.gguf', 'mmproj-eyes-f16.gguf');
    const { url } = await start({ LLAMA_CACHE: cache });
    const [model, ...others] = await eventually('its modalities are known', async () => {
      const models = await listModels(url);
      expect(models[0]).toMatchObject({ architecture: { input_modalities: ['text', 'image'] } });
      return models;
    });
    expect(others).toEqual([]);
    expect(model?.id).toBe('org/eyes-GGUF:Q4_0');
    const args = model?.status.args ?? [];
    expect(args[args.indexOf('--mmproj') + 1]).toBe(projector);
  });

  it('is found in the place it had when nothing names another, beside that of the hub', async () => {
    const cacheHome = tempDir();
    const hubCache = tempDir();
    const { url } = await start(
      { LLAMA_CACHE: undefined, XDG_CACHE_HOME: cacheHome, HF_HUB_CACHE: hubCache },
      [],
    );
    expect(await listModels(url)).toEqual([]);
    mkdirSync(join(cacheHome, 'llama.cpp'));
    await writeFlatModel(join(cacheHome, 'llama.cpp'), 'org_old-GGUF_old-Q4_0');
    await writeHubModel(hubCache, 'org/new-GGUF', 'new-Q4_0.gguf', sayingItsName('new'));
    await eventually('both are listed', async () => {
      expect((await listModels(url)).map(({ id }) => id)).toEqual(['org/new-GGUF:Q4_0', 'org/old-GGUF:Q4_0']);
      return true;
    });
    expect(await chat(url, 'org/old-GGUF:Q4_0')).toBe(nameAnswer('org_old-GGUF_old-Q4_0'));
    expect(await chat(url, 'org/new-GGUF:Q4_0')).toBe(nameAnswer('new'));
  });

  it('and the hub’s layout in one directory are both read; what both hold is listed once, as the hub has it', async () => {
    const cache = await writeFlatCache();
    await writeHubModel(cache, 'org/tiny-GGUF', 'tiny-Q4_K_M.gguf', sayingItsName('from-the-hub'));
    const { url } = await start({ LLAMA_CACHE: cache });
    const models = await listModels(url);
    expect(models.map(({ id }) => id)).toEqual(['org/tiny-GGUF:Q4_K_M', 'org/tiny-GGUF:Q8_0']);
    expect(models[0]?.aliases).toEqual(['org/tiny-GGUF']);
    expect(await chat(url, 'org/tiny-GGUF:Q4_K_M')).toBe(nameAnswer('from-the-hub'));
    expect(await chat(url, 'org/tiny-GGUF')).toBe(nameAnswer('from-the-hub'));
    expect(await chat(url, 'org/tiny-GGUF:Q8_0')).toBe(nameAnswer('org_tiny-GGUF_tiny-Q8_0'));
  });

  it('spares a section that names its repository the download', async () => {
    const cache = await writeFlatCache();
    const presets = join(tempDir(), 'presets.ini');
    writeFileSync(
      presets,
      '[mine]\nhf-repo = org/tiny-GGUF:Q8_0\nctx-size = 512\n[plain]\nhf-repo = org/tiny-GGUF\n',
    );
    const { url } = await start({ LLAMA_CACHE: cache }, ['--models-preset', presets]);
    expect(await chat(url, 'mine')).toBe(nameAnswer('org_tiny-GGUF_tiny-Q8_0'));
    expect(await chat(url, 'plain')).toBe(nameAnswer('org_tiny-GGUF_tiny-Q4_K_M'));
    const argv = argvOf((await modelEntry(url, 'mine')).pid ?? 0);
    expect(argv[argv.indexOf('--model') + 1]).toBe(join(cache, 'org_tiny-GGUF_tiny-Q8_0.gguf'));
    expect(argv[argv.indexOf('--ctx-size') + 1]).toBe('512');
    expect(argv).not.toContain('--hf-repo');
  });

  it('is followed: what is deleted is unlisted, and so is the alias of a manifest', async () => {
    const cache = await writeFlatCache();
    const { url } = await start({ LLAMA_CACHE: cache });
    expect(await listModels(url)).toHaveLength(2);
    rmSync(join(cache, 'org_tiny-GGUF_tiny-Q8_0.gguf'));
    rmSync(join(cache, 'manifest=org=tiny-GGUF=latest.json'));
    await eventually('the list has followed', async () => {
      expect(named(await listModels(url))).toEqual([
        { id: 'org/tiny-GGUF:Q4_K_M', aliases: [], source: 'cache' },
      ]);
      return true;
    });
  });
});
