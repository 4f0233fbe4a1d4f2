/** Which model a request means, and whether its body is one: to the native router and to ours. */
import { gzipSync } from 'node:zlib';
import { beforeAll, describe, expect, it } from 'vitest';
import { counting, sayingItsName } from '../helpers/known-answer-models.js';
import { startPair, type OracleRequest, type Pair } from './http-oracle.js';
import { intended } from './intended-differences.js';

const json = { 'Content-Type': 'application/json' };

/** A template has no part of its answer that depends on what was asked before. */
const asked = '"messages":[{"role":"user","content":"Who are you?"}]';

function template(body: string | Buffer, headers: Readonly<Record<string, string>> = json): OracleRequest {
  return { method: 'POST', path: '/apply-template', headers, body };
}

let pair: Pair;

beforeAll(async () => {
  pair = await startPair({
    models: { alpha: sayingItsName('alpha'), beta: counting(3) },
    presets: ['[alpha]', 'alias = the first, größe-模型, a/b:C'].join('\n'),
  });
  for (const model of ['alpha', 'beta']) {
    const { native, ours } = await pair.play({ method: 'POST', path: '/models/load', body: { model } });
    expect([native.status, ours.status]).toEqual([200, 200]);
    await pair.untilBoth(model, 'loaded');
  }
});

describe('JSON', () => {
  it.each([
    ['a plain one', `{"model":"alpha",${asked}}`],
    ['its model behind', `{${asked},"model":"alpha"}`],
    ['two models, the last one known', `{"model":"nobody",${asked},"model":"alpha"}`],
    ['a model that is no text before one', `{"model":[1],${asked},"model":"alpha"}`],
    ['a model inside before one', `{"a":{"model":"nobody"},${asked},"model":"alpha"}`],
    ['a model inside behind one', `{"model":"alpha",${asked},"a":{"model":"nobody"},"b":[{"model":"x"}]}`],
    ['escapes in key and name', `{"\\u006d\\u006fdel":"\\u0061lph\\u0061",${asked}}`],
    ['escapes in the last key', `{"model":"nobody",${asked},"\\u006dodel":"alpha"}`],
    ['a byte order mark', `\uFEFF{"model":"alpha",${asked}}`],
    ['blanks everywhere', ` \r\n\t{ "model" \n:\t"alpha" , ${asked} } \r\n`],
    ['an alias', `{"model":"the first",${asked}}`],
    ['an alias of other scripts', `{"model":"größe-模型",${asked}}`],
    ['an alias in escapes', `{"model":"gr\\u00f6\\u00DFe-\\u6a21\\u578b",${asked}}`],
    ['an alias with an escaped slash', `{"model":"a\\/b:C",${asked}}`],
    ['pairs of surrogates', `{"model":"alpha","messages":[{"role":"user","content":"\\ud83e\\udd99 🦙"}]}`],
    [
      'numbers of all kinds',
      `{"model":"alpha",${asked},"n":[0,-0,1.5e+3,1E-2,123456789012345678901234567890]}`,
    ],
    ['depth', `{"model":"alpha",${asked},"deep":${'['.repeat(5_000)}${']'.repeat(5_000)}}`],
  ])('with %s is for alpha', async (_what, body) => {
    const { status, body: said } = await pair.expectSame(template(body));
    expect(status).toBe(200);
    expect(said).toHaveProperty('prompt');
  });

  it.each([
    ['without a model', `{${asked}}`],
    ['with a name in other letters', `{"model":"Alpha",${asked}}`],
    ['with a key in other letters', `{"Model":"alpha",${asked}}`],
    ['with an empty name', `{"model":"",${asked}}`],
    ['with a name of blanks', `{"model":" alpha ",${asked}}`],
    ['with a number', `{"model":7,${asked}}`],
    ['with a number behind the name', `{"model":"alpha",${asked},"model":7}`],
    ['with nothing', `{"model":null,${asked}}`],
    ['with a list', `{"model":["alpha"],${asked}}`],
    ['with the model inside only', `{"body":{"model":"alpha"},${asked}}`],
    ['that is empty', '{}'],
    ['that is a list', `[{"model":"alpha"}]`],
    ['that is a text', '"alpha"'],
    ['that is nothing', 'null'],
    ['that is a number', '7'],
    ['with an unknown name', `{"model":"nobody's \\"model\\"\\n\\t🦙",${asked}}`],
    ['with a path for a name', `{"model":"../alpha.gguf",${asked}}`],
  ])('%s is refused in the same words', async (_what, body) => {
    expect((await pair.expectSame(template(body))).status).toBe(400);
  });

  it.each([
    ['no type', {}],
    ['a type of another charset', { 'Content-Type': 'application/json; charset=utf-16' }],
    ['another type', { 'Content-Type': 'text/plain' }],
    ['an unknown type', { 'Content-Type': 'application/octet-stream' }],
    ['a broken type', { 'Content-Type': ';;;' }],
    ['the type that curl -d gives', { 'Content-Type': 'application/x-www-form-urlencoded' }],
    ['a charset behind that', { 'Content-Type': 'application/x-www-form-urlencoded; charset=UTF-8' }],
    ['an encoding of none', { 'Content-Encoding': 'identity', ...json }],
  ])('with %s is read all the same', async (_what, headers) => {
    expect((await pair.expectSame(template(`{"model":"alpha",${asked}}`, headers))).status).toBe(200);
  });

  it(intended('malformed-json'), async () => {
    const bodies: [string, string | Buffer][] = [
      ['nothing', ''],
      ['blanks', ' \n'],
      ['text', 'model=alpha'],
      ['a cut one', `{"model":"alpha",${asked}`],
      ['a cut text', '{"model":"alp'],
      ['a comma too many', `{"model":"alpha",${asked},}`],
      ['something behind', `{"model":"alpha",${asked}}}`],
      ['a second one behind', `{"model":"alpha",${asked}}{}`],
      ['a comment', `{"model":"alpha",/* x */${asked}}`],
      ['single quotes', `{'model':'alpha',${asked}}`],
      ['no quotes', `{model:"alpha",${asked}}`],
      ['a word', `{"model":"alpha",${asked},"x":NaN}`],
      ['half a byte order mark', Buffer.from(`\xef\xbb{"model":"alpha",${asked}}`, 'latin1')],
    ];
    for (const [what, body] of bodies) {
      const { native, ours } = await pair.play(template(body));
      expect(native, what).toMatchObject({ status: 500, body: { error: { type: 'server_error' } } });
      expect(JSON.stringify(native.body), what).toContain('json.exception.parse_error');
      expect(ours, what).toMatchObject({ status: 400, body: { error: { type: 'invalid_request_error' } } });
    }
  });

  it.each([
    ['a number with a zero before', `{"model":"alpha",${asked},"x":01}`],
    ['a line break in a text', `{"model":"alpha",${asked},"x":"\n"}`],
    ['an unknown escape', `{"model":"alpha",${asked},"x":"\\x41"}`],
    ['half of a pair of surrogates', `{"model":"alpha",${asked},"x":"\\ud83e"}`],
    ['a text that is not UTF-8', Buffer.from(`{"model":"alpha",${asked},"x":"\xff"}`, 'latin1')],
  ])('with %s is the child’s to judge', async (_what, body) => {
    expect((await pair.expectSame(template(body))).status).toBe(500);
  });

  it('that is compressed is refused as a type that is not supported', async () => {
    const { native, ours } = await pair.play(
      template(gzipSync(`{"model":"alpha",${asked}}`), { ...json, 'Content-Encoding': 'gzip' }),
    );
    expect([native.status, ours.status]).toEqual([415, 415]);
  });
});

describe('a form', () => {
  const boundary = 'bound-7';
  const formType = { 'Content-Type': `multipart/form-data; boundary=${boundary}` };

  function form(...parts: readonly (readonly [disposition: string, value: string])[]): string {
    const written = parts.map(
      ([disposition, value]) =>
        `--${boundary}\r\nContent-Disposition: form-data; ${disposition}\r\n\r\n${value}\r\n`,
    );
    return `${written.join('')}--${boundary}--\r\n`;
  }

  const content = ['name="content"', 'I am'] as const;
  const recording = ['name="file"; filename="a.wav"', 'RIFF'] as const;

  it.each([
    ['of fields', form(content, ['name="model"', 'alpha'])],
    ['with the model first', form(['name="model"', 'alpha'], content)],
    ['with an alias of other scripts', form(['name="model"', 'größe-模型'], content)],
    ['with names without quotes', form(['name=model', 'alpha'], content)],
    ['with a text before it', `before\r\n${form(['name="model"', 'alpha'], content)}`],
    ['with a text behind it', `${form(['name="model"', 'alpha'], content)}behind`],
    ['with line breaks in a field', form(['name="model"', 'alpha'], ['name="content"', 'I\r\n-- am'])],
  ])('%s is for alpha', async (_what, body) => {
    const answer = await pair.expectSame({ method: 'POST', path: '/tokenize', headers: formType, body });
    expect(answer.body).toHaveProperty('tokens');
  });

  it.each([
    ['with a recording', form(['name="model"', 'alpha'], recording)],
    ['with the recording first', form(recording, ['name="model"', 'alpha'])],
    ['without a recording', form(['name="model"', 'alpha'], ['name="prompt"', 'x'])],
    ['with the model in a file', form(['name="model"; filename="m"', 'alpha'], recording)],
    ['without a model', form(recording)],
    ['of an unknown model', form(['name="model"', 'nobody'], recording)],
    ['with an empty model', form(['name="model"', ''], recording)],
    ['with a model of two lines', form(['name="model"', 'alpha\r\nbeta'], recording)],
    ['with two models', form(['name="model"', 'alpha'], ['name="model"', 'alpha'], recording)],
    ['with the model in other letters', form(['name="Model"', 'alpha'], recording)],
  ])('%s is refused in the same words', async (_what, body) => {
    for (const path of ['/audio/transcriptions', '/v1/audio/transcriptions']) {
      await pair.expectSame({ method: 'POST', path, headers: formType, body });
    }
  });

  it.each([
    ['in quotes', `multipart/form-data; boundary="${boundary}"`],
    ['behind another parameter', `multipart/form-data; charset=utf-8; boundary=${boundary}`],
    ['without a blank', `multipart/form-data;boundary=${boundary}`],
  ])('with its boundary %s is read', async (_what, type) => {
    const answer = await pair.expectSame({
      method: 'POST',
      path: '/tokenize',
      headers: { 'Content-Type': type },
      body: form(['name="model"', 'alpha'], content),
    });
    expect(answer.body).toHaveProperty('tokens');
  });
});
