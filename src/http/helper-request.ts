import type { Context } from 'hono';
import { RouterError } from '../errors.js';
import type { Upstream, UpstreamRequest } from '../scheduler/scheduler.js';
import type { HttpEnv } from './app.js';
import { AssetAnswer, type AssetAnswerOptions } from './asset-answer.js';
import { breakOff } from './break-off.js';
import { Relay } from './relay.js';
import type { RequestBody } from './request-body.js';

/** The helper child: a llama-server without a model, started when it is first needed. */
export interface Helper {
  /**
   * @param signal of a client that may leave
   * @throws RouterError helper_failed, shutting_down, client_gone
   */
  ready(signal: AbortSignal): Promise<ReadyHelper>;
}

export interface ReadyHelper {
  readonly upstream: Pick<Upstream, 'dispatch'>;
  /** Settles when its process is gone, or hangs and is being killed; never rejects. */
  readonly ended: Promise<HelperEnd>;
}

interface HelperEnd {
  /** Continues a sentence that begins with the helper. */
  readonly message: string;
  readonly lastLines: readonly string[];
}

export interface HelperRequest extends Omit<UpstreamRequest, 'headers' | 'body'> {
  readonly headers: readonly string[];
  readonly body: RequestBody | undefined;
}

export interface HelperAnswerOptions {
  /** Longest time for which the client may not read; 0 = no bound. */
  readonly slowReaderMs: number;
  /** Set for answers of the web UI. */
  readonly asset?: AssetAnswerOptions;
}

/** A request may be sent this many times: again only when that cannot do anything twice. */
const attempts = 2;

/** How long the exit of a helper that broke a connection is waited for, so that its reason can be told. */
const reasonPatienceMs = 500;

/**
 * Sends a request to the helper, which is started for it if need be, and relays the answer; tells the client of a
 * failure in the middle of it.
 *
 * @returns the status of a refusal that was held back (`AssetAnswer`) and is for the caller to tell
 * @throws RouterError helper_failed, child_gone, child_timeout, shutting_down, client_gone, while nothing has been answered
 */
export async function sendToHelper(
  c: Context<HttpEnv>,
  helper: Helper,
  { headers, body, ...request }: HelperRequest,
  { slowReaderMs, asset }: HelperAnswerOptions,
): Promise<number | undefined> {
  const { outgoing, trace } = c.env;
  for (let attempt = 1; ; attempt += 1) {
    const { upstream, ended } = await readyFor(c, helper);
    const onFirstByte = (): void => {
      trace.firstByteAt ??= performance.now();
    };
    const relay = new Relay(outgoing, { detachedUntil: undefined, slowReaderMs, onFirstByte });
    const answer = asset && new AssetAnswer(relay, asset);
    const sent = { ...request, headers: [...headers], body: body?.forSending() ?? null };
    const finish = upstream.dispatch(sent, answer ?? relay);
    const end = await relay.end;
    finish(end.kind === 'complete' && end.framed);
    if (answer?.refusal !== undefined) return answer.refusal;
    if (end.kind !== 'upstream failed') return undefined;
    // Waited for also before another attempt, which must not find the same dying helper again.
    const gone = await within(reasonPatienceMs, ended);
    const isSafe = request.method !== 'POST' && !end.responseStarted;
    if ((isSafe || !end.requestStarted) && attempt < attempts) continue;
    const error = helperError(end.error, gone);
    if (!end.responseStarted) throw error;
    trace.fail(error);
    breakOff(outgoing, error, end);
    return undefined;
  }
}

async function readyFor({ env: { outgoing } }: Context<HttpEnv>, helper: Helper): Promise<ReadyHelper> {
  const client = new AbortController();
  const onClose = (): void => client.abort();
  outgoing.once('close', onClose);
  if (outgoing.destroyed) client.abort();
  try {
    return await helper.ready(client.signal);
  } finally {
    outgoing.off('close', onClose);
  }
}

async function within<T>(ms: number, event: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => (timer = setTimeout(() => resolve(undefined), ms)));
  const first = await Promise.race([event, late]);
  clearTimeout(timer);
  return first;
}

function helperError(cause: Error, gone: HelperEnd | undefined): RouterError {
  const who = 'the llama-server that serves the web UI and tools';
  const code = 'code' in cause ? cause.code : undefined;
  if (gone !== undefined) {
    const { message, lastLines } = gone;
    const text = `${who} ${message} while it was answering`;
    return new RouterError('child_gone', text, { lastLines, cause });
  }
  if (code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT') {
    return new RouterError('child_timeout', `${who} was silent for longer than --timeout allows`, { cause });
  }
  const text = `${who} broke off its answer: ${cause.message}`;
  return new RouterError('child_gone', text, { cause });
}
