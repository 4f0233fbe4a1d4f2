import { spawnSync } from 'node:child_process';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import type { SupervisorProcess } from '../helpers/supervisor-process.js';
import { chat, listModels, post } from '../helpers/supervisor-client.js';

const hasCurl = spawnSync('curl', ['--version'], { stdio: 'ignore' }).status === 0;

describe('start --demo', () => {
  let supervisor: SupervisorProcess;

  beforeAll(async () => {
    supervisor = await startRealSupervisor({ args: ['--demo'] });
  });

  it('serves three models', async () => {
    const ids = (await listModels(supervisor.url)).map(({ id }) => id);
    expect(ids).toEqual(['demo-counter', 'demo-embeddings', 'demo-hello']);
    expect(await chat(supervisor.url, 'demo-hello')).toContain('I am demo-hello');
    expect(await chat(supervisor.url, 'demo-counter', { max_tokens: 4 })).toBe('1 2 3 4');
  });

  it('one of which makes embeddings', async () => {
    const body = { model: 'demo-embeddings', input: ['one text', 'another text'] };
    const { status, json } = await post(supervisor.url, '/v1/embeddings', body);
    expect(status).toBe(200);
    const [one, another] = (json as { data: { embedding: number[] }[] }).data;
    // Vectors of length 1, of different texts different.
    for (const vector of [one, another]) {
      expect(vector?.embedding.reduce((sum, value) => sum + value * value, 0)).toBeCloseTo(1, 3);
    }
    expect(one?.embedding).not.toEqual(another?.embedding);
  });

  // The lines are for a person with a shell; without curl there is nothing to paste them into.
  it.skipIf(!hasCurl)('prints two lines that work when pasted into a shell', async () => {
    const lines = await eventually('the lines are printed', () => {
      const printed = supervisor
        .output()
        .split('\n')
        .map((line) => line.trim())
        .filter((line) => line.startsWith('curl '));
      return printed.length >= 2 && printed;
    });
    expect(lines).toHaveLength(2);
    const [models, answer] = lines.map((line) => {
      const { status, stdout } = spawnSync('sh', ['-c', line], { encoding: 'utf8', timeout: 20_000 });
      expect({ line, status }).toEqual({ line, status: 0 });
      return JSON.parse(stdout) as unknown;
    });
    expect(models).toMatchObject({ object: 'list', data: [{}, {}, { id: 'demo-hello' }] });
    const { choices } = answer as { choices: [{ message: { content: string } }] };
    expect(choices[0].message.content).toContain('I am demo-hello');
  });
});
