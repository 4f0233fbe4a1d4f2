import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { getRequestListener, type HttpBindings } from '@hono/node-server';
import { Hono } from 'hono';
import { pino } from 'pino';
import { describe, expect, it } from 'vitest';
import { RouterError } from '../../../src/errors.js';
import type { HttpEnv } from '../../../src/http/app.js';
import { BodyBudget } from '../../../src/http/body-budget.js';
import { RequestTracer } from '../../../src/http/request-trace.js';
import { predict, requireFreeRoutes, type PredictOptions } from '../../../src/http/vertex.js';
import { Upstream } from '../../../src/instance/upstream.js';
import { createCatalog } from '../../../src/models/catalog.js';
import { Counters } from '../../../src/observe/counters.js';
import type { Lease, Outcome } from '../../../src/scheduler/scheduler.js';
import { atEndOfTest } from '../../helpers/cleanup.js';
import { eventually } from '../../helpers/eventually.js';
import { jsonPost, rawExchange, rawRequest, type RawResponse } from '../../helpers/raw-http.js';
import { aModel } from '../models/a-model.js';

interface Asked {
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: unknown;
}

type Answer = (asked: Asked, res: ServerResponse) => void;

interface Rig {
  readonly url: string;
  readonly budget: BodyBudget;
  /** What the child was asked, in order. */
  readonly asked: readonly Asked[];
  /** Models of the leases that are held. */
  readonly held: readonly string[];
  /** Requests that the child saw end early. */
  cancelled(): number;
}

interface RigOptions {
  /** What the child answers; an echo of the request's body unless told otherwise. */
  readonly answer?: Answer;
  readonly predict?: Partial<PredictOptions>;
  /** How the child ended, for those who ask after a failure. */
  readonly outcome?: Outcome;
  readonly memoryBytes?: number;
}

const echo: Answer = ({ body }, res) => res.end(JSON.stringify(body));
const mebibyte = 1024 ** 2;

/** The route, in front of a stand-in for the children of all models, and a scheduler that has them ready. */
async function rig(options: RigOptions = {}): Promise<Rig> {
  const { answer = echo, outcome, memoryBytes = 1024 * mebibyte } = options;
  const asked: Asked[] = [];
  let cancelled = 0;
  const child = await listening(
    createServer((req, res) => {
      res.once('close', () => (cancelled += res.writableFinished ? 0 : 1));
      void (async () => {
        const chunks: Buffer[] = [];
        for await (const chunk of req) chunks.push(chunk as Buffer);
        const body = JSON.parse(Buffer.concat(chunks).toString()) as unknown;
        const request = { url: req.url ?? '', headers: req.headers, body };
        asked.push(request);
        answer(request, res);
      })().catch(() => undefined);
    }),
  );
  const upstream = new Upstream(child, 'key-of-the-child', 10_000);
  atEndOfTest(() => upstream.destroy());

  const held: string[] = [];
  const lease = (model: string): Lease => {
    held.push(model);
    const release = (): void => void held.splice(held.indexOf(model), 1);
    const succeeded = (): void => undefined;
    return { model, upstream, succeeded, release, outcomeWithin: () => Promise.resolve(outcome) };
  };
  const budget = new BodyBudget(memoryBytes);
  const handler = predict(
    {
      catalog: () => createCatalog([aModel('alpha', { aliases: ['nick'] }), aModel('beta')], []),
      scheduler: {
        tryAcquire: (model) => lease(model),
        acquire: () => Promise.reject(new Error('nobody waits here')),
        status: () => {
          throw new Error('nobody asks here');
        },
      },
      bodyLimits: { maxBytes: 100 * mebibyte, budget },
      defaultModel: undefined,
      vet: () => Promise.resolve(undefined),
      autoload: true,
      slowReaderMs: 10_000,
      apiPrefix: '',
      ...options.predict,
    },
    ['/completion', '/tokenize', '/v1/embeddings'],
  );
  const app = new Hono<HttpEnv>().post('/predict', handler);
  const tracer = new RequestTracer(pino({ level: 'silent' }), new Counters());
  const listener = getRequestListener((request, bindings) => {
    const { incoming, outgoing } = bindings as HttpBindings;
    return app.fetch(request, { incoming, outgoing, trace: tracer.begin(incoming, outgoing) });
  });
  const port = await listening(createServer((req, res) => void listener(req, res)));
  const url = `http://127.0.0.1:${port}/predict`;
  return { url, budget, asked, held, cancelled: () => cancelled };
}

async function listening(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  atEndOfTest(() => {
    server.close();
    server.closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

const completion = (fields: object = {}) => ({ '@requestFormat': 'completion', model: 'alpha', ...fields });

function send(url: string, instances: unknown): Promise<RawResponse> {
  return rawRequest(url, jsonPost({ instances }));
}

/** The text of the whole answer, which must be one of predictions. */
function textOf({ status, headers, body }: RawResponse): string {
  expect({ status, type: headers['content-type'] }).toEqual({
    status: 200,
    type: 'application/json; charset=utf-8',
  });
  return body.toString();
}

function predictionsIn(response: RawResponse): Record<string, unknown>[] {
  const { predictions, ...rest } = JSON.parse(textOf(response)) as { predictions: Record<string, unknown>[] };
  expect(rest).toEqual({});
  return predictions;
}

/** Nothing of a request is left when it has been answered. */
async function expectNothingHeld({ held, budget }: Rig): Promise<void> {
  await eventually('all is given back', () => held.length === 0 && budget.heldBytes === 0);
}

describe('a request for predictions', () => {
  it('is answered in the order of its instances, whichever is ready first', async () => {
    const delays = [60, 0, 30, 10];
    const served = await rig({
      answer: ({ body }, res) => {
        const { n, ms } = body as { n: number; ms: number };
        setTimeout(() => res.end(JSON.stringify({ n })), ms);
      },
    });
    const response = await send(
      served.url,
      delays.map((ms, n) => completion({ n, ms })),
    );
    expect(predictionsIn(response)).toEqual(delays.map((_ms, n) => ({ n })));
    await expectNothingHeld(served);
  });

  it('reaches the child without the format, unstreamed, with the key of the child and nothing of the client', async () => {
    const { url, asked } = await rig({ predict: { apiPrefix: '/llama' } });
    const fields = { model: 'nick', prompt: 'x', stream: 'yes' };
    const { headers, body } = jsonPost({ instances: [completion(fields), completion()] });
    const credentials = { Authorization: 'Bearer of-the-client', Cookie: 'a=b', 'X-Conversation-Id': '1' };
    await rawRequest(`${url}?x=1`, { method: 'POST', headers: { ...headers, ...credentials }, body });
    expect(asked.map(({ body }) => body)).toEqual(
      expect.arrayContaining([{ model: 'nick', prompt: 'x', stream: false }, { model: 'alpha' }]),
    );
    for (const { url, headers } of asked) {
      expect(url).toBe('/llama/completion');
      expect(headers).toMatchObject({
        authorization: 'Bearer key-of-the-child',
        'content-type': 'application/json',
      });
      expect(headers).not.toHaveProperty('cookie');
      expect(headers).not.toHaveProperty('x-conversation-id');
    }
  });

  it('keeps the bytes of what the child says in JSON', async () => {
    const said = '{"id":12345678901234567890, "x":1.0,\n"x":1e400}';
    const { url } = await rig({ answer: (_asked, res) => res.end(said) });
    expect(textOf(await send(url, [completion()]))).toBe(`{"predictions":[${said}]}`);
  });

  it.each([
    ['', null],
    ['plain "text"', 'plain "text"'],
    ['{"cut":', '{"cut":'],
    ['1, 2', '1, 2'],
    ['"a string"', 'a string'],
    ['[1]', [1]],
  ])('makes of the answer %j the prediction %j', async (said, prediction) => {
    const { url } = await rig({ answer: (_asked, res) => res.end(said) });
    expect(predictionsIn(await send(url, [completion()]))).toEqual([prediction]);
  });

  it('takes the error of a child as it is', async () => {
    const error = { error: { code: 501, message: 'not here', type: 'not_supported_error' } };
    const { url } = await rig({ answer: (_asked, res) => res.writeHead(501).end(JSON.stringify(error)) });
    expect(predictionsIn(await send(url, [completion()]))).toEqual([error]);
  });

  it('may be empty', async () => {
    const { url } = await rig();
    expect(textOf(await send(url, []))).toBe('{"predictions":[]}');
  });

  it.each([
    ['', 'body_malformed', 'request body is not JSON: '],
    ['{"instances":[', 'body_malformed', 'request body is not JSON: '],
    [Buffer.from('{"instances":["\xff"]}', 'latin1'), 'body_malformed', 'request body is not JSON: '],
    ['[]', 'request_malformed', 'request body must be a JSON object'],
    ['null', 'request_malformed', 'request body must be a JSON object'],
    ['{}', 'request_malformed', 'request body must include an array field named instances'],
    ['{"instances":{}}', 'request_malformed', 'request body must include an array field named instances'],
  ])('that says %j is refused as a whole', async (body, reason, message) => {
    const served = await rig();
    const response = await rawRequest(served.url, { method: 'POST', body });
    const { error } = JSON.parse(response.body.toString()) as { error: { message: string } };
    expect({ status: response.status, error }).toMatchObject({
      status: 400,
      error: { code: 400, type: 'invalid_request_error', reason },
    });
    expect(error.message).toContain(message);
    await expectNothingHeld(served);
  });

  it('may begin with a byte order mark, as for llama-server', async () => {
    const { url } = await rig();
    const response = await rawRequest(url, { method: 'POST', body: '\ufeff{"instances":[]}' });
    expect(predictionsIn(response)).toEqual([]);
  });

  it('may have 128 instances, and no more', async () => {
    const served = await rig();
    const many = Array.from({ length: 128 }, (_, n) => completion({ n }));
    const { length } = predictionsIn(await send(served.url, many));
    expect([length, served.asked.length]).toEqual([128, 128]);
    const refused = await send(served.url, [...many, completion()]);
    expect(refused.status).toBe(400);
    expect(refused.body.toString()).toContain('instances array exceeds maximum size of 128');
    expect(served.asked).toHaveLength(128);
  });

  it('is refused with 413 when it has more than 10 MiB, with what to do', async () => {
    const served = await rig();
    const body = Buffer.alloc(10 * mebibyte + 1, ' ');
    const response = await rawRequest(served.url, { method: 'POST', body });
    expect(response.status).toBe(413);
    expect(response.body.toString()).toContain(
      'a request for predictions may have 10485760 bytes; send fewer instances at once',
    );
    await expectNothingHeld(served);
  });

  it('is refused in the words of --body-max when that allows less', async () => {
    const bodyLimits = { maxBytes: 100, budget: new BodyBudget(1000) };
    const { url } = await rig({ predict: { bodyLimits } });
    const response = await rawRequest(url, { method: 'POST', body: ' '.repeat(101) });
    expect(response.body.toString()).toContain('request body is over 100 bytes (--body-max)');
  });
});

describe('an instance that cannot be answered is an error among the predictions', () => {
  const others = { before: completion({ n: 1 }), after: completion({ n: 2 }) };

  it.each([
    [1, 'each instance must be a JSON object'],
    [null, 'each instance must be a JSON object'],
    [[], 'each instance must be a JSON object'],
    [{ model: 'alpha' }, 'each instance must include a string @requestFormat'],
    [completion({ '@requestFormat': 1 }), 'each instance must include a string @requestFormat'],
    [completion({ '@requestFormat': 'nope' }), 'no handler registered for @requestFormat: nope'],
    [{ '@requestFormat': 'completion' }, 'model name is missing from the request'],
    [completion({ model: 7 }), 'model name is missing from the request'],
    [completion({ model: 'gone' }), "model 'gone' not found"],
  ])('%j: %s', async (instance, message) => {
    const served = await rig();
    const predictions = predictionsIn(await send(served.url, [others.before, instance, others.after]));
    expect(predictions).toMatchObject([
      { n: 1 },
      { error: { code: 400, type: 'invalid_request_error', message } },
      { n: 2 },
    ]);
    await expectNothingHeld(served);
  });

  it('with the reason, when its child dies', async () => {
    const served = await rig({
      answer: ({ body }, res) => {
        if ((body as { n?: number }).n === undefined) res.destroy();
        else echo({ url: '', headers: {}, body }, res);
      },
      outcome: {
        kind: 'failed',
        phase: 'running',
        message: 'exited with code 9',
        lastLines: ['a last word'],
        at: new Date(),
        cause: 'signal',
        exitCode: 9,
      },
    });
    const predictions = predictionsIn(await send(served.url, [others.before, completion(), others.after]));
    expect(predictions).toMatchObject([
      { n: 1 },
      { error: { code: 502, reason: 'child_gone', model: 'alpha', last_lines: ['a last word'] } },
      { n: 2 },
    ]);
    expect(JSON.stringify(predictions[1])).toContain('exited with code 9');
    // What has reached a child is not sent to another one.
    expect(served.asked).toHaveLength(3);
    await expectNothingHeld(served);
  });

  it('of which nothing had been sent when its connection failed, is sent once more', async () => {
    const nobody = new Upstream(await aClosedPort(), 'key', 10_000);
    atEndOfTest(() => nobody.destroy());
    let failures = 0;
    const scheduler: PredictOptions['scheduler'] = {
      tryAcquire: (model) => ({
        model,
        upstream: nobody,
        succeeded: () => undefined,
        release: () => undefined,
        outcomeWithin: () => {
          failures += 1;
          return Promise.resolve(undefined);
        },
      }),
      acquire: () => Promise.reject(new Error('nobody waits here')),
      status: () => {
        throw new Error('nobody asks here');
      },
    };
    const { url } = await rig({ predict: { scheduler } });
    expect(predictionsIn(await send(url, [completion()]))).toMatchObject([{ error: { code: 502 } }]);
    expect(failures).toBe(2);
  });

  it('when the answers have more than 64 MiB together, and only as many as need to be', async () => {
    const piece = `"${'x'.repeat(30 * mebibyte)}"`;
    const served = await rig({ answer: (_asked, res) => res.end(piece) });
    const predictions = predictionsIn(await send(served.url, [completion(), completion(), completion()]));
    const errors = predictions.filter((prediction) => typeof prediction === 'object');
    expect(errors).toMatchObject([{ error: { code: 413, reason: 'body_too_large' } }]);
    expect(predictions).toHaveLength(3);
    await expectNothingHeld(served);
  });

  it('when the memory for bodies is full of those of others', async () => {
    const served = await rig({
      answer: (_asked, res) => res.end(`"${'x'.repeat(2 * mebibyte)}"`),
      memoryBytes: mebibyte,
    });
    expect(predictionsIn(await send(served.url, [completion()]))).toMatchObject([
      { error: { code: 503, reason: 'body_memory_full' } },
    ]);
    await expectNothingHeld(served);
  });
});

describe('a load that a prediction needs', () => {
  const unloaded = { value: 'unloaded' } as ReturnType<PredictOptions['scheduler']['status']>;

  it('is asked for as the option says, and its failure is the prediction', async () => {
    const failure = new RouterError('load_failed', 'it is broken', { model: 'alpha' });
    const waits: unknown[] = [];
    const scheduler: PredictOptions['scheduler'] = {
      tryAcquire: () => undefined,
      acquire: (model, _signal, how) => {
        waits.push([model, how]);
        return Promise.reject(failure);
      },
      status: () => unloaded,
    };
    const { url } = await rig({ predict: { scheduler, autoload: false } });
    const predictions = predictionsIn(await send(url, [completion(), completion({ model: 'beta' })]));
    expect(predictions).toMatchObject([{ error: { message: 'it is broken' } }, { error: { code: 503 } }]);
    expect(waits).toEqual([
      ['alpha', { autoload: false, wake: true }],
      ['beta', { autoload: false, wake: true }],
    ]);
  });

  it('is not begun for a file that cannot be loaded', async () => {
    const scheduler: PredictOptions['scheduler'] = {
      tryAcquire: () => undefined,
      acquire: () => Promise.reject(new Error('it was loaded')),
      status: () => unloaded,
    };
    const vet = () => Promise.resolve('its file is cut off');
    const { url } = await rig({ predict: { scheduler, vet } });
    expect(predictionsIn(await send(url, [completion()]))).toMatchObject([
      {
        error: { reason: 'model_invalid', message: expect.stringContaining('its file is cut off') as string },
      },
    ]);
  });
});

describe('many instances', () => {
  it('are answered sixteen at a time', async () => {
    const waiting: ServerResponse[] = [];
    const served = await rig({ answer: (_asked, res) => void waiting.push(res) });
    const exchange = rawExchange(
      served.url,
      jsonPost({ instances: Array.from({ length: 20 }, () => completion()) }),
    );
    await eventually('sixteen are at work', () => waiting.length === 16);
    expect(served.held).toHaveLength(16);
    waiting.shift()?.end('1');
    await eventually('the next one is at work', () => waiting.length === 16);
    expect(served.asked).toHaveLength(17);
    await eventually('all are answered', () => {
      for (const res of waiting.splice(0)) res.end('1');
      return served.asked.length === 20 && served.held.length === 0;
    });
    expect(predictionsIn(await exchange.ended)).toHaveLength(20);
    await expectNothingHeld(served);
  });

  it('are all given up when the client leaves, and those that wait their turn are never begun', async () => {
    const served = await rig({ answer: () => undefined });
    const instances = Array.from({ length: 40 }, () => completion());
    const exchange = rawExchange(served.url, jsonPost({ instances }));
    await eventually('sixteen are at work', () => served.asked.length === 16);
    exchange.abort();
    await eventually('all are cancelled', () => served.cancelled() === 16);
    await expectNothingHeld(served);
    expect(served.asked).toHaveLength(16);
  });

  it('that wait for their models wait no more when the client leaves', async () => {
    let waiting = 0;
    const scheduler: PredictOptions['scheduler'] = {
      tryAcquire: () => undefined,
      acquire: (_model, signal) =>
        new Promise((_resolve, reject) => {
          waiting += 1;
          signal.addEventListener('abort', () => {
            waiting -= 1;
            reject(new RouterError('client_gone', 'the client left'));
          });
        }),
      status: () => ({ value: 'loading' }) as ReturnType<PredictOptions['scheduler']['status']>,
    };
    const served = await rig({ predict: { scheduler } });
    const exchange = rawExchange(served.url, jsonPost({ instances: [completion(), completion()] }));
    await eventually('both wait', () => waiting === 2);
    exchange.abort();
    await eventually('neither waits', () => waiting === 0);
    await expectNothingHeld(served);
  });
});

describe('requireFreeRoutes', () => {
  const taken = ['/health', '/v1/health', '/models', '/v1/chat/completions', '/slots/:id_slot'];
  const port = 8080;

  it.each([
    { healthRoute: undefined, predictRoute: '/predict' },
    { healthRoute: '/health', predictRoute: '/v1/models/m:predict' },
    { healthRoute: '/v1/health', predictRoute: '/slots' },
    { healthRoute: '/ping', predictRoute: '/ping' },
    { healthRoute: '/', predictRoute: '/models2' },
  ])('allows $healthRoute and $predictRoute', (routes) => {
    expect(() => requireFreeRoutes({ ...routes, port }, taken)).not.toThrow();
  });

  it.each(['/models', '/v1/chat/completions', '/slots/0', '/health'])(
    'refuses to have predictions made at %s, by the name of the variable',
    (predictRoute) => {
      expect(() => requireFreeRoutes({ healthRoute: undefined, predictRoute, port }, taken)).toThrow(
        `AIP_PREDICT_ROUTE: ${predictRoute} is a route of llama-server already`,
      );
    },
  );

  it('refuses to answer like /health, without a key, where something else is', () => {
    expect(() =>
      requireFreeRoutes({ healthRoute: '/models', predictRoute: '/predict', port }, taken),
    ).toThrow('AIP_HEALTH_ROUTE: /models is a route of llama-server already');
  });
});

async function aClosedPort(): Promise<number> {
  const server = createServer();
  const port = await listening(server);
  server.close();
  await once(server, 'close');
  return port;
}
