import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import OpenAI, { AuthenticationError, BadRequestError } from 'openai';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import {
  counting,
  endless,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeModels,
} from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { get } from '../helpers/supervisor-client.js';

const apiKey = 'sk-local';

describe('the openai package, as it comes', () => {
  const counter = counting(200);
  let url: string;
  let openai: OpenAI;

  beforeAll(async () => {
    const dir = await writeModels({
      counter,
      endless: endless(),
      talker: sayingItsName('talker'),
      embedder: { words: ['embed'], pooling: 'cls' },
    });
    const presets = join(dir, 'presets.ini');
    await writeFile(presets, `[embedder]\nembeddings = true\n`);
    const supervisor = await startRealSupervisor({
      args: ['--models-dir', dir, '--models-preset', presets, '--api-key', apiKey],
    });
    ({ url } = supervisor);
    openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000 });
  });

  const messages = [{ role: 'user' as const, content: 'Who are you?' }];

  it('lists the models', async () => {
    const ids: string[] = [];
    for await (const { id, object } of openai.models.list()) {
      expect(object).toBe('model');
      ids.push(id);
    }
    expect(ids).toEqual(['counter', 'embedder', 'endless', 'talker']);
  });

  it('gets a chat completion', async () => {
    const completion = await openai.chat.completions.create({ model: 'talker', messages });
    expect(completion.model).toBe('talker');
    expect(completion.choices[0]?.message).toMatchObject({
      role: 'assistant',
      content: nameAnswer('talker'),
    });
    expect(completion.choices[0]?.finish_reason).toBe('stop');
  });

  it('streams one', async () => {
    const pieces: string[] = [];
    const reasons: string[] = [];
    const stream = await openai.chat.completions.create({ model: 'counter', messages, stream: true });
    for await (const { choices } of stream) {
      const [choice] = choices;
      if (choice?.delta.content) pieces.push(choice.delta.content);
      if (choice?.finish_reason) reasons.push(choice.finish_reason);
    }
    expect(pieces).toEqual(piecesOf(counter));
    expect(reasons).toEqual(['stop']);
  });

  it('gets embeddings, one for each input', async () => {
    const { data } = await openai.embeddings.create({ model: 'embedder', input: ['one', 'two'] });
    expect(data.map(({ index }) => index)).toEqual([0, 1]);
    for (const { embedding } of data) {
      // `cls` pooling embeds every text as its first token, <s>, which is number 1.
      expect(embedding.flatMap((value, place) => (value === 0 ? [] : [[place, value]]))).toEqual([[1, 1]]);
    }
  });

  it('aborts a stream, and the model stops', async () => {
    const stream = await openai.chat.completions.create({ model: 'endless', messages, stream: true });
    let seen = 0;
    for await (const { choices } of stream) {
      if (choices[0]?.delta.content) seen += 1;
      if (seen === 20) stream.controller.abort();
    }
    expect(seen).toBeGreaterThanOrEqual(20);
    await eventually(
      'the model has stopped',
      async () => {
        const slots = await get(url, '/slots?model=endless', { authorization: `Bearer ${apiKey}` });
        return (slots.json as { is_processing: boolean }[]).every((slot) => !slot.is_processing);
      },
      { deadlineMs: 5_000 },
    );
  });

  it('gets the error classes it knows: 400 for an unknown model, 401 for a wrong key', async () => {
    const unknown = openai.chat.completions.create({ model: 'nobody', messages });
    await expect(unknown).rejects.toThrow(BadRequestError);
    await expect(unknown).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
    await expect(unknown).rejects.toThrow("model 'nobody' not found");

    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'sk-wrong', maxRetries: 0 });
    const refused = stranger.chat.completions.create({ model: 'talker', messages });
    await expect(refused).rejects.toThrow(AuthenticationError);
    await expect(refused).rejects.toMatchObject({ status: 401, type: 'authentication_error' });
  });
});
