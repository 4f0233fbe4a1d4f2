import { describe, expect, it } from 'vitest';
import { listEntry } from '../../../src/http/model-entry.js';
import type { Model } from '../../../src/models/model.js';
import type { ModelStatus, Outcome } from '../../../src/scheduler/scheduler.js';

const model: Model = {
  id: 'alpha',
  aliases: ['a', 'b'],
  tags: ['t'],
  source: 'cache',
  options: new Map(),
  offline: true,
  file: '/models/alpha.gguf',
  mmproj: undefined,
  draft: undefined,
  version: undefined,
  problem: undefined,
  transient: false,
  stale: undefined,
  hidden: false,
  canRemove: true,
  stopTimeoutMs: 10_000,
  loadOnStartup: false,
};

const unloaded: ModelStatus = {
  value: 'unloaded',
  port: 0,
  pid: undefined,
  progress: undefined,
  info: undefined,
  inFlight: 0,
  waiting: 0,
  changing: false,
  stopping: false,
  lastUsed: undefined,
  outcome: undefined,
  failures: 0,
  retryAt: undefined,
  leftBehind: [],
};

const launch = { args: ['llama-server', '--alias', 'alpha'], preset: '[alpha]\n\n' };
const at = new Date('2026-01-02T03:04:05.678Z');
const failedLoad: Outcome = {
  kind: 'failed',
  phase: 'loading',
  message: 'exited with code 1',
  cause: 'other',
  exitCode: 1,
  lastLines: ['no room'],
  at,
};

function entry(status: Partial<ModelStatus> = {}, of: Partial<Model> = {}): Record<string, unknown> {
  return listEntry({
    model: { ...model, ...of },
    status: { ...unloaded, ...status },
    launch,
    facts: undefined,
    memoryBytes: undefined,
    now: 1_700_000_000,
  });
}

describe('listEntry', () => {
  it("of a model that never ran has the native router's fields in its order, then ours", () => {
    expect(JSON.stringify(entry())).toBe(
      '{"id":"alpha","aliases":["a","b"],"tags":["t"],"object":"model","owned_by":"llamacpp","created":1700000000,' +
        '"status":{"value":"unloaded","args":["llama-server","--alias","alpha"],"preset":"[alpha]\\n\\n"},' +
        '"architecture":{"input_modalities":["text"],"output_modalities":["text"]},"source":"cache","can_remove":true,' +
        '"path":"/models/alpha.gguf","in_flight":0,"waiting":0}',
    );
  });

  it.each(['loading', 'loaded', 'sleeping'] as const)(
    'adds what a %s child says of itself, but replaces nothing',
    (value) => {
      const info = {
        id: 'other',
        aliases: ['alpha'],
        object: 'x',
        created: 5,
        meta: { n_ctx: 512 },
        extra: 1,
      };
      const listed = entry({ value, info, pid: 42, inFlight: 2, waiting: 3 });
      expect(listed).toMatchObject({
        id: 'alpha',
        aliases: ['a', 'b'],
        object: 'model',
        created: 1_700_000_000,
        status: { value },
        meta: { n_ctx: 512 },
        extra: 1,
        pid: 42,
        in_flight: 2,
        waiting: 3,
      });
      const names = Object.keys(listed);
      expect(names.indexOf('meta')).toBe(names.indexOf('can_remove') + 1);
    },
  );

  it('shows progress while there is one', () => {
    const progress = { stages: ['text_model'], current: 'text_model', value: 0.5 };
    expect(entry({ value: 'loading', progress })['progress']).toEqual(progress);
  });

  it('of a failed load has the native form and the reason', () => {
    expect(entry({ outcome: failedLoad, failures: 1 })['status']).toEqual({
      value: 'unloaded',
      ...launch,
      exit_code: 1,
      failed: true,
      error: {
        reason: 'load_failed',
        message: 'its process exited with code 1; it said: no room',
        last_lines: ['no room'],
        at: '2026-01-02T03:04:05.678Z',
        failures: 1,
      },
    });
  });

  it('of one that has failed again and again says how often, and when it may be started again', () => {
    const retryAt = new Date('2026-01-02T03:04:09.5Z');
    expect(entry({ outcome: failedLoad, failures: 4, retryAt })['status']).toMatchObject({
      error: { failures: 4, retry_at: '2026-01-02T03:04:09.500Z' },
    });
  });

  it('names the processes of earlier runs that could not be killed, and none when there is none', () => {
    const leftBehind = [
      { pid: 7, since: at },
      { pid: 8, since: new Date('2026-01-03T00:00:00Z') },
    ];
    expect(entry({ leftBehind })['left_behind']).toEqual([
      { pid: 7, since: '2026-01-02T03:04:05.678Z' },
      { pid: 8, since: '2026-01-03T00:00:00.000Z' },
    ]);
    expect(entry()).not.toHaveProperty('left_behind');
  });

  it('of a crash says so', () => {
    const outcome: Outcome = { ...failedLoad, phase: 'running', message: 'was ended by SIGSEGV' };
    expect(entry({ outcome })['status']).toMatchObject({
      failed: true,
      error: { reason: 'crashed', message: 'its process was ended by SIGSEGV; it said: no room' },
    });
  });

  it.each([
    ['was told to stop', { outcome: { kind: 'stopped', reason: 'unloaded', exitCode: 0 } }],
    ['was killed when it did not stop', { outcome: { kind: 'stopped', reason: 'evicted', exitCode: 1 } }],
    ['runs again after a failure', { value: 'loaded', outcome: failedLoad }],
  ] as const)('of a model that %s shows no failure', (_what, status) => {
    expect(Object.keys(entry(status)['status'] as object)).toEqual(['value', 'args', 'preset']);
  });

  it('of a model that cannot be served says why', () => {
    const listed = entry({}, { problem: 'is no GGUF', file: undefined });
    expect(listed['status']).toEqual({
      value: 'unloaded',
      ...launch,
      failed: true,
      error: { reason: 'model_invalid', message: 'is no GGUF' },
    });
    expect(listed).not.toHaveProperty('path');
  });
});
