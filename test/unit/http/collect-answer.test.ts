import { once } from 'node:events';
import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { describe, expect, it } from 'vitest';
import { AnswerBudget } from '../../../src/http/answer-budget.js';
import { BodyBudget } from '../../../src/http/body-budget.js';
import { collectAnswer, type CollectedAnswer } from '../../../src/http/collect-answer.js';
import { Upstream, type UpstreamRequest } from '../../../src/instance/upstream.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually, withDeadline } from '../../helpers/eventually.js';

const request = (): UpstreamRequest => ({ method: 'GET', path: '/', headers: [], body: null });

async function upstreamOf(listener: RequestListener): Promise<Upstream> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const upstream = new Upstream((server.address() as AddressInfo).port, 'key', 10_000);
  atEndOfTest(() => {
    upstream.destroy();
    server.close();
    server.closeAllConnections();
  });
  return upstream;
}

function collect(
  upstream: Upstream,
  { signal = new AbortController().signal, budget = new AnswerBudget(1000) } = {},
): Promise<CollectedAnswer> {
  return withDeadline('the answer', collectAnswer(upstream, request(), { signal, budget }), 5_000);
}

describe('an answer that is collected', () => {
  it('is whole, with its bytes taken from the budget', async () => {
    const shared = new BodyBudget(1000);
    const upstream = await upstreamOf((_req, res) => {
      res.write('one ');
      setImmediate(() => res.end('two'));
    });
    const answer = await collect(upstream, { budget: new AnswerBudget(1000, shared) });
    expect(answer).toMatchObject({ kind: 'whole', body: Buffer.from('one two') });
    expect(shared.heldBytes).toBe(7);
  });

  it('fails with the refusal of the budget, which has its bytes back', async () => {
    const shared = new BodyBudget(1000);
    const upstream = await upstreamOf((_req, res) => void res.end('x'.repeat(101)));
    const answer = await collect(upstream, { budget: new AnswerBudget(100, shared) });
    expect(answer).toMatchObject({ kind: 'failed', error: { code: 'body_too_large' } });
    expect(shared.heldBytes).toBe(0);
  });

  it('fails when the child breaks it off', async () => {
    const upstream = await upstreamOf((_req, res) => res.write('half', () => res.destroy()));
    expect(await collect(upstream)).toMatchObject({ kind: 'failed', requestStarted: true });
  });

  it('fails with the reason when it is stopped, and the child hears of it', async () => {
    let heard = false;
    let isAsked = false;
    const upstream = await upstreamOf((_req, res) => {
      isAsked = true;
      res.once('close', () => (heard = true));
    });
    const stop = new AbortController();
    const answer = collect(upstream, { signal: stop.signal });
    await eventually('the child is asked', () => isAsked);
    const reason = new Error('enough');
    stop.abort(reason);
    expect(await answer).toMatchObject({ kind: 'failed', error: reason });
    await eventually('the child hears of it', () => heard);
  });

  it('fails at once when it is stopped before there is a connection', async () => {
    const finished: boolean[] = [];
    const upstream = {
      dispatch: () => (reusable: boolean) => void finished.push(reusable),
    } as unknown as Upstream;
    const reason = new Error('enough');
    const before = await collect(upstream, { signal: AbortSignal.abort(reason) });
    const stop = new AbortController();
    const meanwhile = collect(upstream, { signal: stop.signal });
    stop.abort(reason);
    const failed = { kind: 'failed', error: reason, requestStarted: false };
    expect([before, await meanwhile]).toEqual([failed, failed]);
    // Its connection carries nothing else.
    expect(finished).toEqual([false, false]);
  });
});
