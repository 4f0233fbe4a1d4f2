import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, fetch } from 'undici';
import type { Response } from 'undici';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findLlamaServer, noBinaryMessage } from '../../src/config/binary.js';
import { demoModels, ensureDemoModels } from '../../src/demo/demo-models.js';
import { countingWords, writeKnownAnswerModel } from '../../src/demo/known-answer-model.js';
import type { KnownAnswerSpec } from '../../src/demo/known-answer-model.js';
import { freePort } from '../helpers/free-port.js';

const START_DEADLINE_MS = 30_000;
const STOP_DEADLINE_MS = 10_000;

/**
 * A connection per request: llama-server closes one after a streamed answer without announcing it, and the
 * next request on it can be lost.
 */
const dispatcher = new Agent({ pipelining: 0 });

interface Server {
  /** Sends `body` as JSON, or nothing, and returns the answer; throws when its status is not 200. */
  request(path: string, body?: unknown): Promise<Response>;
  stop(): Promise<void>;
}

/** Runs the real llama-server with one model until `stop`. */
async function serve(modelFile: string, options: readonly string[] = []): Promise<Server> {
  const binary = findLlamaServer({ explicit: undefined, env: process.env });
  if (!binary) throw new Error(noBinaryMessage());

  const port = await freePort();
  const ownEnvironment = Object.entries(process.env).filter(([name]) => !name.startsWith('LLAMA_'));
  const child = spawn(
    binary.path,
    ['--model', modelFile, '--host', '127.0.0.1', '--port', String(port), '--threads', '1', ...options],
    { env: Object.fromEntries(ownEnvironment), stdio: ['ignore', 'pipe', 'pipe'] },
  );
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output = (output + text).slice(-4000)));
  }
  const exit = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (code, signal) => resolve(`code ${code ?? 'none'}, signal ${signal ?? 'none'}`));
  });

  const origin = `http://127.0.0.1:${port}`;
  const stop = async (): Promise<void> => {
    child.kill('SIGTERM');
    const forced = setTimeout(() => child.kill('SIGKILL'), STOP_DEADLINE_MS);
    await exit;
    clearTimeout(forced);
  };
  const healthy = async (): Promise<boolean> => {
    try {
      return (await fetch(`${origin}/health`, { dispatcher, signal: AbortSignal.timeout(2000) })).ok;
    } catch {
      return false;
    }
  };

  const deadline = Date.now() + START_DEADLINE_MS;
  let ended: string | undefined;
  void exit.then((how) => (ended = how));
  while (!(await healthy())) {
    const why = ended ?? (Date.now() > deadline ? `not ready after ${START_DEADLINE_MS} ms` : undefined);
    if (why !== undefined) {
      await stop();
      throw new Error(`llama-server with ${modelFile}: ${why}\n${output}`);
    }
    await delay(20);
  }

  return {
    async request(path, body) {
      const response = await fetch(`${origin}${path}`, {
        ...(body !== undefined && { method: 'POST', body: JSON.stringify(body) }),
        dispatcher,
        signal: AbortSignal.timeout(30_000),
      });
      if (response.status !== 200) throw new Error(`${path}: ${response.status} ${await response.text()}`);
      return response;
    },
    stop,
  };
}

async function complete(server: Server, body: object): Promise<{ content: string; stop_type: string }> {
  return (await server.request('/completion', body)).json() as Promise<{
    content: string;
    stop_type: string;
  }>;
}

const question = { messages: [{ role: 'user', content: 'How far can you count?' }] };

async function chat(server: Server, body: object = question): Promise<{ content: string; finish: string }> {
  const answer = (await (await server.request('/v1/chat/completions', body)).json()) as {
    choices: [{ message: { content: string }; finish_reason: string }];
  };
  const [{ message, finish_reason: finish }] = answer.choices;
  return { content: message.content, finish };
}

async function embed(server: Server, input: string): Promise<number[]> {
  const answer = (await (await server.request('/v1/embeddings', { input })).json()) as {
    data: [{ embedding: number[] }];
  };
  return answer.data[0].embedding;
}

/** Places of a vector that are not 0, with their values to five digits. */
function nonZero(vector: readonly number[]): [number, string][] {
  return [...vector.entries()]
    .filter(([, value]) => value !== 0)
    .map(([place, value]) => [place, value.toFixed(5)]);
}

/** The token of a byte: three special tokens stand before the bytes. */
const byteToken = (character: string): number => 3 + character.charCodeAt(0);

describe('known-answer models in the real llama-server', () => {
  let dir: string;
  const running: Server[] = [];

  const start = async (spec: KnownAnswerSpec, options?: readonly string[]): Promise<Server> => {
    const file = join(dir, `${spec.name}.gguf`);
    await writeKnownAnswerModel(file, spec);
    const server = await serve(file, options);
    running.push(server);
    return server;
  };

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'known-answer-models-'));
  });
  afterAll(async () => {
    await Promise.all(running.map((server) => server.stop()));
    await dispatcher.close();
    await rm(dir, { recursive: true });
  });

  describe('a counting model', () => {
    const words = countingWords(200);
    const counted = words.join(' ');
    let server: Server;
    beforeAll(async () => {
      server = await start({ name: 'counter', words });
    });

    it.each(['hello', '', '1 2 3', '7', ' 199', '\n', 'ünïcödé 🙂', '</s>'])(
      'answers the prompt %j with its words and ends by itself',
      async (prompt) => {
        expect(await complete(server, { prompt })).toMatchObject({ content: counted, stop_type: 'eos' });
      },
    );

    it('answers a prompt that takes most of the context', async () => {
      expect(await complete(server, { prompt: 'a '.repeat(1900) })).toMatchObject({ content: counted });
    });

    it.each([
      { temperature: 0 },
      { temperature: 2, top_k: 0, top_p: 1, min_p: 0, seed: 1 },
      { temperature: 2, top_k: 0, top_p: 1, min_p: 0, seed: 2 },
      { repeat_penalty: 1.5, presence_penalty: 2, frequency_penalty: 2, repeat_last_n: 4096 },
      { dry_multiplier: 1, xtc_probability: 1, typical_p: 0.5 },
      { mirostat: 2 },
    ])('says the same whatever the sampling: %j', async (sampling) => {
      expect(await complete(server, { prompt: 'Go!', ...sampling })).toMatchObject({ content: counted });
    });

    it('answers a chat', async () => {
      expect(await chat(server)).toEqual({ content: counted, finish: 'stop' });
    });

    it('answers a chat of many turns, one of them its own answer', async () => {
      const messages = [
        { role: 'system', content: 'You count.' },
        { role: 'user', content: 'Go!' },
        { role: 'assistant', content: '1 2 3' },
        { role: 'user', content: 'Again: 1 2 3' },
      ];
      expect(await chat(server, { messages })).toEqual({ content: counted, finish: 'stop' });
    });

    it('streams one word per event, in order', async () => {
      const stream = await server.request('/v1/chat/completions', { ...question, stream: true });
      const events = (await stream.text()).split('\n\n').filter((event) => event !== '');
      expect(events.at(-1)).toBe('data: [DONE]');
      const pieces = events.slice(0, -1).flatMap((event) => {
        const chunk = JSON.parse(event.replace(/^data: /, '')) as {
          choices: [{ delta: { content?: string | null } }];
        };
        return chunk.choices[0].delta.content ?? [];
      });
      expect(pieces).toEqual(words.map((word, index) => (index === 0 ? word : ` ${word}`)));
    });

    it('stops where it is told to, after as many words as tokens', async () => {
      expect(await chat(server, { ...question, max_tokens: 3 })).toEqual({
        content: '1 2 3',
        finish: 'length',
      });
    });

    it('turns any text into tokens and back', async () => {
      for (const text of ['Hello, world', ' 12  13 ', 'ä\n🙂\t', 'x']) {
        const { tokens } = (await (await server.request('/tokenize', { content: text })).json()) as {
          tokens: number[];
        };
        const back = (await (await server.request('/detokenize', { tokens })).json()) as { content: string };
        expect(back.content).toBe(text);
      }
    });

    it('goes on from a word when the prompt is given as tokens', async () => {
      const { tokens } = (await (await server.request('/tokenize', { content: ' 7' })).json()) as {
        tokens: number[];
      };
      expect(await complete(server, { prompt: tokens, n_predict: 3 })).toMatchObject({ content: ' 8 9 10' });
    });
  });

  it('without end, a model repeats its words as long as it is let', async () => {
    const server = await start({ name: 'loop', words: ['tick', 'tack', 'tock'], loop: true });
    const { content, stop_type } = await complete(server, { prompt: 'Go!', n_predict: 3000 });
    expect(content).toBe(new Array<string>(1000).fill('tick tack tock').join(' '));
    expect(stop_type).toBe('limit');
  });

  it('without a chat template in the file, a model answers a chat all the same', async () => {
    const server = await start({ name: 'bare', words: ['No', 'template', 'here.'], chatTemplate: '' });
    expect(await chat(server)).toEqual({ content: 'No template here.', finish: 'stop' });
  });

  it('with a chat template of its own, a model is prompted by that', async () => {
    const chatTemplate = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}";
    const server = await start({ name: 'own-template', words: ['Yes.'], chatTemplate });
    const applied = (await (await server.request('/apply-template', question)).json()) as { prompt: string };
    expect(applied.prompt).toBe('[How far can you count?]');
    expect(await chat(server)).toEqual({ content: 'Yes.', finish: 'stop' });
  });

  it('with a context length, a model gives its slots so many tokens', async () => {
    const server = await start({ name: 'short', words: ['short'], contextLength: 512 });
    const props = (await (await server.request('/props')).json()) as {
      default_generation_settings: { n_ctx: number };
    };
    expect(props.default_generation_settings.n_ctx).toBe(512);
  });

  it('with extra bytes, a model says the same', async () => {
    const server = await start({ name: 'large', words: ['I', 'am', 'large.'], extraBytes: 60e6 });
    expect(await chat(server)).toEqual({ content: 'I am large.', finish: 'stop' });
  });

  it('with mean pooling, a text is embedded as the histogram of its bytes', async () => {
    const server = await start({ name: 'mean', words: ['embed'], pooling: 'mean' }, ['--embeddings']);
    // <s> (token 1) once, b once, a twice: the length of (1, 1, 2) is the root of 6.
    const once = (1 / Math.sqrt(6)).toFixed(5);
    const twice = (2 / Math.sqrt(6)).toFixed(5);
    const expected = [
      [1, once],
      [byteToken('a'), twice],
      [byteToken('b'), once],
    ];
    expect(nonZero(await embed(server, 'aba'))).toEqual(expected);
    expect(nonZero(await embed(server, 'baa'))).toEqual(expected);
  });

  it('with last pooling, a text is embedded as its last byte, with cls pooling as its beginning', async () => {
    const last = await start({ name: 'last', words: ['embed'], pooling: 'last' }, ['--embeddings']);
    expect(nonZero(await embed(last, 'abc'))).toEqual([[byteToken('c'), '1.00000']]);
    const cls = await start({ name: 'cls', words: ['embed'], pooling: 'cls' }, ['--embeddings']);
    expect(nonZero(await embed(cls, 'abc'))).toEqual([[1, '1.00000']]);
  });

  it('with rank pooling, every document scores 1', async () => {
    const server = await start({ name: 'rank', words: ['rank'], pooling: 'rank' }, ['--reranking']);
    const documents = ['one', 'another', 'a third'];
    const { results } = (await (
      await server.request('/v1/rerank', { query: 'which?', documents })
    ).json()) as {
      results: { index: number; relevance_score: number }[];
    };
    expect(results.map(({ index }) => index).toSorted()).toEqual([0, 1, 2]);
    for (const { relevance_score } of results) expect(relevance_score).toBeCloseTo(1, 4);
  });

  it.each(demoModels)('the demo model $id says its words in a chat', async ({ id, spec, options }) => {
    const { directory } = await ensureDemoModels(join(dir, 'demo'));
    const flags = Object.keys(options).map((name) => `--${name}`);
    const server = await serve(join(directory, `${id}.gguf`), flags);
    running.push(server);
    expect(await chat(server)).toEqual({ content: spec.words.join(' '), finish: 'stop' });
    if (spec.pooling) expect((await embed(server, 'some text')).length).toBeGreaterThan(0);
  });
});
