import { pino } from 'pino';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { EventBus, type SupervisorEvent } from '../../../src/events/events.js';
import { logEvents } from '../../../src/observe/log-events.js';

const levels = new Map([
  [20, 'debug'],
  [30, 'info'],
  [40, 'warn'],
  [50, 'error'],
]);

/** The lines that these events make in the log; what is called among them may let time pass. */
function logged(...events: (SupervisorEvent | (() => unknown))[]): Record<string, unknown>[] {
  const lines: Record<string, unknown>[] = [];
  const log = pino(
    { level: 'trace', base: null, timestamp: false },
    { write: (line) => lines.push(JSON.parse(line) as Record<string, unknown>) },
  );
  const bus = new EventBus((error) => {
    throw error;
  });
  logEvents(bus, log);
  for (const event of events) {
    if (typeof event === 'function') event();
    else bus.emit(event);
  }
  return lines.map(({ level, ...fields }) => ({ level: levels.get(Number(level)), ...fields }));
}

type CatalogChanged = Extract<SupervisorEvent, { type: 'catalog.changed' }>;

function catalogChanged(fields: Partial<CatalogChanged>): SupervisorEvent {
  return {
    type: 'catalog.changed',
    added: [],
    removed: [],
    changed: [],
    broken: [],
    warnings: [],
    ...fields,
  };
}

describe('a new catalog', () => {
  it('that is as the old one makes no line', () => {
    expect(logged(catalogChanged({}))).toEqual([]);
  });

  it.each(['added', 'removed', 'changed'] as const)('says in one line what is %s', (what) => {
    const lists = { added: [], removed: [], changed: [], [what]: ['a', 'b'] };
    expect(logged(catalogChanged(lists))).toEqual([{ level: 'info', ...lists, msg: 'catalog.changed' }]);
  });

  it('warns of each model that cannot be served, with the reason', () => {
    const broken = [
      { model: 'a', problem: 'is empty', stale: undefined },
      { model: 'b', problem: 'is gone', stale: undefined },
    ];
    expect(logged(catalogChanged({ broken }))).toEqual([
      { level: 'warn', model: 'a', problem: 'is empty', msg: 'model cannot be served' },
      { level: 'warn', model: 'b', problem: 'is gone', msg: 'model cannot be served' },
    ]);
  });

  it('warns of a section whose last good form is served, and loses neither fault of a model with two', () => {
    const broken = [
      { model: 'a', problem: undefined, stale: 'p.ini:2: words' },
      { model: 'b', problem: 'is empty', stale: 'p.ini:4: words' },
    ];
    expect(logged(catalogChanged({ broken }))).toEqual([
      { level: 'warn', model: 'a', stale: 'p.ini:2: words', msg: 'model is served in its last good form' },
      {
        level: 'warn',
        model: 'b',
        problem: 'is empty',
        stale: 'p.ini:4: words',
        msg: 'model cannot be served',
      },
    ]);
  });

  it('names the first few of many, and counts all', () => {
    const ids = Array.from({ length: 10_000 }, (_, index) => `m${index}`);
    const broken = ids.map((model) => ({ model, problem: 'is empty', stale: undefined }));
    const count = 10_000;
    const first = (name: (id: string) => unknown): unknown[] => ['m0', 'm1', 'm2', 'm3', 'm4'].map(name);
    const event = catalogChanged({ added: ids, changed: ['x'], broken, warnings: ids });
    expect(logged(event)).toEqual([
      {
        level: 'info',
        added: { count, first: first((id) => id) },
        removed: [],
        changed: ['x'],
        msg: 'catalog.changed',
      },
      { level: 'warn', count, first: first((id) => id), msg: 'there are many warnings' },
      {
        level: 'warn',
        count,
        first: first((model) => ({ model, problem: 'is empty' })),
        msg: 'many models cannot be served, or only in their last good form',
      },
    ]);
  });

  it('names all of a few', () => {
    const ids = Array.from({ length: 20 }, (_, index) => `m${index}`);
    const broken = ids.map((model) => ({ model, problem: 'is empty', stale: undefined }));
    const lines = logged(catalogChanged({ removed: ids, broken }));
    expect(lines[0]).toMatchObject({ removed: ids });
    expect(lines.slice(1).map(({ model }) => model)).toEqual(ids);
  });

  it('says its warnings as they are, percent signs included', () => {
    const warnings = ["'100%s %d.gguf' is not listed", 'second'];
    expect(logged(catalogChanged({ warnings }))).toEqual(warnings.map((msg) => ({ level: 'warn', msg })));
  });
});

describe('a model that changes again and again', () => {
  /** What is said of them, but for debugging, with a second between any two. */
  function said(...events: SupervisorEvent[]): unknown[] {
    vi.useFakeTimers({ toFake: ['performance'] });
    onTestFinished(() => void vi.useRealTimers());
    const lines = logged(...events.flatMap((event) => [event, () => vi.advanceTimersByTime(1000)]));
    return lines.flatMap(({ level, changed, msg }) => (level === 'debug' ? [] : [changed ?? msg]));
  }
  const changed = (...models: string[]): SupervisorEvent => catalogChanged({ changed: models });
  const broken = catalogChanged({ broken: [{ model: 'a', problem: 'is empty', stale: undefined }] });

  it('is said to once a minute', () => {
    const events = Array.from({ length: 121 }, () => changed('a'));
    expect(said(...events)).toEqual([['a'], ['a'], ['a']]);
  });

  it('keeps no other from being said to', () => {
    expect(said(changed('a'), changed('a', 'b'), changed('a', 'b'))).toEqual([['a'], ['b']]);
  });

  it('is said to have become well as often as it was broken', () => {
    const cannot = 'model cannot be served';
    expect(said(changed('a'), broken, changed('a'), broken, changed('a'), changed('a'))).toEqual([
      ['a'],
      cannot,
      ['a'],
      cannot,
      ['a'],
    ]);
  });

  it('is forgotten when it goes', () => {
    expect(said(changed('a'), catalogChanged({ removed: ['a'] }), changed('a'))).toEqual([['a'], [], ['a']]);
  });

  it('is told of in full for debugging', () => {
    expect(logged(changed('a'), changed('a')).at(-1)).toEqual({
      level: 'debug',
      changed: ['a'],
      msg: 'catalog.changed',
    });
  });
});

describe('what happens to a model', () => {
  it('is one line of its name, with what is known', () => {
    expect(
      logged(
        { type: 'model.queued', model: 'm', position: 2 },
        { type: 'model.loading', model: 'm', pid: 1, port: 2 },
        { type: 'model.loaded', model: 'm', loadMs: 3, info: { huge: 'x' } },
        { type: 'model.sleeping', model: 'm' },
        { type: 'model.awake', model: 'm' },
        { type: 'model.stopping', model: 'm', reason: 'evicted' },
      ),
    ).toEqual([
      { level: 'info', model: 'm', position: 2, msg: 'model.queued' },
      { level: 'info', model: 'm', pid: 1, port: 2, msg: 'model.loading' },
      { level: 'info', model: 'm', loadMs: 3, msg: 'model.loaded' },
      { level: 'info', model: 'm', msg: 'model.sleeping' },
      { level: 'info', model: 'm', msg: 'model.awake' },
      { level: 'info', model: 'm', reason: 'evicted', msg: 'model.stopping' },
    ]);
  });

  it.each(['hung', 'load deadline'])('that is stopped because it is at fault is a warning: %s', (reason) => {
    expect(logged({ type: 'model.stopping', model: 'm', reason })).toEqual([
      { level: 'warn', model: 'm', reason, msg: 'model.stopping' },
    ]);
  });

  it('when it is removed says what has gone, shortened where that is much', () => {
    const removed = Array.from({ length: 30 }, (_, index) => `/cache/${index}`);
    expect(
      logged(
        { type: 'model.removed', model: 'm', files: { removed: ['/cache/a'], freedBytes: 5 } },
        { type: 'model.removed', model: 'm', files: { removed, freedBytes: 6 } },
        { type: 'model.removed', model: 'a download' },
      ),
    ).toEqual([
      { level: 'info', model: 'm', removed: ['/cache/a'], freedBytes: 5, msg: 'model.removed' },
      {
        level: 'info',
        model: 'm',
        removed: { count: 30, first: removed.slice(0, 5) },
        freedBytes: 6,
        msg: 'model.removed',
      },
      { level: 'info', model: 'a download', msg: 'model.removed' },
    ]);
  });

  it('that comes often is for debugging', () => {
    expect(
      logged(
        { type: 'model.progress', model: 'm', progress: { value: 0.5 } },
        { type: 'model.waking', model: 'm', progress: undefined },
      ),
    ).toEqual([
      { level: 'debug', model: 'm', progress: { value: 0.5 }, msg: 'model.progress' },
      { level: 'debug', model: 'm', msg: 'model.waking' },
    ]);
  });

  it('when it ends as it should is short, and when it fails has the last words of its child', () => {
    const ended = { type: 'model.unloaded', model: 'm', exitCode: 0, lastLines: ['bye'] } as const;
    expect(
      logged(
        { ...ended, reason: 'idle', failed: false },
        { ...ended, reason: 'crashed', failed: true, exitCode: 1, lastLines: ['out of memory'] },
      ),
    ).toEqual([
      { level: 'info', model: 'm', reason: 'idle', msg: 'model.unloaded' },
      {
        level: 'error',
        model: 'm',
        reason: 'crashed',
        failed: true,
        exitCode: 1,
        lastLines: ['out of memory'],
        msg: 'model.unloaded',
      },
    ]);
  });
});
