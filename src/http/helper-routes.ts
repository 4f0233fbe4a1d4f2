import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import type { Context } from 'hono';
import { routePath } from 'hono/route';
import type { Settings } from '../config/settings.js';
import { shuttingDown } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import { requestHeaders } from './header-policy.js';
import { sendToHelper, type Helper } from './helper-request.js';
import { JSON_TYPE } from './json-answer.js';
import { refuse } from './proxy.js';
import { readBody, type BodyLimits, type RequestBody } from './request-body.js';
import { pathOf } from './request-target.js';

export interface HelperRoutesOptions {
  readonly helper: Helper;
  /** Path in front of every route of ours, without a slash at its end; the helper has none. */
  readonly apiPrefix: string;
  readonly bodyLimits: BodyLimits;
  /** Whether no new work is taken. */
  readonly isDraining: () => boolean;
  /** Longest time for which a client may not read; 0 = no bound. */
  readonly slowReaderMs: number;
}

/** What of the helper is on. */
export interface HelperFeatures {
  /** `/tools`: built-in ones or those of MCP servers. */
  readonly tools: boolean;
  /** `/cors-proxy`. */
  readonly corsProxy: boolean;
}

export function helperFeatures({
  tools,
  mcpServersConfig,
  mcpServersJson,
  uiMcpProxy,
}: Pick<Settings, 'tools' | 'mcpServersConfig' | 'mcpServersJson' | 'uiMcpProxy'>): HelperFeatures {
  return {
    tools: [tools, mcpServersConfig, mcpServersJson].some((setting) => setting !== undefined),
    corsProxy: uiMcpProxy,
  };
}

/** As the native router has it, byte for byte. */
const disabled = JSON.stringify({ error: { message: 'this feature is disabled', type: 'feature_disabled' } });

/**
 * `/tools` and `/cors-proxy`, GET and POST. What the client sends goes to the helper, and what that answers comes back.
 * Where the feature is off the helper is not even started.
 */
export function serveByHelper(options: HelperRoutesOptions, { isOn }: { readonly isOn: boolean }) {
  const { helper, apiPrefix, bodyLimits, isDraining, slowReaderMs } = options;
  return async function serveByHelperHandler(c: Context<HttpEnv>): Promise<Response> {
    const { incoming } = c.env;
    if (!isOn) return c.body(disabled, 403, { 'Content-Type': JSON_TYPE });
    let body: RequestBody | undefined;
    try {
      const isPost = incoming.method === 'POST';
      if (isPost && isDraining()) throw shuttingDown();
      const headers = requestHeaders(incoming.rawHeaders);
      if (isPost) {
        body = await readBody(incoming, bodyLimits, () => undefined);
        if (isDraining()) throw shuttingDown();
        headers.push('content-length', String(body.bytes));
      }
      const method = isPost ? 'POST' : incoming.method === 'HEAD' ? 'HEAD' : 'GET';
      const path = routePath(c).slice(apiPrefix.length) + searchOf(incoming.url);
      await sendToHelper(c, helper, { method, path, headers, body }, { slowReaderMs });
    } catch (error) {
      refuse(c, error);
    } finally {
      body?.release();
    }
    return RESPONSE_ALREADY_SENT;
  };
}

/** With the `?`, as it was sent. */
function searchOf(url: string | undefined): string {
  return /\?.*/s.exec(pathOf(url))?.[0] ?? '';
}
