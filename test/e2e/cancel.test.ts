import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { busySlots, chat, modelEntry, question, streamChat } from '../helpers/supervisor-client.js';

/**
 * "Within a few seconds"; the model would go on for many times as long. A child looks for a client that waits for an
 * answer in one piece when it has had no result for anybody for a second: to look at its slots more often would keep it
 * from ever doing so (llama.cpp, tools/server/server-queue.cpp, `recv_with_timeout`).
 */
const soon = { deadlineMs: 8_000, intervalMs: 1_500 };

describe('a client that leaves stops the generation in the child', () => {
  let url: string;

  beforeAll(async () => {
    const dir = await writeModels({ endless: endless() });
    url = (await startRealSupervisor({ args: ['--models-dir', dir] })).url;
    await chat(url, 'endless', { max_tokens: 1 });
  });

  const generates = () => eventually('a slot generates', async () => (await busySlots(url, 'endless')) === 1);
  const isIdle = async (): Promise<void> => {
    await eventually('no slot generates', async () => (await busySlots(url, 'endless')) === 0, soon);
    // The look at the slots that has just been answered may not have been counted off yet.
    await eventually('no request is counted', async () => {
      return (await modelEntry(url, 'endless')).in_flight === 0;
    });
  };

  it('while it streams', async () => {
    const stream = streamChat(url, 'endless');
    await stream.untilPieces(10);
    await generates();
    stream.abort();
    await isIdle();
  });

  it('while its answer is awaited in one piece', async () => {
    const exchange = rawExchange(`${url}/v1/chat/completions`, jsonPost(question('endless')));
    await generates();
    exchange.abort();
    await isIdle();
  });

  it('all at once, and the model answers the next one', async () => {
    // Four slots generate, the other streams wait in the child.
    const streams = Array.from({ length: 6 }, () => streamChat(url, 'endless'));
    await eventually('all slots generate', async () => (await busySlots(url, 'endless')) === 4);
    for (const stream of streams) stream.abort();
    await isIdle();
    expect(await chat(url, 'endless', { max_tokens: 3 })).toBe('lap-1 lap-2 lap-3');
  });
});
