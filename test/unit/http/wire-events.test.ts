import { describe, expect, it } from 'vitest';
import type { SupervisorEvent } from '../../../src/events/events.js';
import { wireEvent } from '../../../src/http/wire-events.js';

const progress = { stages: ['text_model'], current: 'text_model', value: 0.5 };
const info = { id: 'a', meta: { n_ctx: 512 } };
const model = 'a';

const unloaded = {
  type: 'model.unloaded',
  model,
  reason: 'evicted',
  failed: false,
  exitCode: 0,
  lastLines: [],
} as const;
const asItWas = {
  type: 'catalog.changed',
  added: [],
  removed: [],
  changed: [],
  broken: [],
  warnings: ['a file is odd'],
} as const;

/** The record as it is written, so that the order of its keys counts. */
function written(event: SupervisorEvent): string | undefined {
  return JSON.stringify(wireEvent(event));
}

describe('an event on the wire', () => {
  it.each<[string, SupervisorEvent, string]>([
    [
      'of a child that was started',
      { type: 'model.loading', model, pid: 1, port: 2 },
      '{"model":"a","event":"model_status","data":{"status":"loading"}}',
    ],
    [
      'of progress',
      { type: 'model.progress', model, progress },
      '{"model":"a","event":"status_change","data":{"status":"loading","progress":{"stages":["text_model"],"current":"text_model","value":0.5}}}',
    ],
    [
      'of progress that says nothing',
      { type: 'model.progress', model, progress: undefined },
      '{"model":"a","event":"status_change","data":{"status":"loading"}}',
    ],
    [
      'of a load that is done',
      { type: 'model.loaded', model, loadMs: 5, info },
      '{"model":"a","event":"status_change","data":{"status":"loaded","info":{"id":"a","meta":{"n_ctx":512}}}}',
    ],
    [
      'of a load of a binary that says nothing of its model',
      { type: 'model.loaded', model, loadMs: 5, info: undefined },
      '{"model":"a","event":"status_change","data":{"status":"loaded"}}',
    ],
    [
      'of falling asleep',
      { type: 'model.sleeping', model },
      '{"model":"a","event":"status_change","data":{"status":"sleeping"}}',
    ],
    [
      'of waking',
      { type: 'model.waking', model, progress },
      '{"model":"a","event":"status_change","data":{"status":"loading","progress":{"stages":["text_model"],"current":"text_model","value":0.5}}}',
    ],
    [
      'of being awake',
      { type: 'model.awake', model },
      '{"model":"a","event":"status_change","data":{"status":"loaded"}}',
    ],
    [
      'of an unload that was asked for, with the reason',
      unloaded,
      '{"model":"a","event":"status_change","data":{"status":"unloaded","exit_code":0,"reason":"evicted"}}',
    ],
    [
      'of a failure, with what is known of it',
      { ...unloaded, failed: true, reason: 'was ended by SIGKILL', exitCode: 1, lastLines: ['bang'] },
      '{"model":"a","event":"status_change","data":{"status":"unloaded","exit_code":1,"error":{"message":"its process was ended by SIGKILL","last_lines":["bang"]}}}',
    ],
    [
      'of a download that begins',
      { type: 'download.started', model },
      '{"model":"a","event":"model_status","data":{"status":"downloading"}}',
    ],
    [
      'of a download that goes on',
      { type: 'download.progress', model, progress: { 'http://hub/f': { done: 1, total: 2 } } },
      '{"model":"a","event":"download_progress","data":{"progress":{"http://hub/f":{"done":1,"total":2}}}}',
    ],
    [
      'of a download that is done',
      { type: 'download.finished', model },
      '{"model":"a","event":"download_finished"}',
    ],
    [
      'of a download that failed, with the reason',
      { type: 'download.failed', model, reason: 'disk_full', message: 'the disk is full' },
      '{"model":"a","event":"download_failed","data":{"error":{"reason":"disk_full","message":"the disk is full"}}}',
    ],
    ['of a deletion', { type: 'model.removed', model }, '{"model":"a","event":"model_remove"}'],
  ])('%s', (_, event, record) => {
    expect(written(event)).toBe(record);
  });

  it.each<[string, Partial<SupervisorEvent & { type: 'catalog.changed' }>]>([
    ['has more models', { added: ['b'] }],
    ['has fewer', { removed: ['b'] }],
    ['has one that would be started differently', { changed: ['b'] }],
    ['has one that is broken', { broken: [{ model: 'b', problem: 'no such file', stale: undefined }] }],
  ])('tells to read the list again when it %s', (_, change) => {
    expect(written({ ...asItWas, ...change })).toBe('{"model":"*","event":"models_reload"}');
  });

  it.each<[string, SupervisorEvent]>([
    ['a list that is as it was', asItWas],
    ['a model that waits for a slot', { type: 'model.queued', model, position: 1 }],
    ['a model that was told to stop', { type: 'model.stopping', model, reason: 'evicted' }],
  ])('does not tell of %s', (_, event) => {
    expect(wireEvent(event)).toBeUndefined();
  });
});
