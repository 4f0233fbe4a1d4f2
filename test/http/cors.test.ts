import { beforeAll, describe, expect, it } from 'vitest';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { serveFakes, wireError, type FakeService } from './serve-fakes.js';

const page = 'https://chat.example';

/** What a browser asks before it sends a request that is not a simple one. */
function preflight(url: string, origin = page): Promise<RawResponse> {
  const headers = { Origin: origin, 'Access-Control-Request-Method': 'POST' };
  return rawRequest(url, { method: 'OPTIONS', headers });
}

function corsOf({ headers }: RawResponse): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(headers).filter(([name]) => name.startsWith('access-control-') || name === 'vary'),
  );
}

describe('by default', () => {
  let service: FakeService;

  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: { echo: { headers: { 'Access-Control-Allow-Origin': 'http://child' } } } },
      args: ['--api-key', 'secret'],
    });
  });

  const key = { Authorization: 'Bearer secret' };

  it('every answer repeats the origin of the page that asks, errors and streams included', async () => {
    const body = JSON.stringify({ model: 'alpha', stream: true, max_tokens: 2 });
    const answers = await Promise.all([
      rawRequest(`${service.url}/models`, { headers: { Origin: page, ...key } }),
      rawRequest(`${service.url}/models`, { headers: { Origin: page } }),
      rawRequest(`${service.url}/health`, { headers: { Origin: page } }),
      rawRequest(`${service.url}/v1/completions`, {
        method: 'POST',
        headers: { Origin: page, ...key },
        body,
      }),
      rawRequest(`${service.url}/infill`, { method: 'POST', headers: { Origin: page, ...key }, body: '{}' }),
      rawRequest(`${service.url}/v1/stream?conv_id=x`, { headers: { Origin: page, ...key } }),
    ]);
    expect(answers.map(({ status }) => status)).toEqual([200, 401, 200, 200, 400, 404]);
    for (const answer of answers) {
      expect(corsOf(answer)).toEqual({ 'access-control-allow-origin': page, vary: 'Origin' });
    }
  });

  it('a request that no page makes gets no such header', async () => {
    expect(corsOf(await rawRequest(`${service.url}/health`))).toEqual({});
    expect(corsOf(await rawRequest(`${service.url}/models`, { headers: key }))).toEqual({});
  });

  it('a preflight request needs no key, on any path', async () => {
    for (const path of ['/v1/chat/completions', '/models/load', '/nowhere']) {
      const answer = await preflight(service.url + path);
      expect({ status: answer.status, body: answer.body.toString() }).toEqual({ status: 200, body: '' });
      expect(corsOf(answer)).toEqual({
        'access-control-allow-origin': page,
        'access-control-allow-credentials': 'true',
        'access-control-allow-methods': 'GET, POST, DELETE, OPTIONS',
        'access-control-allow-headers': '*',
        vary: 'Origin',
      });
    }
  });
});

describe.each<[string, string[], string, Record<string, unknown>]>([
  ['localhost', ['--cors-origins', 'localhost'], page, { vary: 'Origin' }],
  [
    'localhost',
    ['--cors-origins', 'localhost'],
    'http://localhost:5173',
    { 'access-control-allow-origin': 'http://localhost:5173', vary: 'Origin' },
  ],
  [
    'localhost',
    ['--cors-origins', 'localhost'],
    'http://[::1]:80',
    { 'access-control-allow-origin': 'http://[::1]:80', vary: 'Origin' },
  ],
  ['localhost', ['--cors-origins', 'localhost'], 'http://localhost.evil.example', { vary: 'Origin' }],
  ['with tools on', ['--tools', 'get_info'], page, { vary: 'Origin' }],
  [
    'one origin',
    ['--cors-origins', 'https://a.example'],
    page,
    { 'access-control-allow-origin': 'https://a.example' },
  ],
  [
    'several origins',
    ['--cors-origins', `https://a.example, ${page}`],
    page,
    { 'access-control-allow-origin': page, vary: 'Origin' },
  ],
  ['several origins', ['--cors-origins', 'https://a.example,https://b.example'], page, { vary: 'Origin' }],
  ['no credentials', ['--no-cors-credentials'], page, { 'access-control-allow-origin': '*' }],
])('%s: %j', (_name, args, origin, expected) => {
  it(`answers ${origin}`, async () => {
    const { url } = await serveFakes({ models: { alpha: {} }, args });
    const answer = await rawRequest(`${url}/health`, { headers: { Origin: origin } });
    expect(corsOf(answer)).toEqual(expected);
  });
});

it('methods, headers and credentials are what the options say', async () => {
  const args = ['--cors-methods', 'GET', '--cors-headers', 'X-One', '--no-cors-credentials'];
  const { url } = await serveFakes({ models: { alpha: {} }, args });
  expect(corsOf(await preflight(`${url}/models`))).toEqual({
    'access-control-allow-origin': '*',
    'access-control-allow-credentials': 'false',
    'access-control-allow-methods': 'GET',
    'access-control-allow-headers': 'X-One',
  });
});

describe('routes that change something', () => {
  let open: FakeService;
  let keyed: FakeService;

  beforeAll(async () => {
    open = await serveFakes({
      models: { alpha: {} },
      args: ['--cors-origins', `${page},https://b.example`, '--allowed-hosts', 'gpu,gpu.lan:8080'],
    });
    keyed = await serveFakes({ models: { alpha: {} }, args: ['--api-key', 'secret'] });
  });

  function load({ url }: FakeService, headers: Record<string, string>): Promise<RawResponse> {
    return rawRequest(`${url}/models/load`, { ...jsonPost({ model: 'nobody' }), headers });
  }

  it.each<[string, Record<string, string>, told: string, remedy: string]>([
    [
      'a page of another site',
      { Origin: 'https://evil.example' },
      'Origin: https://evil.example',
      '--cors-origins',
    ],
    ['a page without an origin of its own', { Origin: 'null' }, 'Origin: null', '--cors-origins'],
    [
      'an image on a page of another site',
      { 'Sec-Fetch-Site': 'cross-site' },
      'Sec-Fetch-Site: cross-site',
      '--cors-origins',
    ],
    [
      'a page of a neighbouring site',
      { 'Sec-Fetch-Site': 'same-site' },
      'Sec-Fetch-Site: same-site',
      '--cors-origins',
    ],
    [
      'a page that has had its own name point here',
      { Origin: 'http://evil.example:8080', Host: 'evil.example:8080' },
      'Host: evil.example:8080',
      '--allowed-hosts evil.example,',
    ],
    [
      'the same where its browser takes it for trustworthy',
      { Origin: 'https://evil.example', Host: 'evil.example', 'Sec-Fetch-Site': 'same-origin' },
      'Host: evil.example',
      '--allowed-hosts evil.example,',
    ],
    [
      'a page of a machine of the local network that is not named',
      { Origin: 'http://other.lan', Host: 'other.lan' },
      'Host: other.lan',
      '--allowed-hosts other.lan,',
    ],
    [
      'a page of an address that the request has not come to',
      { Origin: 'http://10.0.0.7:81', Host: '10.0.0.7:81' },
      'Host: 10.0.0.7:81',
      '--allowed-hosts 10.0.0.7,',
    ],
    [
      'a page by another port than the one that is named',
      { Origin: 'http://gpu.lan:81', Host: 'gpu.lan:81' },
      'Host: gpu.lan:81',
      '--allowed-hosts gpu.lan,',
    ],
    [
      'a page of the same host behind another port',
      { Origin: 'http://gpu:81', Host: 'gpu:8080' },
      'Origin: http://gpu:81',
      '--cors-origins',
    ],
  ])('refuse %s, and say why and what to do', async (_who, headers, told, remedy) => {
    const error = wireError(await load(open, headers), 403, 'permission_error');
    expect(error.reason).toBe('origin_foreign');
    expect(error.message).toContain(`'${told}'`);
    expect(error.message).toContain(remedy);
    expect(error.message).toContain('--api-key');
  });

  it('tell of a header no more than a line can hold', async () => {
    const Origin = `http://${'x'.repeat(10_000)}\u00e9\u0085.example`;
    const { message } = wireError(await load(open, { Origin }), 403, 'permission_error');
    expect(message.length).toBeLessThan(500);
    expect(message).toMatch(/^[\x20-\x7e…]+$/);
    const short = await load(open, { Origin: 'http://\u00e9\u0085' });
    expect(wireError(short, 403, 'permission_error').message).toMatch(/'Origin: http:\/\/\?+'/);
  });

  it.each<[string, Record<string, string>]>([
    ['a client that is no browser', {}],
    ['a page that --cors-origins names', { Origin: page }],
    ['a page on this machine', { Origin: 'http://localhost:5173' }],
    [
      'a page of its own, as its browser says',
      { Origin: 'https://behind.example', 'Sec-Fetch-Site': 'same-origin' },
    ],
    [
      'a page of its own, by a name and port of --allowed-hosts',
      { Origin: 'http://gpu.lan:8080', Host: 'gpu.lan:8080' },
    ],
    ['a page of its own, by a name that is given for all ports', { Origin: 'http://gpu:81', Host: 'gpu:81' }],
    ['a page of its own, by a name below localhost', { Origin: 'http://a.localhost', Host: 'a.localhost' }],
    ['a page of its own, by a host of --cors-origins', { Origin: page, Host: 'chat.example' }],
    ['the same, as its browser says', { 'Sec-Fetch-Site': 'same-origin', Host: 'chat.example' }],
    ['a page that --cors-origins names, by any name', { Origin: page, Host: 'other.example' }],
    ['a click in the address bar', { 'Sec-Fetch-Site': 'none' }],
    ['a client that is no browser, by any name', { Host: 'other.example' }],
    ['a client of Node’s fetch, by any name', { Host: 'other.lan', 'Sec-Fetch-Mode': 'cors' }],
  ])('serve %s', async (_who, headers) => {
    expect((await load(open, headers)).status).toBe(404);
  });

  it('serve a page that knows a key', async () => {
    const headers = { Origin: 'https://evil.example', 'X-Api-Key': 'secret' };
    expect((await load(keyed, headers)).status).toBe(404);
    expect((await load(keyed, { Origin: 'https://evil.example' })).status).toBe(401);
  });

  it('are also tools and the proxy, for which a page needs no Origin', async () => {
    const args = ['--tools', 'get_info', '--ui-mcp-proxy', '--allowed-hosts', 'gpu.lan'];
    const { url } = await serveFakes({ models: { alpha: {} }, args });
    const ask = async (path: string, headers: Record<string, string>, method = 'GET'): Promise<number> =>
      (await rawRequest(url + path, { method, headers })).status;
    for (const path of ['/tools', '/cors-proxy?url=http://127.0.0.1:1/']) {
      // A script of evil.example can have its GETs look like any program's.
      expect(await ask(path, { Host: 'evil.example' })).toBe(403);
      expect(await ask(path, { Host: 'evil.example', 'Sec-Fetch-Site': 'same-origin' })).toBe(403);
      expect(await ask(path, { Host: 'gpu.lan' })).not.toBe(403);
      expect(await ask(path, { Host: 'gpu.lan', 'Sec-Fetch-Site': 'same-origin' })).not.toBe(403);
      expect(await ask(path, { Host: 'other.lan' }, 'POST')).not.toBe(403);
    }
  });

  describe('over plain HTTP, where browsers name neither the origin nor the site of what a page only gets', () => {
    const browser = 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0';
    const image = { 'User-Agent': browser, Accept: 'image/png,image/*;q=0.8', Host: '192.168.1.5:8080' };
    const own = 'http://192.168.1.5:8080/';
    const evil = 'http://evil.example/';
    let url: string;
    let keyed: string;

    beforeAll(async () => {
      const hosts = ['--allowed-hosts', '192.168.1.5'];
      const args = ['--ui-mcp-proxy', '--tools', 'get_info', '--cors-origins', page, ...hosts];
      ({ url } = await serveFakes({ models: { alpha: {} }, args }));
      ({ url: keyed } = await serveFakes({ models: { alpha: {} }, args: [...args, '--api-key', 'secret'] }));
    });

    /** The reason of a refusal, of each of the two routes. */
    async function refusals(base: string, headers: Record<string, string>): Promise<(string | undefined)[]> {
      const paths = ['/cors-proxy?url=http://127.0.0.1:1/', '/tools'];
      const answers = await Promise.all(paths.map((path) => rawRequest(base + path, { headers })));
      return answers.map(({ body }) => /"reason":"(\w+)"/.exec(body.toString())?.[1]);
    }

    it.each<[string, Record<string, string>]>([
      ['an image on a page of another site', { ...image, Referer: evil }],
      ['one on a page that hides its address', image],
      ['one on a page whose address says nothing', { ...image, Referer: 'about:client' }],
      ['one on a page of the same machine behind another port', { ...image, Referer: 'http://192.168.1.5/' }],
      ['a form on a page that hides its address', { ...image, 'Content-Type': 'text/plain' }],
      ['another program that tells of a foreign page', { 'User-Agent': 'curl/8.5', Referer: evil }],
      ['a page that has had its own name point here', { ...image, Host: 'evil.example', Referer: evil }],
    ])('tools and the proxy refuse %s', async (_who, headers) => {
      expect(await refusals(url, headers)).toEqual(['origin_foreign', 'origin_foreign']);
    });

    it.each<[string, Record<string, string>]>([
      ['a page of their own', { ...image, Referer: `${own}index.html` }],
      ['a page that --cors-origins names', { ...image, Referer: `${page}/` }],
      ['a page on this machine', { ...image, Referer: 'http://localhost:5173/' }],
      [
        'the web UI in a browser that hides its address, at the proxy',
        { ...image, 'X-Llama-Server-Proxy-Header-Accept': 'text/event-stream' },
      ],
      ['the same at the tools', { ...image, 'Content-Type': 'application/json' }],
      ['curl', { 'User-Agent': 'curl/8.5.0', Accept: '*/*' }],
      ['a client that does not say what it is', {}],
    ])('tools and the proxy serve %s', async (_who, headers) => {
      expect(await refusals(url, headers)).not.toContain('origin_foreign');
    });

    it('tools and the proxy serve a browser with a key', async () => {
      expect(await refusals(keyed, { ...image, 'X-Api-Key': 'secret' })).not.toContain('origin_foreign');
    });

    it('what only lists is not asked for its page', async () => {
      expect((await rawRequest(`${url}/models`, { headers: { ...image, Referer: evil } })).status).toBe(200);
    });
  });

  it('are also unload, and a list that is to be read anew; a list as it is, is not', async () => {
    const headers = { Origin: 'https://evil.example' };
    const unload = await rawRequest(`${open.url}/models/unload`, {
      ...jsonPost({ model: 'alpha' }),
      headers,
    });
    const reload = await rawRequest(`${open.url}/models?reload=1`, { headers });
    const list = await rawRequest(`${open.url}/models`, { headers });
    expect([unload, reload, list].map(({ status }) => status)).toEqual([403, 403, 200]);
  });
});
