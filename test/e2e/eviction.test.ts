import { expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  listModels,
  modelEntry,
  streamChat,
  untilStatus,
  type EventStream,
} from '../helpers/supervisor-client.js';

it('a model that answers is never evicted: the other one waits until its client leaves', async () => {
  const talker = endless();
  const dir = await writeModels({ talker, other: sayingItsName('other') });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });

  const stream = streamChat(url, 'talker');
  await stream.untilPieces(10);
  let answered = false;
  const waiting = chat(url, 'other').finally(() => (answered = true));
  await eventually('the other model is waited for', async () => (await modelEntry(url, 'other')).waiting > 0);

  // The talker goes on as before, well past the time in which an idle model would have been replaced.
  await stream.untilPieces(stream.pieces().length + 3000);
  expect(answered).toBe(false);
  expect(await modelEntry(url, 'talker')).toMatchObject({ status: { value: 'loaded' }, in_flight: 1 });
  expect(await modelEntry(url, 'other')).toMatchObject({ status: { value: 'unloaded' }, waiting: 1 });

  stream.abort();
  expect(await waiting).toBe(nameAnswer('other'));
  expect(stream.pieces()).toEqual(piecesOf(talker, stream.pieces().length));
  expect(stream.events().filter((data) => data.includes('"error"'))).toEqual([]);
});

it('the victim is the idle model whose last request ended first, not the one whose began first', async () => {
  const dir = await writeModels({
    long: endless(),
    short: sayingItsName('short'),
    third: sayingItsName('third'),
  });
  const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '2'] });

  const stream = streamChat(url, 'long');
  await stream.untilPieces(1);
  expect(await chat(url, 'short')).toBe(nameAnswer('short'));
  stream.abort();
  await eventually('the long request has ended', async () => (await modelEntry(url, 'long')).in_flight === 0);

  expect(await chat(url, 'third')).toBe(nameAnswer('third'));
  const states = (await listModels(url)).map(({ id, status }) => [id, status.value]);
  expect(states).toEqual([
    ['long', 'loaded'],
    ['short', 'unloaded'],
    ['third', 'loaded'],
  ]);
});

it('traffic that never pauses holds up another model for --fair-after at most, and loses nothing', async () => {
  // So large that it is slow: a stream takes longer than this process may take to notice that it has begun.
  const busy = { ...endless(), extraBytes: 60e6 };
  const dir = await writeModels({ busy, other: sayingItsName('other') });
  const fairAfterMs = 1_500;
  const { url } = await startRealSupervisor({
    args: ['--models-dir', dir, '--models-max', '1', '--fair-after', String(fairAfterMs / 1000)],
  });

  // Each stream begins with the first word of the one before: the model is never idle, and always has more to do.
  const words = 100;
  const streams: EventStream[] = [];
  let otherIsServed = false;
  const keepBusy = async (): Promise<void> => {
    while (!otherIsServed) {
      const stream = streamChat(url, 'busy', { max_tokens: words });
      streams.push(stream);
      await stream.untilPieces(1);
    }
  };
  const askOther = async (): Promise<number> => {
    await untilStatus(url, 'busy', 'loaded');
    const began = performance.now();
    try {
      expect(await chat(url, 'other')).toBe(nameAnswer('other'));
    } finally {
      otherIsServed = true;
    }
    return performance.now() - began;
  };
  const [waitedMs] = await Promise.all([askOther(), keepBusy()]);

  // It did have to wait, and then only for the few streams in flight and one change of models.
  expect(waitedMs).toBeGreaterThanOrEqual(fairAfterMs);
  expect(waitedMs).toBeLessThan(fairAfterMs + 15_000);
  for (const stream of streams) {
    const { status, complete } = await stream.ended();
    expect({ status, complete }).toEqual({ status: 200, complete: true });
    expect(stream.pieces()).toEqual(piecesOf(busy, words));
    expect(stream.events().at(-1)).toBe('[DONE]');
  }
});
