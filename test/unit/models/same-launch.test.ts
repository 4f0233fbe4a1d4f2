import { describe, expect, it } from 'vitest';
import type { Model } from '../../../src/models/model.js';
import { sameLaunch } from '../../../src/models/same-launch.js';
import { aModel } from './a-model.js';
import { values } from './help-table.js';

function withOptions(byName: Readonly<Record<string, string>>): Model {
  return aModel('m', { options: values({ model: 'm.gguf', ...byName }) });
}

/** In both orders: the question is the same. */
function same(a: Model, b: Model): boolean {
  const answer = sameLaunch(a, b);
  expect(sameLaunch(b, a)).toBe(answer);
  return answer;
}

describe('a running child is what would be started now', () => {
  it('when the same options are given, in whatever order and by whatever catalog', () => {
    const a = withOptions({ c: '1', temp: '2' });
    const b = aModel('m', { options: values({ temp: '2', c: '1', model: 'm.gguf' }) });
    expect(same(a, b)).toBe(true);
    expect(same(a, a)).toBe(true);
  });

  it.each([
    ['tags', { tags: 'x,y' }],
    ['load-on-startup', { 'load-on-startup': '1' }],
    ['stop-timeout', { 'stop-timeout': '5' }],
    ['dedup-cache-models', { 'dedup-cache-models': 'true' }],
  ])('although %s is given, taken away or another', (_key, given) => {
    expect(same(withOptions({}), withOptions(given))).toBe(true);
    const other = Object.fromEntries(Object.keys(given).map((key) => [key, 'other']));
    expect(same(withOptions(given), withOptions(other))).toBe(true);
  });

  it('although what a list says of it has changed', () => {
    const before = aModel('m');
    const after = aModel('m', {
      aliases: ['x'],
      tags: ['y'],
      source: 'preset',
      stale: 'a fault',
      hidden: true,
      canRemove: true,
      offline: true,
      stopTimeoutMs: 0,
      loadOnStartup: true,
    });
    expect(same(before, after)).toBe(true);
  });

  it('when its file was not known at its start and is now: it may have downloaded that itself', () => {
    expect(same(aModel('m', { version: undefined }), aModel('m', { version: '24@1' }))).toBe(true);
    expect(same(aModel('m', { version: undefined }), aModel('m', { version: undefined }))).toBe(true);
  });
});

describe('a running child is not what would be started now', () => {
  it.each([
    ['an option is another', { c: '1' }, { c: '2' }],
    ['an option is new', {}, { c: '1' }],
    ['an option is there with no value', {}, { c: '' }],
    ['the model is at another place', { model: 'a.gguf' }, { model: 'b.gguf' }],
    ['a switch is turned', { jinja: 'true' }, { jinja: 'false' }],
  ])('when %s', (_what, before, after) => {
    expect(same(withOptions(before), withOptions(after))).toBe(false);
  });

  it('when a file has been replaced', () => {
    expect(same(aModel('m', { version: '24@1' }), aModel('m', { version: '24@2' }))).toBe(false);
  });

  it('when an option is another and the file is not known', () => {
    const unknown = { ...withOptions({ c: '1' }), version: undefined };
    expect(same(unknown, withOptions({ c: '2' }))).toBe(false);
  });
});
