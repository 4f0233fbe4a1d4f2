import type { Context } from 'hono';
import type { Catalog } from '../models/catalog.js';
import type { Scheduler } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import { defaultModelOf } from './default-model.js';
import { jsonAnswer } from './json-answer.js';
import { parseJson } from './parse-json.js';
import { answerOf } from './upstream-answer.js';

export interface PropsOptions {
  readonly catalog: () => Catalog;
  readonly scheduler: Scheduler;
  readonly defaultModel: string | undefined;
  readonly apiPrefix: string;
  /** The router's own `/props`. */
  readonly props: Readonly<Record<string, unknown>>;
}

const childLimits = { timeoutMs: 2_000, maxBytes: 16 * 1024 * 1024 } as const;

/** Of a default model's properties these describe the router all the same. */
const ofRouter = [
  'role',
  'max_instances',
  'models_autoload',
  'ui_settings',
  'build_info',
  'cors_proxy_enabled',
];

/**
 * `GET /props` without a model: the router's own. With a default model that is loaded, its properties are there too,
 * where clients of a server of one model look for them. Loads and wakes nothing.
 */
export async function props(options: PropsOptions, c: Context<HttpEnv>): Promise<Response> {
  const ofModel = await propsOfDefault(options);
  if (ofModel === undefined) return jsonAnswer(c, options.props);
  const own = Object.fromEntries(ofRouter.map((key) => [key, options.props[key]]));
  return jsonAnswer(c, { ...options.props, ...ofModel, ...own });
}

async function propsOfDefault(options: PropsOptions): Promise<Record<string, unknown> | undefined> {
  const { scheduler, apiPrefix } = options;
  const model = defaultModelOf(options.catalog(), options.defaultModel);
  const lease = model && scheduler.tryAttach(model.id);
  if (!lease) return undefined;
  try {
    const request = { method: 'GET', path: `${apiPrefix}/props`, headers: [], body: null } as const;
    const answer = await answerOf(lease.upstream, { ...request, headers: [] }, childLimits);
    if (answer?.status !== 200) return undefined;
    const known = parseJson(answer.body);
    return typeof known === 'object' && known !== null ? { ...known } : undefined;
  } finally {
    lease.release('look');
  }
}
