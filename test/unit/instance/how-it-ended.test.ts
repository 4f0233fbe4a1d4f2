import { describe, expect, it } from 'vitest';
import type { ChildExit } from '../../../src/instance/child-process.js';
import { describeDeath } from '../../../src/instance/how-it-ended.js';

describe('the cause of a death', () => {
  it.each<[string, Partial<ChildExit>, string]>([
    ['a signal', { signal: 'SIGKILL' }, 'signal'],
    ['a crash', { signal: 'SIGSEGV' }, 'signal'],
    ['a signal, as the shell around it reports that', { code: 137 }, 'signal'],
    ['its own doing', { code: 1 }, 'other'],
    ['a code that no signal has', { code: 255 }, 'other'],
  ])('is %s', (_, exit, cause) => {
    const death = describeDeath({
      exit: { code: null, signal: null, ...exit },
      phase: 'loading',
      lastLines: ['error: unknown model architecture'],
      kernelKill: () => undefined,
    });
    expect(death.cause).toBe(cause);
  });

  it('is want of memory where the kernel says so', () => {
    const death = describeDeath({
      exit: { code: null, signal: 'SIGKILL' },
      phase: 'running',
      lastLines: [],
      kernelKill: () => 'oom_kill 1',
    });
    expect(death.cause).toBe('out of memory');
  });
});
