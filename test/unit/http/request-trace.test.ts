import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { pino } from 'pino';
import { expect, it } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import { breakOff, endWithError } from '../../../src/http/break-off.js';
import { RequestTracer, type RequestTrace } from '../../../src/http/request-trace.js';
import { Counters } from '../../../src/observe/counters.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { rawExchange, rawRequest } from '../../helpers/raw-http.js';

type Answer = (outgoing: ServerResponse, trace: RequestTrace) => void;

/** A server with these answers, and what they are counted as. */
async function traced(answer: Answer): Promise<{ url: string; counted: () => Promise<string[]> }> {
  const counters = new Counters();
  const tracer = new RequestTracer(pino({ level: 'silent' }), counters);
  const server = createServer((incoming, outgoing) => {
    const trace = tracer.begin(incoming, outgoing);
    trace.route = '/route';
    answer(outgoing, trace);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEndOfTest(() => {
    server.close();
    server.closeAllConnections();
  });
  const counted = () =>
    eventually('it is counted', () => counters.requests.size > 0 && [...counters.requests.keys()]);
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, counted };
}

const failure = new RouterError('load_failed', 'the weights are of rubber');

it('a stream that has begun and fails is counted by its failure', async () => {
  const { url, counted } = await traced((outgoing, trace) => {
    outgoing.writeHead(200, { 'Content-Type': 'text/event-stream' });
    trace.fail(failure);
    breakOff(outgoing, failure, { isEventStream: true });
  });
  expect((await rawRequest(url)).status).toBe(200);
  expect(await counted()).toEqual(['/route 503']);
});

it('a stream that has begun is counted by what its child answered', async () => {
  const { url, counted } = await traced((outgoing, trace) => {
    outgoing.writeHead(200, { 'Content-Type': 'text/event-stream' });
    trace.childStatus = 400;
    endWithError(outgoing, { error: { code: 400, message: 'no' } });
  });
  await rawRequest(url);
  expect(await counted()).toEqual(['/route 400']);
});

it('an answer that is sent whole is counted as what it says, also with a failure in it', async () => {
  const { url, counted } = await traced((outgoing, trace) => {
    trace.fail(failure);
    outgoing.writeHead(200).end(JSON.stringify({ predictions: [failure] }));
  });
  await rawRequest(url);
  expect(await counted()).toEqual(['/route 200']);
});

it('a client that leaves before there is an answer is not counted as one that was served', async () => {
  const { url, counted } = await traced((outgoing, trace) => {
    outgoing.flushHeaders();
    outgoing.prependOnceListener('close', () => trace.fail(new RouterError('client_gone', 'it left')));
  });
  const exchange = rawExchange(url);
  await exchange.head;
  exchange.abort();
  expect(await counted()).toEqual(['/route 499']);
});
