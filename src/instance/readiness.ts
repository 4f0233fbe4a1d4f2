import { setTimeout as delay } from 'node:timers/promises';
import { Client } from 'undici';

/** Between two looks at `/health`, and how long one may take. Milliseconds. */
const pollIntervalMs = 100;
const probeTimeoutMs = 2_000;

/**
 * Resolves when the child answers: 200 on `/health`, and on `/props` 401 without its key and 200 with it, which
 * nobody else who may have taken the port can do. Keeps asking until the signal is aborted. For binaries without
 * the child protocol. The probe has a connection of its own.
 *
 * @param onKeyless called once when something healthy is there that does not ask for the key
 * @throws the signal's reason
 */
export async function healthy(
  port: number,
  apiPrefix: string,
  apiKey: string,
  signal: AbortSignal,
  onKeyless: () => void,
): Promise<void> {
  const client = new Client(`http://127.0.0.1:${port}`, {
    headersTimeout: probeTimeoutMs,
    bodyTimeout: probeTimeoutMs,
    connect: { timeout: probeTimeoutMs },
  });
  const status = async (path: string, headers: Record<string, string>): Promise<number> => {
    const response = await client.request({ method: 'GET', path: apiPrefix + path, headers, signal });
    await response.body.dump();
    return response.statusCode;
  };
  let told = false;
  const withKey = { authorization: `Bearer ${apiKey}` };
  try {
    for (;;) {
      await delay(pollIntervalMs, undefined, { signal });
      try {
        // Asked without the key first: a stranger must not learn it. (Under a prefix llama-server wants it for all.)
        if ((await status('/props', {})) !== 401) {
          if (!told && (await status('/health', {})) === 200) {
            told = true;
            onKeyless();
          }
          continue;
        }
        if ((await status('/health', withKey)) === 200 && (await status('/props', withKey)) === 200) return;
      } catch {
        // Not listening yet, or too slow to answer: that is what is being waited out.
      }
    }
  } finally {
    await client.destroy();
  }
}
