import { describe, expect, it, vi } from 'vitest';

/** What is used here of bench/soak, which is plain JavaScript. */
interface AnswerCheck {
  fault: string | undefined;
  error: { reason: string; message: string } | undefined;
  pieces: number;
  isWhole: boolean;
  push(chunk: Buffer): void;
  end(): void;
}
interface Failure {
  reason: string;
  model: string | undefined;
  startedAt: number;
  endedAt: number;
  pieces: number;
  resumable: boolean;
}
interface FaultLedger {
  begin(kind: string, model?: string): () => void;
  explain(failure: Failure): string | undefined;
}
interface Run {
  restarts: { servedAfterMs: number; bareStartMs: number }[];
  ownLagMs: number;
  healthMs: number;
  /** Of one life, at its start and its end. */
  memoryMiB: { start: number; end: number };
  log: string;
}
interface Answer {
  words: string[];
  loop: boolean;
}

async function soakPart(name: string): Promise<unknown> {
  return import(new URL(`../../bench/soak/${name}.js`, import.meta.url).href);
}

const { AnswerCheck } = (await soakPart('event-check')) as {
  AnswerCheck: new (answers: () => Answer[], limit?: number) => AnswerCheck;
};
const { FaultLedger } = (await soakPart('fault-ledger')) as { FaultLedger: new () => FaultLedger };

const { reportOf } = (await soakPart('report')) as { reportOf: (run: object) => { failed: string[] } };

const counting: Answer = { words: ['1', '2', '3', '4'], loop: false };

function word(content: string): string {
  return event({ choices: [{ delta: { content }, finish_reason: null }] });
}

function finish(reason: string): string {
  return event({ choices: [{ delta: {}, finish_reason: reason }] });
}

function event(record: object): string {
  return `data: ${JSON.stringify(record)}\n\n`;
}

const done = 'data: [DONE]\n\n';
const whole = [word('1'), word(' 2'), word(' 3'), word(' 4'), finish('stop'), done];

/** What the check says of a stream that ends in order. */
function faultOf(events: string[], answers: Answer[] = [counting], limit?: number): string | undefined {
  const check = new AnswerCheck(() => answers, limit);
  for (const text of events) check.push(Buffer.from(text));
  check.end();
  return check.fault;
}

describe('the check of a streamed answer', () => {
  it('finds nothing wrong with a whole answer, in whatever chunks and with comments in between', () => {
    expect(faultOf(whole)).toBeUndefined();
    expect(faultOf([': counting is loading\n\n', ...whole])).toBeUndefined();
    expect(faultOf(Array.from(whole.join('')))).toBeUndefined();
  });

  it('finds the one of several answers that it is', () => {
    const other: Answer = { words: ['1', '2', 'five'], loop: false };
    expect(faultOf([word('1'), word(' 2'), word(' five'), finish('stop'), done], [counting, other])).toBe(
      undefined,
    );
    expect(faultOf([word('1'), word(' 2'), word(' six')], [counting, other])).toMatch(/" six"/);
  });

  it.each([
    ['a lost event', [word('1'), word(' 3')], /word 2 is " 3" instead of " 2"/],
    ['a doubled event', [word('1'), word('1')], /word 2/],
    ['events that changed places', [word(' 2'), word('1')], /word 1/],
    ["another model's word", [word('one')], /word 1/],
    ['merged events', [word('1 2')], /word 1/],
    ['a word after the last', whole.toSpliced(4, 0, word(' 5')), /word 5/],
    ['a clean end in the middle', whole.slice(0, 2), /without \[DONE\]/],
    ['a clean end within an event', [...whole.slice(0, 2), 'data: {"cho'], /within an event/],
    ['an end that comes too early', [word('1'), finish('stop'), done], /stopped after 1/],
    ['a whole answer twice', [...whole, ...whole], /after \[DONE\]/],
    ['an end without a finish', [...whole.slice(0, 4), done], /without a finish_reason/],
    ['what is no event', ['HTTP/1.1 200 OK\n\n'], /not an event/],
  ])('finds %s', (_what, events, said) => {
    expect(faultOf(events)).toMatch(said);
  });

  it('counts the words of an answer that was limited', () => {
    const three = [word('1'), word(' 2'), word(' 3'), finish('length'), done];
    expect(faultOf(three, [counting], 3)).toBeUndefined();
    expect(faultOf(three, [counting], 4)).toMatch(/after 3 words instead of 4/);
  });

  it('follows an answer that goes round and round', () => {
    const lap: Answer = { words: ['a', 'b'], loop: true };
    const check = new AnswerCheck(() => [lap]);
    for (const text of [word('a'), word(' b'), word(' a'), word(' b')]) check.push(Buffer.from(text));
    expect(check).toMatchObject({ fault: undefined, pieces: 4, isWhole: false });
  });

  it('tells an error event from a wrong one, and wants the connection to be cut after it', () => {
    const check = new AnswerCheck(() => [counting]);
    const error = { type: 'error', error: { reason: 'child_gone', message: 'it died' } };
    check.push(Buffer.from(`${word('1')}event: error\n${event(error)}`));
    expect(check).toMatchObject({ fault: undefined, error: { reason: 'child_gone', message: 'it died' } });
    check.end();
    expect(check.fault).toMatch(/in order after its error event/);
  });
});

describe('the ledger of faults', () => {
  /** Failures at a time in milliseconds; the faults of a test begin at 0. */
  function failure(reason: string, endedAt: number, more: Partial<Failure> = {}): Failure {
    return { reason, model: 'a', startedAt: endedAt - 50, endedAt, pieces: 0, resumable: false, ...more };
  }

  function ledgerWith(kind: string, model: string | undefined, lastsMs: number): FaultLedger {
    let now = 0;
    const clock = vi.spyOn(performance, 'now').mockImplementation(() => now);
    const ledger = new FaultLedger();
    const end = ledger.begin(kind, model);
    now = lastsMs;
    end();
    clock.mockRestore();
    return ledger;
  }

  it('explains what comes of a killed child, at its model and for a while', () => {
    const ledger = ledgerWith('child killed', 'a', 0);
    expect(ledger.explain(failure('child_gone', 30))).toBe('child killed');
    expect(ledger.explain(failure('child_gone', 30, { model: 'b' }))).toBeUndefined();
    expect(ledger.explain(failure('child_gone', -30))).toBeUndefined();
    expect(ledger.explain(failure('child_gone', 60_000))).toBeUndefined();
    // One who came later cannot have been at that child.
    expect(ledger.explain(failure('child_gone', 4_000, { startedAt: 3_000 }))).toBeUndefined();
    expect(ledger.explain(failure('queue_timeout', 30))).toBeUndefined();
  });

  it('explains a stream that is cut without a word by nothing but what may not be put into it', () => {
    const ledger = ledgerWith('child killed', 'a', 0);
    expect(ledger.explain(failure('cut', 30))).toBeUndefined();
    expect(ledger.explain(failure('cut', 30, { resumable: true }))).toBe('child killed');
  });

  it('does not explain an answer that a drain cuts before its time', () => {
    const ledger = ledgerWith('supervisor drained', undefined, 17_000);
    expect(ledger.explain(failure('shutting_down', 200))).toBe('supervisor drained');
    expect(ledger.explain(failure('shutting_down', 200, { pieces: 3 }))).toBeUndefined();
    expect(ledger.explain(failure('cut', 200, { pieces: 3 }))).toBeUndefined();
    expect(ledger.explain(failure('cut', 16_000, { pieces: 3, startedAt: -100 }))).toBe('supervisor drained');
    expect(ledger.explain(failure('reset', 200, { startedAt: -100 }))).toBeUndefined();
  });

  it('explains nothing by a child that was only stopped for a while', () => {
    const ledger = ledgerWith('child stopped', 'a', 3_000);
    for (const reason of ['child_gone', 'child_timeout', 'load_failed', 'cut', 'late']) {
      expect(ledger.explain(failure(reason, 1_000))).toBeUndefined();
    }
  });
});

describe('the report', () => {
  /** What it finds in a run in which all is well but that. */
  function failedIn(more: Partial<Run>): string[] {
    const { healthMs = 20, memoryMiB = { start: 90, end: 120 }, ...others } = more;
    const requests = { wrong: 0, unexplained: 0 };
    const run = {
      ...{
        seed: 'a',
        rate: 15,
        seconds: 60,
        recordsHeard: 0,
        faults: {},
        log: '',
        ownLagMs: 0,
        restarts: [],
      },
      tally: {
        requests,
        errors: {},
        streams: { wrong: 0 },
        longestMs: { health: { ms: healthMs } },
        findings: [],
      },
      lives: [
        {
          orphans: [],
          descriptors: { leaked: 0 },
          memoryMiB: { peak: 150, childrenPeak: 300, ...memoryMiB },
        },
      ],
    };
    return reportOf({ ...run, ...others }).failed;
  }

  it('finds nothing where nothing is', () => {
    expect(failedIn({})).toEqual([]);
  });

  it('finds a restart that took longer than a second, less the lag of the soak and what a busy machine takes', () => {
    const slow = { servedAfterMs: 1_800, bareStartMs: 50 };
    expect(failedIn({ restarts: [{ servedAfterMs: 900, bareStartMs: 50 }] })).toEqual([]);
    expect(failedIn({ restarts: [slow, { ...slow, servedAfterMs: 300 }] })).toEqual([
      'restarts that took too long: 1',
    ]);
    expect(failedIn({ restarts: [slow], ownLagMs: 900 })).toEqual([]);
    expect(failedIn({ restarts: [{ ...slow, bareStartMs: 90 }] })).toEqual([]);
    expect(failedIn({ restarts: [{ ...slow, bareStartMs: 60 }] })).toHaveLength(1);
  });

  it('finds a health check of more than five seconds', () => {
    expect(failedIn({ healthMs: 4_900 })).toEqual([]);
    expect(failedIn({ healthMs: 5_100 })).toEqual(['health checks that took too long: 1']);
    expect(failedIn({ healthMs: 5_100, ownLagMs: 200 })).toEqual([]);
  });

  it('finds a supervisor that has come to rest, and is much larger than it was', () => {
    expect(failedIn({ memoryMiB: { start: 90, end: 280 } })).toEqual([]);
    expect(failedIn({ memoryMiB: { start: 90, end: 300 } })).toEqual(['supervisors that grew too much: 1']);
  });

  it('finds errors that nobody handled, and what is not of the log', () => {
    expect(failedIn({ log: '{"level":50,"msg":"told"}\n' })).toEqual([]);
    expect(failedIn({ log: '{"level":60,"msg":"x"}\nTypeError: x\n' })).toEqual(['errors nobody handled: 2']);
  });
});
