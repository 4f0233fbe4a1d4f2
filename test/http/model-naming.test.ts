import { beforeAll, describe, expect, it } from 'vitest';
import { rawRequest } from '../helpers/raw-http.js';
import { echoIn, serveFakes, type Echo, type FakeService } from './serve-fakes.js';
import { sha256 } from './payload.js';

const oddName = `a"b'c\\d é🦙 模型 [x]=%20`;

describe('the model of a request', () => {
  let service: FakeService;
  beforeAll(async () => {
    service = await serveFakes({
      models: { alpha: {}, beta: {}, [oddName]: {} },
      presets: '[beta]\nalias = second/one:Q4_K_M\n',
    });
  });

  async function ask(body: string | Buffer, type = 'application/json', path = '/infill'): Promise<Echo> {
    const headers = { 'content-type': type };
    const response = await rawRequest(`${service.url}${path}`, { method: 'POST', headers, body });
    expect(response.status, response.body.toString()).toBe(200);
    const echo = echoIn(response);
    // Whatever was read out of it, the child gets the body as it was sent.
    expect(echo.body).toEqual(sha256(Buffer.from(body)));
    expect(echo.headers['content-type']).toBe(type);
    return echo;
  }

  it.each([
    ['is the member "model"', '{"prompt":"x","model":"beta","n":1}'],
    ['may be an alias, which the child is left to read', '{"model":"second/one:Q4_K_M"}'],
    ['may stand among blanks', ' \r\n\t{ "model" \n:\t"beta" } \n'],
    ['may be escaped, key and value', '{"\\u006dodel":"\\u0062\\u0065ta"}'],
    ['is the last one of duplicates', '{"model":"alpha","x":[{"model":"no"}],"model":"beta"}'],
    ['is the last one of duplicates in different spellings', '{"model":"alpha","mode\\u006c":"beta"}'],
    ['is not looked for in strings', '{"prompt":"\\"model\\":\\"alpha\\",","model":"beta"}'],
    ['may follow a byte order mark', '\ufeff{"model":"beta"}'],
    ['may follow 100,000 open brackets', `{"x":${'['.repeat(100_000)}${']'.repeat(100_000)},"model":"beta"}`],
    [
      'may follow 100,000 open objects',
      `{"x":${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)},"model":"beta"}`,
    ],
  ])('%s', async (_what, body) => {
    expect((await ask(body)).alias).toBe('beta');
  });

  it('may have quotes, backslashes, blanks and letters of any script', async () => {
    const escaped = JSON.stringify(oddName).replace('é', '\\u00e9').replace('🦙', '\\ud83e\\udd99');
    expect((await ask(JSON.stringify({ model: oddName }))).alias).toBe(oddName);
    expect((await ask(`{"model":${escaped}}`)).alias).toBe(oddName);
  });

  it('is found in a body that is not UTF-8 elsewhere', async () => {
    const body = Buffer.concat([
      Buffer.from('{"prompt":"'),
      Buffer.from([0xff, 0xc3, 0x28, 0x80, 0xf5]),
      Buffer.from('","model":"beta"}'),
    ]);
    expect((await ask(body)).alias).toBe('beta');
  });

  it('is found behind 20 MB', async () => {
    const body = Buffer.from(`{"image":"${'A'.repeat(20_000_000)}","model":"beta"}`);
    expect((await ask(body)).alias).toBe('beta');
  });

  it.each(['application/x-www-form-urlencoded', 'text/plain', 'application/octet-stream'])(
    'is read from JSON also when the body is called %s',
    async (type) => {
      expect((await ask('{"model":"beta"}', type)).alias).toBe('beta');
    },
  );

  it('is read from JSON also when the body has no type', async () => {
    const response = await rawRequest(`${service.url}/infill`, { method: 'POST', body: '{"model":"beta"}' });
    expect(echoIn(response).alias).toBe('beta');
    expect(echoIn(response).headers).not.toHaveProperty('content-type');
  });

  it('of a GET is the last one in its query, decoded', async () => {
    await ask('{"model":"beta"}');
    const query = 'x=1&model=alpha&model=second%2Fone:Q4_K_M';
    const response = await rawRequest(`${service.url}/props?${query}`);
    const { echo } = JSON.parse(response.body.toString()) as { echo: Echo };
    expect([echo.alias, echo.url]).toEqual(['beta', `/props?${query}`]);
  });

  const file = Buffer.from(Array.from({ length: 300_000 }, (_, at) => (at * 7 + (at >> 8)) & 0xff));
  const fileParts = [
    Buffer.from(
      '--xYzZY\r\nContent-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav\r\n\r\n',
    ),
    file,
    Buffer.from('\r\n'),
  ];
  const modelPart = Buffer.from('--xYzZY\r\nContent-Disposition: form-data; name="model"\r\n\r\nbeta\r\n');
  const end = Buffer.from('--xYzZY--\r\n');

  it.each<[string, Buffer[]]>([
    ['before the file', [modelPart, ...fileParts, end]],
    ['after the file', [...fileParts, modelPart, end]],
    ['of a form without files', [modelPart, end]],
  ])('is the field "model" %s, and the form arrives as it was sent', async (_where, parts) => {
    const type = 'multipart/form-data; boundary=xYzZY';
    const echo = await ask(Buffer.concat(parts), type, '/v1/audio/transcriptions');
    expect([echo.alias, echo.url]).toEqual(['beta', '/v1/audio/transcriptions']);
  });
});
