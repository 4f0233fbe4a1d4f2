import { setMaxListeners } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import type { VertexSettings } from '../config/vertex-settings.js';
import { asRouterError, RouterError } from '../errors.js';
import type { Model } from '../models/model.js';
import { isWork, type Lease, type Scheduler } from '../scheduler/scheduler.js';
import { AnswerBudget } from './answer-budget.js';
import type { HttpEnv } from './app.js';
import { childFailure } from './child-failure.js';
import { collectAnswer } from './collect-answer.js';
import { nameForPost } from './default-model.js';
import { findModel, invalidModel } from './find-model.js';
import { refuse, type ProxyOptions } from './proxy.js';
import { readBody, type BodyLimits, type RequestBody } from './request-body.js';
import { requestFormats } from './vertex-formats.js';
import { sendWhole } from './whole-answer.js';

type FromProxy = 'catalog' | 'bodyLimits' | 'defaultModel' | 'vet' | 'autoload' | 'slowReaderMs';

export interface PredictOptions extends Pick<ProxyOptions, FromProxy> {
  readonly scheduler: Pick<Scheduler, 'tryAcquire' | 'acquire' | 'status'>;
  /** In front of the children's routes, as of ours. */
  readonly apiPrefix: string;
}

/** As many as llama-server takes. */
const maxInstances = 128;

/** Instances of one request that are answered at the same time; a request is not to fill the queue by itself. */
const maxParallel = 16;

/**
 * The one body that is parsed here, since its instances go different ways. Vertex AI itself passes 1.5 MB (10 MB on
 * dedicated endpoints); as much as this is parsed in a tenth of a second, in which nothing else is served.
 */
const maxRequestBytes = 10 * 1024 * 1024;

/** Of all answers to one request together, which are held until the last one has come. */
const maxAnswerBytes = 64 * 1024 * 1024;

/** An instance may be sent to a child this many times: again only when no byte of it had gone out. */
const attempts = 2;

/** How long the exit of a child that broke a connection is waited for, so that its reason can be told. */
const reasonPatienceMs = 1_500;

/** What all instances of one request share. */
interface Prediction {
  readonly options: PredictOptions;
  readonly formats: ReadonlyMap<string, string>;
  readonly url: string | undefined;
  /** Aborted when the client leaves. */
  readonly client: AbortSignal;
  readonly budget: AnswerBudget;
}

/**
 * `POST {"instances":[{"@requestFormat":"chatCompletions","model":…,…},…]}`, as Vertex AI sends it. Each instance is a
 * request of its own, to the route that its format names and the model that it names itself; answers come as
 * `{"predictions":[…]}` in the order of the instances, a failed one as its error. Nothing is streamed.
 *
 * @param routes the POST routes that are for a model
 */
export function predict(options: PredictOptions, routes: readonly string[]) {
  const formats = requestFormats(routes);
  return async function predictHandler(c: Context<HttpEnv>): Promise<Response> {
    const { incoming, outgoing, trace } = c.env;
    const budget = new AnswerBudget(maxAnswerBytes, options.bodyLimits.budget);
    let body: RequestBody | undefined;
    try {
      const read = await readInstances(incoming, options.bodyLimits);
      body = read.body;
      const client = signalOf(outgoing);
      const prediction = { options, formats, url: incoming.url, client, budget };
      const predictions = await inParallel(read.instances, maxParallel, async (instance) => {
        try {
          return await answerTo(instance, prediction);
        } catch (thrown) {
          const error = asRouterError(thrown);
          if (error.status >= 500 && trace.error === undefined) trace.fail(error);
          return JSON.stringify(error);
        }
      });
      if (client.aborted) throw clientLeft();
      await sendWhole(outgoing, Buffer.from(`{"predictions":[${predictions.join(',')}]}`), options);
    } catch (error) {
      refuse(c, error);
    } finally {
      body?.release();
      budget.giveAll();
    }
    return RESPONSE_ALREADY_SENT;
  };
}

/**
 * The routes of the environment must be free: on a taken one either would never be heard.
 *
 * @param taken paths of all other routes
 * @throws with a message for the user
 */
export function requireFreeRoutes(
  { healthRoute, predictRoute }: VertexSettings,
  taken: readonly string[],
): void {
  const patterns = taken.map((path) => new RegExp(`^${path.replace(/:\w+/g, '[^/]+')}$`));
  const isTaken = (route: string): boolean => patterns.some((pattern) => pattern.test(route));
  if (isTaken(predictRoute)) throw new Error(takenMessage('AIP_PREDICT_ROUTE', predictRoute));
  const isHealth = healthRoute === undefined || /^(?:\/v1)?\/health$/.test(healthRoute);
  if (!isHealth && isTaken(healthRoute)) throw new Error(takenMessage('AIP_HEALTH_ROUTE', healthRoute));
}

function takenMessage(variable: string, route: string): string {
  return `${variable}: ${route} is a route of llama-server already; choose another one`;
}

/** @throws RouterError body_malformed, body_too_large, request_malformed, and what `readBody` throws */
async function readInstances(
  incoming: IncomingMessage,
  { maxBytes, budget }: BodyLimits,
): Promise<{ readonly body: RequestBody; readonly instances: readonly unknown[] }> {
  const chunks: Buffer[] = [];
  const limits = { maxBytes: Math.min(maxBytes, maxRequestBytes), budget };
  let body: RequestBody | undefined;
  try {
    body = await readBody(incoming, limits, (chunk) => chunks.push(chunk));
    return { body, instances: instancesIn(Buffer.concat(chunks)) };
  } catch (error) {
    body?.release();
    const isOurs = maxBytes > maxRequestBytes && asRouterError(error).code === 'body_too_large';
    throw isOurs ? tooLong() : error;
  }
}

function instancesIn(bytes: Buffer): readonly unknown[] {
  let request: unknown;
  try {
    request = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new RouterError('body_malformed', `request body is not JSON: ${reason}`, { cause });
  }
  if (!isObject(request)) throw malformed('request body must be a JSON object');
  const { instances } = request;
  if (!Array.isArray(instances)) {
    throw malformed('request body must include an array field named instances');
  }
  if (instances.length > maxInstances) {
    throw malformed(`instances array exceeds maximum size of ${maxInstances}`);
  }
  return instances;
}

/** The JSON text of one prediction. */
async function answerTo(instance: unknown, prediction: Prediction): Promise<string> {
  const { options, formats, url, client } = prediction;
  if (client.aborted) throw clientLeft();
  if (!isObject(instance)) throw malformed('each instance must be a JSON object');
  const { '@requestFormat': format, ...request } = instance;
  if (typeof format !== 'string') throw malformed('each instance must include a string @requestFormat');
  const path = formats.get(format);
  if (path === undefined) throw malformed(`no handler registered for @requestFormat: ${format}`);
  const { model: name } = request;
  const found =
    typeof name === 'string' && name !== ''
      ? ({ kind: 'found', name } as const)
      : { kind: 'missing' as const };
  const catalog = options.catalog();
  const { defaultModel } = options;
  const model = findModel(catalog, nameForPost(found, { catalog, defaultModel, url }));
  // Whatever it says: a prediction is one piece.
  if (Object.hasOwn(request, 'stream')) request['stream'] = false;
  const answer = await ask(model, path, Buffer.from(JSON.stringify(request)), prediction);
  return predictionText(answer.toString());
}

/** A child's answer as a prediction: JSON as the child wrote it, other text as a string, nothing as null. */
function predictionText(answer: string): string {
  if (answer === '') return 'null';
  try {
    JSON.parse(answer);
    return answer;
  } catch {
    return JSON.stringify(answer);
  }
}

/** Takes a lease, asks the child, releases. */
async function ask(
  model: Model,
  path: string,
  body: Buffer,
  { options, client, budget }: Prediction,
): Promise<Buffer> {
  for (let attempt = 1; ; attempt += 1) {
    const lease = await leaseOn(model, client, options);
    try {
      const headers = ['content-type', 'application/json', 'content-length', String(body.length)];
      const request = { method: 'POST', path: options.apiPrefix + path, headers, body } as const;
      const answer = await collectAnswer(lease.upstream, request, { signal: client, budget });
      if (answer.kind === 'whole') {
        if (answer.status < 300 && isWork('POST', path)) lease.succeeded();
        return answer.body;
      }
      if (answer.error instanceof RouterError) throw answer.error;
      // Waited for also before another attempt, which must not find the same dying instance again.
      const outcome = await lease.outcomeWithin(reasonPatienceMs);
      if (answer.requestStarted || attempt === attempts) {
        throw childFailure(model.id, answer.error, outcome);
      }
    } finally {
      lease.release('use');
    }
  }
}

/** No model has to make room for one whose file cannot be loaded. */
async function leaseOn(
  model: Model,
  client: AbortSignal,
  { scheduler, vet, autoload }: PredictOptions,
): Promise<Lease> {
  const atOnce = scheduler.tryAcquire(model.id, { wake: true });
  if (atOnce) return atOnce;
  if (autoload && scheduler.status(model.id).value === 'unloaded') {
    const problem = await vet(model);
    if (problem !== undefined) throw invalidModel(model.id, problem);
  }
  return scheduler.acquire(model.id, client, { autoload, wake: true });
}

/** Does `work` for each item, at most `limit` at the same time; results are in the order of the items. */
async function inParallel<Item, Result>(
  items: readonly Item[],
  limit: number,
  work: (item: Item) => Promise<Result>,
): Promise<readonly Result[]> {
  const results: Result[] = [];
  // All take their next one from the same iterator.
  const rest = items.entries();
  const workOn = async (): Promise<void> => {
    for (const [at, item] of rest) results[at] = await work(item);
  };
  await Promise.all(Array.from({ length: limit }, workOn));
  return results;
}

/** A signal that is aborted when the client leaves. */
function signalOf(outgoing: ServerResponse): AbortSignal {
  const client = new AbortController();
  // Each instance listens, and Node takes more than ten listeners for a leak.
  setMaxListeners(0, client.signal);
  outgoing.once('close', () => client.abort(clientLeft()));
  if (outgoing.destroyed) client.abort(clientLeft());
  return client.signal;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function malformed(message: string): RouterError {
  return new RouterError('request_malformed', message);
}

function clientLeft(): RouterError {
  return new RouterError('client_gone', 'the client left before its predictions were made');
}

function tooLong(): RouterError {
  const message = `a request for predictions may have ${maxRequestBytes} bytes; send fewer instances at once`;
  return new RouterError('body_too_large', message);
}
