/** The clients that people use, in front of a model that is slow to load, when the stream is begun before its answer. */
import Anthropic, { APIError as AnthropicError } from '@anthropic-ai/sdk';
import OpenAI, { APIError as OpenAIError } from 'openai';
import { beforeAll, describe, expect, it } from 'vitest';
import { withDeadline } from '../helpers/eventually.js';
import { counting, piecesOf, writeModels } from '../helpers/known-answer-models.js';
import { startSupervisor } from '../helpers/supervisor-process.js';
import { gatedLlamaServer, type GatedLlamaServer } from './gated-llama-server.js';

const counter = counting(20);

/** What a client makes of a stream: its pieces of text, or what it throws. */
interface Stream {
  readonly headers: Headers;
  readonly pieces: Promise<string[]>;
}

/** Asks for a stream of one of the routes; settles when it has begun. */
type Ask = (url: string, model: string, content?: string) => Promise<Stream>;

const openai = (url: string): OpenAI =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 30_000 });
const anthropic = (url: string): Anthropic =>
  new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0, timeout: 30_000 });

/** The pieces of text in a stream; nobody may have asked for them yet when it breaks. */
function piecesIn<Event>(
  stream: AsyncIterable<Event>,
  textOf: (event: Event) => string | null | undefined,
): Promise<string[]> {
  const read = async (): Promise<string[]> => {
    const pieces: string[] = [];
    for await (const event of stream) {
      const text = textOf(event);
      if (text) pieces.push(text);
    }
    return pieces;
  };
  const pieces = withDeadline('the stream ends', read(), 30_000);
  pieces.catch(() => undefined);
  return pieces;
}

const chats: Ask = async (url, model, content = 'Count.') => {
  const { data, response } = await openai(url)
    .chat.completions.create({ model, stream: true, messages: [{ role: 'user', content }] })
    .withResponse();
  return { headers: response.headers, pieces: piecesIn(data, ({ choices }) => choices[0]?.delta.content) };
};

const completes: Ask = async (url, model, content = 'Count.') => {
  const { data, response } = await openai(url)
    .completions.create({ model, stream: true, prompt: content })
    .withResponse();
  return { headers: response.headers, pieces: piecesIn(data, ({ choices }) => choices[0]?.text) };
};

const responds: Ask = async (url, model, content = 'Count.') => {
  const { data, response } = await openai(url)
    .responses.create({ model, stream: true, input: content })
    .withResponse();
  const textOf = (event: OpenAI.Responses.ResponseStreamEvent): string | undefined =>
    event.type === 'response.output_text.delta' ? event.delta : undefined;
  return { headers: response.headers, pieces: piecesIn(data, textOf) };
};

const sendsMessages: Ask = async (url, model, content = 'Count.') => {
  const { data, response } = await anthropic(url)
    .messages.create({ model, stream: true, max_tokens: 1_000, messages: [{ role: 'user', content }] })
    .withResponse();
  const textOf = (event: Anthropic.RawMessageStreamEvent): string | undefined =>
    event.type === 'content_block_delta' && event.delta.type === 'text_delta' ? event.delta.text : undefined;
  return { headers: response.headers, pieces: piecesIn(data, textOf) };
};

const routes = [
  { what: "OpenAI's chat.completions", ask: chats, error: OpenAIError },
  { what: "OpenAI's completions", ask: completes, error: OpenAIError },
  { what: "OpenAI's responses", ask: responds, error: OpenAIError },
  { what: "Anthropic's messages", ask: sendsMessages, error: AnthropicError },
];

describe.each(routes)('streams of $what over a slow load', ({ ask, error }) => {
  let gated: GatedLlamaServer;
  let url: string;
  beforeAll(async () => {
    gated = gatedLlamaServer();
    const dir = await writeModels({ slow: counter, broken: counter, refusing: counter });
    ({ url } = await startSupervisor({
      llamaServer: gated.path,
      args: ['--models-dir', dir, '--stream-ping-after', '0.2', '--stream-ping-interval', '0.1'],
    }));
  });

  it('give the answer as it is', async () => {
    const { headers, pieces } = await ask(url, 'slow');
    expect(headers.get('content-type')).toBe('text/event-stream');
    expect(headers.get('server-timing')).toMatch(/^queue;dur=\d+, load;dur=\d+$/);
    gated.open('slow');
    expect(await pieces).toEqual(piecesOf(counter));
  });

  it('throw the reason for which it fails', async () => {
    const { pieces } = await ask(url, 'broken');
    gated.fail('broken', 'error: the weights are of rubber');
    await expect(pieces).rejects.toThrow(error);
    await expect(pieces).rejects.toThrow('model name=broken failed to load');
    await expect(pieces).rejects.toThrow('the weights are of rubber');
  });

  it('throw what the model refuses, in its own words', async () => {
    const { pieces } = await ask(url, 'refusing', 'too much '.repeat(50_000));
    gated.open('refusing');
    await expect(pieces).rejects.toThrow(error);
    await expect(pieces).rejects.toThrow('exceeds the available context size');
  });
});
