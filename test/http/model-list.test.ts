import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { jsonIn, serveFakes, wireError, type FakeService, type ListEntry } from './serve-fakes.js';

/** The native router's fields of an entry, in its order (tools/server/server-models.cpp, `get_router_models`). */
const nativeFields = [
  'id',
  'aliases',
  'tags',
  'object',
  'owned_by',
  'created',
  'status',
  'architecture',
  'source',
  'can_remove',
];

describe('the list of models', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: {
        b: {},
        B: {},
        'a.1': {},
        'a-1': {},
        ab: {},
        Ａ: {},
        '𝒜': {},
        breaks: { exitWhileLoading: { code: 7, lines: ['no room'] } },
        crashes: { dieOnRequest: { signal: 'SIGABRT' } },
        stops: {},
      },
      files: { 'junk.gguf': 'this is no GGUF' },
      presets: '[b]\nalias = zwo, zwei\ntags = t2, t1\n',
    });
  });

  it('is the same at /models and /v1/models but for the clock', async () => {
    const [short, long] = await Promise.all(
      ['/models', '/v1/models'].map(async (path) => {
        const response = await rawRequest(`${service.url}${path}`);
        expect(response.headers['content-type']).toMatch(/^application\/json/);
        const { data, models, ...rest } = jsonIn(response) as {
          data: ListEntry[];
          models: { model: string }[];
          object: string;
        };
        expect(rest).toEqual({ object: 'list' });
        // The web UI takes the two at the same place for one model.
        expect(models.map(({ model }) => model)).toEqual(data.map(({ id }) => id));
        return data.map(({ created: _created, ...entry }) => entry);
      }),
    );
    expect(short).toEqual(long);
    expect(short).not.toHaveLength(0);
  });

  it('is sorted by the bytes of the ids', async () => {
    const ids = (await service.list()).map(({ id }) => id);
    // By UTF-16 units, as JavaScript sorts, the last two would stand the other way round.
    expect(ids).toEqual(['B', 'a-1', 'a.1', 'ab', 'b', 'breaks', 'crashes', 'junk', 'stops', 'Ａ', '𝒜']);
  });

  it("has the native router's fields in its order, and ours behind them", async () => {
    const entry = await service.entry('b');
    expect(Object.keys(entry).slice(0, nativeFields.length)).toEqual(nativeFields);
    expect(Object.keys(entry.status)).toEqual(['value', 'args', 'preset']);
    expect(entry).toMatchObject({
      aliases: ['zwei', 'zwo'],
      tags: ['t1', 't2'],
      object: 'model',
      owned_by: 'llamacpp',
      status: { value: 'unloaded' },
      architecture: { input_modalities: ['text'], output_modalities: ['text'] },
      source: 'preset',
      can_remove: false,
      in_flight: 0,
      waiting: 0,
    });
    const now = Date.now() / 1000;
    expect(entry['created']).toBeGreaterThan(now - 30);
    expect(entry['created']).toBeLessThanOrEqual(now);
    expect(Number.isInteger(entry['created'])).toBe(true);
  });

  it('has what the child says of itself while it runs, and its real command line', async () => {
    await service.use('ab');
    const entry = await service.entry('ab');
    expect(Object.keys(entry).slice(0, nativeFields.length + 1)).toEqual([...nativeFields, 'meta']);
    expect(entry).toMatchObject({
      status: { value: 'loaded' },
      source: 'models_dir',
      meta: { n_vocab: 262 },
    });
    const start = service.journal.of('start', 'ab').at(0);
    expect(entry.status.args.slice(1)).toEqual(start?.argv);
    expect(entry.pid).toBe(start?.pid);
  });

  it('says of a model that failed to load why, in the native form and with its last lines', async () => {
    await rawRequest(`${service.url}/infill`, jsonPost({ model: 'breaks' }));
    const { status } = await service.entry('breaks');
    expect(Object.keys(status).slice(0, 5)).toEqual(['value', 'args', 'preset', 'exit_code', 'failed']);
    expect(status).toMatchObject({ value: 'unloaded', exit_code: 7, failed: true });
    expect(status.error?.reason).toBe('load_failed');
    expect(status.error?.message).toContain('exited with code 7');
    expect(status.error?.last_lines).toContain('no room');
  });

  it('says of a model that crashed how it ended', async () => {
    await rawRequest(`${service.url}/infill`, jsonPost({ model: 'crashes' }));
    const { status } = await service.until('the crash is seen', 'crashes', (entry) => !!entry.status.failed);
    expect(status).toMatchObject({ value: 'unloaded', exit_code: 1, failed: true });
    expect(status.error?.reason).toBe('crashed');
    expect(status.error?.message).toContain('SIGABRT');
  });

  it('calls a model that was told to stop unloaded, and not failed', async () => {
    await service.use('stops');
    await rawRequest(`${service.url}/models/unload`, jsonPost({ model: 'stops' }));
    const { status } = await service.until(
      'it is unloaded',
      'stops',
      (entry) => entry.status.value === 'unloaded',
    );
    expect(Object.keys(status)).toEqual(['value', 'args', 'preset']);
  });

  it('shows a file that is not a GGUF as failed, with the reason a request for it is refused with', async () => {
    const { status } = await service.entry('junk');
    expect(status).toMatchObject({ value: 'unloaded', failed: true, error: { reason: 'model_invalid' } });
    const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'junk' }));
    const error = wireError(response, 503, 'unavailable_error');
    expect(error).toMatchObject({ reason: 'model_invalid', model: 'junk' });
    expect(error.message).toContain(status.error?.message);
    const load = await rawRequest(`${service.url}/models/load`, jsonPost({ model: 'junk' }));
    expect(wireError(load, 503, 'unavailable_error').message).toBe(error.message);
    expect(service.journal.of('start', 'junk')).toEqual([]);
  });
});
