/** Who may ask: for the native router and for ours. */
import { beforeAll, describe, expect, it } from 'vitest';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { startPair, title, type OracleRequest, type Pair } from './http-oracle.js';

const models = { alpha: sayingItsName('alpha') };
const page = 'https://page.example';
const chat = { model: 'alpha', messages: [{ role: 'user', content: 'Who are you?' }] };

describe('keys', () => {
  let pair: Pair;

  beforeAll(async () => {
    pair = await startPair({ models, args: ['--api-key', 'sesame,open sesame,Bearer me'] });
  });

  const served: [string, Record<string, string>][] = [
    ['as a bearer', { Authorization: 'Bearer sesame' }],
    ['bare', { Authorization: 'sesame' }],
    ['as X-Api-Key', { 'X-Api-Key': 'sesame' }],
    ['with a blank in it', { Authorization: 'Bearer open sesame' }],
    ['with a blank in it, bare', { Authorization: 'open sesame' }],
    ['with a blank in it, as X-Api-Key', { 'X-Api-Key': 'open sesame' }],
    ['between blanks, which no header keeps', { Authorization: '  Bearer sesame  ' }],
    ['in a header of other letters', { AUTHORIZATION: 'Bearer sesame' }],
    ['beside an empty Authorization', { Authorization: '', 'X-Api-Key': 'sesame' }],
    ['as X-Api-Key with a scheme', { 'X-Api-Key': 'Bearer sesame' }],
    ['beside a wrong X-Api-Key', { Authorization: 'Bearer sesame', 'X-Api-Key': 'wrong' }],
  ];
  const refused: [string, Record<string, string>][] = [
    ['missing', {}],
    ['empty', { Authorization: '' }],
    ['a scheme without a key', { Authorization: 'Bearer' }],
    ['a scheme and a blank', { Authorization: 'Bearer ' }],
    ['with the scheme in small letters', { Authorization: 'bearer sesame' }],
    ['with the scheme in large letters', { Authorization: 'BEARER sesame' }],
    ['of another scheme', { Authorization: 'Basic sesame' }],
    ['in other letters', { Authorization: 'Bearer Sesame' }],
    ['behind two blanks', { Authorization: 'Bearer  sesame' }],
    ['behind a tab', { Authorization: 'Bearer\tsesame' }],
    ['behind two schemes', { Authorization: 'Bearer Bearer sesame' }],
    ['that begins with the scheme, which is taken off', { Authorization: 'Bearer me' }],
    ['cut', { Authorization: 'Bearer sesam' }],
    ['with more behind', { Authorization: 'Bearer sesame,' }],
    ['as they were given', { Authorization: 'Bearer sesame,open sesame,Bearer me' }],
    ['wrong, beside a right X-Api-Key', { Authorization: 'wrong', 'X-Api-Key': 'sesame' }],
    ['in a header of another name', { 'Api-Key': 'sesame' }],
    ['in a cookie', { Cookie: 'Authorization=sesame' }],
    ['in quotes', { Authorization: 'Bearer "sesame"' }],
  ];

  it.each(served)('%s are taken', async (_how, headers) => {
    expect((await pair.expectSame({ path: '/models', headers })).status).toBe(200);
  });

  it.each(refused)('%s are refused in the same words', async (_how, headers) => {
    expect((await pair.expectSame({ path: '/models', headers })).status).toBe(401);
  });

  const needing: OracleRequest[] = [
    { path: '/models?api_key=sesame&key=sesame' },
    { path: '/v1/models' },
    { path: '/props' },
    { path: '/props?model=alpha' },
    { path: '/metrics' },
    { path: '/slots?model=alpha' },
    { path: '/lora-adapters?model=nobody' },
    { path: '/models/sse' },
    { path: '/v1/stream?conv_id=x' },
    { method: 'DELETE', path: '/v1/stream?conv_id=x' },
    { method: 'POST', path: '/v1/streams/lookup', body: { conversation_ids: [] } },
    { path: '/tools' },
    { path: '/cors-proxy?url=http://127.0.0.1:1/' },
    { method: 'POST', path: '/v1/chat/completions', body: chat },
    { method: 'POST', path: '/v1/chat/completions', body: 'no JSON' },
    { method: 'POST', path: '/models/load', body: { model: 'alpha' } },
    { method: 'POST', path: '/models', body: { model: 'a/b' } },
    { method: 'DELETE', path: '/models?model=alpha' },
    { method: 'HEAD', path: '/models' },
    { method: 'PUT', path: '/models' },
    { path: '/nowhere' },
    { path: '/health/' },
    { path: '//health' },
    { path: '/HEALTH' },
    { path: '/v1/health/x' },
    { path: '/v2/health' },
    { path: '/models/health' },
  ];

  it.each(needing.map((request) => [title(request), request] as const))(
    '%s wants one',
    async (_, request) => {
      expect((await pair.expectSame(request)).status).toBe(401);
      const headers = { Authorization: 'Bearer wrong', Origin: page };
      expect((await pair.expectSame({ ...request, headers })).status).toBe(401);
    },
  );

  it.each<OracleRequest>([
    { path: '/health' },
    { path: '/v1/health' },
    { path: '/health?x=1' },
    { method: 'HEAD', path: '/health' },
    { path: '/healt%68' },
    { method: 'OPTIONS', path: '/models' },
    { method: 'OPTIONS', path: '/nowhere' },
    { method: 'OPTIONS', path: '/models', headers: { Authorization: 'Bearer wrong', Origin: page } },
  ])('$method $path wants none', async (request) => {
    expect((await pair.expectSame(request)).status).toBe(200);
  });

  it.each(['/', '/index.html', '/build.json', '/manifest.webmanifest', '/favicon.ico', '/index', '/x.js'])(
    'the same is public of the web UI: %s',
    async (path) => {
      // Without gzip the native router has a refusal of its own.
      const { native, ours } = await pair.play({ path, headers: { 'Accept-Encoding': 'gzip' } });
      expect(ours.status).toBe(native.status);
    },
  );

  it('are no matter of a method that the path does not have', async () => {
    // Health is public to all that is sent there, and found only by who asks for it.
    expect((await pair.expectSame({ method: 'POST', path: '/health', body: {} })).status).toBe(404);
    expect((await pair.expectSame({ method: 'DELETE', path: '/v1/health' })).status).toBe(404);
  });
});
