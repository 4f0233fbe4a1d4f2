import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, sayingItsName, writeModels, type KnownAnswers } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { runInstance } from '../process/run-instance.js';
import { watchRun, type WatchedRun } from './watched-child.js';

/** So short that what is wrongly taken for a hang shows within seconds. */
const hangTimeoutMs = 2_000;
/** Long enough for a verdict: three looks, of which one waits for slots. */
const longMs = 6_000;

/** The real llama-server with a model, under watch. */
async function watchReal(model: KnownAnswers, ...args: string[]): Promise<WatchedRun> {
  const directory = await writeModels({ alpha: model });
  const run = runInstance({
    silenceTimeoutMs: 0,
    command: (port) => [
      realLlamaServer(),
      ...['--model', `${directory}/alpha.gguf`, '--host', '127.0.0.1', '--port', String(port)],
      ...['--threads', '1', '--parallel', '1', ...args],
    ],
  });
  return await watchRun(run, { hangTimeoutMs });
}

describe.runIf(canListProcesses)('a real llama-server', () => {
  test('that is stopped in the middle of an answer hangs, and is said to', async () => {
    const watched = await watchReal(endless());
    const exchange = watched.post('/completion', { prompt: 'x', n_predict: -1, stream: true });
    await eventually('it streams', () => exchange.body.length > 0);
    process.kill(watched.pid, 'SIGSTOP');
    expect(await watched.hangs()).toMatch(
      /^made no progress for \d s with 1 request in flight .* it used 0\.0\d s of processor time, \/slots was not answered/,
    );
    expect(exchange.ended).toBeUndefined();
  });

  test('that is stopped between two requests hangs when the next one is made', async () => {
    const watched = await watchReal(sayingItsName('alpha'));
    const first = watched.post('/completion', { prompt: 'x', n_predict: 1 });
    await eventually('it is answered', () => first.ended === 'whole');
    process.kill(watched.pid, 'SIGSTOP');
    await delay(longMs);
    expect(watched.reasons).toEqual([]);
    watched.post('/completion', { prompt: 'x', n_predict: 1 });
    await watched.hangs();
  });

  test('that reads a long prompt is left alone, though nothing comes from it', async () => {
    const model = { ...sayingItsName('alpha'), extraBytes: 64 << 20, contextLength: 8_192 };
    const watched = await watchReal(model, '--ctx-size', '8192');
    const begun = performance.now();
    const exchange = watched.post('/completion', { prompt: 'x'.repeat(6_000), n_predict: 1 });
    await eventually('its request ends', () => exchange.ended, { deadlineMs: 50_000 });
    expect(exchange.ended).toBe('whole');
    // Otherwise this shows nothing.
    expect(performance.now() - begun).toBeGreaterThan(3_000);
    expect(exchange.status).toBe(200);
    expect(watched.reasons).toEqual([]);
  });

  test('that streams without an end is left alone, whether or not its client reads', async () => {
    const watched = await watchReal({ ...endless(), contextLength: 8_192 });
    const exchange = watched.post('/completion', { prompt: 'x', n_predict: -1, stream: true });
    await eventually('it streams', () => exchange.body.length > 0);
    await delay(hangTimeoutMs);
    exchange.pause();
    await delay(longMs);
    expect(watched.reasons).toEqual([]);
    exchange.leave();
  });

  test.each([
    ['/v1/chat/completions', { messages: [{ role: 'user', content: 'x' }], tools: [{ type: 'function' }] }],
    ['/v1/embeddings', { input: 'x'.repeat(400) }],
  ])('is left alone when a client provokes 500s at %s', async (path, body) => {
    const isEmbedding = path.endsWith('embeddings');
    const watched = await watchReal(
      isEmbedding ? { ...sayingItsName('alpha'), pooling: 'mean' } : sayingItsName('alpha'),
      ...(isEmbedding ? ['--embeddings', '--batch-size', '32', '--ubatch-size', '32'] : []),
    );
    for (let n = 0; n < 10; n += 1) {
      const exchange = watched.post(path, body);
      await eventually('it is answered', () => exchange.ended === 'whole');
      expect(exchange.status).toBe(500);
    }
    await delay(hangTimeoutMs);
    expect(watched.reasons).toEqual([]);
  });
});
