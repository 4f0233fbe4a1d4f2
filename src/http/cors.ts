import type { IncomingHttpHeaders } from 'node:http';
import { createMiddleware } from 'hono/factory';
import type { Settings } from '../config/settings.js';
import type { HttpEnv } from './app.js';
import { isLoopbackOrigin } from './origin.js';

/** Which pages of other origins may read answers, and with what they may ask. */
export interface CorsPolicy {
  /** `*`, `localhost`, one origin, or several with commas between them. */
  readonly origins: string;
  readonly methods: string;
  readonly headers: string;
  readonly credentials: boolean;
}

type CorsSettings = Pick<
  Settings,
  | 'corsOrigins'
  | 'corsMethods'
  | 'corsHeaders'
  | 'corsCredentials'
  | 'tools'
  | 'agent'
  | 'mcpServersConfig'
  | 'mcpServersJson'
>;

/** The policy as llama-server reads it: with tools or MCP servers the default is loopback only. */
export function corsPolicy(settings: CorsSettings): CorsPolicy {
  const { tools, agent, mcpServersConfig, mcpServersJson } = settings;
  const actsForPages =
    agent || [tools, mcpServersConfig, mcpServersJson].some((setting) => setting !== undefined);
  return {
    origins: settings.corsOrigins ?? (actsForPages ? 'localhost' : '*'),
    methods: settings.corsMethods,
    headers: settings.corsHeaders,
    credentials: settings.corsCredentials,
  };
}

/**
 * Says on every answer which origin may read it, and answers preflight requests, which browsers send without a key
 * (llama-server, tools/server/server-http.cpp, which sends a list as it is: browsers take one origin only). The header is set on Node's response, where proxied answers have it
 * too; requests without an Origin, which are no browser's, get none for a policy that repeats the origin.
 */
export function allowOrigins(policy: CorsPolicy) {
  return createMiddleware<HttpEnv>(function allowOriginsMiddleware(c, next) {
    const { incoming, outgoing } = c.env;
    const allowed = allowedOrigin(policy, incoming.headers);
    if (allowed !== undefined) outgoing.setHeader('Access-Control-Allow-Origin', allowed);
    // Caches must not give one origin's answer to another.
    if (incoming.headers.origin !== undefined && repeatsOrigin(policy)) outgoing.setHeader('Vary', 'Origin');
    if (incoming.method !== 'OPTIONS') return next();
    return Promise.resolve(
      c.body(null, 200, {
        'Content-Type': 'text/html',
        'Access-Control-Allow-Credentials': String(policy.credentials),
        'Access-Control-Allow-Methods': policy.methods,
        'Access-Control-Allow-Headers': policy.headers,
      }),
    );
  });
}

function repeatsOrigin({ origins, credentials }: CorsPolicy): boolean {
  return origins === 'localhost' || (origins === '*' && credentials) || origins.includes(',');
}

function allowedOrigin(policy: CorsPolicy, { origin }: IncomingHttpHeaders): string | undefined {
  if (!repeatsOrigin(policy)) return policy.origins;
  if (origin === undefined) return undefined;
  if (policy.origins === '*') return origin;
  const isAllowed =
    policy.origins === 'localhost' ? isLoopbackOrigin(origin) : listed(policy).includes(origin);
  return isAllowed ? origin : undefined;
}

function listed({ origins }: CorsPolicy): readonly string[] {
  return origins.split(',').map((origin) => origin.trim());
}
