import { once } from 'node:events';
import { Agent, createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { getRequestListener } from '@hono/node-server';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { asRouterError } from '../../src/errors.js';
import { EventBus, type SupervisorEvent } from '../../src/events/events.js';
import type { HttpEnv } from '../../src/http/app.js';
import { EventFeed, streamEvents, type EventFeedOptions } from '../../src/http/event-stream.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { rawExchange, rawRequest, type RawExchange } from '../helpers/raw-http.js';
import { sseData, sseEvents } from '../helpers/sse.js';

/** The route, on a server of this process, and what happens to models at the test's word. */
class Rig {
  readonly events: CountingBus;
  readonly feed: EventFeed;
  readonly server: Server;
  readonly warnings: string[] = [];

  constructor(options: Partial<EventFeedOptions>) {
    this.events = new CountingBus((error) => {
      throw error;
    });
    const log = pino(
      { level: 'warn' },
      { write: (line: string) => this.warnings.push((JSON.parse(line) as { msg: string }).msg) },
    );
    this.feed = new EventFeed({ events: this.events, log, ...options });
    const app = new Hono<HttpEnv>().get('/models/sse', streamEvents({ feed: this.feed }));
    app.onError((thrown) => {
      const error = asRouterError(thrown);
      return Response.json(error, { status: error.status, headers: error.headers });
    });
    const listener = getRequestListener((request, bindings) => app.fetch(request, bindings), {
      overrideGlobalObjects: false,
    });
    this.server = createServer((incoming, outgoing) => void listener(incoming, outgoing));
  }

  static async start(options: Partial<EventFeedOptions> = {}): Promise<Rig> {
    const rig = new Rig(options);
    rig.server.listen(0, '127.0.0.1');
    await once(rig.server, 'listening');
    atEndOfTest(() => {
      rig.feed.close();
      rig.server.closeAllConnections();
      rig.server.close();
    });
    return rig;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/models/sse`;
  }

  /** Settles when the stream has begun. */
  async listen(): Promise<RawExchange> {
    const exchange = rawExchange(this.url);
    atEndOfTest(() => exchange.abort());
    expect(await withDeadline('the stream begins', exchange.head, 5_000)).toMatchObject({ status: 200 });
    return exchange;
  }

  /** Something of which there can be any number. */
  tell(model: string): void {
    this.events.emit({ type: 'model.sleeping', model });
  }
}

/** Knows how many listen to it. */
class CountingBus extends EventBus {
  subscribers = 0;

  override subscribe(listener: (event: SupervisorEvent) => void): () => void {
    const unsubscribe = super.subscribe(listener);
    this.subscribers += 1;
    return () => {
      this.subscribers -= 1;
      unsubscribe();
    };
  }
}

function modelsTold(exchange: RawExchange): string[] {
  return sseData(exchange.received()).map((data) => (JSON.parse(data) as { model: string }).model);
}

async function untilTold(exchange: RawExchange, models: readonly string[]): Promise<void> {
  await eventually(`told of ${models.length} models`, () => modelsTold(exchange).length >= models.length);
  expect(modelsTold(exchange)).toEqual(models);
}

function numbered(count: number): string[] {
  return Array.from({ length: count }, (_, at) => `m${at}`);
}

describe('GET /models/sse', () => {
  it('begins at once, with headers that keep proxies from holding it back', async () => {
    const rig = await Rig.start();
    const exchange = await rig.listen();
    expect((await exchange.head).headers).toMatchObject({
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    });
    expect(exchange.received()).toHaveLength(0);
  });

  it('gives each event as one record of one line and a blank one', async () => {
    const rig = await Rig.start();
    const exchange = await rig.listen();
    rig.tell('two\nlines');
    rig.events.emit({ type: 'model.queued', model: 'unsaid', position: 1 });
    rig.tell('b');
    await eventually('both are there', () => exchange.received().includes('"b"'));
    expect(exchange.received().toString()).toBe(
      'data: {"model":"two\\nlines","event":"status_change","data":{"status":"sleeping"}}\n\n' +
        'data: {"model":"b","event":"status_change","data":{"status":"sleeping"}}\n\n',
    );
  });

  it('gives HEAD the headers and nothing else', async () => {
    const rig = await Rig.start();
    const response = await withDeadline('HEAD', rawRequest(rig.url, { method: 'HEAD' }), 5_000);
    expect(response).toMatchObject({
      status: 200,
      complete: true,
      headers: { 'content-type': 'text/event-stream', 'x-accel-buffering': 'no' },
    });
    expect(response.body).toHaveLength(0);
    expect(rig.feed.listeners).toBe(0);
  });

  it('tells the cause before the effect that another listener brought about', async () => {
    const rig = await Rig.start();
    rig.events.subscribe((event) => {
      if (event.type === 'model.removed') rig.tell(`after ${event.model}`);
    });
    const exchange = await rig.listen();
    rig.tell('first');
    rig.events.emit({ type: 'model.removed', model: 'cause' });
    rig.tell('last');
    await untilTold(exchange, ['first', 'cause', 'after cause', 'last']);
  });

  it('tells all of many events of one turn, in their order, to everyone', async () => {
    const rig = await Rig.start();
    const exchanges = await Promise.all(Array.from({ length: 20 }, () => rig.listen()));
    const models = numbered(2_000);
    for (const model of models) rig.tell(model);
    for (const exchange of exchanges) await untilTold(exchange, models);
  });

  it('puts an event into bytes once for all that listen, and not at all for nobody', async () => {
    const rig = await Rig.start();
    let times = 0;
    const progress = {
      toJSON: () => {
        times += 1;
        return { value: 0.5 };
      },
    };
    rig.events.emit({ type: 'model.progress', model: 'unheard', progress });
    expect(times).toBe(0);
    const exchanges = await Promise.all(Array.from({ length: 20 }, () => rig.listen()));
    rig.events.emit({ type: 'model.progress', model: 'heard', progress });
    for (const exchange of exchanges) await untilTold(exchange, ['heard']);
    expect(times).toBe(1);
  });

  it('sends comments while nothing happens', async () => {
    const rig = await Rig.start({ pingIntervalMs: 20 });
    const exchange = await rig.listen();
    await eventually('three comments', () => sseEvents(exchange.received()).length >= 3);
    rig.tell('a');
    await untilTold(exchange, ['a']);
    const comments = sseEvents(exchange.received()).filter(({ data }) => data === undefined);
    expect(new Set(comments.map(({ comment }) => comment))).toEqual(new Set(['ping']));
  });
});

describe('who listens', () => {
  it('is counted out when it leaves, a thousand times', async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error): void => void warnings.push(warning);
    process.on('warning', onWarning);
    atEndOfTest(() => void process.off('warning', onWarning));
    const rig = await Rig.start();
    const subscribersBefore = rig.events.subscribers;
    for (let round = 0; round < 20; round += 1) {
      const exchanges = await Promise.all(Array.from({ length: 50 }, () => rig.listen()));
      expect(rig.feed.listeners).toBe(50);
      rig.tell('a');
      for (const exchange of exchanges) exchange.abort();
      await eventually('all have left', () => rig.feed.listeners === 0);
    }
    expect(rig.events.subscribers).toBe(subscribersBefore);
    expect(warnings).toEqual([]);
  });

  it('is refused when there are too many, until one leaves', async () => {
    const rig = await Rig.start({ maxListeners: 2 });
    const first = await rig.listen();
    await rig.listen();
    const refused = await rawRequest(rig.url);
    expect(refused).toMatchObject({ status: 429, headers: { 'retry-after': '5' } });
    expect(JSON.parse(refused.body.toString())).toMatchObject({
      error: { code: 429, type: 'overloaded_error', reason: 'too_many_listeners' },
    });
    first.abort();
    await eventually('there is a place', () => rig.feed.listeners === 1);
    const third = await rig.listen();
    rig.tell('a');
    await untilTold(third, ['a']);
  });

  it('and does not read is dropped, with a line in the log, and costs the others nothing', async () => {
    const rig = await Rig.start({ maxUnreadBytes: 256 * 1024 });
    const reader = await rig.listen();
    const stuck = rawExchange(rig.url);
    atEndOfTest(() => stuck.abort());
    stuck.pause();
    await stuck.head;

    // More than the kernel holds for a connection.
    const largest = 1024;
    const padding = 'x'.repeat(64 * 1024);
    let count = 0;
    for (; count < largest && rig.feed.listeners === 2; count += 1) {
      rig.tell(`${count} ${padding}`);
      await eventually('the reader has it', () => reader.received().length > count * padding.length);
    }
    expect(count).toBeLessThan(largest);
    expect(rig.warnings).toEqual(['a client that listens to events does not read them; letting it go']);
    rig.tell('last');
    await eventually('the reader goes on', () => reader.received().includes('"last"'));
    expect(modelsTold(reader).map((model) => model.split(' ')[0])).toEqual([
      ...Array.from({ length: count }, (_, at) => String(at)),
      'last',
    ]);

    stuck.resume();
    // What it missed is not to be mistaken for silence.
    expect((await withDeadline('the end of the stuck stream', stuck.ended, 10_000)).complete).toBe(false);
  });

  it('gets no comments on top of what it does not read', async () => {
    const rig = await Rig.start({ pingIntervalMs: 1, maxUnreadBytes: 64 * 1024 * 1024 });
    const stuck = rawExchange(rig.url);
    atEndOfTest(() => stuck.abort());
    stuck.pause();
    await stuck.head;
    // More than the kernel holds for a connection.
    rig.tell('x'.repeat(32 * 1024 * 1024));
    const reader = await rig.listen();
    await eventually('a reader has got fifty', () => sseEvents(reader.received()).length >= 50);
    rig.tell('next');
    stuck.resume();
    await eventually('all is read', () => stuck.received().includes('"next"'));
    const told = sseEvents(stuck.received());
    const unread = told.findIndex(({ data }) => data?.includes('xxx'));
    expect(told[unread + 1]?.data).toContain('"next"');
  });
});

describe('the end', () => {
  it('is a whole one for all streams, and leaves no connection', async () => {
    const rig = await Rig.start();
    const agent = new Agent({ keepAlive: true });
    atEndOfTest(() => agent.destroy());
    const exchanges = [await rig.listen(), await rig.listen(), rawExchange(rig.url, { agent })];
    await exchanges[2]?.head;
    rig.tell('last');
    const began = performance.now();
    const closed = new Promise<void>((resolve) => void rig.server.close(() => resolve()));
    rig.feed.close();
    for (const exchange of exchanges) {
      const { complete } = await withDeadline('a whole end', exchange.ended, 1_000);
      expect(complete).toBe(true);
      expect(modelsTold(exchange)).toEqual(['last']);
    }
    await withDeadline('the server has no connection left', closed, 1_000);
    expect(performance.now() - began).toBeLessThan(1_000);
    expect(rig.events.subscribers).toBe(0);
  });

  it('comes after a second also for one that does not read', async () => {
    const rig = await Rig.start({ maxUnreadBytes: 64 * 1024 * 1024 });
    const stuck = rawExchange(rig.url);
    atEndOfTest(() => stuck.abort());
    stuck.pause();
    await stuck.head;
    rig.tell('x'.repeat(32 * 1024 * 1024));
    const closed = new Promise<void>((resolve) => void rig.server.close(() => resolve()));
    rig.feed.close();
    await withDeadline('the server has no connection left', closed, 3_000);
    await eventually('it is counted out', () => rig.feed.listeners === 0);
  });

  it('lets nobody in any more', async () => {
    const rig = await Rig.start();
    rig.feed.close();
    const { status, body } = await rawRequest(rig.url);
    expect(status).toBe(503);
    expect(JSON.parse(body.toString())).toMatchObject({ error: { reason: 'shutting_down' } });
  });

  it('of a client is no error when something happens in the same moment', async () => {
    const rig = await Rig.start();
    const reader = await rig.listen();
    for (let round = 0; round < 50; round += 1) {
      const leaver = await rig.listen();
      leaver.abort();
      for (let at = 0; at < 5; at += 1) {
        rig.tell(`${round}.${at}`);
        await turn();
      }
    }
    await eventually('the reader has all', () => modelsTold(reader).length === 250);
    await eventually('the others have left', () => rig.feed.listeners === 1);
  });
});
