import fc from 'fast-check';
import { expect, test } from 'vitest';
import { sseData, sseEvents, sseSplitter } from '../../helpers/sse.js';

test('splits a body into events with their fields, pings included', () => {
  const body = 'data: one\n\n: ping\n\nevent: error\nid: 7\ndata:two\ndata: lines\n\ndata: cut';
  expect(sseEvents(Buffer.from(body))).toEqual([
    { data: 'one' },
    { comment: 'ping' },
    { event: 'error', id: '7', data: 'two\nlines' },
  ]);
  expect(sseData(Buffer.from(body))).toEqual(['one', 'two\nlines']);
});

test('keeps colons and blanks of the data, and knows an empty one', () => {
  expect(sseData(Buffer.from('data: {"a": "b:c"}\n\ndata:  two blanks\n\ndata\n\n'))).toEqual([
    '{"a": "b:c"}',
    ' two blanks',
    '',
  ]);
});

test('the events are the same wherever the bytes are cut, inside characters and line ends, too', () => {
  const body = Buffer.from('data: grüße 🦙\r\n\r\n: ping\r\n\r\ndata: two\n\n');
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat(body.length)), (cuts) => {
      const edges = [0, ...cuts.sort((a, b) => a - b), body.length];
      const splitter = sseSplitter();
      const events = edges.slice(1).flatMap((end, at) => splitter.push(body.subarray(edges[at], end)));
      expect(events).toEqual([{ data: 'grüße 🦙' }, { comment: 'ping' }, { data: 'two' }]);
      expect(splitter.rest()).toBe('');
    }),
  );
});

test('what follows the last whole event is told as the rest', () => {
  const splitter = sseSplitter();
  expect(splitter.push(Buffer.from('data: 1\n\ndata: 2\n'))).toEqual([{ data: '1' }]);
  expect(splitter.rest()).toBe('data: 2\n');
});
