import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Upstream } from '../../../src/instance/upstream.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { withDeadline } from '../../helpers/eventually.js';

// Only the clock: timers come late to a process that is busy.
beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

/** A child that answers everything, and the connections to it: how many it has had, and how to send a request. */
async function answeringChild() {
  let connections = 0;
  const server = createServer((_request, response) => response.end('ok'));
  server.on('connection', () => (connections += 1));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const upstream = new Upstream((server.address() as AddressInfo).port, 'key', 10_000);
  atEndOfTest(() => {
    upstream.destroy();
    server.close();
    server.closeAllConnections();
  });
  const ask = async ({ tookMs = 0 } = {}): Promise<void> => {
    let finish: ((reusable: boolean) => void) | undefined;
    const ended = new Promise<void>((resolve, reject) => {
      finish = upstream.dispatch(
        { method: 'GET', path: '/', headers: [], body: null },
        {
          onRequestStart: () => undefined,
          onResponseStart: () => undefined,
          onResponseData: () => undefined,
          onResponseEnd: () => resolve(),
          onResponseError: (_controller, error) => reject(error),
        },
      );
    });
    await withDeadline('the answer', ended, 10_000);
    vi.advanceTimersByTime(tookMs);
    finish?.(true);
  };
  return { ask, connections: () => connections };
}

/** A child closes a connection when it has been idle for five seconds. */
const longMs = 2_500;

it('a connection is used again at once, and not when it has been idle for long: the child may have closed it', async () => {
  const { ask, connections } = await answeringChild();
  await ask();
  await ask();
  expect(connections()).toBe(1);
  vi.advanceTimersByTime(longMs);
  await ask();
  expect(connections()).toBe(2);
  await ask();
  expect(connections()).toBe(2);
});

it('a connection is not used again after an answer that was long in coming: it may have lain here for most of that time', async () => {
  const { ask, connections } = await answeringChild();
  await ask({ tookMs: longMs - 1 });
  await ask({ tookMs: longMs });
  expect(connections()).toBe(1);
  await ask();
  expect(connections()).toBe(2);
});
