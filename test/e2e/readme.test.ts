/** What the README tells a person to type, typed. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { knownAnswerModel } from '../../src/demo/known-answer-model.js';
import { atEndOfTest } from '../helpers/cleanup.js';
import { hasCurl, runCurl } from '../helpers/curl.js';
import { eventually } from '../helpers/eventually.js';
import { sayingItsName } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { startStandInHub } from '../helpers/stand-in-hub.js';
import { listModels, untilStatus } from '../helpers/supervisor-client.js';

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const lines = readme.split('\n').filter((line) => line.startsWith('curl '));

/** The only line of the README with these words in it, for a supervisor that listens elsewhere. */
function lineWith(words: string, url: string): string {
  const found = lines.filter((line) => line.includes(words));
  expect(found, words).toHaveLength(1);
  return (found[0] ?? '').replace('http://127.0.0.1:8080', url);
}

describe.skipIf(!hasCurl)('the curl lines of the README (skipped without a curl in the PATH)', () => {
  const downloaded = 'ggml-org/gemma-3-4b-it-GGUF:Q4_K_M';
  let url: string;

  beforeAll(async () => {
    const hub = await startStandInHub();
    hub.publish('ggml-org/gemma-3-4b-it-GGUF', {
      'gemma-3-4b-it-Q4_K_M.gguf': knownAnswerModel({ name: 'gemma', ...sayingItsName('gemma') }),
    });
    ({ url } = await startRealSupervisor({ args: ['--demo'], env: { HF_ENDPOINT: hub.endpoint } }));
  });

  async function typed(words: string): Promise<unknown> {
    const { status, json } = await runCurl(lineWith(words, url));
    expect({ words, status }).toEqual({ words, status: 200 });
    return json;
  }

  it('are all tried here', () => {
    const tried = ['/v1/models', '/v1/chat/', '/load', '/unload', '8080/models -d', 'DELETE', '/sse'];
    expect(tried.map((words) => lineWith(words, ''))).toHaveLength(lines.length);
  });

  it('list the models and chat with one', async () => {
    expect(await typed('/v1/models')).toMatchObject({ object: 'list' });
    const answer = (await typed('/v1/chat/')) as { choices: [{ message: { content: string } }] };
    expect(answer.choices[0].message.content).toContain('I am demo-hello');
  });

  it('load, unload, download and delete models, while the last of them tells of it', async () => {
    const listener = spawn('/bin/sh', ['-c', `exec ${lineWith('/sse', url)}`], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    atEndOfTest(() => void listener.kill('SIGKILL'));
    let told = '';
    listener.stdout.setEncoding('utf8').on('data', (text: string) => (told += text));
    const untilTold = (...parts: string[]) =>
      eventually(`it tells of ${parts.join(', ')}`, () =>
        told.split('\n').some((line) => parts.every((part) => line.includes(part))),
      );

    // Nobody says when it has begun to listen: the load is asked for until it is told.
    await eventually('a load is told', async () => {
      if ((await listModels(url)).find(({ id }) => id === 'demo-counter')?.status.value === 'unloaded') {
        expect(await typed('/load')).toEqual({ success: true });
      }
      await untilStatus(url, 'demo-counter', 'loaded');
      expect(await typed('/unload')).toEqual({ success: true });
      await untilStatus(url, 'demo-counter', 'unloaded');
      return told.includes('"status":"loaded"');
    });
    await untilTold('demo-counter', '"status":"unloaded"', '"reason":"unloaded"');

    expect(await typed('8080/models -d')).toEqual({ success: true });
    await untilTold('gemma', 'download_finished');
    expect((await listModels(url)).map(({ id }) => id)).toContain(downloaded);
    const freed = expect.any(Number) as number;
    expect(await typed('DELETE')).toMatchObject({ success: true, freed_bytes: freed });
    await untilTold('gemma', 'model_remove');
    expect((await listModels(url)).map(({ id }) => id)).not.toContain(downloaded);
  });
});
