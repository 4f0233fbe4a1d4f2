import { errors, type Dispatcher } from 'undici';
import { describe, expect, test } from 'vitest';
import { onlyComments } from '../../../../src/instance/hang/sse-comments.js';
import { isWork, WatchedHandler } from '../../../../src/instance/hang/watched-handler.js';
import { HangRig } from './hang-rig.js';

describe('onlyComments', () => {
  test.each([':\n\n', ':', '\n\n', ': waiting\n\n', ':\r\n\r\n:\n\n', ':a\n:b\n:c', ''])('%j is', (text) => {
    expect(onlyComments(Buffer.from(text))).toBe(true);
  });

  test.each(['data: x\n\n', ':\n\ndata: x\n\n', '{"a":1}', 'x', ' :', ':\n\n{'])('%j is not', (text) => {
    expect(onlyComments(Buffer.from(text))).toBe(false);
  });
});

describe('isWork', () => {
  test.each([
    '/v1/chat/completions',
    '/completion?x=/tokenize',
    '/v1/embeddings',
    '/rerank',
    '/infill',
    '/slots/0?action=save',
    '/lora-adapters',
    '/prefix/v1/responses',
  ])('POST %s needs the model', (path) => {
    expect(isWork('POST', path)).toBe(true);
    expect(isWork('GET', path)).toBe(false);
  });

  test.each([
    '/tokenize',
    '/prefix/detokenize',
    '/apply-template?a=b',
    '/v1/chat/completions/input_tokens',
    '/v1/messages/count_tokens',
    '/v1/streams/lookup',
    '/props',
  ])('POST %s does not', (path) => {
    expect(isWork('POST', path)).toBe(false);
  });
});

/** What a request has that never got a connection. */
const noController = undefined as unknown as Dispatcher.DispatchController;

/** A watched handler, the connection of which is the test. */
function connect(rig: HangRig) {
  const heard: string[] = [];
  const controller = { paused: false } as { paused: boolean } & Dispatcher.DispatchController;
  const handler = new WatchedHandler(
    {
      onRequestStart: () => heard.push('start'),
      onResponseStart: (_controller, status) => heard.push(`head ${status}`),
      onResponseData: (_controller, chunk) => heard.push(chunk.toString()),
      onResponseEnd: () => heard.push('end'),
      onResponseError: (_controller, error) => heard.push(error.message),
    },
    rig.watch,
  );
  return { handler, controller, heard };
}

describe('a watched request', () => {
  test('is passed on as it is', () => {
    const { handler, controller, heard } = connect(new HangRig());
    handler.onRequestStart(controller, undefined);
    handler.onResponseStart(controller, 103, {});
    handler.onResponseStart(controller, 200, {});
    handler.onResponseData(controller, Buffer.from(':\n\n'));
    handler.onResponseData(controller, Buffer.from('data: x\n\n'));
    handler.onResponseEnd(controller, {});
    handler.onResponseError(controller, new Error('broken'));
    expect(heard).toEqual(['start', 'head 103', 'head 200', ':\n\n', 'data: x\n\n', 'end', 'broken']);
  });

  test('of which only comments come is no progress', async () => {
    const rig = new HangRig();
    const { handler, controller } = connect(rig);
    handler.onRequestStart(controller, undefined);
    handler.onResponseStart(controller, 200, {});
    const afterS = await rig.secondsUntilHang(300, () => {
      handler.onResponseData(controller, Buffer.from(':\n\n'));
    });
    expect(afterS).toBeGreaterThanOrEqual(80);
  });

  test('of which anything else comes is progress', async () => {
    const rig = new HangRig();
    const { handler, controller } = connect(rig);
    handler.onRequestStart(controller, undefined);
    handler.onResponseStart(controller, 200, {});
    await rig.seconds(300, () => handler.onResponseData(controller, Buffer.from('data: x\n\n')));
    expect(rig.reasons).toEqual([]);
  });

  test('whose client does not read is not waited for, and is again when it reads', async () => {
    const rig = new HangRig();
    const { handler, controller } = connect(rig);
    handler.onRequestStart(controller, undefined);
    controller.paused = true;
    await rig.seconds(300);
    expect(rig.reasons).toEqual([]);
    controller.paused = false;
    expect(await rig.secondsUntilHang(300)).toBeGreaterThanOrEqual(80);
  });

  test('is in flight before a connection is there, and no more when that fails', async () => {
    const rig = new HangRig();
    const { handler, controller } = connect(rig);
    expect(rig.clock.timers).toBe(1);
    await rig.seconds(79);
    handler.onResponseError(controller, new Error('refused'));
    await rig.seconds(300);
    expect(rig.reasons).toEqual([]);
    expect(rig.clock.timers).toBe(0);
  });

  test.each([
    ['refuses the connection', Object.assign(new Error('connect'), { code: 'ECONNREFUSED' })],
    ['resets it', Object.assign(new Error('read'), { code: 'ECONNRESET' })],
    ['closes it', new errors.SocketError('other side closed')],
    ['answers what is no HTTP', new errors.HTTPParserError('bad')],
  ])('of which the child %s three times leads to a probe', async (_what, error) => {
    const rig = new HangRig();
    for (let n = 0; n < 3; n += 1) {
      expect(rig.probes).toBe(0);
      connect(rig).handler.onResponseError(noController, error);
    }
    await rig.seconds(1);
    expect(rig.probes).toBe(1);
  });

  test.each([
    ['that waits for longer than --timeout', new errors.HeadersTimeoutError()],
    ['that is stopped with its child', new errors.ClientDestroyedError()],
    ['for which there are no descriptors left', Object.assign(new Error('connect'), { code: 'EMFILE' })],
  ])('%s is held against nobody', async (_what, error) => {
    const rig = new HangRig();
    for (let n = 0; n < 5; n += 1) connect(rig).handler.onResponseError(noController, error);
    await rig.seconds(1);
    expect(rig.probes).toBe(0);
  });

  test('whose client leaves is held against nobody, whatever becomes of the connection then', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 5; n += 1) {
      const { handler } = connect(rig);
      const controller = { aborted: true } as Dispatcher.DispatchController;
      handler.onRequestStart(controller, undefined);
      handler.onResponseError(controller, Object.assign(new Error('read'), { code: 'ECONNRESET' }));
    }
    await rig.seconds(1);
    expect(rig.probes).toBe(0);
  });

  test('that ends is in flight no more', async () => {
    const rig = new HangRig();
    const { handler, controller } = connect(rig);
    handler.onRequestStart(controller, undefined);
    handler.onResponseStart(controller, 200, {});
    handler.onResponseEnd(controller, {});
    expect(rig.clock.timers).toBe(0);
    await rig.seconds(300);
    expect(rig.reasons).toEqual([]);
  });

  test('that is answered with a 5xx three times leads to a probe, bytes of the error notwithstanding', async () => {
    const rig = new HangRig();
    for (let n = 0; n < 3; n += 1) {
      const { handler, controller } = connect(rig);
      handler.onRequestStart(controller, undefined);
      handler.onResponseStart(controller, 500, {});
      handler.onResponseData(controller, Buffer.from('{"error":{}}'));
      handler.onResponseEnd(controller, {});
    }
    await rig.seconds(1);
    expect(rig.probes).toBe(1);
  });
});
