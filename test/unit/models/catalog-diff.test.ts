import { describe, expect, it } from 'vitest';
import { createCatalog } from '../../../src/models/catalog.js';
import { diffCatalogs, type CatalogDiff } from '../../../src/models/catalog-diff.js';
import type { Model } from '../../../src/models/model.js';
import { aModel } from './a-model.js';
import { values } from './help-table.js';

const nothing: CatalogDiff = { added: [], removed: [], changed: [], broken: [], warnings: [] };

function diff(before: readonly Model[], after: readonly Model[]): CatalogDiff {
  return diffCatalogs(createCatalog(before, []), createCatalog(after, []));
}

/** What one model became, without what did not change. */
function became(before: Partial<Model>, after: Partial<Model>): Partial<CatalogDiff> {
  const all = diff([aModel('m', before)], [aModel('m', after)]);
  return Object.fromEntries(Object.entries(all).filter(([, list]: [string, unknown[]]) => list.length > 0));
}

const ctx = (size: string): Partial<Model> => ({ options: values({ c: size }) });

describe('nothing is told', () => {
  it('of a catalog that is the same, or made anew of the same', () => {
    const models = [
      aModel('a', { problem: 'p' }),
      aModel('b', { stale: 's' }),
      aModel('c', { hidden: true }),
    ];
    const warned = createCatalog(models, ['w']);
    expect(diffCatalogs(warned, warned)).toEqual(nothing);
    expect(
      diffCatalogs(
        warned,
        createCatalog(
          models.map((model) => ({ ...model })),
          ['w'],
        ),
      ),
    ).toEqual(nothing);
    expect(diff([], [])).toEqual(nothing);
  });

  it.each<[string, Partial<Model>]>([
    ['another alias', { aliases: ['x'] }],
    ['another tag', { tags: ['x'] }],
    ['another source', { source: 'preset' }],
    ['being hidden', { hidden: true }],
    ['another time to stop', { stopTimeoutMs: 1 }],
    ['a file that is known now', { version: '24@1' }],
  ])('of %s', (_what, after) => {
    expect(became({ version: undefined }, after)).toEqual({});
  });

  it('of a model that can be served neither before nor after', () => {
    expect(became({ problem: 'p', version: '24@1' }, { problem: 'p', version: '24@2' })).toEqual({});
    expect(became({ problem: 'p', ...ctx('1') }, { problem: 'p', ...ctx('2') })).toEqual({});
  });

  it('of how far a file is that is being written', () => {
    const written = (size: string): Partial<Model> => ({
      problem: `has ${size}`,
      version: size,
      transient: true,
    });
    expect(became(written('1'), written('2'))).toEqual({});
  });

  it('of a section whose fault is mended without effect', () => {
    expect(became({ stale: 'a fault' }, {})).toEqual({});
  });
});

describe('models', () => {
  it('that are new or gone are told in the order of their catalogs, hidden ones, too', () => {
    const before = [aModel('a'), aModel('b', { hidden: true }), aModel('c')];
    const after = [aModel('B', { hidden: true }), aModel('c'), aModel('d')];
    expect(diff(before, after)).toEqual({ ...nothing, added: ['B', 'd'], removed: ['a', 'b'] });
  });

  it('that would be started differently are changed', () => {
    expect(became(ctx('1'), ctx('2'))).toEqual({ changed: ['m'] });
    expect(became({ version: '24@1' }, { version: '24@2' })).toEqual({ changed: ['m'] });
    expect(became({ hidden: true, ...ctx('1') }, { hidden: true, ...ctx('2') })).toEqual({ changed: ['m'] });
  });

  it('that can be served again are changed', () => {
    expect(became({ problem: 'p' }, {})).toEqual({ changed: ['m'] });
  });

  it('that appear with a fault are new and broken', () => {
    const model = aModel('m', { problem: 'p' });
    expect(diff([], [model])).toEqual({ ...nothing, added: ['m'], broken: [model] });
  });

  it('that go are gone, whatever was wrong with them', () => {
    expect(diff([aModel('m', { problem: 'p', stale: 's' })], [])).toEqual({ ...nothing, removed: ['m'] });
  });

  it('that swap their names are changed, not new', () => {
    const [a, b] = [ctx('1'), ctx('2')];
    expect(diff([aModel('x', a), aModel('y', b)], [aModel('x', b), aModel('y', a)])).toEqual({
      ...nothing,
      changed: ['x', 'y'],
    });
  });
});

describe('what is wrong', () => {
  it.each<[string, Partial<Model>, Partial<Model>]>([
    ['with a model that could be served', {}, { problem: 'p' }],
    ['with a model that could not, when it is something else', { problem: 'other' }, { problem: 'p' }],
    ['with a section', {}, { stale: 's' }],
    ['with a section, when it is something else', { stale: 'other' }, { stale: 's' }],
    ['with a section of a model that is broken anyway', { problem: 'p' }, { problem: 'p', stale: 's' }],
    ['with a hidden model', { hidden: true }, { hidden: true, problem: 'p' }],
  ])('%s is told, and once', (_what, before, after) => {
    expect(became(before, after)).toEqual({ broken: [aModel('m', after)] });
    expect(became(after, after)).toEqual({});
  });

  it('in a new form is told beside the change', () => {
    const after = { ...ctx('2'), problem: 'p' };
    expect(became(ctx('1'), after)).toEqual({ changed: ['m'], broken: [aModel('m', after)] });
  });

  it('is told when writing a file begins, and when it has ended badly', () => {
    const writing: Partial<Model> = { problem: 'has 1', transient: true };
    const truncated: Partial<Model> = { problem: 'is truncated' };
    expect(became(truncated, writing)).toEqual({ broken: [aModel('m', writing)] });
    expect(became(writing, truncated)).toEqual({ broken: [aModel('m', truncated)] });
    expect(became(writing, {})).toEqual({ changed: ['m'] });
  });

  it('with the section of a model whose file is being written is told', () => {
    const writing: Partial<Model> = { problem: 'has 1', transient: true };
    const after = { ...writing, problem: 'has 2', stale: 's' };
    expect(became(writing, after)).toEqual({ broken: [aModel('m', after)] });
  });

  it('turns from the section to the model', () => {
    expect(became({ stale: 's' }, { problem: 's' })).toEqual({ broken: [aModel('m', { problem: 's' })] });
  });

  it('turns from the model to the section, which can be served then', () => {
    const after = { stale: 's' };
    expect(became({ problem: 's' }, after)).toEqual({ changed: ['m'], broken: [aModel('m', after)] });
  });
});

it('warnings are told when they are new, and again when they had gone', () => {
  const [before, after] = [createCatalog([], ['a', 'b']), createCatalog([], ['c', 'b'])];
  expect(diffCatalogs(before, after).warnings).toEqual(['c']);
  expect(diffCatalogs(after, before).warnings).toEqual(['a']);
});
