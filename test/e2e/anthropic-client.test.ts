import Anthropic, {
  APIError,
  APIUserAbortError,
  AuthenticationError,
  BadRequestError,
  InternalServerError,
  NotFoundError,
  type ClientOptions,
} from '@anthropic-ai/sdk';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
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
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { get, type ModelEntry } from '../helpers/supervisor-client.js';
import { callingTool } from '../helpers/tool-calling-model.js';

const apiKey = 'sk-ant-local';

describe('the @anthropic-ai/sdk package, as it comes', () => {
  const counter = counting(200);
  const ask = { max_tokens: 1_000, messages: [{ role: 'user' as const, content: 'Who are you?' }] };
  let url: string;
  let anthropic: Anthropic;

  function client(options: ClientOptions = {}): Anthropic {
    return new Anthropic({ baseURL: url, apiKey, maxRetries: 0, timeout: 30_000, ...options });
  }

  const read = (path: string) => get(url, path, { 'x-api-key': apiKey });

  beforeAll(async () => {
    const directory = await writeModels({
      caller: callingTool({ name: 'set_unit', argument: 'unit', value: 'celsius' }),
      counter,
      doomed: endless(),
      endless: endless(),
      talker: sayingItsName('talker'),
    });
    await writeFile(join(directory, 'broken.gguf'), 'not a model');
    ({ url } = await startRealSupervisor({ args: ['--models-dir', directory, '--api-key', apiKey] }));
    anthropic = client();
  });

  describe('messages', () => {
    it('are answered', async () => {
      const message = await anthropic.messages.create({ model: 'talker', ...ask });
      expect(message).toMatchObject({ type: 'message', role: 'assistant', model: 'talker' });
      expect(message.content).toMatchObject([{ type: 'text', text: nameAnswer('talker') }]);
      expect(message.stop_reason).toBe('end_turn');
      // Three words and the end.
      expect(message.usage.output_tokens).toBe(4);
    });

    it('end where max_tokens says', async () => {
      const message = await anthropic.messages.create({ model: 'counter', ...ask, max_tokens: 3 });
      expect(message.content).toMatchObject([{ type: 'text', text: '1 2 3' }]);
      expect(message.stop_reason).toBe('max_tokens');
    });

    it('stream, a word in each event', async () => {
      const pieces: string[] = [];
      const types: string[] = [];
      for await (const event of await anthropic.messages.create({ model: 'counter', ...ask, stream: true })) {
        types.push(event.type);
        if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') {
          pieces.push(event.delta.text);
        }
      }
      expect(pieces).toEqual(piecesOf(counter));
      expect(types[0]).toBe('message_start');
      expect(types.at(-1)).toBe('message_stop');
    });

    it('stream through the helper that puts the message together', async () => {
      const stream = anthropic.messages.stream({ model: 'talker', ...ask });
      expect(await stream.finalText()).toBe(nameAnswer('talker'));
      expect((await stream.finalMessage()).stop_reason).toBe('end_turn');
    });

    it.each([
      ['a text', 'Be brief.'],
      ['blocks', [{ type: 'text' as const, text: 'Be brief.' }]],
    ])('are counted without an answer, the system prompt as %s included', async (_form, system) => {
      const request = { model: 'talker', system, messages: ask.messages };
      const { input_tokens: counted } = await anthropic.messages.countTokens(request);
      const { usage } = await anthropic.messages.create({ ...request, max_tokens: 10 });
      expect(usage.input_tokens + (usage.cache_read_input_tokens ?? 0)).toBe(counted);
      const { messages } = ask;
      const bare = await anthropic.messages.countTokens({ model: 'talker', messages });
      // A token for each byte of the model's template around the prompt, and of the prompt itself.
      const systemTurn = '<|im_start|>system\nBe brief.<|im_end|>\n';
      expect(counted - bare.input_tokens).toBe(systemTurn.length);
    });
  });

  describe('tools', () => {
    const tools = [
      {
        name: 'set_unit',
        description: 'Chooses the unit of temperatures.',
        input_schema: {
          type: 'object' as const,
          properties: { unit: { type: 'string' } },
          required: ['unit'],
        },
      },
    ];
    const call = { type: 'tool_use', name: 'set_unit', input: { unit: 'celsius' } };

    it.each([undefined, { type: 'any' as const }, { type: 'tool' as const, name: 'set_unit' }])(
      'are called, with tool_choice %j',
      async (choice) => {
        const message = await anthropic.messages.create({
          model: 'caller',
          ...ask,
          tools,
          ...(choice && { tool_choice: choice }),
        });
        expect(message.stop_reason).toBe('tool_use');
        expect(message.content).toMatchObject([call]);
      },
    );

    it('are called in a stream, piece by piece', async () => {
      const pieces: string[] = [];
      const stream = anthropic.messages.stream({ model: 'caller', ...ask, tools });
      stream.on('inputJson', (piece) => pieces.push(piece));
      const message = await stream.finalMessage();
      expect(message.content).toMatchObject([call]);
      expect(pieces.filter((piece) => piece !== '').length).toBeGreaterThan(1);
    });

    it('get their results back', async () => {
      const asked = await anthropic.messages.create({ model: 'caller', ...ask, tools });
      const [use] = asked.content;
      if (use?.type !== 'tool_use') throw new Error(`no call: ${JSON.stringify(asked)}`);
      const messages: Anthropic.MessageParam[] = [
        ...ask.messages,
        { role: 'assistant', content: asked.content },
        {
          role: 'user',
          content: [{ type: 'tool_result', tool_use_id: use.id, content: 'it is celsius now' }],
        },
      ];
      // This model calls its tool whatever it is told.
      const answered = await anthropic.messages.create({ ...ask, model: 'caller', tools, messages });
      expect(answered.content).toMatchObject([call]);
      const length = (request: Anthropic.MessageCountTokensParams) => anthropic.messages.countTokens(request);
      const before = await length({ model: 'caller', tools, messages: ask.messages });
      const after = await length({ model: 'caller', tools, messages });
      expect(after.input_tokens - before.input_tokens).toBeGreaterThan('it is celsius now'.length);
    });
  });

  it('lists the models, and finds no route for a single one, as with llama-server itself', async () => {
    const ids: string[] = [];
    for await (const { id } of anthropic.models.list()) ids.push(id);
    expect(ids).toEqual(['broken', 'caller', 'counter', 'doomed', 'endless', 'talker']);
    await expect(anthropic.models.retrieve('talker')).rejects.toThrow(NotFoundError);
  });

  it('leaves a stream, and the model stops', async () => {
    const stream = anthropic.messages.stream({ model: 'endless', ...ask, max_tokens: 1_000_000 });
    let seen = 0;
    stream.on('text', () => {
      seen += 1;
      if (seen === 20) stream.abort();
    });
    await expect(stream.done()).rejects.toThrow(APIUserAbortError);
    await eventually(
      'the model has stopped',
      async () => {
        const { json } = await read('/slots?model=endless');
        return (json as { is_processing: boolean }[]).every((slot) => !slot.is_processing);
      },
      { deadlineMs: 5_000 },
    );
  });

  describe('errors are of the classes it knows', () => {
    it('400 for an unknown model, whole or streamed', async () => {
      const unknown = anthropic.messages.create({ model: 'nobody', ...ask });
      await expect(unknown).rejects.toThrow(BadRequestError);
      await expect(unknown).rejects.toMatchObject({ status: 400, type: 'invalid_request_error' });
      await expect(unknown).rejects.toThrow("model 'nobody' not found");
      const streamed = anthropic.messages.stream({ model: 'nobody', ...ask }).finalMessage();
      await expect(streamed).rejects.toThrow(BadRequestError);
    });

    it.each([
      ['a wrong key', { apiKey: 'sk-ant-wrong' }],
      ['a wrong token', { apiKey: null, authToken: 'wrong' }],
      ['an empty key', { apiKey: '' }],
    ])('401 for %s', async (_what, options) => {
      const refused = client(options).messages.create({ model: 'talker', ...ask });
      await expect(refused).rejects.toThrow(AuthenticationError);
      await expect(refused).rejects.toMatchObject({ status: 401, type: 'authentication_error' });
    });

    it('none for a token, which is another way to give the key', async () => {
      const message = await client({ apiKey: null, authToken: apiKey }).messages.create({
        model: 'talker',
        ...ask,
      });
      expect(message.content).toMatchObject([{ text: nameAnswer('talker') }]);
    });

    it('503 with the reason for a model that is none', async () => {
      const failed = anthropic.messages.create({ model: 'broken', ...ask });
      await expect(failed).rejects.toThrow(InternalServerError);
      await expect(failed).rejects.toMatchObject({ status: 503 });
      await expect(failed).rejects.toThrow('broken.gguf');
    });

    it("400 for what the model's server refuses, in its words", async () => {
      const misunderstood = { model: 'talker', max_tokens: 'many' as never, messages: ask.messages };
      const refused = anthropic.messages.create(misunderstood);
      await expect(refused).rejects.toThrow(BadRequestError);
      await expect(refused).rejects.toMatchObject({ type: 'invalid_request_error' });
      await expect(refused).rejects.toThrow("Field 'max_tokens'");
    });

    it('a crash in the middle of a stream is thrown with its reason', async () => {
      const stream = await anthropic.messages.create({
        model: 'doomed',
        ...ask,
        max_tokens: 1_000_000,
        stream: true,
      });
      const reading = async () => {
        let seen = 0;
        for await (const { type } of stream) {
          if (type === 'content_block_delta') seen += 1;
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
