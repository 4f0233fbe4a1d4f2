import { setImmediate as turn } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { boundedMap } from '../../../src/models/bounded-map.js';

it('gives the results in the order of the items, whichever is done first', async () => {
  const delays = [3, 0, 2, 1];
  const results = await boundedMap(delays, 4, async (turns) => {
    for (let i = 0; i < turns; i++) await turn();
    return turns;
  });
  expect(results).toEqual(delays);
});

it('runs as many at a time as it may, and never more', async () => {
  let running = 0;
  let most = 0;
  await boundedMap(Array.from({ length: 50 }), 3, async () => {
    most = Math.max(most, ++running);
    await turn();
    running--;
  });
  expect(most).toBe(3);
});

it('starts nothing more once one has failed', async () => {
  const started: number[] = [];
  const work = boundedMap([0, 1, 2, 3], 1, async (item) => {
    started.push(item);
    await turn();
    if (item === 1) throw new Error('no');
  });
  await expect(work).rejects.toThrow('no');
  expect(started).toEqual([0, 1]);
});
