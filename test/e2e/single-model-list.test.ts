import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { metaOfFile, singleModelEntry } from '../../src/http/single-model-list.js';
import { describeModel, type ModelFacts } from '../../src/models/gguf/gguf-facts.js';
import { shardsOf } from '../../src/models/gguf/gguf-file.js';
import { lookAtFile } from '../../src/models/gguf/gguf-look.js';
import { eventually } from '../helpers/eventually.js';
import { sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { get } from '../helpers/supervisor-client.js';
import { aModel } from '../unit/models/a-model.js';

interface SingleModelList {
  object: string;
  models: { model: string; description: string }[];
  data: { id: string; meta: Record<string, number> }[];
}

/** The same value with every leaf replaced by the name of its type: keys, their order, and kinds of values remain. */
function shapeOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shapeOf);
  if (typeof value !== 'object' || value === null) return typeof value;
  return Object.fromEntries(Object.entries(value).map(([key, child]) => [key, shapeOf(child)]));
}

function factsOf(file: string): ModelFacts {
  const look = lookAtFile(file);
  const [shard] = shardsOf(file);
  if (look.kind !== 'read' || look.reading.kind !== 'header' || shard === undefined) {
    throw new Error(`${file} cannot be read`);
  }
  const { sizeBytes, reading } = look;
  const report = describeModel([{ shard, sizeBytes, header: reading.header }], undefined);
  if (report.kind !== 'facts') throw new Error(`${file} has no facts`);
  return report.facts;
}

describe('what a llama-server with one model lists, and what is made of its file', () => {
  const model = aModel('talker', { tags: ['small'] });
  let list: SingleModelList;
  let directory: string;
  let facts: ModelFacts;

  beforeAll(async () => {
    directory = await writeModels({ talker: sayingItsName('talker'), other: sayingItsName('other') });
    const file = join(directory, 'talker.gguf');
    const url = await startLlamaServer(file, ['--alias', 'talker', '--tags', 'small']);
    list = (await get(url, '/models')).json as SingleModelList;
    facts = factsOf(file);
  });

  it('are the same where nothing is known of the file', () => {
    expect(JSON.stringify(list.models)).toBe(JSON.stringify([singleModelEntry(aModel('talker'), undefined)]));
  });

  it('have the same keys in the same order, with values of the same types', () => {
    const entry = singleModelEntry(model, facts);
    expect(JSON.stringify(shapeOf([entry]))).toBe(JSON.stringify(shapeOf(list.models)));
    expect(entry).toMatchObject({ description: 'talker', details: { family: 'llama' } });
  });

  it('have the same numbers, but for the headers of the file', () => {
    const { size: weights, ...loaded } = list.data[0]?.meta ?? {};
    const { size: file, ...unloaded } = metaOfFile(facts);
    expect(loaded).toMatchObject(unloaded);
    expect(Object.keys(unloaded)).toEqual(['n_vocab', 'n_ctx_train', 'n_embd', 'n_params']);
    const headerBytes = (file ?? NaN) - (weights ?? NaN);
    expect(headerBytes).toBeGreaterThan(0);
    expect(headerBytes).toBeLessThan(32 * 1024);
  });

  it('are in the list of the supervisor, too, for each model at the place that it has in `data`', async () => {
    const { url } = await startRealSupervisor({ args: ['--models-dir', directory] });
    const ours = await eventually('the files have been read', async () => {
      const { json } = await get(url, '/models');
      const answer = json as SingleModelList;
      return answer.models.every(({ description }) => description !== '') && answer;
    });
    expect(ours.object).toBe('list');
    expect(ours.models.map(({ model }) => model)).toEqual(['other', 'talker']);
    expect(ours.data.map(({ id }) => id)).toEqual(['other', 'talker']);
    for (const entry of ours.models) expect(shapeOf([entry])).toEqual(shapeOf(list.models));
  });
});
