import { describe, expect, test } from 'vitest';
import { RouterError } from '../../../../src/errors.js';
import { planDownload, type DownloadPlan } from '../../../../src/models/hub/download-plan.js';
import { parseHubName } from '../../../../src/models/hub/hub-name.js';

const commit = 'c'.repeat(40);
const oid = 'a'.repeat(64);

/** The plan for `name` when the hub lists these paths; each file is as long as its path. */
function plan(name: string, paths: readonly string[]): DownloadPlan {
  const files = paths.map((path) => ({ path, oid, sizeBytes: path.length }));
  return planDownload(parseHubName(name), { commit, files }, '/cache');
}

function refusal(act: () => unknown): RouterError {
  try {
    act();
  } catch (error) {
    if (error instanceof RouterError) return error;
    throw error;
  }
  throw new Error('it was not refused');
}

const pathsOf = (planned: DownloadPlan): string[] => planned.files.map(({ path }) => path);

describe('a name', () => {
  test.each([
    ['me/model', 'me/model', undefined],
    ['me/model:', 'me/model', undefined],
    ['me/model:Q4_K_M', 'me/model', 'Q4_K_M'],
    ['a.b-c/d_e.f:UD-Q4_K_XL', 'a.b-c/d_e.f', 'UD-Q4_K_XL'],
  ])('%s is that of a repository', (name, repo, tag) => {
    expect(parseHubName(name)).toEqual({ repo, tag });
  });

  test.each([
    'model',
    'a/b/c',
    '/model',
    'me/',
    '../model',
    'me/..',
    'me/mo del',
    'me/model\n',
    `me/${'m'.repeat(256)}`,
    'me/model:Q4_0:Q8_0',
    'me/model:.*(',
    `me/model:${'Q'.repeat(129)}`,
    ':Q4_0',
    '',
  ])('%j is none', (name) => {
    const { code, message } = refusal(() => parseHubName(name));
    expect({ code, message }).toEqual({
      code: 'hub_name_invalid',
      message: 'error: invalid HF repo format, expected <user>/<model>[:quant]',
    });
  });
});

describe('what is downloaded', () => {
  test('is the file of the quantisation that is named, however it is spelled', () => {
    const paths = ['README.md', 'm-Q4_0.gguf', 'm-Q8_0.gguf'];
    expect(pathsOf(plan('me/model:q8_0', paths))).toEqual(['m-Q8_0.gguf']);
    expect(plan('me/model:q8_0', paths).modelId).toBe('me/model:Q8_0');
  });

  test.each([
    [['m-F16.gguf', 'm-Q8_0.gguf', 'm-Q4_K_M.gguf'], 'me/model:Q4_K_M'],
    [['m-F16.gguf', 'm-Q8_0.gguf'], 'me/model:Q8_0'],
    [['m-F16.gguf', 'm-Q2_K.gguf'], 'me/model:F16'],
  ])('of %j without one is the one that llama-server takes', (paths, id) => {
    expect(plan('me/model', paths).modelId).toBe(id);
  });

  test('are all parts of the model, and the projector that is nearest to it', () => {
    const paths = [
      'q/m-Q4_0-00002-of-00002.gguf',
      'q/m-Q4_0-00001-of-00002.gguf',
      'q/m-Q8_0-00001-of-00002.gguf',
      'mmproj-F16.gguf',
      'mmproj-Q4_0.gguf',
      'other/mmproj-Q4_0.gguf',
    ];
    const planned = plan('me/model:Q4_0', paths);
    expect(planned.model.map(({ path }) => path)).toEqual(paths.slice(0, 2));
    expect(pathsOf(planned)).toEqual([...paths.slice(0, 2), 'mmproj-Q4_0.gguf']);
  });

  test('goes where llama-server puts it: by its hash, and by its name in the snapshot', () => {
    expect(plan('me/model', ['d/m-Q4_0.gguf'])).toMatchObject({
      folder: '/cache/models--me--model',
      commit,
      files: [
        {
          sizeBytes: 13,
          finalPath: `/cache/models--me--model/snapshots/${commit}/d/m-Q4_0.gguf`,
          bytesPath: `/cache/models--me--model/blobs/${oid}`,
          partialPath: `/cache/models--me--model/blobs/${oid}.downloadInProgress`,
        },
      ],
    });
  });

  test('without a hash goes under its name at once', () => {
    const files = [{ path: 'm-Q4_0.gguf', oid: undefined, sizeBytes: undefined }];
    const [file] = planDownload(parseHubName('me/model'), { commit, files }, '/cache').files;
    expect(file?.bytesPath).toBe(file?.finalPath);
  });

  test('has no name in the catalog when its file bears no quantisation', () => {
    expect(plan('me/model', ['model.gguf']).modelId).toBeUndefined();
  });

  test('is nothing that would lead out of the cache', () => {
    const files = ['../m-Q4_0.gguf', '/m-Q4_0.gguf', 'a/../../m-Q4_0.gguf'];
    expect(refusal(() => plan('me/model', files)).code).toBe('hub_not_found');
    const odd = [{ path: 'm-Q4_0.gguf', oid: '../../../m', sizeBytes: 1 }];
    const act = () => planDownload(parseHubName('me/model'), { commit, files: odd }, '/cache');
    expect(refusal(act).code).toBe('hub_not_found');
  });
});

describe('a repository', () => {
  test.each([
    ['of other files', 'me/model', ['README.md'], "'me/model' holds no GGUF model"],
    ['of a projector alone', 'me/model:F16', ['mmproj-F16.gguf'], "'me/model' holds no GGUF model"],
    [
      'without that quantisation',
      'me/model:Q9',
      ['m-Q4_0.gguf', 'm-Q8_0.gguf', 'mmproj-F16.gguf'],
      "'me/model' has no quantisation 'Q9'; there are Q4_0, Q8_0",
    ],
    [
      'of a model without one',
      'me/model:Q9',
      ['m.gguf'],
      "'me/model' has no quantisation 'Q9'; name it without one",
    ],
    [
      'with one part of two',
      'me/model',
      ['m-Q4_0-00001-of-00002.gguf'],
      "'me/model' has 1 of the 2 parts of 'm-Q4_0-00001-of-00002.gguf'",
    ],
    [
      'of presets',
      'me/model',
      ['preset.ini', 'm-Q4_0.gguf'],
      "'me/model' holds presets and no single model; start with --hf-repo me/model to serve them",
    ],
  ])('%s is refused, saying what there is', (_, name, paths, message) => {
    const error = refusal(() => plan(name, paths));
    expect({ code: error.code, message: error.message }).toEqual({ code: 'hub_not_found', message });
  });

  test('of very many quantisations has only the first named', () => {
    const paths = Array.from({ length: 100 }, (_, n) => `m-T${n}.gguf`);
    const { message } = refusal(() => plan('me/model:Q4_0', paths));
    expect(message).toMatch(/ T63, …$/);
  });
});
