import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { endless, nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { jsonPost, rawExchange, rawRequest } from '../helpers/raw-http.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { busySlots, modelEntry, post } from '../helpers/supervisor-client.js';
import { OracleHome, startNative } from './native-oracle.js';

const vertex = { AIP_MODE: 'PREDICTION', AIP_PREDICT_ROUTE: '/v1/models/m:predict' };
const route = vertex.AIP_PREDICT_ROUTE;

/** A child that is asked more often does not notice who has left: see cancel.test.ts. */
const soon = { deadlineMs: 8_000, intervalMs: 1_500 };

interface Both {
  /** A llama-server with the one model, which can do this natively. */
  readonly native: string;
  readonly ours: string;
}

/** The same model behind both, each in the environment of Vertex AI. */
async function startBoth(modelsDir: string, model: string, options: readonly string[] = []): Promise<Both> {
  const port = await freePort();
  const file = join(modelsDir, `${model}.gguf`);
  const alone = ['--model', file, '--alias', model, '--threads', '1', ...options];
  const [{ url: native }, { url: ours }] = await Promise.all([
    startNative(new OracleHome(), { args: alone, env: { ...vertex, AIP_HTTP_PORT: String(port) } }, port),
    startRealSupervisor({
      args: ['--models-dir', modelsDir, ...options],
      env: { ...vertex, AIP_HTTP_PORT: '0' },
    }),
  ]);
  return { native, ours };
}

/**
 * What two answers to one request have in common: words as they are, numbers as such, since they are times, places in
 * a cache and counts of what was found there. Errors of ours say more.
 */
function comparable(value: unknown, key = ''): unknown {
  if (Array.isArray(value)) return value.map((item) => comparable(item));
  if (typeof value !== 'object' || value === null) {
    return key === 'id' || typeof value === 'number' ? typeof value : value;
  }
  if (key === 'error') {
    const { code, message, type } = value as Record<string, unknown>;
    return { code, message, type };
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, comparable(item, name)]));
}

async function predictionsFrom(url: string, instances: unknown[]): Promise<unknown[]> {
  const { status, json, text } = await post(url, route, { instances });
  expect(status, text).toBe(200);
  expect(Object.keys(json as object)).toEqual(['predictions']);
  return (json as { predictions: unknown[] }).predictions;
}

async function expectTheSame({ native, ours }: Both, instances: unknown[]): Promise<unknown[]> {
  const expected = await predictionsFrom(native, instances);
  const predictions = await predictionsFrom(ours, instances);
  // As JSON, so that the order of keys counts, too.
  const asText = (list: unknown[]) => list.map((item) => JSON.stringify(comparable(item)));
  expect(asText(predictions)).toEqual(asText(expected));
  return predictions;
}

describe('predictions, like those of a llama-server with one model', () => {
  const messages = [{ role: 'user', content: 'Who are you?' }];
  let both: Both;
  beforeAll(async () => {
    both = await startBoth(await writeModels({ talker: sayingItsName('talker') }), 'talker');
  });

  it('are what the routes answer, in the order of the instances, and never streams', async () => {
    const requests = [
      { '@requestFormat': 'chatCompletions', messages, stream: true },
      { '@requestFormat': '/v1/chat/completions', messages, stream: 'yes' },
      { '@requestFormat': 'completions', prompt: 'I', max_tokens: 2 },
      { '@requestFormat': '/completions', prompt: 'I', n_predict: 2, stream: true },
      { '@requestFormat': 'completion', prompt: 'I', n_predict: 2 },
      { '@requestFormat': 'messages', messages, max_tokens: 9 },
      { '@requestFormat': 'messagesCountTokens', messages },
      { '@requestFormat': 'responses', input: 'Who are you?' },
      { '@requestFormat': 'chatCompletionsInputTokens', messages },
      { '@requestFormat': 'applyTemplate', messages },
      { '@requestFormat': 'tokenize', content: 'I am', with_pieces: true },
      { '@requestFormat': 'detokenize', tokens: [] },
    ];
    const predictions = await expectTheSame(
      both,
      requests.map((request) => ({ ...request, model: 'talker', temperature: 0 })),
    );
    expect(predictions[0]).toMatchObject({ choices: [{ message: { content: nameAnswer('talker') } }] });
  });

  it('are errors in the same words', async () => {
    const bad: unknown[] = [
      1,
      null,
      'text',
      [],
      {},
      { '@requestFormat': 1 },
      { '@requestFormat': null },
      { '@requestFormat': '' },
      { '@requestFormat': 'nope' },
      { '@requestFormat': 'chat/completions' },
      { '@requestFormat': 'v1/tokenize' },
      { '@requestFormat': '/slots/0' },
      { '@requestFormat': 'tools' },
      { '@requestFormat': route.slice(1) },
      { '@requestFormat': 'chatCompletions', messages: 'text' },
      { '@requestFormat': 'chatCompletions' },
      { '@requestFormat': 'embeddings', input: 'x' },
      { '@requestFormat': 'rerank', query: 'x', documents: ['y'] },
    ];
    const named = bad.map((instance) =>
      typeof instance === 'object' && instance !== null && !Array.isArray(instance)
        ? { ...instance, model: 'talker' }
        : instance,
    );
    const predictions = await expectTheSame(both, named);
    expect(predictions.map((prediction) => Object.keys(prediction as object))).toEqual(
      bad.map(() => ['error']),
    );
  });

  it.each([
    ['no instance', '{"instances":[]}', 200],
    ['two lists of instances', '{"instances":[1],"instances":[],"parameters":{}}', 200],
    ['a byte order mark', '\ufeff{"instances":[]}', 200],
    ['an array', '[]', 400],
    ['a string', '"text"', 400],
    ['an empty object', '{}', 400],
    ['null for instances', '{"instances":null}', 400],
    ['an object for instances', '{"instances":{"0":1}}', 400],
    ['128 instances', JSON.stringify({ instances: Array.from({ length: 128 }, () => 1) }), 200],
    ['129 instances', JSON.stringify({ instances: Array.from({ length: 129 }, () => 1) }), 400],
  ])('are refused or not by the same rules: %s', async (_what, body, status) => {
    const answers = await Promise.all(
      [both.native, both.ours].map((url) => rawRequest(url + route, { method: 'POST', body })),
    );
    const [native, ours] = answers.map(({ status, headers, body }) => ({
      status,
      type: headers['content-type'],
      body: comparable(JSON.parse(body.toString())),
    }));
    expect(native?.status).toBe(status);
    expect(ours).toEqual(native);
  });

  it.each(['', '{', '{"instances":[]', '{"instances":[]}{}', "{'instances':[]}"])(
    'are refused with the same status, in words of ours, when the request is no JSON: %s',
    async (body) => {
      const [native, ours] = await Promise.all(
        [both.native, both.ours].map((url) => rawRequest(url + route, { method: 'POST', body })),
      );
      const error = { code: 400, type: 'invalid_request_error' };
      expect(JSON.parse(native?.body.toString() ?? '')).toMatchObject({ error });
      expect([native?.status, ours?.status]).toEqual([400, 400]);
      expect(JSON.parse(ours?.body.toString() ?? '')).toMatchObject({ error });
    },
  );

  it('of embeddings have the shape of OpenAI by their name, and the older one by its path', async () => {
    const modelsDir = await writeModels({ embedder: { ...sayingItsName('embedder'), pooling: 'mean' } });
    const embedders = await startBoth(modelsDir, 'embedder', ['--embeddings']);
    const formats = ['embeddings', '/v1/embeddings', '/embeddings', 'embedding'];
    const predictions = await expectTheSame(
      embedders,
      formats.map((format) => ({ '@requestFormat': format, model: 'embedder', input: 'I am' })),
    );
    expect(predictions.map((prediction) => Array.isArray(prediction))).toEqual([false, false, true, true]);
  });
});

describe('predictions of several models', () => {
  let url: string;
  beforeAll(async () => {
    const modelsDir = await writeModels({
      alpha: sayingItsName('alpha'),
      beta: sayingItsName('beta'),
      endless: endless(),
    });
    const args = ['--models-dir', modelsDir, '--models-max', '1', '--parallel', '2'];
    ({ url } = await startRealSupervisor({ args, env: { ...vertex, AIP_HTTP_PORT: '0' } }));
  });

  it('are each of the model that its instance names, where there is room for one at a time', async () => {
    const models = ['alpha', 'beta', 'alpha', 'gone', 'beta'];
    const messages = [{ role: 'user', content: 'Who are you?' }];
    const predictions = await predictionsFrom(
      url,
      models.map((model) => ({ '@requestFormat': 'chatCompletions', model, messages, temperature: 0 })),
    );
    expect(predictions).toMatchObject(
      models.map((model) =>
        model === 'gone'
          ? { error: { code: 400, message: "model 'gone' not found" } }
          : { choices: [{ message: { content: nameAnswer(model) } }] },
      ),
    );
  });

  it('are given up when the client leaves: the child stops generating', async () => {
    const instance = { '@requestFormat': 'completion', model: 'endless', prompt: 'lap-1', n_predict: -1 };
    const exchange = rawExchange(url + route, jsonPost({ instances: [instance, instance, instance] }));
    await eventually(
      'both slots are at work',
      async () =>
        (await modelEntry(url, 'endless')).in_flight === 3 && (await busySlots(url, 'endless')) === 2,
      { deadlineMs: 30_000 },
    );
    exchange.abort();
    await eventually('no slot is at work', async () => (await busySlots(url, 'endless')) === 0, soon);
  });
});
