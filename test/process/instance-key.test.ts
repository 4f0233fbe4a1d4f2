import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { Instance } from '../../src/instance/instance.js';
import { writeFakeModel } from '../helpers/fake-llama-server.js';
import { newJournal } from '../helpers/journal.js';
import { counting, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { realLlamaServer } from '../helpers/real-llama-server.js';
import { startSupervisor } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';
import { runInstance } from './run-instance.js';

/** The status of one request through the connections of an instance. */
function statusThrough({ upstream }: Instance, path: string): Promise<number> {
  return new Promise((resolve, reject) => {
    upstream?.dispatch(
      { method: 'GET', path, headers: [], body: null },
      {
        onRequestStart: () => undefined,
        onResponseStart: (_controller, status) => resolve(status),
        onResponseData: () => undefined,
        onResponseEnd: () => undefined,
        onResponseError: (_controller, error) => reject(error),
      },
    );
  });
}

/** Statuses of one path asked for directly: without a key, with a wrong one, in llama-server's two ways. */
async function statusesAround(instance: Instance, path: string): Promise<number[]> {
  const url = `http://127.0.0.1:${instance.port}${path}`;
  const headers = [{}, { authorization: 'Bearer wrong' }, { 'x-api-key': 'wrong' }, { authorization: '' }];
  return Promise.all(headers.map(async (given) => (await rawRequest(url, { headers: given })).status));
}

describe('the key of a child', () => {
  test('is long, random and another one in every run', async () => {
    const runs = [runInstance(), runInstance()];
    await Promise.all(runs.map((run) => run.reaches('ready')));
    const keys = runs.map(({ journal }) => journal.of('start')[0]?.env['LLAMA_API_KEY']);
    // 24 random bytes in base64url.
    for (const key of keys) expect(key).toMatch(/^[\w-]{32}$/);
    expect(keys[0]).not.toBe(keys[1]);
  });

  test('is given by the environment, never by the command line that every user of the machine can read', async () => {
    const run = runInstance();
    await run.reaches('ready');
    const [start] = run.journal.of('start');
    expect(start?.env['LLAMA_API_KEY']).toBeTruthy();
    expect(start?.argv.join(' ')).not.toContain(start?.env['LLAMA_API_KEY']);
    expect(run.log.join('\n')).not.toContain(start?.env['LLAMA_API_KEY']);
  });

  test('replaces one in the environment of the supervisor', async () => {
    const run = runInstance({ environment: { ...process.env, LLAMA_API_KEY: 'of the supervisor' } });
    await run.reaches('ready');
    expect(await statusThrough(run.instance, '/props')).toBe(200);
    const { status } = await rawRequest(`http://127.0.0.1:${run.instance.port}/props`, {
      headers: { authorization: 'Bearer of the supervisor' },
    });
    expect(status).toBe(401);
  });

  test('lets nobody in but the supervisor', async () => {
    const run = runInstance();
    await run.reaches('ready');
    expect(await statusThrough(run.instance, '/slots')).toBe(200);
    expect(await statusesAround(run.instance, '/slots')).toEqual([401, 401, 401, 401]);
  });

  test('lets nobody in but the supervisor on the real llama-server, too', async () => {
    const model = join(await writeModels({ count: counting(3) }), 'count.gguf');
    const binary = realLlamaServer();
    const run = runInstance({
      command: (port) => [
        binary,
        ...['--host', '127.0.0.1', '--port', String(port), '--model', model],
        ...['--threads', '1', '--ctx-size', '512'],
      ],
    });
    await run.reaches('ready');
    expect(await statusThrough(run.instance, '/props')).toBe(200);
    expect(await statusesAround(run.instance, '/props')).toEqual([401, 401, 401, 401]);
    const completion = jsonPost({ prompt: 'x', n_predict: 1 });
    const { status } = await rawRequest(`http://127.0.0.1:${run.instance.port}/completion`, completion);
    expect(status).toBe(401);
  });
});

test('what a client proves itself with is seen by the supervisor only', async () => {
  const models = tempDir();
  writeFakeModel(models, 'alpha');
  const journal = newJournal();
  const supervisor = await startSupervisor({
    args: ['--models-dir', models, '--api-key', 'of-the-client'],
    env: journal.env,
  });
  const request = jsonPost({ model: 'alpha', content: 'a b' });
  const post = (headers: Record<string, string>) =>
    rawRequest(`${supervisor.url}/tokenize`, { ...request, headers: { ...request.headers, ...headers } });

  expect((await post({})).status).toBe(401);
  expect((await post({ authorization: 'Bearer of-the-client', cookie: 'session=secret' })).status).toBe(200);
  expect((await post({ 'x-api-key': 'of-the-client', 'X-Mine': 'kept' })).status).toBe(200);

  const [start] = journal.of('start');
  const seen = journal.of('request').filter(({ url }) => url === '/tokenize');
  expect(seen).toHaveLength(2);
  for (const { headers } of seen) {
    expect(headers['authorization']).toBe(`Bearer ${start?.env['LLAMA_API_KEY'] ?? ''}`);
    expect(Object.keys(headers)).not.toContain('x-api-key');
    expect(Object.keys(headers)).not.toContain('cookie');
  }
  expect(seen[1]?.headers['x-mine']).toBe('kept');
  expect(JSON.stringify(journal.all())).not.toContain('of-the-client');
});
