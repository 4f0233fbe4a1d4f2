/** Which pages may read the answers of the native router and of ours. */
import { beforeAll, describe, expect, it } from 'vitest';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { ask, startPair, title, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

const models = { alpha: sayingItsName('alpha') };
const page = 'https://page.example';
const chat = { model: 'alpha', messages: [{ role: 'user', content: 'Who are you?' }] };

/** Browsers write origins in this form; the others are what somebody might try. */
const origins = [
  page,
  'http://localhost',
  'http://localhost:5173',
  'https://localhost:8443',
  'http://127.0.0.1:3000',
  'http://[::1]:80',
  'http://localhost.page.example',
  'http://127.0.0.1.page.example',
  'http://page.example:80',
  'http://127.0.0.2',
  'http://0.0.0.0:8080',
  'null',
  'file://',
  'localhost',
];

describe.each<[string, string[], Record<string, string>?]>([
  ['the default', []],
  ['any origin, with credentials', ['--cors-origins', '*', '--cors-credentials']],
  ['any origin, without credentials', ['--no-cors-credentials']],
  ['this machine', ['--cors-origins', 'localhost']],
  ['this machine, without credentials', ['--cors-origins', 'localhost', '--no-cors-credentials']],
  ['one origin', ['--cors-origins', page]],
  ['one origin, without credentials', ['--cors-origins', page, '--no-cors-credentials']],
  ['other methods and headers', ['--cors-methods', 'GET', '--cors-headers', 'X-One, X-Two']],
  ['built-in tools', ['--tools', 'get_info']],
  ['built-in tools, and any origin', ['--tools', 'get_info', '--cors-origins', '*']],
  ['the environment', [], { LLAMA_ARG_CORS_ORIGINS: 'localhost', LLAMA_ARG_CORS_METHODS: 'POST' }],
])('CORS: %s', (_name, args, env = {}) => {
  it('allows the same pages the same, whatever the answer is', async () => {
    const pair = await startPair({ models, args: ['--api-key', 'sesame', ...args], env });
    const key = { 'X-Api-Key': 'sesame' };
    for (const Origin of origins) {
      for (const request of [
        { path: '/health', headers: { Origin } },
        { method: 'OPTIONS', path: '/models', headers: { Origin, 'Access-Control-Request-Method': 'POST' } },
      ]) {
        expect((await pair.expectSame(request)).status).toBe(200);
      }
    }
    const headers = { Origin: page, ...key };
    const statuses = [];
    for (const request of [
      { path: '/props', headers },
      { path: '/props', headers: { Origin: page } },
      { path: '/nowhere', headers },
      { method: 'POST', path: '/tokenize', headers, body: { model: 'nobody' } },
      { path: '/v1/stream', headers },
      { method: 'DELETE', path: '/v1/stream?conv_id=x', headers },
      { method: 'OPTIONS', path: '/nowhere' },
      { method: 'POST', path: '/v1/chat/completions', headers, body: { ...chat, stream: true } },
      { path: '/lora-adapters?model=alpha', headers },
    ]) {
      statuses.push((await pair.expectSame(request)).status);
    }
    expect(statuses).toEqual([200, 401, 404, 400, 400, 204, 200, 200, 200]);
  });
});

describe('pages of other origins', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models });
  });

  it(intended('cors-without-origin'), async () => {
    for (const path of ['/health', '/nowhere', '/slots']) {
      const [native, ours] = await Promise.all([pair.native, pair.ours].map((url) => fetch(url + path)));
      expect(native?.headers.get('access-control-allow-origin'), path).toBe('');
      expect(ours?.headers.get('access-control-allow-origin'), path).toBeNull();
    }
    const withOrigin = await fetch(`${pair.ours}/health`, { headers: { origin: page } });
    expect(withOrigin.headers.get('vary')).toBe('Origin');
  });

  it(intended('several-origins'), async () => {
    const list = 'https://a.example, https://b.example';
    const named = await startPair({ models, args: ['--cors-origins', list] });
    for (const [Origin, allowed] of [
      ['https://a.example', 'https://a.example'],
      ['https://b.example', 'https://b.example'],
      ['https://c.example', undefined],
    ] as const) {
      const { native, ours } = await named.play({ path: '/health', headers: { Origin } });
      expect(native.headers['access-control-allow-origin']).toBe(list);
      expect(ours.headers['access-control-allow-origin'], Origin).toBe(allowed);
    }
  });

  it(intended('foreign-pages'), async () => {
    for (const request of [
      { method: 'POST', path: '/models/load', body: { model: 'alpha' } },
      { method: 'POST', path: '/models/unload', body: { model: 'alpha' } },
      { path: '/models?reload=1' },
      { path: '/models?reload=&reload=1' },
    ]) {
      const fromPage = { ...request, headers: { Origin: page } };
      const native = await ask(pair.native, fromPage);
      expect(native.status, title(request)).toBe(200);
      const ours = await ask(pair.ours, fromPage);
      expect(ours, title(request)).toMatchObject({
        status: 403,
        body: { error: { type: 'permission_error' } },
      });
      expect(ours.headers['access-control-allow-origin']).toBe(page);
    }
    await pair.untilBoth('alpha', 'unloaded');
    const fromHere = { Origin: 'http://localhost:5173' };
    await pair.expectSame({
      method: 'POST',
      path: '/models/load',
      body: { model: 'alpha' },
      headers: fromHere,
    });
    await pair.untilBoth('alpha', 'loaded');
  });
});
