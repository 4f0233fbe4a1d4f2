import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { nameAnswer, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, errorIn, modelEntry, post, question, streamChat } from '../helpers/supervisor-client.js';

/** The model with another architecture's name, which no llama-server knows; its file is as good as any. */
function ofUnknownArchitecture(model: Buffer): Buffer {
  const changed = Buffer.from(model);
  const name = changed.indexOf('llama', changed.indexOf('general.architecture'));
  changed.write('llamb', name);
  return changed;
}

describe('broken files among good ones', () => {
  let url: string;

  beforeAll(async () => {
    const good = ['good-1', 'good-2', 'good-3'].map((name) => [name, sayingItsName(name)] as const);
    const dir = await writeModels({ ...Object.fromEntries(good), whole: sayingItsName('whole') });
    const whole = await readFile(join(dir, 'whole.gguf'));
    await writeFile(join(dir, 'foreign.gguf'), ofUnknownArchitecture(whole));
    await writeFile(join(dir, 'junk.gguf'), 'This was never a model.');
    const { url: at } = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '2'] });
    url = at;
  });

  it('what is no GGUF file is listed as failed from the start, and refused with the reason', async () => {
    const { status } = await modelEntry(url, 'junk');
    expect(status).toMatchObject({ value: 'unloaded', failed: true });
    expect(status.error?.message).toContain('is not a GGUF file');

    const answer = await post(url, '/v1/chat/completions', question('junk'));
    expect(answer.status).toBe(503);
    const error = errorIn(answer.text);
    expect(error).toMatchObject({ code: 503, reason: 'model_invalid', model: 'junk' });
    expect(error.message).toContain('is not a GGUF file');
  });

  it('what only its child finds out is a 503 with the last words of the child, in the list too', async () => {
    const answer = await post(url, '/v1/chat/completions', question('foreign'));
    expect(answer.status).toBe(503);
    expect(Number(answer.headers['retry-after'])).toBeGreaterThan(0);
    const error = errorIn(answer.text);
    expect(error.reason).toBe('load_failed');
    expect(error.message).toContain('foreign');
    expect(error.last_lines?.join('\n')).toContain('failed to load model');

    const { status } = await modelEntry(url, 'foreign');
    expect(status).toMatchObject({ value: 'unloaded', failed: true, exit_code: 1 });
    expect(status.error?.reason).toBe('load_failed');
    expect(status.error?.last_lines?.join('\n')).toContain('failed to load model');
  });

  it('the good ones are served', async () => {
    for (const name of ['good-1', 'good-2', 'good-3']) expect(await chat(url, name)).toBe(nameAnswer(name));
  });

  // The native router stops loading anything when clients keep coming for a model that fails to load.
  it('16 clients that keep asking for a broken one do not hold up the others', async () => {
    let stop = false;
    const clients = Array.from({ length: 16 }, async (_, at) => {
      const statuses: number[] = [];
      while (!stop) {
        if (at % 2 === 0) {
          statuses.push((await post(url, '/v1/chat/completions', question('foreign'))).status);
        } else {
          statuses.push((await streamChat(url, 'foreign').ended()).status);
        }
      }
      return statuses;
    });

    // More models than slots: each of these needs a load, in turn with those that fail.
    for (const name of ['good-1', 'good-2', 'good-3', 'whole', 'good-1', 'good-2']) {
      expect(await chat(url, name)).toBe(nameAnswer(name));
    }
    stop = true;
    const statuses = (await Promise.all(clients)).flat();
    expect(statuses.length).toBeGreaterThanOrEqual(16);
    expect(new Set(statuses)).toEqual(new Set([503]));
    expect(await modelEntry(url, 'foreign')).toMatchObject({ waiting: 0, status: { failed: true } });
  });
});
