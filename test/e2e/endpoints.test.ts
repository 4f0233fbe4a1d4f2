import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { counting, nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { get, post, question, streamEvents } from '../helpers/supervisor-client.js';

const clientKey = 'a-key-of-a-client';

describe('the routes of a model', () => {
  let url: string;
  let directUrl: string;

  beforeAll(async () => {
    const dir = await writeModels({
      talker: sayingItsName('talker'),
      embedder: { words: ['embed'], pooling: 'mean' },
      ranker: { words: ['rank'], pooling: 'rank' },
    });
    const presets = join(dir, 'presets.ini');
    const sections = [
      `[embedder]\nmodel = ${dir}/embedder.gguf\nembeddings = true`,
      `[ranker]\nmodel = ${dir}/ranker.gguf\nreranking = true`,
      `[talker]\nmodel = ${dir}/talker.gguf`,
    ];
    await writeFile(presets, `${sections.join('\n')}\n`);
    const [supervisor, direct] = await Promise.all([
      startRealSupervisor({ args: ['--models-preset', presets] }),
      startLlamaServer(join(dir, 'talker.gguf'), ['--alias', 'talker']),
    ]);
    ({ url } = supervisor);
    directUrl = direct;
  });

  it('/v1/embeddings answers a vector that tells how often each byte was there', async () => {
    const { status, json } = await post(url, '/v1/embeddings', { model: 'embedder', input: 'aba' });
    expect(status).toBe(200);
    const { data } = json as { data: [{ embedding: number[] }] };
    // The token of a byte comes after three special ones; <s>, the first of those, begins every text.
    const [a, b, begin] = [3 + 'a'.charCodeAt(0), 3 + 'b'.charCodeAt(0), 1];
    const { embedding } = data[0];
    const length = Math.sqrt(2 ** 2 + 1 ** 2 + 1 ** 2);
    expect(embedding[a]).toBeCloseTo(2 / length, 5);
    expect(embedding[b]).toBeCloseTo(1 / length, 5);
    expect(embedding[begin]).toBeCloseTo(1 / length, 5);
    expect(embedding.filter((value) => value !== 0)).toHaveLength(3);
  });

  it('/v1/rerank scores every document', async () => {
    const documents = ['one', 'another', 'a third'];
    const { json } = await post(url, '/v1/rerank', { model: 'ranker', query: 'which?', documents });
    const { results } = json as { results: { index: number; relevance_score: number }[] };
    expect(results.map(({ index }) => index).toSorted()).toEqual([0, 1, 2]);
    for (const { relevance_score: score } of results) expect(score).toBeCloseTo(1, 4);
  });

  it('/tokenize and /detokenize turn a text into its bytes and back', async () => {
    const { json } = await post(url, '/tokenize', { model: 'talker', content: 'Hé' });
    const tokens = [...Buffer.from('Hé')].map((byte) => 3 + byte);
    expect(json).toEqual({ tokens });
    const back = await post(url, '/detokenize', { model: 'talker', tokens });
    expect(back.json).toEqual({ content: 'Hé' });
  });

  it('/apply-template answers the prompt of a chat', async () => {
    const { json } = await post(url, '/apply-template', question('talker'));
    expect(json).toEqual({
      prompt: '<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n',
    });
  });

  it('/v1/messages answers as Anthropic does', async () => {
    const { status, json } = await post(url, '/v1/messages', { ...question('talker'), max_tokens: 100 });
    expect(status).toBe(200);
    expect(json).toMatchObject({
      type: 'message',
      role: 'assistant',
      model: 'talker',
      content: [{ type: 'text', text: nameAnswer('talker') }],
      stop_reason: 'end_turn',
    });
  });

  it('/v1/messages streams the events of Anthropic', async () => {
    const stream = streamEvents(url, '/v1/messages', { ...question('talker'), max_tokens: 100 });
    expect((await stream.ended()).complete).toBe(true);
    const events = stream.events().map((data) => JSON.parse(data) as { type: string; delta?: object });
    expect(events[0]?.type).toBe('message_start');
    expect(events.at(-1)?.type).toBe('message_stop');
    const texts = events.flatMap(({ delta }) => (delta && 'text' in delta ? [delta.text] : []));
    expect(texts.join('')).toBe(nameAnswer('talker'));
  });

  it('/v1/responses answers as OpenAI does', async () => {
    const { status, json } = await post(url, '/v1/responses', { model: 'talker', input: 'Who are you?' });
    expect(status).toBe(200);
    expect(json).toMatchObject({
      object: 'response',
      status: 'completed',
      output: [{ type: 'message', content: [{ type: 'output_text', text: nameAnswer('talker') }] }],
    });
  });

  it.each([
    ['/infill', { input_prefix: 'a', input_suffix: 'b' }, 501],
    ['/v1/embeddings', { input: 'text' }, 501],
    ['/v1/rerank', { query: 'q', documents: ['d'] }, 501],
    ['/v1/chat/completions', { messages: 'not a list' }, 400],
  ])('an error of the child, here of %s, passes through unchanged', async (path, body, status) => {
    const ours = await post(url, path, { model: 'talker', ...body });
    const direct = await post(directUrl, path, { model: 'talker', ...body });
    expect(direct.status).toBe(status);
    expect({ status: ours.status, text: ours.text }).toEqual({ status, text: direct.text });
    expect(ours.headers['content-type']).toBe(direct.headers['content-type']);
  });

  it('a body of 20 MB that names its model at the end is answered as by the child itself', async () => {
    // Quotes, escapes and characters of several bytes, so that pieces of the body are cut in every way.
    const content = '"ä🙂\\\n\u0001{[model]}" '.repeat(800_000);
    const body = { messages: [{ role: 'user', content }], model: 'talker' };
    expect(Buffer.byteLength(JSON.stringify(body))).toBeGreaterThan(20e6);
    const [ours, direct] = await Promise.all([
      post(url, '/apply-template', body),
      post(directUrl, '/apply-template', body),
    ]);
    expect(direct.status).toBe(200);
    expect(ours.status).toBe(200);
    // Compared without printing 20 MB when they differ.
    expect(ours.text === direct.text).toBe(true);
    const { prompt } = ours.json as { prompt: string };
    expect(prompt === `<|im_start|>user\n${content}<|im_end|>\n<|im_start|>assistant\n`).toBe(true);
  });
});

describe('going round the supervisor', () => {
  it('a child answers nobody who does not have the key of its run, the key of a client included', async () => {
    const dir = await writeModels({ guarded: counting(3) });
    // Both ways of giving a key by environment, which children would read for themselves.
    const file = join(dir, 'keys.txt');
    await writeFile(file, `${clientKey}\n`);
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir],
      env: { LLAMA_ARG_API_KEY_FILE: file, LLAMA_API_KEY: `${clientKey}-2` },
    });
    const key = { authorization: `Bearer ${clientKey}` };
    expect((await post(url, '/v1/chat/completions', question('guarded'))).status).toBe(401);
    expect((await post(url, '/v1/chat/completions', question('guarded'), key)).status).toBe(200);

    const list = (await get(url, '/models', key)).json as { data: { status: { args: string[] } }[] };
    const args = list.data[0]?.status.args ?? [];
    const child = `http://127.0.0.1:${args[args.indexOf('--port') + 1] ?? ''}`;
    expect((await get(child, '/health')).status).toBe(200);
    for (const headers of [{}, key, { authorization: 'Bearer ' }]) {
      expect((await post(child, '/v1/chat/completions', question('guarded'), headers)).status).toBe(401);
      expect((await get(child, '/slots', headers)).status).toBe(401);
      expect((await get(child, '/metrics', headers)).status).toBe(401);
    }
  });
});
