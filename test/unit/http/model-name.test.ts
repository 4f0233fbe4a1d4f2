import { expect, test } from 'vitest';

import { modelScannerFor } from '../../../src/http/model-name/index.js';

const FORM = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nx\r\n--b--\r\n';

test.each([
  undefined,
  '',
  'application/json',
  'application/json; charset=utf-8',
  'application/x-www-form-urlencoded',
  'text/plain',
  'multipart/mixed; boundary=b',
  'multipart/form-data-not; boundary=b',
  'text/plain; note=multipart/form-data',
])('a body of content type %j is read as JSON', (contentType) => {
  const scanner = modelScannerFor(contentType);
  scanner.push(Buffer.from('{"model":"x"}'));
  expect(scanner.end()).toEqual({ kind: 'found', name: 'x' });
});

test.each([
  'multipart/form-data; boundary=b',
  'multipart/form-data;boundary="b"',
  'Multipart/Form-Data ; charset=utf-8; Boundary=b',
])('a body of content type %j is read as a form', (contentType) => {
  const scanner = modelScannerFor(contentType);
  scanner.push(Buffer.from(FORM));
  expect(scanner.end()).toEqual({ kind: 'found', name: 'x' });
});

test('a form without a boundary is malformed and takes its bytes all the same', () => {
  const scanner = modelScannerFor('multipart/form-data');
  scanner.push(Buffer.from(FORM));
  expect(scanner.end().kind).toBe('malformed');
});
