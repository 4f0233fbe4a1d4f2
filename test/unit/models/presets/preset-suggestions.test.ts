import { describe, expect, it, vi } from 'vitest';
import { nearest } from '../../../../src/config/nearest.js';
import { inspectPreset } from '../../../../src/models/presets/preset-reading.js';
import { table } from '../help-table.js';

/** How often a file of these lines has the options looked through for one that was meant. */
function looksThrough(lines: readonly string[]): number {
  const look = vi.spyOn(table, 'nearest');
  try {
    inspectPreset(Buffer.from(lines.join('\n')), table);
    return look.mock.calls.length;
  } finally {
    look.mockRestore();
  }
}

// Each look takes a millisecond or two in which nothing is answered: ten thousand sections took twenty seconds.
describe('what was meant by an unknown key', () => {
  const sections = (key: (at: number) => string) =>
    Array.from({ length: 2_000 }, (_, at) => [`[section-${at}]`, `${key(at)} = 1`]).flat();

  it('is looked for once, however many sections have it, and said in each', () => {
    const lines = sections(() => 'ctxsize');
    expect(looksThrough(lines)).toBe(1);
    const { sections: read } = inspectPreset(Buffer.from(lines.join('\n')), table);
    expect(read).toHaveLength(2_000);
    for (const { faults } of read) {
      expect(faults.map(({ message }) => message)).toEqual([
        "unknown option 'ctxsize', did you mean 'ctx-size'?",
      ]);
    }
  });

  it('is looked for of a few hundred keys only, when each is another', () => {
    expect(looksThrough(sections((at) => `unknown-${at}`))).toBeLessThanOrEqual(300);
    expect(
      looksThrough(['[one]', ...Array.from({ length: 2_000 }, (_, at) => `unknown-${at} = 1`)]),
    ).toBeLessThanOrEqual(300);
  });

  it('is nothing when it is of another length than all there are, which is seen without comparing letters', () => {
    // Compared letter by letter this would be 50 million times a million steps.
    expect(nearest('x'.repeat(50_000_000), ['y'.repeat(1_000_000), 'ctx-size'])).toBeUndefined();
  });
});
