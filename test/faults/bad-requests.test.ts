/** Requests that are no requests, or that hold another one: a child sees exactly one with our framing, or none. */
import { Agent } from 'node:http';
import fc from 'fast-check';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { bodyOf, sha256 } from '../http/payload.js';
import { openSocket } from '../http/raw-socket.js';
import { echoIn, serveFakes, wireError, type Echo, type FakeService } from '../http/serve-fakes.js';

/** `FUZZ_RUNS` times as many inputs as it takes to notice a plain mistake. */
const fuzzRuns = Number(process.env['FUZZ_RUNS'] ?? 1);

let service: FakeService;
let neighbour: Agent;
beforeAll(async () => {
  service = await serveFakes({ models: { alpha: {} } });
  await service.use('alpha');
  neighbour = new Agent({ keepAlive: true, maxSockets: 1 });
  atEndOfTest(() => neighbour.destroy());
});

// Whatever a test has sent, the next request to the same child, over the same connection to it, is its own.
afterEach(async () => {
  const own = Buffer.from(JSON.stringify({ model: 'alpha', own: Math.random() }));
  const response = await rawRequest(`${service.url}/infill`, {
    method: 'POST',
    body: own,
    agent: neighbour,
  });
  expect(response.status, response.body.toString()).toBe(200);
  expect(echoIn(response).body).toEqual(sha256(own));
});

const body = '{"model":"alpha"}';
const smuggled = `POST /infill HTTP/1.1\r\nHost: x\r\nX-Smuggled: 1\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
const chunked = (text: string): string => `${text.length.toString(16)}\r\n${text}\r\n0\r\n\r\n`;

/** All that a client gets for these bytes until the other side closes the connection. */
async function answerTo(bytes: string): Promise<string> {
  const client = openSocket(service.supervisor.port);
  client.send(Buffer.from(bytes, 'latin1'));
  return client.closed('the connection is closed');
}

/** The same of a client that closes its side behind these bytes. */
async function answerToAll(bytes: string): Promise<string> {
  const client = openSocket(service.supervisor.port);
  client.socket.end(Buffer.from(bytes, 'latin1'));
  return client.closed('the connection is closed');
}

function statusesIn(answer: string): number[] {
  return [...answer.matchAll(/^HTTP\/1\.1 (\d+) /gm)].map(([, status]) => Number(status));
}

function echoesIn(answer: string): Echo[] {
  return [...answer.matchAll(/^\{"alias".*\}/gm)].map(([text]) => JSON.parse(text) as Echo);
}

/** The requests that the child has seen since `seen` of them. */
function requestsSince(seen: number) {
  return service.journal.of('request').slice(seen);
}

const seenByNow = (): number => service.journal.of('request').length;

describe('a request whose end is told in two ways', () => {
  const long = String(chunked('').length + smuggled.length);
  it.each([
    ['a length and chunks', `Content-Length: ${long}\r\nTransfer-Encoding: chunked\r\n`],
    ['chunks and a length', `Transfer-Encoding: chunked\r\nContent-Length: ${long}\r\n`],
    ['chunks in other letters, and a length', `transfer-encoding: CHUNKED\r\nContent-Length: ${long}\r\n`],
    ['a blank before the colon', `Transfer-Encoding : chunked\r\nContent-Length: ${long}\r\n`],
    ['a tab before the value', `Transfer-Encoding:\tchunked\r\nContent-Length: ${long}\r\n`],
    ['a folded header', `Transfer-Encoding:\r\n chunked\r\nContent-Length: ${long}\r\n`],
    ['a header folded into another', `X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: ${long}\r\n`],
    ['an encoding that nobody knows', `Transfer-Encoding: xchunked\r\nContent-Length: ${long}\r\n`],
    ['chunks that are not the last encoding', 'Transfer-Encoding: chunked, identity\r\n'],
    ['chunks and another encoding after it', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n'],
    ['a quoted encoding', 'Transfer-Encoding: "chunked"\r\n'],
    ['an encoding with a NUL', 'Transfer-Encoding: chunked\0\r\n'],
    ['two lengths', 'Content-Length: 5\r\nContent-Length: 6\r\n'],
    ['the same length twice', 'Content-Length: 5\r\nContent-Length: 5\r\n'],
    ['two lengths in one header', 'Content-Length: 5, 6\r\n'],
    ['a negative length', 'Content-Length: -1\r\n'],
    ['a length with a sign', 'Content-Length: +5\r\n'],
    ['a length in hexadecimal', 'Content-Length: 0x5\r\n'],
    ['a length with a fraction', 'Content-Length: 5.0\r\n'],
    ['a length that is none', 'Content-Length: five\r\n'],
    ['an empty length', 'Content-Length:\r\nX-A: b\r\n'],
    ['a length that no number holds', 'Content-Length: 99999999999999999999999\r\n'],
    [
      'a bare carriage return in a header',
      `X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: ${long}\r\n`,
    ],
    ['a bare line feed after a header', `X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: ${long}\r\n`],
  ])('%s: refused, and what follows is not taken for a request', async (_what, framing) => {
    const seen = seenByNow();
    const answer = await answerTo(
      `POST /infill HTTP/1.1\r\nHost: x\r\n${framing}\r\n${chunked('')}${smuggled}`,
    );
    expect(statusesIn(answer)).toEqual([400]);
    expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({ error: { code: 400 } });
    expect(requestsSince(seen)).toEqual([]);
  });

  const chunks: [string, string][] = [
    ['a size that is none', 'z\r\nhello\r\n0\r\n\r\n'],
    ['a negative size', '-5\r\nhello\r\n0\r\n\r\n'],
    ['a size with a prefix', '0x5\r\nhello\r\n0\r\n\r\n'],
    ['a size that no number holds', 'ffffffffffffffffff\r\nhello\r\n0\r\n\r\n'],
    ['more bytes than it says', '3\r\nhello\r\n0\r\n\r\n'],
    ['fewer bytes than it says', '9\r\nhello\r\n0\r\n\r\n'],
    ['line ends without a carriage return', '5\nhello\n0\n\n'],
    ['an extension with a bare line feed', '5;a\nhello\r\n0\r\n\r\n'],
  ];
  it.each(chunks)('a chunk with %s: refused, and nothing of it is passed on', async (_what, text) => {
    const seen = seenByNow();
    const answer = await answerTo(
      `POST /infill HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n${text}${smuggled}`,
    );
    expect(statusesIn(answer)).toEqual([400]);
    expect(requestsSince(seen)).toEqual([]);
  });

  it.each([
    ['shorter than it says', `Content-Length: ${body.length + 1}\r\n\r\n${body}`],
    ['without its last chunk', `Transfer-Encoding: chunked\r\n\r\n11\r\n${body}\r\n`],
    ['without any of it', `Content-Length: ${body.length}\r\n\r\n`],
  ])('a body that is %s, and then ends: no child hears of it', async (_what, rest) => {
    const seen = seenByNow();
    expect(statusesIn(await answerToAll(`POST /infill HTTP/1.1\r\nHost: x\r\n${rest}`))).not.toContain(200);
    expect(requestsSince(seen)).toEqual([]);
  });
});

describe('a request with one in its body', () => {
  const inside = JSON.stringify({ model: 'alpha', prompt: `\r\n\r\n${smuggled}` });

  it.each([
    ['with a length', `Content-Length: ${inside.length}\r\n\r\n${inside}`],
    ['in chunks', `Transfer-Encoding: chunked\r\n\r\n${chunked(inside)}`],
    [
      'in a chunk with an extension',
      `Transfer-Encoding: chunked\r\n\r\n${chunked(inside).replace('\r', ';a="b;c"\r')}`,
    ],
    [
      'before trailers',
      `Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n${chunked(inside).slice(0, -2)}` +
        'Authorization: Bearer x\r\nX-Trailer: y\r\nHost: other\r\n\r\n',
    ],
  ])('%s is one request, in our framing', async (_how, rest) => {
    const seen = seenByNow();
    const answer = await answerTo(`POST /infill HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${rest}`);
    expect(statusesIn(answer)).toEqual([200]);
    const [echo] = echoesIn(answer);
    expect(echo?.body).toEqual(sha256(Buffer.from(inside)));
    expect(echo?.headers['content-length']).toBe(String(inside.length));
    for (const name of ['transfer-encoding', 'trailer', 'x-trailer', 'x-smuggled']) {
      expect(echo?.headers).not.toHaveProperty(name);
    }
    expect(requestsSince(seen)).toHaveLength(1);
  });

  it.each([
    ['GET', '/props?model=alpha', 1],
    ['HEAD', '/props?model=alpha', undefined],
    ['GET', '/health', 0],
    ['GET', '/models', 0],
  ])('%s %s: the body stays here', async (method, target, requests) => {
    const seen = seenByNow();
    const head = `${method} ${target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n`;
    await answerTo(`${head}Content-Length: ${smuggled.length}\r\n\r\n${smuggled}`);
    await answerTo(`${head}Transfer-Encoding: chunked\r\n\r\n${chunked(smuggled)}`);
    const since = requestsSince(seen);
    if (requests !== undefined) expect(since).toHaveLength(2 * requests);
    for (const { method: seenMethod, headers, body: held } of since) {
      expect(seenMethod).not.toBe('POST');
      expect(held.length).toBe(0);
      expect(headers).not.toHaveProperty('x-smuggled');
      expect(headers).not.toHaveProperty('transfer-encoding');
    }
  });

  it('however lengths, encodings and line ends are mixed, what the child sees is whole, in our framing, and there once', async () => {
    const framing = fc.record({
      length: fc.constantFrom(
        undefined,
        0,
        5,
        body.length,
        body.length + smuggled.length,
        '-1',
        '1e1',
        '17,17',
        ' 17',
      ),
      encoding: fc.constantFrom(
        undefined,
        'chunked',
        'Chunked',
        'identity',
        'gzip, chunked',
        'chunked, gzip',
        ' chunked ',
        'chunked;q=1',
      ),
      swap: fc.boolean(),
      end: fc.constantFrom('\r\n', '\r\n', '\r\n', '\n', '\r'),
      name: fc.constantFrom(
        'Transfer-Encoding',
        'transfer-encoding',
        'Transfer-Encoding ',
        'Transfer_Encoding',
      ),
      sent: fc.constantFrom(body, chunked(body), chunked(''), `5\r\nhello\r\n${chunked('')}`),
      version: fc.constantFrom('1.1', '1.1', '1.0', '1.2', '2.0'),
    });
    const last = 'GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n';
    let served = 0;
    await fc.assert(
      fc.asyncProperty(framing, async ({ length, encoding, swap, end, name, sent, version }) => {
        const seen = seenByNow();
        const headers = [
          ...(length === undefined ? [] : [`Content-Length: ${length}`]),
          ...(encoding === undefined ? [] : [`${name}: ${encoding}`]),
        ];
        if (swap) headers.reverse();
        const head = [`POST /infill HTTP/${version}`, 'Host: x', ...headers, '', ''].join(end);
        await answerTo(head + sent + smuggled + last);
        const since = requestsSince(seen);
        // A second one is one behind the first, where that has ended by its own words.
        const of = (isFirst: boolean) => since.filter(({ headers }) => 'x-smuggled' in headers !== isFirst);
        expect(Math.max(of(true).length, of(false).length)).toBeLessThanOrEqual(1);
        served += since.length;
        for (const { headers, body: got } of since) {
          expect(got).toEqual(sha256(Buffer.from(body)));
          expect(headers['content-length']).toBe(String(body.length));
          expect(headers).not.toHaveProperty('transfer-encoding');
        }
      }),
      { numRuns: 150 * fuzzRuns },
    );
    // What is never served shows nothing.
    expect(served).toBeGreaterThan(0);
  });
});

describe('a target that is odd', () => {
  const post = (target: string, host = 'Host: x\r\n') =>
    answerTo(
      `POST ${target} HTTP/1.1\r\n${host}Connection: close\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );

  it.each([
    ['with a NUL', '/infill\0'],
    ['with a control character', '/in\x01fill'],
    ['with a tab', '/infill\tx'],
    ['with a blank', '/infill x'],
    ['with a delete', '/infill\x7f'],
    ['without a slash', 'infill'],
    ['of nothing', ''],
    ['of an authority', 'other:80'],
    ['of a scheme and no host', 'http://'],
    ['of a scheme and a host that is none', 'http://[/infill'],
    ['of another scheme', 'file:///etc/passwd'],
    ['of 80 KiB', `/infill?${'x'.repeat(80 * 1024)}`],
  ])('%s is refused in JSON, and no child hears of it', async (_what, target) => {
    const seen = seenByNow();
    const answer = await post(target);
    expect(statusesIn(answer)).toHaveLength(1);
    expect(statusesIn(answer)[0]).toBeGreaterThanOrEqual(400);
    expect(statusesIn(answer)[0]).toBeLessThan(500);
    expect(JSON.parse(answer.slice(answer.indexOf('{')))).toMatchObject({
      error: { code: statusesIn(answer)[0] },
    });
    expect(requestsSince(seen)).toEqual([]);
  });

  it.each([
    ['/infill%2f..%2fprops', 404],
    ['/v1/..%2finfill', 404],
    ['/%2e%2e/infill%00', 404],
    ['/infill%00', 404],
    ['//infill', 404],
    ['/INFILL', 404],
    ['/infill/', 404],
    ['/infill;x=1', 404],
    ['/caf\xe9', 400],
  ])('%s is no route of a model', async (target, status) => {
    const seen = seenByNow();
    const answer = await post(target);
    expect(statusesIn(answer)).toEqual([status]);
    expect(requestsSince(seen)).toEqual([]);
  });

  it.each([
    ['an absolute one', 'http://other.example:99/infill?a=1', '/infill?a=1'],
    ['an absolute one with a name and a word', 'http://me:secret@other.example/infill', '/infill'],
  ])('%s reaches our child, and nobody else', async (_what, target, url) => {
    const answer = await post(target);
    expect(statusesIn(answer)).toEqual([200]);
    const [echo] = echoesIn(answer);
    expect(echo?.url).toBe(url);
    expect(JSON.stringify(echo)).not.toMatch(/other\.example|secret/);
  });

  it.each([
    ['two of them', 'Host: a\r\nHost: b\r\n'],
    ['one with a path', 'Host: a/../b\r\n'],
    ['one with a name and a word', 'Host: me:secret@x\r\n'],
  ])('a Host that is odd, %s, decides nothing', async (_what, host) => {
    const seen = seenByNow();
    const answer = await post('/infill', host);
    const statuses = statusesIn(answer);
    expect(statuses).toHaveLength(1);
    expect([200, 400]).toContain(statuses[0]);
    const since = requestsSince(seen);
    expect(since).toHaveLength(statuses[0] === 200 ? 1 : 0);
    for (const { headers } of since) expect(headers['host']).toMatch(/^127\.0\.0\.1:\d+$/);
  });

  it('a query of 30 KB, malformed escapes and several models: of a GET the last one counts', async () => {
    const query = `x=${'%zz%'.repeat(7_500)}&model=none&model=%zz&model=alpha`;
    const response = await rawRequest(`${service.url}/props?${query}`);
    expect(response.status, response.body.toString().slice(0, 300)).toBe(200);
    const twice = await rawRequest(`${service.url}/props?model=alpha&model=%ff%fe`);
    expect(wireError(twice, 400, 'invalid_request_error').reason).toBe('model_unknown');
  });
});

describe('headers', () => {
  it('that Connection names stay here, and those of our own framing are in their place all the same', async () => {
    const response = await rawRequest(`${service.url}/infill`, {
      method: 'POST',
      headers: [
        ...['Host', 'x', 'Authorization', 'Bearer sk-client', 'Content-Length', String(body.length)],
        ...['X-Trace', '1', 'Content-Type', 'application/json'],
        ...['Connection', 'content-length, authorization, host, transfer-encoding, x-trace, close,, "x"'],
      ],
      body: Buffer.from(body),
    });
    const echo = echoIn(response);
    const key = service.journal.of('start', 'alpha')[0]?.env['LLAMA_API_KEY'];
    expect(echo.headers['authorization']).toBe(`Bearer ${key ?? ''}`);
    expect(echo.headers['content-length']).toBe(String(body.length));
    expect(echo.headers['host']).toMatch(/^127\.0\.0\.1:\d+$/);
    expect(echo.headers).not.toHaveProperty('x-trace');
    expect(echo.body).toEqual(sha256(Buffer.from(body)));
  });

  it('of one letter by the thousand are passed on whole or refused whole', async () => {
    for (const count of [900, 20_000]) {
      const seen = seenByNow();
      const many = Array.from({ length: count }, (_, at) => `X-${at}: ${at}\r\n`).join('');
      const answer = await answerTo(
        `POST /infill HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ${body.length}\r\n${many}\r\n${body}`,
      );
      if (count === 900) {
        const [echo] = echoesIn(answer);
        const passed = Object.entries(echo?.headers ?? {}).filter(([name]) => /^x-\d+$/.test(name));
        expect(passed).toHaveLength(count);
        for (const [name, value] of passed) expect(name).toBe(`x-${String(value)}`);
      } else {
        expect(statusesIn(answer)).toEqual([431]);
        expect(requestsSince(seen)).toEqual([]);
      }
    }
  });

  it.each([
    ['a NUL', 'X-A: b\0c'],
    ['a control character', 'X-A: b\x01c'],
    ['a delete', 'X-A: b\x7fc'],
    ['a bare carriage return', 'X-A: b\rc'],
    ['a name with a blank', 'X A: b'],
    ['a name that is not ASCII', 'X-\xe9: b'],
    ['no colon', 'X-A'],
  ])('with %s are refused, and no child hears of it', async (_what, line) => {
    const seen = seenByNow();
    const answer = await answerTo(
      `POST /infill HTTP/1.1\r\nHost: x\r\n${line}\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    expect(statusesIn(answer)).toEqual([400]);
    expect(requestsSince(seen)).toEqual([]);
  });
});

describe('bodies', () => {
  it('of 100 MB pass, while others are served', async () => {
    const sent = bodyOf(100_000_000, 'alpha');
    const large = rawExchange(`${service.url}/infill`, { method: 'POST', body: sent });
    expect((await service.use('alpha')).alias).toBe('alpha');
    expect(echoIn(await large.ended).body).toEqual(sha256(sent));
  });

  it('of JSON that call themselves a form, and forms that call themselves JSON, are refused with the reason', async () => {
    const form = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nalpha\r\n--b--\r\n';
    const asForm = await rawRequest(`${service.url}/infill`, {
      method: 'POST',
      headers: { 'content-type': 'multipart/form-data; boundary=b' },
      body,
    });
    expect(wireError(asForm, 400, 'invalid_request_error').reason).toBe('body_malformed');
    const asJson = await rawRequest(`${service.url}/v1/audio/transcriptions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: form,
    });
    expect(wireError(asJson, 400, 'invalid_request_error').reason).toBe('body_malformed');
  });

  it('of any bytes, under any type: an answer in JSON, and the child gets them as they are or not at all', async () => {
    const text = fc.oneof(
      fc.json(),
      fc.json().map((json) => `{"model":"alpha","x":${json}}`),
      fc.json().map((json) => `{"model":"alpha","x":${json}`),
      fc.string({ unit: 'binary' }).map((string) => `{"model":"alpha","x":"${string}"}`),
    );
    const bytes = fc.oneof(
      text.map((json) => Buffer.from(json)),
      fc.uint8Array({ maxLength: 300 }).map((array) => Buffer.from(array)),
    );
    const type = fc.constantFrom(
      'application/json',
      'text/plain; charset=utf-16',
      'multipart/form-data',
      'multipart/form-data; boundary=x',
      'multipart/form-data; boundary="\\"',
      'a/b; c="',
      ',',
      '\xff',
    );
    await fc.assert(
      fc.asyncProperty(bytes, type, async (sent, contentType) => {
        const response = await rawRequest(`${service.url}/infill`, {
          method: 'POST',
          headers: ['Host', 'x', 'Content-Type', contentType],
          body: sent,
        });
        if (response.status === 200) expect(echoIn(response).body).toEqual(sha256(sent));
        else wireError(response, 400, 'invalid_request_error');
      }),
      { numRuns: 200 * fuzzRuns },
    );
  });

  it('nobody else is disturbed by any of that', async () => {
    const stream = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'alpha', stream: true, max_tokens: -1 }),
    );
    atEndOfTest(() => stream.abort());
    await eventually('the stream flows', () => stream.received().length > 0);
    for (let n = 0; n < 50; n++)
      await answerTo(`POST /infill HTTP/1.1\r\nContent-Length: x\r\n\r\n${smuggled}`);
    const before = stream.received().length;
    await eventually('the stream goes on', () => stream.received().length > before);
    stream.abort();
    await service.until('the child is free', 'alpha', (entry) => entry.in_flight === 0);
    expect((await service.list()).map(({ id, waiting }) => ({ id, waiting }))).toEqual([
      { id: 'alpha', waiting: 0 },
    ]);
  });
});
