import { existsSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { hasCurl, runCurl, type CurlAnswer } from '../helpers/curl.js';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startLlamaServer, startRealSupervisor } from '../helpers/real-llama-server.js';
import { callingTool } from '../helpers/tool-calling-model.js';
import { OracleHome, startNative } from './native-oracle.js';

/** The pages of llama.cpp that show curl lines for its server's routes. */
const serverReadme = 'tools/server/README.md';
const functionCalling = 'docs/function-calling.md';

interface UpstreamLine {
  readonly page: string;
  readonly route: string;
  /** The model of ours that takes the place of the one in the line. */
  readonly model: string;
  /** As on the page, its texts shortened. */
  readonly line: string;
  /** What is particular about the answer; all of it is compared with the native router's. */
  readonly answer: object;
}

const saysItsName = { role: 'assistant', content: nameAnswer('talker') };

/** Every curl line of those pages. What follows a `|` there is left out. */
const lines: UpstreamLine[] = [
  {
    page: serverReadme,
    route: '/completion',
    model: 'talker',
    line: String.raw`curl --request POST \
    --url http://localhost:8080/completion \
    --header "Content-Type: application/json" \
    --data '{"prompt": "Ten steps:","n_predict": 128}'`,
    answer: { content: nameAnswer('talker') },
  },
  {
    page: serverReadme,
    route: '/v1/rerank',
    model: 'ranker',
    line: String.raw`curl http://127.0.0.1:8012/v1/rerank \
    -H "Content-Type: application/json" \
    -d '{
        "model": "some-model",
            "query": "What is it?",
            "top_n": 3,
            "documents": [
                "hi",
            "an animal",
            "A longer text about it (with its Latin name), and where it lives."
            ]
    }'`,
    answer: { results: [{}, {}, {}] },
  },
  {
    page: serverReadme,
    route: '/v1/chat/completions',
    model: 'talker',
    line: String.raw`curl http://localhost:8080/v1/chat/completions \
-H "Content-Type: application/json" \
-H "Authorization: Bearer no-key" \
-d '{
"model": "gpt-3.5-turbo",
"messages": [
{
    "role": "system",
    "content": "You are an assistant."
},
{
    "role": "user",
    "content": "Write a limerick"
}
]
}'`,
    answer: { choices: [{ message: saysItsName }] },
  },
  {
    page: serverReadme,
    route: '/v1/responses',
    model: 'talker',
    line: String.raw`curl http://localhost:8080/v1/responses \
-H "Content-Type: application/json" \
-H "Authorization: Bearer no-key" \
-d '{
"model": "gpt-4.1",
"instructions": "You are an assistant.",
"input": "Write a limerick"
}'`,
    answer: { output: [{ content: [{ text: nameAnswer('talker') }] }] },
  },
  {
    page: serverReadme,
    route: '/v1/embeddings',
    model: 'embedder',
    line: String.raw`  curl http://localhost:8080/v1/embeddings \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer no-key" \
  -d '{
          "input": "hello",
          "model":"GPT-4",
          "encoding_format": "float"
  }'`,
    answer: { data: [{ index: 0 }] },
  },
  {
    page: serverReadme,
    route: '/v1/embeddings',
    model: 'embedder',
    line: String.raw`  curl http://localhost:8080/v1/embeddings \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer no-key" \
  -d '{
          "input": ["hello", "world"],
          "model":"GPT-4",
          "encoding_format": "float"
  }'`,
    answer: { data: [{ index: 0 }, { index: 1 }] },
  },
  {
    page: serverReadme,
    route: '/v1/messages',
    model: 'talker',
    line: String.raw`curl http://localhost:8080/v1/messages \
  -H "Content-Type: application/json" \
  -H "x-api-key: your-api-key" \
  -d '{
    "model": "gpt-4",
    "max_tokens": 1024,
    "system": "You are helpful.",
    "messages": [
      {"role": "user", "content": "Hello!"}
    ]
  }'`,
    answer: { content: [{ type: 'text', text: nameAnswer('talker') }] },
  },
  {
    page: serverReadme,
    route: '/v1/messages/count_tokens',
    model: 'talker',
    line: String.raw`curl http://localhost:8080/v1/messages/count_tokens \
  -H "Content-Type: application/json" \
  -d '{
    "model": "gpt-4",
    "messages": [
      {"role": "user", "content": "Hello!"}
    ]
  }'`,
    // <s> and </s>, and a token for each byte between them.
    answer: { input_tokens: '<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n'.length + 2 },
  },
  // These two say nothing of their content type, which makes curl call them forms.
  {
    page: functionCalling,
    route: '/v1/chat/completions',
    model: 'python',
    line: String.raw`curl http://localhost:8080/v1/chat/completions -d '{
    "model": "gpt-3.5-turbo",
    "tools": [
        {
        "type":"function",
        "function":{
            "name":"python",
            "description":"Runs code & returns what it says after 60 seconds.",
            "parameters":{
            "type":"object",
            "properties":{
                "code":{
                "type":"string",
                "description":"The code to run."
                }
            },
            "required":["code"]
            }
        }
        }
    ],
    "messages": [
        {
        "role": "user",
        "content": "Print something with python."
        }
    ]
}'`,
    answer: {
      choices: [
        { message: { tool_calls: [{ function: { name: 'python', arguments: '{"code": "print()"}' } }] } },
      ],
    },
  },
  {
    page: functionCalling,
    route: '/v1/chat/completions',
    model: 'weather',
    line: String.raw`curl http://localhost:8080/v1/chat/completions -d '{
    "model": "gpt-3.5-turbo",
    "messages": [
        {"role": "system", "content": "You are a bot that uses tools/functions."},
        {"role": "user", "content": "What is the weather in Istanbul?"}
    ],
    "tools": [{
        "type":"function",
        "function":{
            "name":"get_current_weather",
            "description":"Get the current weather",
            "parameters":{
                "type":"object",
                "properties":{
                    "location":{
                        "type":"string",
                        "description":"The city, e.g. ${'`Paris, France`'}"
                    }
                },
                "required":["location"]
            }
        }
    }]
}'`,
    answer: {
      choices: [
        {
          message: {
            tool_calls: [
              { function: { name: 'get_current_weather', arguments: '{"location": "Istanbul"}' } },
            ],
          },
        },
      ],
    },
  },
];

const named = lines.map((upstream, at) => ({ ...upstream, name: `${upstream.route} (${at + 1})` }));

/** The line as it is run against a server: only its host is another. */
function at(url: string, line: string): string {
  return line.replace(/http:\/\/(localhost|127\.0\.0\.1):\d+/, url);
}

/** The line with a model that there is, in place of the one it names or besides what it says. */
function naming(model: string, line: string): string {
  const renamed = line.replace(/("model": ?)"[^"]*"/, `$1"${model}"`);
  return renamed === line ? line.replace('{', `{"model": "${model}", `) : renamed;
}

/** Names and times are given anew to each answer. */
const passing = new Set(['id', 'call_id', 'created', 'created_at', 'completed_at', 'timings']);

function lasting({ json, ...head }: CurlAnswer): CurlAnswer {
  const text = JSON.stringify(json, (key, value: unknown) => (passing.has(key) ? typeof value : value));
  return { ...head, json: JSON.parse(text) };
}

describe.skipIf(!hasCurl)(
  'the curl lines of the pages of llama.cpp (skipped without a curl in the PATH)',
  () => {
    let directory: string;
    let ours: string;
    let native: string;

    beforeAll(async () => {
      directory = await writeModels({
        talker: sayingItsName('talker'),
        embedder: { words: ['embed'], pooling: 'mean' },
        ranker: { words: ['rank'], pooling: 'rank' },
        python: callingTool({ name: 'python', argument: 'code', value: 'print()' }),
        weather: callingTool({ name: 'get_current_weather', argument: 'location', value: 'Istanbul' }),
      });
      const presets = join(directory, 'presets.ini');
      await writeFile(presets, '[embedder]\nembeddings = true\n[ranker]\nreranking = true\n');
      const args = ['--models-dir', directory, '--models-preset', presets, '--models-max', '8'];
      const [supervisor, router] = await Promise.all([
        startRealSupervisor({ args }),
        startNative(new OracleHome(), { args: [...args, '--threads', '1'] }),
      ]);
      ours = supervisor.url;
      native = router.url;
    });

    it.each(named)('$name is answered as by the native router', async ({ line, model, answer }) => {
      const ourAnswer = await runCurl(at(ours, naming(model, line)));
      const itsAnswer = await runCurl(at(native, naming(model, line)));
      expect(itsAnswer).toMatchObject({ status: 200, json: answer });
      expect(lasting(ourAnswer)).toEqual(lasting(itsAnswer));
    });

    it.each(named)('$name as it stands there is refused as by the native router', async ({ line }) => {
      const ourAnswer = await runCurl(at(ours, line));
      const itsAnswer = await runCurl(at(native, line));
      expect(itsAnswer.status).toBe(400);
      // Ours says more: why, for programs.
      expect(ourAnswer).toMatchObject(itsAnswer);
    });

    it('one that names no model is answered with --default-model as by a server of that one model', async () => {
      const [first] = lines.filter(({ line }) => !line.includes('"model"'));
      if (first === undefined) throw new Error('all lines name a model');
      const [supervisor, single] = await Promise.all([
        startRealSupervisor({ args: ['--models-dir', directory, '--default-model', first.model] }),
        startLlamaServer(join(directory, `${first.model}.gguf`), ['--alias', first.model]),
      ]);
      const itsAnswer = await runCurl(at(single, first.line));
      expect(itsAnswer).toMatchObject({ status: 200, json: first.answer });
      expect(lasting(await runCurl(at(supervisor.url, first.line)))).toEqual(lasting(itsAnswer));
    });
  },
);

const source = fileURLToPath(new URL('../../vendor/llama.cpp', import.meta.url));

describe.skipIf(!existsSync(join(source, serverReadme)))(
  'the table of curl lines (skipped without the source of llama.cpp in vendor/)',
  () => {
    it.each([serverReadme, functionCalling])('has the routes of all those on %s', (page) => {
      const text = readFileSync(join(source, page), 'utf8');
      const routes = Array.from(
        text.matchAll(/^ *curl [^']*http:\/\/(?:localhost|127\.0\.0\.1):\d+(\/[^ \n]*)/gm),
        ([, route]) => route,
      );
      expect(lines.filter((line) => line.page === page).map(({ route }) => route)).toEqual(routes);
    });
  },
);
