import { setTimeout as delay } from 'node:timers/promises';
import { Client } from 'undici';

/** Between two looks at `/health`, and how long one may take. Milliseconds. */
const pollIntervalMs = 100;
const probeTimeoutMs = 2_000;

/**
 * Resolves when `GET {path}` on the child answers 200; keeps asking until the signal is aborted, then never
 * settles with success. For binaries without the child protocol. The probe has a connection of its own.
 *
 * @throws the signal's reason
 */
export async function healthy(
  port: number,
  path: string,
  apiKey: string,
  signal: AbortSignal,
): Promise<void> {
  // Under an --api-prefix the child asks for its key on every route.
  const headers = { authorization: `Bearer ${apiKey}` };
  const client = new Client(`http://127.0.0.1:${port}`, {
    headersTimeout: probeTimeoutMs,
    bodyTimeout: probeTimeoutMs,
    connect: { timeout: probeTimeoutMs },
  });
  try {
    for (;;) {
      await delay(pollIntervalMs, undefined, { signal });
      try {
        const response = await client.request({ method: 'GET', path, headers, signal });
        await response.body.dump();
        if (response.statusCode === 200) return;
      } catch {
        // Not listening yet, or too slow to answer: that is what is being waited out.
      }
    }
  } finally {
    await client.destroy();
  }
}
