import { beforeAll, describe, expect, it } from 'vitest';
import { rawRequest } from '../helpers/raw-http.js';
import { bodyOf, piecesOf, sha256 } from './payload.js';
import { openSocket } from './raw-socket.js';
import { echoIn, serveFakes, type Echo, type FakeService } from './serve-fakes.js';

let service: FakeService;
beforeAll(async () => {
  service = await serveFakes({ models: { alpha: {} } });
  await service.use('alpha');
});

const body = '{"model":"alpha"}';

describe('the body of a request reaches the child byte for byte', () => {
  const KiB = 1024;
  const MiB = 1024 * KiB;
  const sizes = [1, 100, 16 * KiB - 1, 64 * KiB, 64 * KiB + 1, MiB, 30 * MiB];

  it.each(sizes)('%i bytes with a Content-Length', async (size) => {
    const sent = bodyOf(size, 'alpha');
    const response = await rawRequest(`${service.url}/infill`, { method: 'POST', body: sent });
    const echo = echoIn(response);
    expect(echo.body).toEqual(sha256(sent));
    expect(echo.headers['content-length']).toBe(String(sent.length));
    expect(echo.headers).not.toHaveProperty('transfer-encoding');
  });

  it.each(sizes)('%i bytes in chunks', async (size) => {
    const sent = bodyOf(size, 'alpha');
    const response = await rawRequest(`${service.url}/infill`, {
      method: 'POST',
      body: piecesOf(sent, 512 * KiB),
    });
    expect(echoIn(response).body).toEqual(sha256(sent));
  });

  it('20,000 chunks of three bytes', async () => {
    const sent = bodyOf(60_000, 'alpha');
    const response = await rawRequest(`${service.url}/infill`, { method: 'POST', body: piecesOf(sent, 3) });
    expect(echoIn(response).body).toEqual(sha256(sent));
  });

  it('a hundred different ones at once, each to its own request', async () => {
    const bodies = Array.from({ length: 100 }, (_, at) => bodyOf(1_000 + at * 1_000, 'alpha'));
    const echoes = await Promise.all(
      bodies.map(async (sent) =>
        echoIn(await rawRequest(`${service.url}/infill`, { method: 'POST', body: sent })),
      ),
    );
    expect(echoes.map((echo) => echo.body)).toEqual(bodies.map(sha256));
  });

  it('after an Expect: 100-continue', async () => {
    const client = openSocket(service.supervisor.port);
    client.send(
      `POST /infill HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: ${body.length}\r\n\r\n`,
    );
    await client.receives('it is told to go on', /^HTTP\/1\.1 100 Continue\r\n\r\n/);
    client.send(body);
    const answer = await client.receives('the answer', /\r\n\r\n\{.*\}$/s);
    const echo = JSON.parse(answer.slice(answer.indexOf('{'))) as Echo;
    expect(echo.body).toEqual(sha256(Buffer.from(body)));
    expect(echo.headers).not.toHaveProperty('expect');
  });
});

describe('the headers of a request', () => {
  /** What the connection to the child and its key bring along. */
  const ofTheConnection = new Set(['host', 'connection', 'content-length', 'authorization']);

  async function echoOf(headers: string[]): Promise<Echo> {
    const response = await rawRequest(`${service.url}/infill`, {
      method: 'POST',
      headers: ['Host', 'router.example', ...headers],
      // With a string Node would write the headers in UTF-8, too.
      body: Buffer.from(body),
    });
    expect(response.status).toBe(200);
    return echoIn(response);
  }

  function pairs(rawHeaders: string[]): [string, string][] {
    return Array.from({ length: rawHeaders.length / 2 }, (_, at) => [
      rawHeaders[at * 2] ?? '',
      rawHeaders[at * 2 + 1] ?? '',
    ]);
  }

  /** The headers as the child got them, in order and spelling, without those of the connection to it. */
  function passed({ rawHeaders }: Echo): string[] {
    return pairs(rawHeaders)
      .filter(([name]) => !ofTheConnection.has(name.toLowerCase()))
      .flat();
  }

  it('reach the child unchanged: order, spelling, repeats, and values that are not ASCII', async () => {
    const sent = [
      ...['content-TYPE', 'application/json; charset=utf-8'],
      ...['X-Twice', 'one'],
      ...['Accept-Encoding', 'gzip, br'],
      ...['X-Twice', 'two'],
      ...['User-Agent', 'test/1 (x; y)'],
      ...['X-Empty', ''],
      ...['X-Latin', 'caf\u00e9 \u00fc'],
      ...['X-Request-Id', 'abc-123'],
      ...['X-Forwarded-For', '10.0.0.1, 10.0.0.2'],
      ...['Traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'],
      ...['Origin', 'https://example.org'],
    ];
    expect(passed(await echoOf(sent))).toEqual(sent);
  });

  it('of this connection only, and those that Connection names, stay here', async () => {
    const echo = await echoOf([
      ...['Connection', 'keep-alive, X-Secret-Hop ,x-other-hop'],
      ...['Connection', 'X-Third-Hop'],
      ...['Keep-Alive', 'timeout=7'],
      ...['Proxy-Connection', 'keep-alive'],
      ...['Proxy-Authorization', 'Basic eDp5'],
      ...['TE', 'trailers'],
      ...['X-Secret-Hop', '1'],
      ...['X-Other-Hop', '2'],
      ...['X-Third-Hop', '3'],
      ...['X-Kept', '4'],
    ]);
    expect(passed(echo)).toEqual(['X-Kept', '4']);
    expect(echo.headers['host']).toMatch(/^127\.0\.0\.1:\d+$/);
  });

  it("hold the child's own key and no credential of the client", async () => {
    const { rawHeaders } = await echoOf([
      ...['Authorization', 'Bearer sk-client'],
      ...['X-Api-Key', 'sk-client'],
      ...['Cookie', 'session=sk-client'],
      ...['cookie', 'more=sk-client'],
    ]);
    expect(rawHeaders.join('\n')).not.toContain('sk-client');
    const key = service.journal.of('start', 'alpha')[0]?.env['LLAMA_API_KEY'];
    expect(key).toMatch(/^\S{32,}$/);
    const credentials = pairs(rawHeaders).filter(([name]) => /auth|key|cookie/i.test(name));
    expect(credentials).toEqual([['authorization', `Bearer ${key ?? ''}`]]);
  });

  it('may offer an upgrade, as HTTP clients of Java do: it is not taken', async () => {
    const client = openSocket(service.supervisor.port);
    client.send(
      'POST /infill HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n' +
        `HTTP2-Settings: AAEAAEAAAAIAAAAB\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    const answer = await client.receives('the answer', /\r\n\r\n\{.*\}$/s);
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(passed(JSON.parse(answer.slice(answer.indexOf('{'))) as Echo)).toEqual([]);
  });

  it.each([
    ['without a Host, of HTTP/1.0', 'POST /infill HTTP/1.0\r\n'],
    ['without a Host, of HTTP/1.1', 'POST /infill HTTP/1.1\r\nConnection: close\r\n'],
    ['with an empty Host', 'POST /infill HTTP/1.1\r\nHost:\r\nConnection: close\r\n'],
  ])('%s: the request is answered', async (_what, head) => {
    const client = openSocket(service.supervisor.port);
    client.send(`${head}Content-Length: ${body.length}\r\n\r\n${body}`);
    const answer = await client.closed('the answer has ended');
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n.*\r\n\r\n\{.*\}$/s);
  });
});

describe('path and query reach the child as they were written', () => {
  const queries = [
    '',
    '?b=2&a=1&b=3',
    '?plus=a+b&blank=a%20b&low=%c3%a9&up=%C3%A9&slash=%2F&amp=%26',
    '?empty=&nothing&=&&',
    '?q=a?b=c/../d',
    "?odd=~!*'();:@$,[]|^`{}",
    '?broken=%zz%',
  ];

  it.each(queries)('/infill%s', async (query) => {
    // Written by hand, since a URL object would mend some of them.
    const client = openSocket(service.supervisor.port);
    client.send(`POST /infill${query} HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    const answer = await client.receives('the answer', /\r\n\r\n\{.*\}$/s);
    expect(answer).toMatch(/^HTTP\/1\.1 200 /);
    expect((JSON.parse(answer.slice(answer.indexOf('{'))) as Echo).url).toBe(`/infill${query}`);
  });

  it('escapes in the path are left to the child', async () => {
    await rawRequest(`${service.url}/infil%6C?x=1`, { method: 'POST', body });
    expect(service.journal.of('request').at(-1)?.url).toBe('/infil%6C?x=1');
  });

  it('a target in the absolute form is reduced to them', async () => {
    const client = openSocket(service.supervisor.port);
    client.send(
      `POST http://x.example/infill?a=%2f+b HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    const answer = await client.receives('the answer', /\r\n\r\n\{.*\}$/s);
    expect((JSON.parse(answer.slice(answer.indexOf('{'))) as Echo).url).toBe('/infill?a=%2f+b');
  });
});
