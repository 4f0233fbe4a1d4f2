import type { HttpBindings } from '@hono/node-server';
import { Hono, type Context, type MiddlewareHandler } from 'hono';
import { createMiddleware } from 'hono/factory';
import { routePath } from 'hono/route';
import type { VertexSettings } from '../config/vertex-settings.js';
import { asRouterError, RouterError } from '../errors.js';
import { shuttingDown } from '../scheduler/scheduler.js';
import type { AllowedHosts } from './allowed-hosts.js';
import { requireApiKey, type KeyRing } from './auth.js';
import { allowOrigins, type CorsPolicy } from './cors.js';
import { removeModel, startDownload, type Downloads, type RemoveModelOptions } from './download-routes.js';
import { streamEvents, type EventFeed } from './event-stream.js';
import { serveByHelper, type HelperFeatures, type HelperRoutesOptions } from './helper-routes.js';
import { JSON_TYPE, jsonAnswer } from './json-answer.js';
import { listModels, loadModel, unloadModel, type ModelRoutesOptions } from './model-routes.js';
import { refuseForeignOrigins } from './origin.js';
import { props, type PropsOptions } from './props.js';
import { proxyByBody, proxyByQuery, type ProxyOptions } from './proxy.js';
import { queryValue } from './request-target.js';
import type { RequestTrace } from './request-trace.js';
import { lookUpStreams, resumeStream, stopStream, type StreamRoutesOptions } from './stream-routes.js';
import { predict, requireFreeRoutes } from './vertex.js';
import { isForWebUi, serveWebUi, type WebUiOptions } from './web-ui.js';

/** What a handler finds in `c.env`: Node's request and response, and the request's trace. */
export interface HttpEnv {
  Bindings: HttpBindings & { trace: RequestTrace };
}

export interface AppOptions
  extends
    ProxyOptions,
    ModelRoutesOptions,
    StreamRoutesOptions,
    PropsOptions,
    RemoveModelOptions,
    HelperRoutesOptions,
    WebUiOptions {
  readonly downloads: Downloads;
  /** Path in front of every route, without a slash at its end; empty for none. */
  readonly apiPrefix: string;
  readonly keys: KeyRing;
  /** By which names web pages may ask for changes. */
  readonly hosts: AllowedHosts;
  readonly cors: CorsPolicy;
  readonly features: HelperFeatures;
  /** Whether the web UI is served. */
  readonly ui: boolean;
  /** Set when Vertex AI runs this. */
  readonly vertex: VertexSettings | undefined;
  readonly feed: EventFeed;
  /** Whether no new work is taken any more. */
  readonly isDraining: () => boolean;
  /** Ends everything in order, as SIGTERM does. */
  readonly drain: () => void;
}

/** Proxied with the model named in the query; `/props` without one is the router's own. */
const proxiedGets = ['/metrics', '/slots', '/lora-adapters'];

/** Proxied with the model named in the body. */
export const proxiedPosts = [
  '/props',
  '/completion',
  '/completions',
  '/v1/completions',
  '/chat/completions',
  '/v1/chat/completions',
  '/v1/chat/completions/control',
  '/responses',
  '/v1/responses',
  '/audio/transcriptions',
  '/v1/audio/transcriptions',
  '/v1/messages',
  '/v1/messages/count_tokens',
  '/infill',
  '/embedding',
  '/embeddings',
  '/v1/embeddings',
  '/rerank',
  '/reranking',
  '/v1/rerank',
  '/v1/reranking',
  '/tokenize',
  '/detokenize',
  '/apply-template',
  '/chat/completions/input_tokens',
  '/v1/chat/completions/input_tokens',
  '/responses/input_tokens',
  '/v1/responses/input_tokens',
  '/lora-adapters',
  '/slots/:id_slot',
];

/** Those of them that change a model for all who use it, or write its files. */
const lastingPosts = ['/props', '/lora-adapters', '/slots/:id_slot'];

/** Every route, in order. */
export function createApp(options: AppOptions) {
  const app = new Hono<HttpEnv>().basePath(options.apiPrefix);
  const byQuery = proxyByQuery(options);
  const byBody = proxyByBody(options);
  const nameRoute = nameRouteUnder(options.apiPrefix);
  const guard = { keys: options.keys, hosts: options.hosts, origins: options.cors.origins };
  const ownPages = refuseForeignOrigins(guard);
  // What they do is done to this machine and its network.
  const ownPagesOnly = refuseForeignOrigins({ ...guard, strict: true });

  app.use(allowOrigins(options.cors));
  app.use(requireApiKey(options.keys, options.apiPrefix, (c) => isOpen(c, options)));

  app.on('GET', ['/health', '/v1/health', '/readyz'], nameRoute, readiness(options));
  app.get('/livez', nameRoute, liveness);
  app.post('/drain', nameRoute, ownPages, drain(options));
  app.on('GET', ['/models', '/v1/models'], nameRoute, onlyWith('reload', ownPages), listModels(options));
  app.get('/models/sse', nameRoute, streamEvents(options));
  app.post('/models', nameRoute, ownPages, startDownload(options));
  app.delete('/models', nameRoute, ownPages, removeModel(options));
  app.post('/models/load', nameRoute, ownPages, loadModel(options));
  app.post('/models/unload', nameRoute, ownPages, unloadModel(options));
  app.get('/v1/stream', nameRoute, resumeStream(options));
  app.delete('/v1/stream', nameRoute, stopStream(options));
  app.post('/v1/streams/lookup', nameRoute, lookUpStreams(options));
  app.get('/props', nameRoute, (c) =>
    queryValue(c.env.incoming.url, 'model') ? byQuery(c) : props(options, c),
  );
  app.on('GET', proxiedGets, nameRoute, byQuery);
  app.on('POST', lastingPosts, nameRoute, ownPages);
  app.on('POST', proxiedPosts, nameRoute, byBody);
  for (const [path, isOn] of [
    ['/tools', options.features.tools],
    ['/cors-proxy', options.features.corsProxy],
  ] as const) {
    app.on(
      ['GET', 'POST'],
      path,
      nameRoute,
      ...(isOn ? [ownPagesOnly] : []),
      serveByHelper(options, { isOn }),
    );
  }
  if (options.vertex !== undefined) {
    const { healthRoute, predictRoute } = options.vertex;
    const taken = app.routes.map(({ path }) => path.slice(options.apiPrefix.length));
    requireFreeRoutes(
      options.vertex,
      taken.filter((path) => path !== '/*'),
    );
    if (healthRoute !== undefined) app.get(healthRoute, countAs('/health'), readiness(options));
    app.post(predictRoute, nameRoute, predict(options, proxiedPosts));
  }
  if (options.ui) app.get('*', nameRoute, serveWebUi(options));

  app.notFound(() => {
    throw new RouterError('not_found', 'File Not Found');
  });
  app.onError((thrown, c) => {
    const error = asRouterError(thrown);
    c.env.trace.fail(error);
    return new Response(JSON.stringify(error), {
      status: error.status,
      headers: { 'Content-Type': JSON_TYPE, ...error.headers },
    });
  });
  return app;
}

export type App = ReturnType<typeof createApp>;

/** Whether work is taken. */
function readiness({ isDraining }: AppOptions) {
  return function readinessHandler(c: Context<HttpEnv>): Response {
    if (isDraining()) throw shuttingDown();
    return jsonAnswer(c, { status: 'ok' });
  };
}

/** Whether the process answers at all. */
function liveness(c: Context<HttpEnv>): Response {
  return jsonAnswer(c, { status: 'ok' });
}

/** `POST /drain`: takes no new work from now on, lets what is in flight end, and then ends the program. */
function drain(options: AppOptions) {
  return function drainHandler(c: Context<HttpEnv>): Response {
    options.drain();
    return jsonAnswer(c, { success: true });
  };
}

/** Probes have no key, and the web UI knows what of it is public. */
function isOpen(c: Context<HttpEnv>, { ui, vertex, apiPrefix }: AppOptions): boolean {
  // Predictions may be asked for on the same path.
  const isLook = c.req.method === 'GET' || c.req.method === 'HEAD';
  const route = vertex?.healthRoute;
  const isProbe = route !== undefined && isLook && c.req.path === apiPrefix + route;
  return isProbe || (ui && isForWebUi(c));
}

function countAs(route: string) {
  return createMiddleware<HttpEnv>(function countAsMiddleware(c, next) {
    c.env.trace.route = route;
    return next();
  });
}

/** A middleware for requests whose query says something of this name. */
function onlyWith(parameter: string, middleware: MiddlewareHandler<HttpEnv>): MiddlewareHandler<HttpEnv> {
  return function onlyWithMiddleware(c, next) {
    return queryValue(c.env.incoming.url, parameter) ? middleware(c, next) : next();
  };
}

/** Notes the matched route, as it is written above, for the counters: of those there are few, of paths any number. */
function nameRouteUnder(prefix: string) {
  return createMiddleware<HttpEnv>(function nameRouteMiddleware(c, next) {
    c.env.trace.route = routePath(c).slice(prefix.length);
    return next();
  });
}
