import { describe, expect, it } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import type { DownloadView } from '../../../src/http/download-routes.js';
import { findModel } from '../../../src/http/find-model.js';
import { createCatalog } from '../../../src/models/catalog.js';
import { aModel } from '../models/a-model.js';

const good = aModel('org/good:Q4_0', { aliases: ['nick'] });
const hidden = aModel('hidden', { hidden: true });
const broken = aModel('broken', { problem: "'/models/broken.gguf' is empty", aliases: ['other'] });
const catalog = createCatalog([broken, hidden, good], []);

function refusal(
  ...args: Parameters<typeof findModel> extends [unknown, ...infer Rest] ? Rest : never
): RouterError {
  try {
    findModel(catalog, ...args);
  } catch (error) {
    if (error instanceof RouterError) return error;
    throw error;
  }
  throw new Error('it was found');
}

describe('a model', () => {
  it('is found by its id and its aliases, listed or not', () => {
    expect(findModel(catalog, 'org/good:Q4_0')).toBe(good);
    expect(findModel(catalog, 'nick')).toBe(good);
    expect(findModel(catalog, 'hidden')).toBe(hidden);
  });

  it.each(['', 'Nick', 'org/good', 'toString', '__proto__'])("is not found by '%s'", (name) => {
    expect(refusal(name)).toMatchObject({
      code: 'model_unknown',
      message: `model '${name}' not found`,
    });
  });

  it('that is unknown is refused with the code of who asks', () => {
    expect(refusal('x', { unknown: 'model_unknown_to_load' }).code).toBe('model_unknown_to_load');
  });

  it.each(['broken', 'other'])(
    "that cannot be served is refused with the reason and its id, asked for as '%s'",
    (name) => {
      expect(refusal(name, { unknown: 'model_unknown_to_load' })).toMatchObject({
        code: 'model_invalid',
        message: "model name=broken cannot be served: '/models/broken.gguf' is empty",
      });
    },
  );

  it('that is being downloaded, or has failed to be, is refused with that', () => {
    const coming = { id: 'u/r:Q4', args: [], progress: { a: { done: 1, total: 4 } } };
    const downloads = (view: DownloadView) => ({ downloads: () => [view] });
    expect(refusal('u/r:Q4', downloads({ ...coming, state: 'downloading' }))).toMatchObject({
      code: 'model_downloading',
      message: 'model name=u/r:Q4 is not running: it is being downloaded, 25 % of what has begun',
    });
    const error = { reason: 'disk_full', message: 'the disk is full', lastLines: [], at: new Date(0) };
    expect(refusal('u/r:Q4', downloads({ ...coming, state: 'failed', error }))).toMatchObject({
      code: 'model_unknown',
      message: "model 'u/r:Q4' not found: its download failed: the disk is full",
    });
    expect(refusal('u/r', downloads({ ...coming, state: 'downloading' })).code).toBe('model_unknown');
  });
});
