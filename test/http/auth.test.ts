import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { request as httpsRequest } from 'node:https';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { hasOpenssl, makeCertificate, tlsArgs } from '../helpers/certificate.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { tempDir } from '../helpers/temp-dir.js';
import { openSocket } from './raw-socket.js';
import { jsonIn, serveFakes, wireError, type FakeService } from './serve-fakes.js';

const publicPaths = ['/health', '/v1/health', '/livez', '/readyz'];
const guarded: [string, string][] = [
  ['GET', '/models'],
  ['GET', '/v1/models'],
  ['GET', '/props'],
  ['GET', '/props?model=alpha'],
  ['GET', '/metrics?model=alpha'],
  ['GET', '/slots?model=alpha'],
  ['HEAD', '/models'],
  ['POST', '/v1/chat/completions'],
  ['POST', '/infill'],
  ['POST', '/models/load'],
  ['POST', '/models/unload'],
  ['GET', '/nope'],
  ['GET', '/health/'],
  ['GET', '/models/health'],
  ['GET', '/v1/%6dodels'],
];

describe('API keys', () => {
  let service: FakeService;
  beforeAll(async () => {
    const keyFile = join(tempDir(), 'keys');
    writeFileSync(keyFile, '# keys of the house\nsk-file-1\n\nsk-file-2\n');
    service = await serveFakes({
      models: { alpha: {} },
      args: ['--api-key', 'sk-one,sk-two', '--api-key-file', keyFile],
    });
  });

  const status = async (headers: Record<string, string> | string[], path = '/v1/models') =>
    (await rawRequest(`${service.url}${path}`, { headers })).status;

  it.each(guarded)('%s %s needs one: 401 in the native words', async (method, path) => {
    const options = method === 'POST' ? jsonPost({ model: 'alpha' }) : { method };
    const response = await rawRequest(`${service.url}${path}`, options);
    expect(response.status).toBe(401);
    if (method === 'HEAD') return;
    expect(wireError(response, 401, 'authentication_error').message).toBe('Invalid API Key');
    // The helper, which has no alias, knows what of the web UI is public.
    expect(service.journal.of('start').filter(({ alias }) => alias !== '')).toEqual([]);
  });

  it.each(publicPaths)('%s needs none', async (path) => {
    expect(jsonIn(await rawRequest(`${service.url}${path}`))).toEqual({ status: 'ok' });
  });

  it.each(['sk-one', 'sk-two', 'sk-file-1', 'sk-file-2'])(
    '%s is taken in each of the three forms',
    async (key) => {
      expect(await status({ Authorization: `Bearer ${key}` })).toBe(200);
      expect(await status({ Authorization: key })).toBe(200);
      expect(await status({ 'X-Api-Key': key })).toBe(200);
    },
  );

  it.each([
    ['another key', { Authorization: 'Bearer sk-three' }],
    ['no key', { Authorization: 'Bearer ' }],
    ['an empty header', { Authorization: '' }],
    ['the beginning of a key', { Authorization: 'Bearer sk-on' }],
    ['a key and more', { Authorization: 'Bearer sk-one ,' }],
    ['all keys as they were given', { Authorization: 'Bearer sk-one,sk-two' }],
    ['a key in other letters', { Authorization: 'Bearer SK-ONE' }],
    ['another scheme', { Authorization: 'Basic sk-one' }],
    ['the scheme in other letters', { Authorization: 'bearer sk-one' }],
    ['a comment of the key file', { Authorization: 'Bearer # keys of the house' }],
    ['a wrong X-Api-Key', { 'X-Api-Key': 'sk-three' }],
    ['a cookie', { Cookie: 'Authorization=sk-one' }],
  ])('%s is refused', async (_what, headers) => {
    expect(await status(headers)).toBe(401);
  });

  it('in the query is none', async () => {
    expect(await status({}, '/v1/models?api_key=sk-one&key=sk-one')).toBe(401);
  });

  it('in Authorization goes before one in X-Api-Key', async () => {
    expect(await status({ Authorization: 'Bearer sk-three', 'X-Api-Key': 'sk-one' })).toBe(401);
    expect(await status({ Authorization: 'Bearer sk-one', 'X-Api-Key': 'sk-three' })).toBe(200);
  });

  it('opens the proxied routes, and the child is reached with its own', async () => {
    const { body, headers, method } = jsonPost({ model: 'alpha' });
    const response = await rawRequest(`${service.url}/infill`, {
      method,
      body,
      headers: { ...headers, Authorization: 'Bearer sk-two' },
    });
    expect(response.status).toBe(200);
    expect(response.body.toString()).not.toContain('sk-two');
    const start = service.journal.of('start', 'alpha')[0];
    expect(JSON.stringify(start)).not.toContain('sk-');
    expect(start?.env['LLAMA_API_KEY']).toMatch(/^\S{32,}$/);
  });

  it('of the run file is taken, and the file is for its user alone', async () => {
    const { home, port } = service.supervisor;
    const path = join(home, 'runtime', 'llama-supervisor', `${port}.json`);
    const { apiKey, url } = JSON.parse(readFileSync(path, 'utf8')) as { apiKey: string; url: string };
    expect(url).toBe(service.url);
    expect(await status({ Authorization: `Bearer ${apiKey}` })).toBe(200);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it('missing with a large body: the refusal is read all the same', async () => {
    const client = openSocket(service.supervisor.port);
    client.send('POST /infill HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n');
    client.send(Buffer.alloc(1_000_000, 'x'));
    expect(await client.receives('the refusal', /Invalid API Key/)).toMatch(/^HTTP\/1\.1 401 /);
  });

  it('from the environment is asked for, too', async () => {
    const other = await serveFakes({ models: {}, env: { LLAMA_API_KEY: 'sk-env' } });
    const ask = async (headers: Record<string, string>) =>
      (await rawRequest(`${other.url}/models`, { headers })).status;
    expect([await ask({}), await ask({ Authorization: 'Bearer sk-env' })]).toEqual([401, 200]);
  });

  it('none configured: none is asked for, and any is let through', async () => {
    const other = await serveFakes({ models: { alpha: {} } });
    expect((await rawRequest(`${other.url}/models`, { headers: { Authorization: 'x' } })).status).toBe(200);
    const path = join(other.supervisor.home, 'runtime', 'llama-supervisor', `${other.supervisor.port}.json`);
    expect(JSON.parse(readFileSync(path, 'utf8'))).not.toHaveProperty('apiKey');
  });
});

describe('--api-prefix', () => {
  let service: FakeService;
  let origin: string;
  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {} },
      args: ['--api-prefix', '/llama/v2', '--api-key', 'k'],
    });
    origin = `http://127.0.0.1:${service.supervisor.port}`;
  });
  const key = { Authorization: 'Bearer k' };

  it('is part of the address that is announced', () => {
    expect(service.url).toBe(`${origin}/llama/v2`);
  });

  it('stands before every route, and requests reach the child with it', async () => {
    const { body, headers, method } = jsonPost({ model: 'alpha' });
    for (const path of ['/infill', '/v1/chat/completions?x=1']) {
      const response = await rawRequest(`${service.url}${path}`, {
        method,
        body,
        headers: { ...headers, ...key },
      });
      expect(response.status).toBe(200);
      expect(service.journal.of('request').at(-1)?.url).toBe(`/llama/v2${path}`);
    }
    for (const path of ['/models', '/props', '/props?model=alpha', '/slots?model=alpha']) {
      expect((await rawRequest(`${service.url}${path}`, { headers: key })).status).toBe(200);
    }
  });

  it.each(publicPaths)('%s is public under it', async (path) => {
    expect((await rawRequest(`${service.url}${path}`)).status).toBe(200);
  });

  it('leaves nothing without it, and nothing but health without a key', async () => {
    for (const path of ['/health', '/models', '/llama/models', '/llama/v2models', '/x/llama/v2/models']) {
      const response = await rawRequest(`${origin}${path}`, { headers: key });
      expect([path, wireError(response, 404, 'not_found_error').message]).toEqual([path, 'File Not Found']);
    }
    for (const path of ['/models', '/props', '/nope', '/health/x']) {
      expect([path, (await rawRequest(`${service.url}${path}`)).status]).toEqual([path, 401]);
    }
  });
});

describe.skipIf(!hasOpenssl)(
  `HTTPS${hasOpenssl ? '' : ' (skipped: no openssl to make a certificate with)'}`,
  () => {
    it('is served to clients, while children stay on plain HTTP', async () => {
      const certificate = makeCertificate();
      const service = await serveFakes({
        models: { alpha: {} },
        args: tlsArgs(certificate),
      });
      expect(service.url).toBe(`https://127.0.0.1:${service.supervisor.port}`);

      const ask = (path: string, body?: string) =>
        new Promise<{ status: number | undefined; body: string }>((resolve, reject) => {
          const options = { method: body === undefined ? 'GET' : 'POST', ca: readFileSync(certificate.cert) };
          httpsRequest(`${service.url}${path}`, options, (incoming) => {
            let text = '';
            incoming.setEncoding('utf8').on('data', (piece: string) => (text += piece));
            incoming.once('end', () => resolve({ status: incoming.statusCode, body: text }));
            incoming.once('error', reject);
          })
            .once('error', reject)
            .end(body);
        });
      expect(await ask('/health')).toEqual({ status: 200, body: '{"status":"ok"}' });
      const echo = await ask('/infill', '{"model":"alpha"}');
      expect([echo.status, (JSON.parse(echo.body) as { alias: string }).alias]).toEqual([200, 'alpha']);
      const stream = await ask('/v1/completions', '{"model":"alpha","stream":true}');
      expect(stream.body).toMatch(/^data: .*data: \[DONE\]\n\n$/s);

      const start = service.journal.of('start', 'alpha')[0];
      expect(start?.argv.join(' ')).not.toContain('ssl');
      expect(start?.env).toMatchObject({ LLAMA_ARG_SSL_KEY_FILE: '', LLAMA_ARG_SSL_CERT_FILE: '' });

      // Plain HTTP on that port is no request; the connection ends and the server lives on.
      const plain = openSocket(service.supervisor.port);
      plain.send('GET /health HTTP/1.1\r\nHost: x\r\n\r\n');
      await plain.closed('the plain connection is closed');
      expect((await ask('/health')).status).toBe(200);
    });
  },
);
