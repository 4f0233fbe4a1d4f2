import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { nameAnswer, sayingItsName, writeHubModel, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { argvOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, listModels, modelEntry, post, question } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

describe('with models from the cache, a models directory and a presets file', () => {
  let url: string;

  beforeAll(async () => {
    const cache = tempDir();
    await writeHubModel(cache, 'org/two-sizes-GGUF', 'two-sizes-Q4_K_M.gguf', sayingItsName('hub-q4'));
    await writeHubModel(cache, 'org/two-sizes-GGUF', 'sub/two-sizes-Q8_0.gguf', sayingItsName('hub-q8'));

    const modelsDir = await writeModels({
      single: sayingItsName('single'),
      'Name.With-Dots_v1.5': sayingItsName('dots'),
      'folder/weights-inside': sayingItsName('folder'),
    });

    const files = await writeModels({ a: sayingItsName('preset-a'), b: sayingItsName('preset-b') });
    const presets = join(tempDir(), 'presets.ini');
    await writeFile(
      presets,
      `[qwen2.5-0.5b.v1.2]\nmodel = ${files}/a.gguf\nalias = small, gpt-4o-mini\n` +
        `[team/own:ud-q4_k_xl]\nmodel = ${files}/b.gguf\n`,
    );

    const supervisor = await startRealSupervisor({
      args: ['--models-dir', modelsDir, '--models-preset', presets, '--models-max', '0'],
      env: { LLAMA_CACHE: cache },
    });
    url = supervisor.url;
  });

  it('lists each under its id and source', async () => {
    const found = (await listModels(url)).map(({ id, source }) => [id, source]);
    expect(found).toEqual([
      ['Name.With-Dots_v1.5', 'models_dir'],
      ['folder', 'models_dir'],
      ['org/two-sizes-GGUF:Q4_K_M', 'cache'],
      ['org/two-sizes-GGUF:Q8_0', 'cache'],
      ['qwen2.5-0.5b.v1.2', 'preset'],
      ['single', 'models_dir'],
      ['team/own:Q4_K_XL', 'preset'],
    ]);
  });

  it.each([
    ['a file of the models directory', 'single', 'single'],
    ['a file with dots in its name', 'Name.With-Dots_v1.5', 'dots'],
    ['a folder of the models directory', 'folder', 'folder'],
    ['a model of the Hugging Face cache', 'org/two-sizes-GGUF:Q4_K_M', 'hub-q4'],
    ['another size of the same repository', 'org/two-sizes-GGUF:Q8_0', 'hub-q8'],
    ['a preset section with dots in its name', 'qwen2.5-0.5b.v1.2', 'preset-a'],
    ['its alias', 'small', 'preset-a'],
    ['its other alias', 'gpt-4o-mini', 'preset-a'],
    ['a preset section with a tag in its name', 'team/own:Q4_K_XL', 'preset-b'],
  ])('a request for %s, %s, is answered by that model', async (_what, name, itself) => {
    expect(await chat(url, name)).toBe(nameAnswer(itself));
  });

  it('an answer to an alias names the model itself', async () => {
    const { json } = await post(url, '/v1/chat/completions', question('small'));
    expect(json).toMatchObject({ model: 'qwen2.5-0.5b.v1.2' });
  });

  it('requests for all of them at once are each answered by their own model', async () => {
    const names = ['single', 'folder', 'org/two-sizes-GGUF:Q8_0', 'small', 'org/two-sizes-GGUF:Q4_K_M'];
    const asked = Array.from({ length: 40 }, (_, at) => names[at % names.length] ?? '');
    const answers = await Promise.all(asked.map((name) => chat(url, name)));
    const itself: Record<string, string> = {
      single: 'single',
      folder: 'folder',
      'org/two-sizes-GGUF:Q8_0': 'hub-q8',
      'org/two-sizes-GGUF:Q4_K_M': 'hub-q4',
      small: 'preset-a',
    };
    expect(answers).toEqual(asked.map((name) => nameAnswer(itself[name] ?? '')));
  });

  // Elsewhere a child's command line cannot be read.
  it.skipIf(!canListProcesses)('a model of the cache is started so that it asks no network', async () => {
    await chat(url, 'org/two-sizes-GGUF:Q4_K_M');
    const { pid, status } = await modelEntry(url, 'org/two-sizes-GGUF:Q4_K_M');
    const argv = argvOf(pid ?? 0);
    expect(argv.slice(argv.indexOf('--hf-repo'))).toContain('org/two-sizes-GGUF:Q4_K_M');
    expect(argv).toContain('--offline');
    expect(status.args).toEqual(argv);

    const { pid: local } = await modelEntry(url, 'single');
    expect(argvOf(local ?? 0)).not.toContain('--offline');
  });
});
