import type { HttpBindings } from '@hono/node-server';
import { Hono } from 'hono';
import { createMiddleware } from 'hono/factory';
import { routePath } from 'hono/route';
import { asRouterError, RouterError } from '../errors.js';
import { requireApiKey, type KeyRing } from './auth.js';
import { listModels, loadModel, unloadModel, type ModelRoutesOptions } from './model-routes.js';
import { proxyByBody, proxyByQuery, type ProxyOptions } from './proxy.js';
import type { RequestTrace } from './request-trace.js';

/** What a handler finds in `c.env`: Node's request and response, and the request's trace. */
export interface HttpEnv {
  Bindings: HttpBindings & { trace: RequestTrace };
}

export interface AppOptions extends ProxyOptions, ModelRoutesOptions {
  /** Path in front of every route, without a slash at its end; empty for none. */
  readonly apiPrefix: string;
  readonly keys: KeyRing;
  /** The router's own `/props`. */
  readonly props: Readonly<Record<string, unknown>>;
}

/** Proxied with the model named in the query; `/props` without one is the router's own. */
const proxiedGets = ['/metrics', '/slots', '/lora-adapters'];

/** Proxied with the model named in the body. */
const proxiedPosts = [
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

/** Every route, in order. */
export function createApp(options: AppOptions) {
  const app = new Hono<HttpEnv>().basePath(options.apiPrefix);
  const byQuery = proxyByQuery(options);
  const byBody = proxyByBody(options);
  const nameRoute = nameRouteUnder(options.apiPrefix);

  app.use(requireApiKey(options.keys, options.apiPrefix));

  app.on('GET', ['/health', '/v1/health'], nameRoute, (c) => c.json({ status: 'ok' }));
  app.on('GET', ['/models', '/v1/models'], nameRoute, listModels(options));
  app.post('/models/load', nameRoute, loadModel(options));
  app.post('/models/unload', nameRoute, unloadModel(options));
  app.get('/props', nameRoute, (c) => (c.req.query('model') ? byQuery(c) : c.json(options.props)));
  app.on('GET', proxiedGets, nameRoute, byQuery);
  app.on('POST', proxiedPosts, nameRoute, byBody);

  app.notFound(() => {
    throw new RouterError('not_found', 'File Not Found');
  });
  app.onError((thrown, c) => {
    const error = asRouterError(thrown);
    c.env.trace.error = error;
    return new Response(JSON.stringify(error), {
      status: error.status,
      headers: { 'Content-Type': 'application/json; charset=utf-8', ...error.headers },
    });
  });
  return app;
}

export type App = ReturnType<typeof createApp>;

/** Notes the matched route, as it is written above, for the counters: of those there are few, of paths any number. */
function nameRouteUnder(prefix: string) {
  return createMiddleware<HttpEnv>(function nameRouteMiddleware(c, next) {
    c.env.trace.route = routePath(c).slice(prefix.length);
    return next();
  });
}
