import { describe, expect, it } from 'vitest';
import { keepLastGood, unreadablePreset } from '../../../../src/models/presets/last-good-preset.js';
import { mergePresets, parsePreset, type Preset } from '../../../../src/models/presets/preset-file.js';
import { byKey, table } from '../help-table.js';

function parse(...lines: string[]): Preset {
  return parsePreset(Buffer.from(lines.join('\n')), 'p.ini', table);
}

/** What a person sees of each section, in few words. */
function shown({ sections }: Preset): unknown[] {
  return sections.map(({ name, values, problems, stale }) => ({
    name,
    values: byKey(values),
    problems,
    stale,
  }));
}

const good = parse('[*]', 'threads = 1', '[a]', 'c = 1', '[b]', 'c = 2');

describe('after an edit', () => {
  it('that is good the new form counts', () => {
    const next = parse('[a]', 'c = 3', '[new]', 'c = 4');
    expect(keepLastGood(good, next)).toEqual(next);
  });

  it('a broken section keeps the values of its last good form and says what is wrong with the new one', () => {
    const next = parse('[*]', 'threads = 1', '[b]', 'c = 5', '', '[a]', 'ctxsize = 1', 'words');
    expect(shown(keepLastGood(good, next))).toEqual([
      { name: 'b', values: { 'ctx-size': '5' }, problems: [], stale: undefined },
      {
        name: 'a',
        values: { 'ctx-size': '1' },
        problems: [],
        stale:
          "p.ini:7: unknown option 'ctxsize', did you mean 'ctx-size'?; " +
          "p.ini:8: is neither 'key = value' nor '[section]' nor a comment: 'words'",
      },
    ]);
  });

  it('a section whose header is broken keeps its last good form, too', () => {
    const kept = keepLastGood(good, parse('[a', 'c = 9', '[b]', 'c = 2'));
    expect(shown(kept)[0]).toMatchObject({ name: 'a', values: { 'ctx-size': '1' }, problems: [] });
    expect(kept.sections[0]?.stale).toContain('p.ini:1: is no section header');
  });

  it('after another, the same good form is kept, and the newest fault is told', () => {
    const once = keepLastGood(good, parse('[a]', 'first'));
    const twice = keepLastGood(once, parse('[a]', 'second'));
    expect(shown(twice)).toMatchObject([{ values: { 'ctx-size': '1' }, problems: [] }]);
    expect(twice.sections[0]?.stale).toMatch(/'second'$/);
  });

  it('that mends a section, its new form counts and it loses its mark', () => {
    const mended = parse('[a]', 'c = 7');
    expect(keepLastGood(keepLastGood(good, parse('[a]', 'words')), mended)).toEqual(mended);
  });

  it('a section that was never good stays failed', () => {
    const failed = parse('[x]', 'first');
    const next = parse('[x]', 'second', '[new]', 'third');
    expect(keepLastGood(failed, next)).toEqual(next);
    expect(next.sections.every(({ problems }) => problems.length === 1)).toBe(true);
  });

  it('a section that is deleted is gone, whatever form it had', () => {
    const stale = keepLastGood(good, parse('[a]', 'words', '[b]'));
    expect(keepLastGood(stale, parse('[b]')).sections.map(({ name }) => name)).toEqual(['b']);
  });

  it('that brings a deleted section back broken, nothing is left of its good form', () => {
    const without = keepLastGood(good, parse('[b]'));
    expect(shown(keepLastGood(without, parse('[a]', 'words')))).toMatchObject([
      { name: 'a', values: {}, stale: undefined },
    ]);
  });
});

describe('[*]', () => {
  it('that is broken keeps its last good form, and its faults stay warnings', () => {
    const next = parse('[*]', 'threads = 8', 'tmep = 1', '[a]', 'c = 1');
    const { global, globalProblems, globalStale, warnings } = keepLastGood(good, next);
    expect(byKey(global)).toEqual({ threads: '1' });
    expect(globalProblems).toEqual([]);
    expect(globalStale).toBe("p.ini:3: unknown option 'tmep', did you mean 'temp'?");
    expect(warnings).toEqual([globalStale, `the last good form of [*] is used: ${globalStale}`]);
  });

  it('that is new and broken gives nothing yet, as before it', () => {
    const { global, globalStale } = keepLastGood(parse('[a]'), parse('[*]', 'threads = 8', 'words', '[a]'));
    expect(global.size).toBe(0);
    expect(globalStale).toContain('p.ini:3: ');
  });

  it('that was never good gives what is right in it', () => {
    const first = parse('[*]', 'words', 'threads = 1');
    const next = parse('[*]', 'words', 'threads = 2');
    expect(keepLastGood(first, next)).toEqual(next);
    expect(byKey(next.global)).toEqual({ threads: '2' });
  });

  it('that is broken twice keeps the form that was good, and loses its mark when it is mended or deleted', () => {
    const once = keepLastGood(good, parse('[*]', 'first'));
    const twice = keepLastGood(once, parse('[*]', 'second'));
    expect(byKey(twice.global)).toEqual({ threads: '1' });
    expect(twice.globalStale).toContain("'second'");
    for (const next of [parse('[*]', 'threads = 3'), parse('[a]')]) {
      expect(keepLastGood(twice, next)).toEqual(next);
    }
  });
});

describe('a file that can not be read any more', () => {
  const message = "--models-preset 'p.ini' does not exist";

  it('leaves everything as it was, marked with the reason', () => {
    const failed = parse('[*]', 'threads = 1', '[a]', 'c = 1', '[x]', 'words');
    expect(unreadablePreset(failed, message)).toEqual({
      ...failed,
      sections: failed.sections.map((section) => ({ ...section, stale: message })),
      globalStale: message,
      warnings: [message],
    });
  });

  it('and comes back broken still has its last good form', () => {
    const back = keepLastGood(unreadablePreset(good, message), parse('[*]', 'words', '[a]', 'words'));
    expect(shown(back)).toMatchObject([{ name: 'a', values: { 'ctx-size': '1' }, problems: [] }]);
    expect(byKey(back.global)).toEqual({ threads: '1' });
    expect([back.globalStale, back.sections[0]?.stale]).toEqual([
      expect.stringContaining('p.ini:2: '),
      expect.stringContaining('p.ini:4: '),
    ]);
  });

  it('and comes back good has no mark any more', () => {
    expect(keepLastGood(unreadablePreset(good, message), good)).toEqual(good);
  });
});

it('of several files merged, the marks of all are kept', () => {
  const stale = keepLastGood(good, parse('[*]', 'words', '[a]', 'words'));
  const merged = mergePresets([stale, parse('[*]', 'top-k = 1', 'bogus', '[c]')]);
  expect(merged.sections.map(({ name, stale: mark }) => [name, mark !== undefined])).toEqual([
    ['a', true],
    ['c', false],
  ]);
  expect(byKey(merged.global)).toEqual({ threads: '1', 'top-k': '1' });
  expect(merged.globalStale).toContain('p.ini:2: ');
  expect(merged.globalProblems).toEqual([expect.stringContaining("'bogus'")]);
});
