import { describe, expect, it } from 'vitest';
import { Conversations } from '../../../src/http/conversations.js';
import type { Upstream } from '../../../src/scheduler/scheduler.js';

// Nothing is asked of it here.
const child = Object.create(null) as Upstream;

describe('conversations', () => {
  it('are their last requests, and an earlier one is stopped by the next', () => {
    const conversations = new Conversations();
    const first = conversations.begin('a', 'alpha');
    expect(first.isWaiting).toBe(true);
    const second = conversations.begin('a', 'beta');
    expect(first.stopped.aborted).toBe(true);
    expect(second.stopped.aborted).toBe(false);
    first.ended();
    expect(conversations.find('a')).toBe(second);
    second.forwarded(child);
    expect(second.isWaiting).toBe(false);
  });

  it('leave an answer alone that another model is giving, and stop one of the same model', () => {
    const conversations = new Conversations();
    const first = conversations.begin('a', 'alpha');
    first.forwarded(child);
    const second = conversations.begin('a', 'beta');
    expect(first.stopped.aborted).toBe(false);
    expect(conversations.find('a')).toBe(second);
    second.forwarded(child);
    conversations.begin('a', 'beta');
    expect(second.stopped.aborted).toBe(true);
  });

  it('wait again when what was sent had not arrived, and are stopped then', () => {
    const conversations = new Conversations();
    const turn = conversations.begin('a', 'alpha');
    turn.forwarded(child);
    expect([turn.isWaiting, turn.upstream]).toEqual([false, child]);
    turn.waits();
    expect(turn.isWaiting).toBe(true);
    conversations.begin('a', 'beta');
    expect(turn.stopped.aborted).toBe(true);
  });

  it('are forgotten when they are stopped, which their requests hear of', () => {
    const conversations = new Conversations();
    const turn = conversations.begin('a', 'alpha');
    conversations.stop('a');
    expect(turn.stopped.aborted).toBe(true);
    expect(conversations.find('a')).toBeUndefined();
    conversations.stop('a');
    conversations.stop('never');
    turn.ended();
    expect(conversations.size).toBe(0);
  });

  it('that have ended are remembered up to a bound, the newest; those that go on always', () => {
    const conversations = new Conversations();
    const open = conversations.begin('open', 'alpha');
    for (let n = 0; n < 10_500; n += 1) conversations.begin(`c${n}`, 'alpha').ended();
    expect(conversations.size).toBe(10_001);
    expect(conversations.find('open')).toBe(open);
    expect(conversations.find('c499')).toBeUndefined();
    expect(conversations.find('c500')).toBeDefined();
    open.ended();
    expect(conversations.size).toBe(10_000);
    // It came first, and so it goes first.
    expect(conversations.find('open')).toBeUndefined();
  });

  it('keep their count when they come again, are stopped, and end late', () => {
    const conversations = new Conversations();
    for (let n = 0; n < 30_000; n += 1) {
      const turn = conversations.begin(`c${n % 3}`, 'alpha');
      if (n % 2 === 0) turn.ended();
      if (n % 5 === 0) conversations.stop(`c${n % 3}`);
      turn.ended();
      turn.ended();
    }
    expect(conversations.size).toBeLessThanOrEqual(3);
    for (let n = 0; n < 10_010; n += 1) conversations.begin(`d${n}`, 'alpha').ended();
    expect(conversations.size).toBe(10_000);
  });
});
