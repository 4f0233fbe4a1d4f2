import { randomBytes } from 'node:crypto';
import { beforeAll, describe, expect, it } from 'vitest';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { OracleHome, startNative } from './native-oracle.js';

/** A form, and the Content-Type that it is sent with when that is not the usual one. */
type Form = readonly [body: string | Buffer, contentType?: string];

const disposition = 'Content-Disposition: form-data';
const closing = '--xyz--\r\n';
const prompt = field('prompt', 'Who are you?');
const alpha = field('model', 'alpha');

function partWith(headers: string, content: string): string {
  return `--xyz\r\n${headers}\r\n\r\n${content}\r\n`;
}

function field(name: string, content: string, parameters = ''): string {
  return partWith(`${disposition}; name="${name}"${parameters}`, content);
}

/** A form with these parts, and what else a completion needs. */
function form(...parts: string[]): string {
  return prompt + parts.join('') + closing;
}

/** A form of another boundary than the usual one. */
function bounded(boundary: string, written = boundary): Form {
  const body = form(alpha).replaceAll('--xyz', `--${boundary}`);
  return [Buffer.from(body, 'latin1'), `multipart/form-data; boundary=${written}`];
}

const nested = partWith(
  `${disposition}; name="files"\r\nContent-Type: multipart/mixed; boundary=in`,
  `--in\r\n${disposition}; name="model"\r\n\r\nbeta\r\n--in--`,
);

/** The model that answers is alpha. */
const served: Record<string, Form> = {
  'the model behind the rest': [form(alpha)],
  'the model before the rest': [alpha + prompt + closing],
  'the model behind a file': [form(field('file', 'RIFF', '; filename="a.wav"'), alpha)],
  'a file of the same name': [form(field('model', 'beta', '; filename="a"'), alpha)],
  'two files of one name': [
    form(...['a', 'b'].map((name) => field('f', name, `; filename="${name}"`)), alpha),
  ],
  'an empty file name': [form(field('model', 'alpha', '; filename=""'))],
  'a bare empty file name': [form(field('model', 'alpha', '; filename='))],
  'a file name in capitals': [form(field('model', 'alpha', '; FILENAME="a"'))],
  'a name without quotes': [form(partWith(`${disposition}; name=model`, 'alpha'))],
  'blanks around a name': [form(partWith('Content-Disposition:form-data;name = "model" ', 'alpha'))],
  'a header in capitals': [form(partWith('CONTENT-DISPOSITION: FORM-DATA; name="model"', 'alpha'))],
  'a semicolon in a name': [form(field('x;name=model', 'beta'), alpha)],
  'a quote in a name': [form(field('mo\\"del', 'beta'), alpha)],
  'two names, the first of which counts': [form(field('model', 'alpha', '; name="other"'))],
  'two dispositions, the second of which counts': [
    form(partWith(`${disposition}; name="other"\r\n${disposition}; name="model"`, 'alpha')),
  ],
  'a part without a disposition': [form(partWith('Content-Type: text/plain', 'beta'), alpha)],
  'a part without headers': [form('--xyz\r\n\r\nbeta\r\n', alpha)],
  'an attachment': [form(partWith('Content-Disposition: attachment; name="model"', 'beta'), alpha)],
  'a disposition without parameters': [form(partWith(disposition, 'beta'), alpha)],
  'a part of another charset': [
    form(partWith(`${disposition}; name="model"\r\nContent-Type: text/plain; charset=latin1`, 'alpha')),
  ],
  'a part of type JSON': [
    form(partWith(`${disposition}; name="model"\r\nContent-Type: application/json`, 'alpha')),
  ],
  'a preamble on a line': [`preamble\r\n${form(alpha)}`],
  'a preamble without a line break': [`preamble${form(alpha)}`],
  'an empty line as the preamble': [`\r\n${form(alpha)}`],
  'an epilogue': [`${form(alpha)}epilogue`],
  'another form as the epilogue': [form(alpha) + form(field('model', 'beta'))],
  'no line break at the end': [form(alpha).slice(0, -2)],
  'a longer boundary within a line': [form(field('note', '--xyzq'), alpha)],
  'a form within the form': [form(nested, alpha)],
  'a boundary in quotes': bounded('xyz', '"xyz"'),
  'a boundary of odd characters': bounded("a'()+_,-./:=? z", `"a'()+_,-./:=? z"`),
  'a boundary with a semicolon': bounded('a;b', '"a;b"'),
  'a boundary with an equals sign': bounded('a=b'),
  'a boundary with a backslash': bounded('x\\y', '"x\\y"'),
  'a boundary with an escape': bounded('x%41'),
  'a boundary of 70 bytes': bounded('y'.repeat(70)),
  'a charset before the boundary': [form(alpha), 'multipart/form-data; charset=utf-8; boundary=xyz'],
  'blanks in the content type': [form(alpha), 'multipart/form-data ; boundary = xyz '],
  'no blank in the content type': [form(alpha), 'multipart/form-data;boundary=xyz;'],
  'two boundaries, the first of which counts': [form(alpha), 'multipart/form-data; boundary=xyz; boundary=q'],
  'a header of 8,000 bytes': [
    form(partWith(`${disposition}; name="model"\r\nX: ${'y'.repeat(8_000)}`, 'alpha')),
  ],
  'a hundred headers': [form(partWith(`${disposition}; name="model"${'\r\nX: y'.repeat(99)}`, 'alpha'))],
  '1024 parts': [form(field('unknown', '1').repeat(1022), alpha)],
};

/** No text field `model`, or not one. */
const unnamed: Record<string, Form> = {
  'no model': [form()],
  'an empty one': [form(field('model', ''))],
  'the same one twice': [form(alpha, alpha)],
  'an empty one and another': [form(field('model', ''), alpha)],
  'a file of that name': [form(field('model', 'alpha', '; filename="a"'))],
  'a file with an encoded name': [form(field('model', 'alpha', "; filename*=UTF-8''a"))],
  'a file with an encoded name in small letters': [form(field('model', 'alpha', "; filename*=utf-8''a"))],
  'a file with an empty name and an encoded one': [
    form(field('model', 'alpha', `; filename=""; filename*=UTF-8''a`)),
  ],
  'two names, of which the first is another': [form(field('other', 'alpha', '; name="model"'))],
  'two dispositions, of which the second has another': [
    form(partWith(`${disposition}; name="model"\r\n${disposition}; name="other"`, 'alpha')),
  ],
  'other quotes': [form(partWith(`${disposition}; name='model'`, 'alpha'))],
  'a blank before the semicolon': [form(partWith('Content-Disposition: form-data ; name="model"', 'alpha'))],
  'a backslash in the name': [form(field('mod\\el', 'alpha'))],
  'an escape in the name': [form(field('%6dodel', 'alpha'))],
  'brackets behind the name': [form(field('model[]', 'alpha'))],
  'one in a form within the form': [form(nested)],
};

const unknown: Record<string, Form> = {
  'a blank before the model': [form(field('model', ' alpha'))],
  'a line break behind it': [form(field('model', 'alpha\r\n'))],
  'a byte order mark before it': [form(field('model', '\ufeffalpha'))],
  'base64, which is not decoded': [
    form(partWith(`${disposition}; name="model"\r\nContent-Transfer-Encoding: base64`, 'YWxwaGE=')),
  ],
};

/** Status 400, whether the form is refused here or by the child. */
const unreadable: Record<string, Form> = {
  'no closing boundary': [prompt + alpha],
  'half a closing boundary': [`${prompt + alpha}--xyz-\r\n`],
  'an opening boundary at the end': [`${prompt + alpha}--xyz\r\n`],
  'no parts': [closing],
  'no body': [''],
  'line breaks without CR': [form(alpha).replaceAll('\r\n', '\n')],
  'a header that ends without CR': [form(partWith(`${disposition}; name="a"\n\nb`, ''), alpha)],
  'blanks behind a boundary': [form(alpha.replace('\r\n', ' \r\n'))],
  'a boundary that goes on': [form(field('note', 'x\r\n--xyzq'), alpha)],
  'a part without a name': [form(partWith(`${disposition}; x="y"`, 'beta'), alpha)],
  'a name in capitals': [form(partWith(`${disposition}; NAME="model"`, 'alpha'))],
  'an encoded name': [form(partWith(`${disposition}; name*=UTF-8''model`, 'alpha'))],
  'a header without a colon': [form(partWith(`${disposition}; name="model"\r\nthis is none`, 'alpha'))],
  'a header with a blank in its name': [
    form(partWith(`${disposition}; name="model"\r\nbad name: x`, 'alpha')),
  ],
  'a header on two lines': [form(partWith('Content-Disposition: form-data;\r\n name="model"', 'alpha'))],
  'an encoded file name of no length': [form(field('file', 'a', "; filename*=UTF-8''"), alpha)],
  'a file name in Latin-1': [form(field('file', 'a', "; filename*=iso-8859-1''x"), alpha)],
  'a boundary of 71 bytes': bounded('y'.repeat(71)),
  'an empty boundary': bounded('', ''),
  'another boundary': bounded('xyz', 'other'),
  'no boundary': [form(alpha), 'multipart/form-data'],
  'a boundary parameter in capitals': [form(alpha), 'multipart/form-data; BOUNDARY=xyz'],
  'a header of 9,000 bytes': [
    form(partWith(`${disposition}; name="model"\r\nX: ${'y'.repeat(9_000)}`, 'alpha')),
  ],
  '101 headers': [form(partWith(`${disposition}; name="model"${'\r\nX: y'.repeat(100)}`, 'alpha'))],
  '1025 parts': [form(field('unknown', '1').repeat(1023), alpha)],
};

let nativeUrl: string;
let ourUrl: string;

beforeAll(async () => {
  const modelsDir = await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') });
  const args = ['--models-dir', modelsDir];
  const [native, ours] = await Promise.all([
    startNative(new OracleHome(), { args: [...args, '--threads', '1'] }),
    startRealSupervisor({ args }),
  ]);
  [nativeUrl, ourUrl] = [native.url, ours.url];
});

/** What becomes of a form: the words of the model that answers, or why none does. */
async function outcomeAt(
  url: string,
  [body, contentType = 'multipart/form-data; boundary=xyz']: Form,
): Promise<string> {
  const headers = { 'content-type': contentType };
  const { status, body: answer } = await rawRequest(`${url}/completion`, {
    method: 'POST',
    headers,
    body: Buffer.from(body),
  });
  const text = answer.toString();
  if (status === 200) return (JSON.parse(text) as { content: string }).content.trim();
  if (text.includes('model name is missing from the request')) return `${status}, no model is named`;
  if (/model '.*' not found/s.test(text)) return `${status}, there is no such model`;
  return `${status}`;
}

describe.each<[string, Record<string, Form>, string]>([
  ['is answered by the model', served, nameAnswer('alpha')],
  ['names no model', unnamed, '400, no model is named'],
  ['names a model that is not there', unknown, '400, there is no such model'],
  ['is refused', unreadable, '400'],
])('as with the native router, a form %s with', (_what, forms, outcome) => {
  it.each(Object.entries(forms))('%s', async (_title, sent) => {
    expect(await outcomeAt(nativeUrl, sent), 'the native router').toBe(outcome);
    expect(await outcomeAt(ourUrl, sent)).toBe(outcome);
  });
});

describe('what llama-server does not read as a form, or as text, is refused', () => {
  it.each<[string, Form, { native: string; ours: string }]>([
    [
      'another type: read as JSON, it is malformed',
      [form(alpha), 'multipart/mixed; boundary=xyz'],
      { native: '500', ours: '400' },
    ],
    [
      'a type in capitals: that is left to the child',
      [form(alpha), 'Multipart/Form-Data; boundary=xyz'],
      { native: '500', ours: '500' },
    ],
    [
      'a model name that is not UTF-8',
      [Buffer.from(form(field('model', 'caf\xe9')), 'latin1')],
      { native: '500', ours: '400' },
    ],
    [
      'another field that is not UTF-8: that is left to the child',
      [Buffer.from(form(field('x', 'caf\xe9'), alpha), 'latin1')],
      { native: '500', ours: '500' },
    ],
  ])('%s', async (_title, sent, { native, ours }) => {
    expect(await outcomeAt(nativeUrl, sent), 'the native router').toBe(native);
    expect(await outcomeAt(ourUrl, sent)).toBe(ours);
  });
});

it('a large file reaches the child, which says of it what it says without a router between', async () => {
  const file = `${disposition}; name="file"; filename="a.wav"\r\nContent-Type: audio/wav`;
  const body = Buffer.concat([
    Buffer.from(`--xyz\r\n${file}\r\n\r\n`),
    randomBytes(5_000_000),
    Buffer.from(`\r\n${alpha}${closing}`),
  ]);
  const headers = { 'content-type': 'multipart/form-data; boundary=xyz' };
  const [native, ours] = await Promise.all(
    [nativeUrl, ourUrl].map((url) =>
      rawRequest(`${url}/v1/audio/transcriptions`, { method: 'POST', headers, body }),
    ),
  );
  expect(native?.body.toString()).toContain('does not support audio');
  expect([ours?.status, ours?.body.toString()]).toEqual([native?.status, native?.body.toString()]);
});
