import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { counting, endless, piecesOf, writeModels } from '../helpers/known-answer-models.js';
import { canListProcesses } from '../helpers/processes.js';
import { childrenOf, startRealSupervisor } from '../helpers/real-llama-server.js';
import type { SupervisorProcess } from '../helpers/supervisor-process.js';
import { modelEntry, question, streamChat, streamEvents } from '../helpers/supervisor-client.js';

describe('200 counted words', () => {
  const counter = counting(200);
  let url: string;

  beforeAll(async () => {
    const dir = await writeModels({ counter });
    url = (await startRealSupervisor({ args: ['--models-dir', dir] })).url;
  });

  it('of a chat arrive one by one, each once and in order, and [DONE] is the last event', async () => {
    const stream = streamEvents(url, '/v1/chat/completions', question('counter'));
    const { status, headers, complete } = await stream.ended();
    expect(status).toBe(200);
    expect(headers['content-type']).toMatch(/^text\/event-stream/);
    expect(headers['x-accel-buffering']).toBe('no');
    expect(complete).toBe(true);
    expect(stream.pieces()).toEqual(piecesOf(counter));
    // The role comes before the words, the reason for the end after them.
    const [first, ...others] = stream.events();
    expect(JSON.parse(first ?? '')).toMatchObject({ choices: [{ delta: { role: 'assistant' } }] });
    expect(others).toHaveLength(202);
    expect(JSON.parse(others.at(-2) ?? '')).toMatchObject({ choices: [{ finish_reason: 'stop' }] });
    expect(others.at(-1)).toBe('[DONE]');
  });

  it('of an OpenAI completion arrive the same way', async () => {
    const body = { model: 'counter', prompt: 'Count!' };
    const stream = streamEvents(url, '/v1/completions', body);
    const { status, complete } = await stream.ended();
    expect({ status, complete }).toEqual({ status: 200, complete: true });
    const events = stream.events();
    const words = events.slice(0, -1).map((data) => {
      const { choices } = JSON.parse(data) as { choices: [{ text: string }] };
      return choices[0].text;
    });
    expect(words.filter((word) => word !== '')).toEqual(piecesOf(counter));
    expect(events.at(-1)).toBe('[DONE]');
  });

  it('of a native completion arrive the same way, with its own last event', async () => {
    const stream = streamEvents(url, '/completion', { model: 'counter', prompt: 'Count!' });
    const { status, complete } = await stream.ended();
    expect({ status, complete }).toEqual({ status: 200, complete: true });
    expect(stream.pieces()).toEqual(piecesOf(counter));
    expect(JSON.parse(stream.events().at(-1) ?? '')).toMatchObject({ stop: true, tokens_predicted: 201 });
  });
});

describe('two models that take turns in one slot', () => {
  const models = { even: counting(200, 'e'), odd: counting(200, 'o') };

  it('50 streams at once are each whole and from the right model, and only one llama-server ever runs', async () => {
    const dir = await writeModels({ ...models, gate: endless() });
    const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    const mostChildren = countChildren(supervisor);
    const names = Array.from({ length: 50 }, (_, at) => (at % 2 === 0 ? 'even' : 'odd'));

    // The slot is taken until all are there: a late one could otherwise find its model's turn over, and need another.
    const gate = streamChat(supervisor.url, 'gate');
    await gate.untilPieces(1);
    const streams = names.map((name) => streamChat(supervisor.url, name));
    for (const name of ['even', 'odd']) {
      await eventually(`25 requests wait for ${name}`, async () => {
        return (await modelEntry(supervisor.url, name)).waiting === 25;
      });
    }
    gate.abort();
    await Promise.all(streams.map((stream) => stream.ended()));

    const ends = streams.map((stream) => [stream.pieces().join(''), stream.events().at(-1)]);
    expect(ends).toEqual(names.map((name) => [models[name].words.join(' '), '[DONE]']));
    if (canListProcesses) expect(mostChildren()).toBe(1);
    // One turn each: requests for a model that waits share one place in the queue.
    const turns = supervisor.log().filter(({ msg }) => msg === 'model.loading');
    expect(turns.map(({ model }) => model).toSorted()).toEqual(['even', 'gate', 'odd']);
  });

  it('streams are whole however often the models change places', async () => {
    const dir = await writeModels(models);
    const supervisor = await startRealSupervisor({ args: ['--models-dir', dir, '--models-max', '1'] });
    const mostChildren = countChildren(supervisor);

    // Two clients that never agree on a model: every answer of one makes the other's next request wait for a load.
    const client = async (order: (keyof typeof models)[]): Promise<void> => {
      for (const name of order) {
        const stream = streamChat(supervisor.url, name);
        const { status, complete } = await stream.ended();
        expect({ status, complete }).toEqual({ status: 200, complete: true });
        expect(stream.pieces()).toEqual(piecesOf(models[name]));
      }
    };
    await Promise.all([
      client(['even', 'odd', 'even', 'odd', 'even']),
      client(['odd', 'even', 'odd', 'even', 'odd']),
    ]);
    if (canListProcesses) expect(mostChildren()).toBe(1);
  });
});

/** Looks for the supervisor's children again and again until the end of the test. Gives the most seen at once. */
function countChildren(supervisor: SupervisorProcess): () => number {
  let most = 0;
  let watching = true;
  const watch = async (): Promise<void> => {
    while (watching) {
      most = Math.max(most, childrenOf(supervisor).length);
      await delay(25);
    }
  };
  const watched = watch();
  atEndOfTest(async () => {
    watching = false;
    await watched;
  });
  return () => most;
}
