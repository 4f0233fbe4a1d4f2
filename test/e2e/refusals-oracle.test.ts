/** What both routers answer before any model is asked. */
import { beforeAll, describe, expect, it } from 'vitest';
import { counting, sayingItsName } from '../helpers/known-answer-models.js';
import { startPair, type OracleRequest, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

function template(model: string, query = ''): OracleRequest {
  const body = { model, messages: [{ role: 'user', content: 'Who are you?' }] };
  return { method: 'POST', path: `/apply-template${query}`, body };
}

function load(model: string): OracleRequest {
  return { method: 'POST', path: '/models/load', body: { model } };
}

const off = [
  '?autoload=false',
  '?autoload=0',
  '?autoload=no',
  '?autoload=off',
  '?autoload=TRUE',
  '?autoload=2',
  '?autoload=1&autoload=0',
];
const on = ['?autoload=true', '?autoload=1', '?autoload=%74rue'];
const unsaid = ['', '?autoload=', '?autoload', '?AUTOLOAD=true', '?x=autoload'];
const notLoaded = { status: 400, body: { error: { message: 'model is not loaded' } } };

describe('a model that is not loaded', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models: { alpha: sayingItsName('alpha') } });
  });

  it.each(off)('is not loaded by POST %s', async (query) => {
    expect(await pair.expectSame(template('alpha', query))).toMatchObject(notLoaded);
    expect(await pair.expectSame({ path: `/props${query}&model=alpha` })).toMatchObject(notLoaded);
  });

  it.each([...on, ...unsaid])('is loaded by POST %s', async (query) => {
    await pair.untilBoth('alpha', 'unloaded');
    expect((await pair.expectSame(template('alpha', query))).status).toBe(200);
    await pair.expectSame({ method: 'POST', path: '/models/unload', body: { model: 'alpha' } });
    await pair.untilBoth('alpha', 'unloaded');
  });

  it(intended('autoload-off-while-loading'), async () => {
    await pair.untilBoth('alpha', 'unloaded');
    // Each is asked in the moment after its load has begun: one after the other, not in turns.
    const answers: Record<string, { status: number; text: string }> = {};
    for (const who of ['native', 'ours'] as const) {
      const json = { method: 'POST', headers: { 'content-type': 'application/json' } };
      await fetch(`${pair[who]}/models/load`, { ...json, body: JSON.stringify(load('alpha').body) });
      const { path, body } = template('alpha', '?autoload=false');
      const answer = await fetch(pair[who] + path, { ...json, body: JSON.stringify(body) });
      answers[who] = { status: answer.status, text: await answer.text() };
    }
    expect([500, 503]).toContain(answers['native']?.status);
    expect(answers['native']?.text).toMatch(/^proxy error|Loading model/);
    expect(answers['ours']).toMatchObject({ status: 200, text: expect.stringContaining('prompt') as string });
    await pair.untilBoth('alpha', 'loaded');
  });

  it('is loaded by both after that, and is told so to who loads it', async () => {
    await pair.untilBoth('alpha', 'loaded');
    expect(await pair.expectSame(load('alpha'))).toMatchObject({
      status: 400,
      body: { error: { message: 'model is already running' } },
    });
  });
});

describe('with --no-models-autoload', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({
      models: { alpha: sayingItsName('alpha'), beta: counting(3) },
      args: ['--no-models-autoload'],
    });
  });

  it.each([...off, ...unsaid])('a model is not loaded by %s', async (query) => {
    expect(await pair.expectSame(template('alpha', query))).toMatchObject(notLoaded);
    const look = `/props${query === '' ? '?' : `${query}&`}model=alpha`;
    expect(await pair.expectSame({ path: look })).toMatchObject(notLoaded);
  });

  it('a model is loaded by who asks for that: a POST, a GET, a load', async () => {
    expect((await pair.expectSame(template('alpha', '?autoload=true'))).status).toBe(200);
    expect((await pair.expectSame({ path: '/lora-adapters?model=beta&autoload=1' })).status).toBe(200);
    for (const model of ['alpha', 'beta']) {
      await pair.untilBoth(model, 'loaded');
      expect((await pair.expectSame(template(model))).status).toBe(200);
      expect((await pair.expectSame(template(model, '?autoload=false'))).status).toBe(200);
      await pair.expectSame({ method: 'POST', path: '/models/unload', body: { model } });
      await pair.untilBoth(model, 'unloaded');
    }
    expect((await pair.expectSame(load('beta'))).body).toEqual({ success: true });
    await pair.untilBoth('beta', 'loaded');
  });
});

describe('a model that does not load', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({
      models: { alpha: sayingItsName('alpha'), broken: counting(3) },
      presets: ['[broken]', 'device = nowhere', 'alias = wreck'].join('\n'),
    });
  });

  it(intended('failed-load'), async () => {
    for (const name of ['broken', 'wreck', 'broken']) {
      const { native, ours } = await pair.play(template(name));
      expect(native).toMatchObject({
        status: 500,
        body: { error: { message: 'model name=broken failed to load', type: 'server_error' } },
      });
      expect(ours).toMatchObject({
        status: 503,
        body: { error: { code: 503, type: 'unavailable_error' } },
      });
      const { message } = (ours.body as { error: { message: string } }).error;
      expect(message).toMatch(/^model name=broken (?:failed to load|has failed \d+ times in a row)/);
      expect(message).toContain('invalid device: nowhere');
    }
  });

  it('is listed as failed in the same words', async () => {
    const { native, ours } = await pair.play({ path: '/models' });
    const [theirs, own] = [native, ours].map(
      ({ body }) =>
        (body as { data: { id: string; status: object }[] }).data.find(({ id }) => id === 'broken')?.status,
    );
    expect(theirs).toMatchObject({ value: 'unloaded', failed: true, exit_code: 1 });
    expect(own).toMatchObject(theirs ?? {});
  });

  it('is accepted by a load all the same, and not to be unloaded', async () => {
    expect((await pair.expectSame(load('broken'))).body).toEqual({ success: true });
    await pair.untilBoth('broken', 'unloaded');
    expect(
      await pair.expectSame({ method: 'POST', path: '/models/unload', body: { model: 'broken' } }),
    ).toMatchObject({ status: 400, body: { error: { message: 'model is not running' } } });
  });

  it('does not stop the others', async () => {
    expect((await pair.expectSame(template('alpha'))).status).toBe(200);
  });
});

describe('what is too large', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models: { alpha: sayingItsName('alpha') } });
  });

  const end = 'Host: x\r\nConnection: close\r\n\r\n';

  it(intended('large-body'), async () => {
    const body = Buffer.alloc(100 * 1024 * 1024 + 1, ' ');
    const headers = { 'Content-Type': 'application/json' };
    const { native, ours } = await pair.play({ method: 'POST', path: '/tokenize', headers, body });
    expect(native).toMatchObject({ status: 413, body: '' });
    expect(ours).toMatchObject({
      status: 413,
      body: { error: { code: 413, type: 'invalid_request_error' } },
    });
  });

  it(intended('long-targets'), async () => {
    const ask = (bytes: number) => pair.playText(`GET /health?${'x'.repeat(bytes)} HTTP/1.1\r\n${end}`);
    const [small, medium, large] = [await ask(32_000), await ask(33_000), await ask(70_000)];
    for (const answer of [small.native, small.ours, medium.ours]) expect(answer).toMatch(/^HTTP\/1\.1 200 /);
    expect([medium.native, large.native]).toEqual(['', '']);
    expect(large.ours).toMatch(/^HTTP\/1\.1 431 .*\r\n\r\n\{"error":\{"code":431,.*\}\}$/s);
  });

  it(intended('many-headers'), async () => {
    const headers = Array.from({ length: 150 }, (_, at) => `X-${at}: x\r\n`).join('');
    const { native, ours } = await pair.playText(`GET /health HTTP/1.1\r\n${headers}${end}`);
    expect(native).toMatch(/^HTTP\/1\.1 400 .*\r\n\r\n$/s);
    expect(ours).toMatch(/^HTTP\/1\.1 200 /);
  });
});
