import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { serveFakes, wireError, type FakeService } from './serve-fakes.js';

const missing = 'model name is missing from the request';

describe('a request that is refused before any child', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({ models: { alpha: {} }, args: ['--no-models-autoload'] });
  });

  const post = (path: string, body: string | Buffer, type = 'application/json') =>
    rawRequest(`${service.url}${path}`, { method: 'POST', headers: { 'content-type': type }, body });

  const allKinds = ['/v1/chat/completions', '/props', '/infill', '/models/load', '/models/unload'];

  const noJson: [string, string][] = [
    ['an empty body', ''],
    ['text', 'hello'],
    ['a body that is cut', '{"model":"alpha","prompt":"x'],
    ['an unquoted name', '{model:"alpha"}'],
    ['a trailing comma', '{"model":"alpha",}'],
    ['something behind the object', '{"model":"alpha"} x'],
    ['form fields', 'model=alpha&prompt=x'],
  ];
  it.each(noJson.flatMap(([what, body]) => allKinds.map((path) => [what, path, body] as const)))(
    '%s at %s: 400, the body is no JSON',
    async (_what, path, body) => {
      const error = wireError(await post(path, body), 400, 'invalid_request_error');
      expect(error.reason).toBe('body_malformed');
      expect(error.message).toContain('request body is');
    },
  );

  it('the reason says at which byte the body breaks', async () => {
    const error = wireError(await post('/infill', '{"model":"alpha",}'), 400, 'invalid_request_error');
    expect(error.message).toContain('byte 17');
  });

  it.each(
    [
      '{}',
      '{"prompt":"x"}',
      '{"model":""}',
      '{"model":null}',
      '{"model":5}',
      '{"model":["alpha"]}',
      '{"model":{"model":"alpha"}}',
      '{"Model":"alpha"}',
      '{"a":{"model":"alpha"}}',
      '{"model":"alpha","model":7}',
      '[]',
      '[{"model":"alpha"}]',
      '"alpha"',
      'null',
      'true',
      '5',
    ].flatMap((body) => ['/v1/chat/completions', '/models/load'].map((path) => [body, path] as const)),
  )('%s at %s: 400 in the native words, the model is missing', async (body, path) => {
    const error = wireError(await post(path, body), 400, 'invalid_request_error');
    expect(error).toMatchObject({ reason: 'model_missing', message: missing });
  });

  it.each([
    ['a plain one', 'nobody'],
    ['one in other letters', 'Alpha'],
    ['one with blanks', ' alpha'],
    ['one with quotes and backslashes', 'a"b\\c\'d'],
    ['one with line breaks and control characters', 'a\r\nX-Evil: 1\u0000\u001b[31m'],
    ['one of other scripts', 'модель-模型-🦙'],
    ['a path', '../../etc/passwd'],
    ['a property of every object', '__proto__'],
    ['another such', 'constructor'],
    ['a long one', 'x'.repeat(4096)],
  ])('an unknown name, %s: 400 in the native words', async (_kind, name) => {
    const error = wireError(
      await post('/infill', JSON.stringify({ model: name })),
      400,
      'invalid_request_error',
    );
    expect(error).toMatchObject({
      reason: 'model_unknown',
      message: `model '${name}' not found`,
      model: name,
    });
    const url = `${service.url}/slots?model=${encodeURIComponent(name)}`;
    expect(wireError(await rawRequest(url), 400, 'invalid_request_error').message).toBe(error.message);
  });

  it('a name of more than 4096 bytes: 400', async () => {
    const error = wireError(
      await post('/infill', JSON.stringify({ model: 'x'.repeat(4097) })),
      400,
      'invalid_request_error',
    );
    expect(error.message).toContain('4096 bytes');
  });

  it('a name that is not UTF-8: 400, and the text of the answer is', async () => {
    const body = Buffer.from('{"model":"\xff\xfe"}', 'latin1');
    const response = await post('/infill', body);
    const error = wireError(response, 400, 'invalid_request_error');
    expect(error.message).toContain('not valid UTF-8');
    expect(Buffer.from(response.body.toString()).equals(response.body)).toBe(true);
  });

  it('a model that is not loaded, without autoload: 400 in the native words', async () => {
    const error = wireError(await post('/infill', '{"model":"alpha"}'), 400, 'invalid_request_error');
    expect(error).toMatchObject({ reason: 'model_not_loaded', message: 'model is not loaded' });
  });

  it.each([
    ['without a boundary', 'multipart/form-data', 'x'],
    [
      'that is cut',
      'multipart/form-data; boundary=b',
      '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nalp',
    ],
    ['that is empty', 'multipart/form-data; boundary=b', ''],
  ])('a multipart body %s: 400', async (_what, type, body) => {
    const error = wireError(await post('/v1/audio/transcriptions', body, type), 400, 'invalid_request_error');
    expect(error.reason).toBe('body_malformed');
  });

  const forms: [string, [string, string][]][] = [
    ['without a model', [['prompt', 'x']]],
    ['with an empty model', [['model', '']]],
    [
      'with two models',
      [
        ['model', 'alpha'],
        ['model', 'alpha'],
      ],
    ],
  ];
  it.each(forms)('a form %s: 400 in the native words', async (_what, fields) => {
    const parts = fields.map(
      ([name, value]) => `--b\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`,
    );
    const body = `${parts.join('')}--b--\r\n`;
    const error = wireError(
      await post('/v1/audio/transcriptions', body, 'multipart/form-data; boundary=b'),
      400,
      'invalid_request_error',
    );
    expect(error).toMatchObject({ reason: 'model_missing', message: missing });
  });
});

describe('a model that does not load', () => {
  it('503 with Retry-After, the native words, how it ended and what it said, for every waiter', async () => {
    const service = await serveFakes({
      models: { broken: { loadMs: 500, exitWhileLoading: { code: 3, lines: ['first', 'out of memory'] } } },
    });
    const responses = await Promise.all(
      Array.from({ length: 5 }, () =>
        rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'broken' })),
      ),
    );
    for (const response of responses) {
      const error = wireError(response, 503, 'unavailable_error');
      expect(error).toMatchObject({ reason: 'load_failed', model: 'broken' });
      expect(error.message).toMatch(/^model name=broken failed to load: .*exited with code 3.*out of memory/);
      expect(error['last_lines']).toEqual(expect.arrayContaining(['first', 'out of memory']));
      expect(Number(response.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    }
    expect(service.journal.of('start')).toHaveLength(1);
  });

  it('the next request tries again', async () => {
    const service = await serveFakes({ models: { mended: { byStart: [{ exitWhileLoading: {} }] } } });
    const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'mended' }));
    wireError(response, 503, 'unavailable_error');
    expect(await service.use('mended')).toMatchObject({ alias: 'mended' });
  });

  it('a load that takes longer than --load-timeout is ended with the same answer', async () => {
    const service = await serveFakes({
      models: { stuck: { neverReady: true } },
      args: ['--load-timeout', '1'],
    });
    const response = await rawRequest(`${service.url}/infill`, jsonPost({ model: 'stuck' }));
    const error = wireError(response, 503, 'unavailable_error');
    expect(error.message).toMatch(/^model name=stuck failed to load: .*--load-timeout/);
    expect((await service.entry('stuck')).status).toMatchObject({ value: 'unloaded', failed: true });
  });
});

describe('at shutdown', () => {
  it('a waiting request is refused with 503 and Retry-After, and one in flight is answered', async () => {
    const service = await serveFakes({
      models: { alpha: { nonStreamMs: 1_500 }, beta: {} },
      args: ['--models-max', '1'],
    });
    const inFlight = rawExchange(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' }));
    await service.until('alpha is busy', 'alpha', (entry) => entry.in_flight === 1);
    const waiting = rawExchange(`${service.url}/infill`, jsonPost({ model: 'beta' }));
    await service.until('beta is waited for', 'beta', (entry) => entry.waiting === 1);
    const stopped = service.supervisor.stop();
    const refusal = await waiting.ended;
    expect(wireError(refusal, 503, 'unavailable_error').reason).toBe('shutting_down');
    expect(Number(refusal.headers['retry-after'])).toBeGreaterThanOrEqual(1);
    const answer = await inFlight.ended;
    expect([answer.status, answer.complete]).toEqual([200, true]);
    expect(await stopped).toEqual({ code: 0, signal: null });
  });
});
