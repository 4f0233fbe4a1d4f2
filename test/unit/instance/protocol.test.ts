import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { exitCommand, parseChildLine, parseWorkerLine } from '../../../src/instance/protocol.js';

const prefix = 'cmd_child_to_router:state:';

describe('a state line', () => {
  test('of loading carries the progress', () => {
    const progress = { stages: ['text_model', 'mmproj_model'], current: 'text_model', value: 0.25 };
    expect(parseChildLine(`${prefix}${JSON.stringify({ state: 'loading', payload: progress })}`)).toEqual({
      kind: 'loading',
      progress,
    });
  });

  test('of loading may carry another payload: the real child says {"stage":"mmproj_model"} once', () => {
    const line = `${prefix}{"state":"loading","payload":{"stage":"mmproj_model"}}`;
    expect(parseChildLine(line)).toEqual({ kind: 'loading', progress: { stage: 'mmproj_model' } });
  });

  test('of ready carries the model info, and null when the child woke up', () => {
    const info = { id: 'alpha', meta: { n_ctx: 512 } };
    expect(parseChildLine(`${prefix}${JSON.stringify({ state: 'ready', payload: info })}`)).toEqual({
      kind: 'ready',
      info,
    });
    expect(parseChildLine(`${prefix}{"state":"ready","payload":null}`)).toEqual({
      kind: 'ready',
      info: undefined,
    });
  });

  test('of sleeping carries nothing', () => {
    expect(parseChildLine(`${prefix}{"state":"sleeping","payload":null}`)).toEqual({ kind: 'sleeping' });
  });

  test('without a payload, or with one that is no object, is a state without one', () => {
    expect(parseChildLine(`${prefix}{"state":"ready"}`)).toEqual({ kind: 'ready', info: undefined });
    expect(parseChildLine(`${prefix}{"state":"ready","payload":[1]}`)).toEqual({
      kind: 'ready',
      info: undefined,
    });
    expect(parseChildLine(`${prefix}{"state":"loading","payload":"0.5"}`)).toEqual({
      kind: 'loading',
      progress: undefined,
    });
  });
});

describe('a log line', () => {
  test.each([
    ['an empty one', ''],
    ['ordinary text', 'srv  llama_server: model loaded'],
    ['a state line that does not begin its line', ` ${prefix}{"state":"ready","payload":null}`],
    ['one behind a log prefix', `0.00.1 I ${prefix}{"state":"ready"}`],
    ['the prefix alone', prefix],
    ['a cut payload', `${prefix}{"state":"ready","payl`],
    ['a payload that is no object', `${prefix}"ready"`],
    ['a null payload', `${prefix}null`],
    ['a list', `${prefix}[{"state":"ready"}]`],
    // The native router dies of this one.
    ['a state that nobody knows', `${prefix}{"state":"dancing","payload":null}`],
    ['a state that is no text', `${prefix}{"state":{"ready":true}}`],
    ['a state named like a property of every object', `${prefix}{"state":"__proto__"}`],
    ['no state', `${prefix}{"payload":{}}`],
    ['our own command, echoed', exitCommand.trimEnd()],
    ['another spelling', `CMD_CHILD_TO_ROUTER:STATE:{"state":"ready"}`],
  ])('is %s', (_what, line) => {
    expect(parseChildLine(line)).toBeUndefined();
  });

  test('is whatever else follows the prefix: nothing a child prints makes the parser throw', () => {
    const known = new Set(['loading', 'ready', 'sleeping']);
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
        const message = parseChildLine(`${prefix}${text}`);
        if (message !== undefined) {
          expect(known).toContain((JSON.parse(text) as { state: unknown }).state);
        }
      }),
    );
  });
});

describe('a line of a download worker', () => {
  const line = (payload: unknown, state = 'downloading'): string =>
    prefix + JSON.stringify({ state, payload });

  test('tells how far a file is; a size of 0 is one that is not known', () => {
    expect(parseWorkerLine(line({ url: 'http://hub/a', downloaded: 5, total: 0 }))).toEqual({
      kind: 'progress',
      progress: { url: 'http://hub/a', downloadedBytes: 5, totalBytes: 0 },
    });
  });

  test.each([
    ['download_finished', true],
    ['download_failed', false],
  ])('tells the result: %s', (result, ok) => {
    expect(parseWorkerLine(line({ result }))).toEqual({ kind: 'result', ok });
  });

  test.each([
    ['of no file', line({ downloaded: 5, total: 10 })],
    ['with numbers that are none', line({ url: 'http://hub/a', downloaded: '5', total: 10 })],
    ['with another result', line({ result: 'download_paused' })],
    ['without a payload', line(null)],
    ['of another state', line({ result: 'download_finished' }, 'loading')],
    ['that is cut', line({ result: 'download_finished' }).slice(0, -1)],
    ['that does not begin its line', ` ${line({ result: 'download_finished' })}`],
  ])('%s is a line of its log', (_what, text) => {
    expect(parseWorkerLine(text)).toBeUndefined();
  });

  test('is no message of a child with a model', () => {
    expect(parseChildLine(line({ result: 'download_finished' }))).toBeUndefined();
  });
});

test('the exit command is one whole line, as the child reads lines', () => {
  expect(exitCommand).toBe('cmd_router_to_child:exit\n');
});
