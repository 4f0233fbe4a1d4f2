import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import OpenAI, {
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  RateLimitError,
  toFile,
  type ClientOptions,
} from 'openai';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import {
  counting,
  endless,
  nameAnswer,
  piecesOf,
  sayingItsName,
  writeModels,
} from '../helpers/known-answer-models.js';
import { sigkill } from '../helpers/processes.js';
import { startLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { get, type ModelEntry } from '../helpers/supervisor-client.js';
import { callingTool } from '../helpers/tool-calling-model.js';

const apiKey = 'sk-local';
const messages = [{ role: 'user' as const, content: 'Who are you?' }];

function client(url: string, options: ClientOptions = {}): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000, ...options });
}

describe('the openai package, as it comes', () => {
  const counter = counting(200);
  let directory: string;
  let url: string;
  let openai: OpenAI;

  beforeAll(async () => {
    directory = await writeModels({
      caller: callingTool({ name: 'set_unit', argument: 'unit', value: 'celsius' }),
      counter,
      doomed: endless(),
      endless: endless(),
      talker: sayingItsName('talker'),
      embedder: { words: ['embed'], pooling: 'cls' },
    });
    await writeFile(join(directory, 'broken.gguf'), 'not a model');
    const presets = join(directory, 'presets.ini');
    await writeFile(presets, `[embedder]\nembeddings = true\n`);
    const args = ['--models-dir', directory, '--models-preset', presets, '--api-key', apiKey];
    ({ url } = await startRealSupervisor({ args }));
    openai = client(url);
  });

  const read = (path: string) => get(url, path, { authorization: `Bearer ${apiKey}` });

  async function isIdle(model: string): Promise<boolean> {
    const { json } = await read(`/slots?model=${model}`);
    return (json as { is_processing: boolean }[]).every((slot) => !slot.is_processing);
  }

  it('lists the models', async () => {
    const ids: string[] = [];
    for await (const { id, object } of openai.models.list()) {
      expect(object).toBe('model');
      ids.push(id);
    }
    expect(ids).toEqual(['broken', 'caller', 'counter', 'doomed', 'embedder', 'endless', 'talker']);
  });

  it('finds no route for a single model or for files, as with llama-server itself', async () => {
    await expect(openai.models.retrieve('talker')).rejects.toThrow(NotFoundError);
    const file = await toFile(Buffer.from('{}'), 'batch.jsonl');
    await expect(openai.files.create({ file, purpose: 'batch' })).rejects.toThrow(NotFoundError);
  });

  describe('chat.completions', () => {
    it('answers', async () => {
      const completion = await openai.chat.completions.create({ model: 'talker', messages });
      expect(completion.model).toBe('talker');
      expect(completion.choices[0]?.message).toMatchObject({
        role: 'assistant',
        content: nameAnswer('talker'),
      });
      expect(completion.choices[0]?.finish_reason).toBe('stop');
    });

    it('streams, a word in each chunk, and its usage last', async () => {
      const pieces: string[] = [];
      const reasons: string[] = [];
      const usages: (number | undefined)[] = [];
      const stream = await openai.chat.completions.create({
        model: 'counter',
        messages,
        stream: true,
        stream_options: { include_usage: true },
      });
      for await (const { choices, usage } of stream) {
        const [choice] = choices;
        if (choice?.delta.content) pieces.push(choice.delta.content);
        if (choice?.finish_reason) reasons.push(choice.finish_reason);
        usages.push(usage?.completion_tokens);
      }
      expect(pieces).toEqual(piecesOf(counter));
      expect(reasons).toEqual(['stop']);
      // Each word is a token, and so is the end.
      expect(usages.at(-1)).toBe(201);
      expect(usages.filter((usage) => usage !== undefined)).toHaveLength(1);
    });

    it('streams through the helper that puts the answer together', async () => {
      const completion = await openai.chat.completions
        .stream({ model: 'talker', messages })
        .finalChatCompletion();
      expect(completion.choices[0]?.message.content).toBe(nameAnswer('talker'));
    });

    it('keeps to a JSON schema', async () => {
      const schema = {
        type: 'object',
        properties: { unit: { type: 'string', enum: ['celsius'] } },
        required: ['unit'],
        additionalProperties: false,
      };
      const completion = await openai.chat.completions.create({
        model: 'talker',
        messages,
        temperature: 0,
        response_format: { type: 'json_schema', json_schema: { name: 'unit', schema } },
      });
      expect(JSON.parse(completion.choices[0]?.message.content ?? '')).toEqual({ unit: 'celsius' });
    });
  });

  describe('tools', () => {
    const definition = {
      name: 'set_unit',
      description: 'Chooses the unit of temperatures.',
      parameters: { type: 'object', properties: { unit: { type: 'string' } }, required: ['unit'] },
    };
    const tool = { type: 'function' as const, function: definition };
    const call = { type: 'function', function: { name: 'set_unit', arguments: '{"unit": "celsius"}' } };

    it('are called', async () => {
      const completion = await openai.chat.completions.create({ model: 'caller', messages, tools: [tool] });
      const [choice] = completion.choices;
      expect(choice?.finish_reason).toBe('tool_calls');
      expect(choice?.message.tool_calls).toMatchObject([call]);
    });

    it('are called in a stream, piece by piece', async () => {
      const stream = openai.chat.completions.stream({ model: 'caller', messages, tools: [tool] });
      const pieces: string[] = [];
      stream.on('tool_calls.function.arguments.delta', (delta) => pieces.push(delta.arguments_delta));
      const completion = await stream.finalChatCompletion();
      expect(completion.choices[0]?.message.tool_calls).toMatchObject([call]);
      expect(pieces.length).toBeGreaterThan(1);
      expect(pieces.join('')).toBe(call.function.arguments);
    });

    it('are run by the helper that runs them, and their results are sent back', async () => {
      const given: unknown[] = [];
      const setUnit = {
        ...definition,
        parse: (args: string) => JSON.parse(args) as { unit: string },
        function: (args: { unit: string }) => {
          given.push(args);
          return `it is ${args.unit} now`;
        },
      };
      const runner = openai.chat.completions.runTools(
        { model: 'caller', messages, tools: [{ type: 'function', function: setUnit }] },
        { maxChatCompletions: 2 },
      );
      await runner.done();
      // This model calls its tool whatever it is told, so the second answer is a call again.
      expect(given).toEqual([{ unit: 'celsius' }, { unit: 'celsius' }]);
      const roles = runner.messages.map(({ role }) => role);
      expect(roles).toEqual(['user', 'assistant', 'tool', 'assistant', 'tool']);
    });

    it('are passed on to a model that calls none', async () => {
      const completion = await openai.chat.completions.create({ model: 'talker', messages, tools: [tool] });
      expect(completion.choices[0]?.message.content).toBe(nameAnswer('talker'));
    });
  });

  describe('responses', () => {
    it('answers, and counts its input without answering', async () => {
      const response = await openai.responses.create({
        model: 'talker',
        instructions: 'Be brief.',
        input: 'Who are you?',
      });
      expect(response.status).toBe('completed');
      expect(response.output_text).toBe(nameAnswer('talker'));
      const input = { model: 'talker', instructions: 'Be brief.', input: 'Who are you?' };
      const { input_tokens: counted } = await openai.responses.inputTokens.count(input);
      expect(counted).toBe(response.usage?.input_tokens);
    });

    it('streams its events', async () => {
      const types: string[] = [];
      const pieces: string[] = [];
      const stream = await openai.responses.create({ model: 'counter', input: 'Count.', stream: true });
      for await (const event of stream) {
        types.push(event.type);
        if (event.type === 'response.output_text.delta') pieces.push(event.delta);
      }
      expect(types[0]).toBe('response.created');
      expect(types.at(-1)).toBe('response.completed');
      expect(pieces).toEqual(piecesOf(counter));
    });

    it('calls tools', async () => {
      const response = await openai.responses.create({
        model: 'caller',
        input: 'Celsius, please.',
        tools: [
          {
            type: 'function',
            name: 'set_unit',
            parameters: { type: 'object', properties: { unit: { type: 'string' } }, required: ['unit'] },
            strict: false,
          },
        ],
      });
      expect(response.output).toMatchObject([
        { type: 'function_call', name: 'set_unit', arguments: '{"unit": "celsius"}' },
      ]);
    });
  });

  it('gets a completion of a text, whole and streamed', async () => {
    const completion = await openai.completions.create({ model: 'talker', prompt: 'Say:' });
    expect(completion.choices[0]?.text).toBe(nameAnswer('talker'));

    const pieces: string[] = [];
    for await (const { choices } of await openai.completions.create({
      model: 'counter',
      prompt: 'Count:',
      stream: true,
    })) {
      if (choices[0]?.text) pieces.push(choices[0].text);
    }
    expect(pieces).toEqual(piecesOf(counter));
  });

  it('gets embeddings, one for each input', async () => {
    const { data } = await openai.embeddings.create({ model: 'embedder', input: ['one', 'two'] });
    expect(data.map(({ index }) => index)).toEqual([0, 1]);
    for (const { embedding } of data) {
      // `cls` pooling embeds every text as its first token, <s>, which is number 1.
      expect(embedding.flatMap((value, place) => (value === 0 ? [] : [[place, value]]))).toEqual([[1, 1]]);
    }
  });

  it("sends a recording to the model of its form, and gets that model's own refusal", async () => {
    const direct = client(await startLlamaServer(join(directory, 'talker.gguf'), ['--alias', 'talker']));
    const transcribe = async (server: OpenAI): Promise<unknown> => {
      const file = await toFile(Buffer.alloc(70_000, 1), 'speech.wav', { type: 'audio/wav' });
      return server.audio.transcriptions.create({ file, model: 'talker' }).catch((error: unknown) => error);
    };
    const [ours, itsOwn] = [await transcribe(openai), await transcribe(direct)];
    expect(itsOwn).toBeInstanceOf(APIError);
    const { status, message } = itsOwn as APIError;
    expect(status).toBeGreaterThanOrEqual(400);
    expect(message).toContain('audio');
    expect(ours).toMatchObject({ status, message });
  });

  describe('a client that leaves', () => {
    const stopsSoon = (model: string) =>
      // A child looks for a client that waits for an answer in one piece when it has had nothing to do for a second.
      eventually('the model has stopped', () => isIdle(model), { deadlineMs: 8_000, intervalMs: 1_500 });

    it('stops the model it listened to', async () => {
      const stream = await openai.chat.completions.create({ model: 'endless', messages, stream: true });
      let seen = 0;
      for await (const { choices } of stream) {
        if (choices[0]?.delta.content) seen += 1;
        if (seen === 20) stream.controller.abort();
      }
      expect(seen).toBeGreaterThanOrEqual(20);
      await stopsSoon('endless');
    });

    it('stops the model it waited for', async () => {
      const leaving = new AbortController();
      const answer = openai.chat.completions.create(
        { model: 'endless', messages },
        { signal: leaving.signal },
      );
      const outcome = expect(answer).rejects.toThrow(APIUserAbortError);
      await eventually('the model answers', async () => !(await isIdle('endless')));
      leaving.abort();
      await outcome;
      await stopsSoon('endless');
    });
  });

  describe('errors are of the classes it knows', () => {
    it('400 for an unknown model', async () => {
      const unknown = openai.chat.completions.create({ model: 'nobody', messages });
      await expect(unknown).rejects.toThrow(BadRequestError);
      await expect(unknown).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
      await expect(unknown).rejects.toThrow("model 'nobody' not found");
    });

    it.each([
      ['a wrong key', { apiKey: 'sk-wrong' }],
      ['no key', { defaultHeaders: { authorization: null } }],
    ])('401 for %s', async (_what, options) => {
      const refused = client(url, options).chat.completions.create({ model: 'talker', messages });
      await expect(refused).rejects.toThrow(AuthenticationError);
      await expect(refused).rejects.toMatchObject({ status: 401, type: 'authentication_error' });
    });

    it("400 for what the model's server refuses, in its words", async () => {
      const refused = openai.chat.completions.create({ model: 'talker', messages: 'hi' as never });
      await expect(refused).rejects.toThrow(BadRequestError);
      await expect(refused).rejects.toMatchObject({ type: 'invalid_request_error' });
      await expect(refused).rejects.toThrow("'messages'");
    });

    it('503 with the reason for a model that is none', async () => {
      const failed = openai.chat.completions.create({ model: 'broken', messages });
      await expect(failed).rejects.toThrow(InternalServerError);
      await expect(failed).rejects.toMatchObject({ status: 503 });
      await expect(failed).rejects.toThrow('broken.gguf');
    });

    it('a crash in the middle of a stream is thrown with its reason', async () => {
      const stream = await openai.chat.completions.create({ model: 'doomed', messages, stream: true });
      const reading = async () => {
        let seen = 0;
        for await (const { choices } of stream) {
          if (choices[0]?.delta.content) seen += 1;
          if (seen !== 10) continue;
          const { data } = (await read('/models')).json as { data: ModelEntry[] };
          sigkill(data.find(({ id }) => id === 'doomed')?.pid ?? NaN);
        }
      };
      const broken = withDeadline('the stream breaks', reading(), 20_000);
      await expect(broken).rejects.toThrow(APIError);
      await expect(broken).rejects.toThrow('SIGKILL');
    });
  });
});

describe('the openai package, when there is too much to do', () => {
  it('is told 429 and when to come back, comes back then, and is answered', async () => {
    const directory = await writeModels({
      busy: endless(),
      next: sayingItsName('next'),
      late: sayingItsName('late'),
    });
    const args = ['--models-dir', directory, '--models-max', '1', '--queue-max', '1'];
    const { url } = await startRealSupervisor({ args });
    const impatient = client(url);
    const stream = await impatient.chat.completions.create({ model: 'busy', messages, stream: true });
    atEndOfTest(() => stream.controller.abort());
    const next = impatient.chat.completions.create({ model: 'next', messages });
    await eventually('a request waits in line', async () => {
      const { data } = (await get(url, '/models')).json as { data: ModelEntry[] };
      return data.find(({ id }) => id === 'next')?.waiting === 1;
    });
    await expect(impatient.chat.completions.create({ model: 'late', messages })).rejects.toThrow(
      RateLimitError,
    );

    const tries: { status: number; retryAfterS: number; at: number }[] = [];
    const patient = client(url, {
      maxRetries: 1,
      fetch: async (input, init) => {
        const at = performance.now();
        const response = await fetch(input, init);
        tries.push({ status: response.status, retryAfterS: Number(response.headers.get('retry-after')), at });
        return response;
      },
    });
    const late = patient.chat.completions.create({ model: 'late', messages });
    await eventually('the patient client is refused', () => tries.length === 1);
    stream.controller.abort();

    expect((await next).choices[0]?.message.content).toBe(nameAnswer('next'));
    expect((await late).choices[0]?.message.content).toBe(nameAnswer('late'));
    expect(tries.map(({ status }) => status)).toEqual([429, 200]);
    const [first, second] = tries;
    expect(first?.retryAfterS).toBeGreaterThanOrEqual(1);
    // Its own first pause would be half a second. A timer may be a little early.
    expect((second?.at ?? 0) - (first?.at ?? 0)).toBeGreaterThan((first?.retryAfterS ?? NaN) * 1000 - 50);
  });
});
