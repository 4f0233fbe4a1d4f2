import { describe, expect, it } from 'vitest';
import { requestHeaders, responseHeaders } from '../../../src/http/header-policy.js';

describe('requestHeaders', () => {
  it('keeps order, spelling, repeats and values', () => {
    const headers = ['X-B', '1', 'x-a', '2', 'X-b', '3', 'Accept', '*/*', 'X-Empty', '', 'X-L', 'caf\u00e9'];
    expect(requestHeaders(headers)).toEqual(headers);
  });

  it.each([
    'Connection',
    'Keep-Alive',
    'Proxy-Authenticate',
    'Proxy-Authorization',
    'Proxy-Connection',
    'TE',
    'Trailer',
    'Transfer-Encoding',
    'Upgrade',
    'Authorization',
    'X-Api-Key',
    'Cookie',
    'Host',
    'Content-Length',
    'Expect',
  ])('drops %s in any spelling', (name) => {
    for (const spelling of [name, name.toLowerCase(), name.toUpperCase()]) {
      expect(requestHeaders(['X-Kept', '1', spelling, 'x'])).toEqual(['X-Kept', '1']);
    }
  });

  it('drops what a Connection header names, wherever it stands', () => {
    const headers = [
      'X-Hop',
      '1',
      'Connection',
      ' x-hop ,, X-OTHER',
      'x-other',
      '2',
      'connection',
      'third',
      'Third',
      '3',
    ];
    expect(requestHeaders([...headers, 'X-Kept', '4'])).toEqual(['X-Kept', '4']);
  });

  it('does not change what it was given', () => {
    const headers = ['Cookie', 'a', 'X', '1'];
    requestHeaders(headers);
    expect(headers).toEqual(['Cookie', 'a', 'X', '1']);
  });

  it('of no headers are none', () => {
    expect(requestHeaders([])).toEqual([]);
  });
});

describe('responseHeaders', () => {
  const plain = { isEventStream: false };

  it('keep Content-Length, cookies and repeats', () => {
    const headers = ['Content-Length', '5', 'Set-Cookie', 'a=1', 'Set-Cookie', 'b=2', 'Date', 'x'];
    expect(responseHeaders(headers, plain)).toEqual(headers);
  });

  it('drop what is of one connection', () => {
    const headers = [
      'Connection',
      'close, X-Hop',
      'X-Hop',
      '1',
      'Keep-Alive',
      'timeout=5',
      'Transfer-Encoding',
      'chunked',
    ];
    expect(responseHeaders([...headers, 'X', '1'], plain)).toEqual(['X', '1']);
  });

  it('say not to buffer on event streams, once, and only there', () => {
    const headers = ['X-Accel-Buffering', 'yes', 'X', '1'];
    expect(responseHeaders(headers, { isEventStream: true })).toEqual(['X', '1', 'X-Accel-Buffering', 'no']);
    expect(responseHeaders(headers, plain)).toEqual(['X', '1']);
  });
});
