/** A model whose process does not heed its stop: what the others feel of it, which is nothing. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { alive, sigkill } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { chat, modelEntry, post, streamChat, untilStatus } from '../helpers/supervisor-client.js';
import { tempDir } from '../helpers/temp-dir.js';

const steady = endless('steady-');

/** A supervisor in front of real models, of which the one called `stuck` gets this long to stop. */
async function serve({ stopTimeoutS, modelsMax }: { stopTimeoutS: number; modelsMax: number }) {
  const dir = await writeModels({ stuck: endless(), steady, cold: sayingItsName('cold') });
  const presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, `[stuck]\nstop-timeout = ${stopTimeoutS}\n`);
  return await startRealSupervisor({
    args: ['--models-dir', dir, '--models-preset', presets, '--models-max', String(modelsMax)],
  });
}

/** Stops the process of a model, loaded by a short request: it hears neither its exit command nor SIGTERM. */
async function freeze(url: string, model: string): Promise<number> {
  await chat(url, model, { max_tokens: 1 });
  const { pid } = await modelEntry(url, model);
  if (pid === undefined) throw new Error(`${model} is listed without its process`);
  process.kill(pid, 'SIGSTOP');
  atEndOfTest(() => sigkill(pid));
  return pid;
}

describe('while a frozen model is being stopped', () => {
  it('others stream, answer, load and unload as if nothing were', async () => {
    const { url } = await serve({ stopTimeoutS: 3_600, modelsMax: 3 });
    const stream = streamChat(url, 'steady');
    await stream.untilPieces(10);
    const pid = await freeze(url, 'stuck');
    expect((await post(url, '/models/unload', { model: 'stuck' })).status).toBe(200);

    // The third slot, twice: the frozen one keeps its own.
    expect(await chat(url, 'cold')).toBe(nameAnswer('cold'));
    expect((await post(url, '/models/unload', { model: 'cold' })).status).toBe(200);
    await untilStatus(url, 'cold', 'unloaded');
    expect(await chat(url, 'cold')).toBe(nameAnswer('cold'));
    await stream.untilPieces(stream.pieces().length + 100);
    expect(stream.pieces()).toEqual(piecesOf(steady, stream.pieces().length));

    expect(alive(pid)).toBe(true);
    expect(await modelEntry(url, 'stuck')).toMatchObject({
      pid,
      stopping: true,
      status: { value: 'loaded' },
    });
    stream.abort();
  });

  it('who waits for its slot is served when its time is over, and who wants it again by a new process', async () => {
    const supervisor = await serve({ stopTimeoutS: 1, modelsMax: 1 });
    const { url } = supervisor;
    const pid = await freeze(url, 'stuck');
    expect(await chat(url, 'cold')).toBe(nameAnswer('cold'));
    expect(alive(pid)).toBe(false);
    const killed = await eventually('it is said', () =>
      supervisor.log().find(({ msg }) => msg === 'did not exit when asked to; killing it'),
    );
    expect(killed).toMatchObject({ level: 40, model: 'stuck', pid, stopTimeoutMs: 1_000 });
    // That it had to be killed is no failure of the model.
    expect((await modelEntry(url, 'stuck')).status.failed).toBeUndefined();
    expect(await chat(url, 'stuck', { max_tokens: 2 })).toBe('lap-1 lap-2');
  });
});
