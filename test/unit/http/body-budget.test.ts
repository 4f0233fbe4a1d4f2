import { describe, expect, it } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import { BodyBudget } from '../../../src/http/body-budget.js';

describe('BodyBudget', () => {
  it('gives up to its maximum, and refuses what would exceed it', () => {
    const budget = new BodyBudget(10);
    budget.take(4);
    budget.take(6);
    expect(budget.heldBytes).toBe(10);
    expect(() => budget.take(1)).toThrow(RouterError);
  });

  it('a refusal takes nothing, and says which option it is and when to try again', () => {
    const budget = new BodyBudget(10);
    budget.take(8);
    let refusal: unknown;
    try {
      budget.take(3);
    } catch (error) {
      refusal = error;
    }
    expect(refusal).toMatchObject({ code: 'body_memory_full', status: 503 });
    expect((refusal as RouterError).message).toContain('--body-memory-max');
    expect(Number((refusal as RouterError).headers['Retry-After'])).toBeGreaterThanOrEqual(1);
    expect(budget.heldBytes).toBe(8);
    budget.take(2);
  });

  it('has room again for what was given back', () => {
    const budget = new BodyBudget(10);
    budget.take(10);
    budget.give(7);
    budget.take(7);
    expect(budget.heldBytes).toBe(10);
  });
});
