import { describe, expect, it } from 'vitest';
import { BodyBudget } from '../../../src/http/body-budget.js';
import { ListText, ModelList } from '../../../src/http/model-list.js';
import type { Catalog } from '../../../src/models/catalog.js';

/** A list without models that counts how often it is made, over memory that is known when the test says so. */
function rig() {
  let made = 0;
  const known: (() => void)[] = [];
  const list = new ModelList({
    catalog: () => {
      made += 1;
      return { listed: [] } as unknown as Catalog;
    },
    scheduler: { pids: [], status: () => expect.unreachable() },
    facts: () => undefined,
    downloads: { list: () => [] },
    memoryOf: () => new Promise((resolve) => known.push(() => resolve(new Map()))),
    describeLaunch: () => expect.unreachable(),
  });
  return { list, made: () => made, memoryIsKnown: () => known.splice(0).forEach((tell) => tell()) };
}

describe('the list of models', () => {
  it('is made once for all who ask before it is made', async () => {
    const { list, made, memoryIsKnown } = rig();
    const texts = [list.text(), list.text()];
    memoryIsKnown();
    texts.push(list.text());
    const [first, ...others] = await Promise.all(texts);
    expect(others).toEqual([first, first]);
    expect(others.every((text) => text === first)).toBe(true);
    expect(made()).toBe(1);
    expect(first?.bytes.toString()).toBe('{"data":[],"object":"list","models":[]}');
  });

  it('is made anew for who asks after it was made', async () => {
    const { list, made, memoryIsKnown } = rig();
    for (let n = 1; n <= 2; n += 1) {
      const text = list.text();
      memoryIsKnown();
      await text;
      expect(made()).toBe(n);
    }
  });
});

describe('the text of a list', () => {
  it('is held once for all its readers, until the last has it', () => {
    const budget = new BodyBudget(250_000);
    const [text, other] = [new ListText(Buffer.alloc(200_000)), new ListText(Buffer.alloc(200_000))];
    const ends = [text.holdWithin(budget), text.holdWithin(budget)];
    expect(budget.heldBytes).toBe(200_000);
    expect(() => other.holdWithin(budget)).toThrow('already fill');
    ends[0]?.();
    expect(() => other.holdWithin(budget)).toThrow('already fill');
    ends[1]?.();
    expect(budget.heldBytes).toBe(0);
    other.holdWithin(budget)();
    expect(budget.heldBytes).toBe(0);
  });

  it('that is short is never refused', () => {
    const budget = new BodyBudget(0);
    new ListText(Buffer.alloc(60_000)).holdWithin(budget)();
    expect(budget.heldBytes).toBe(0);
  });
});
