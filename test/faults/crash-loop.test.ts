/** Real models that fail again and again: left alone for longer and longer, until something has changed. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { endless, nameAnswer, piecesOf, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { sigkill } from '../helpers/processes.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import {
  chat,
  errorIn,
  get,
  modelEntry,
  post,
  question,
  streamChat,
  untilStatus,
  type Answer,
} from '../helpers/supervisor-client.js';
import type { SupervisorProcess } from '../helpers/supervisor-process.js';
import { tempDir } from '../helpers/temp-dir.js';

/** What its child cannot load, although its file is in order: of an architecture that no llama-server knows. */
function unloadable(model: Buffer): Buffer {
  const changed = Buffer.from(model);
  changed.write('llamb', changed.indexOf('llama', changed.indexOf('general.architecture')));
  return changed;
}

const steady = endless('steady-');
const presetFor = (cacheType: string) => `[optioned]\ncache-type-k = ${cacheType}\n`;

let supervisor: SupervisorProcess;
let url: string;
/** Where models and presets are. */
let dir: string;
let presets: string;

beforeAll(async () => {
  const names = ['foreign', 'mended', 'wanted', 'optioned', 'mortal', 'fine'];
  dir = await writeModels({
    steady,
    ...Object.fromEntries(names.map((name) => [name, sayingItsName(name)])),
  });
  for (const name of ['foreign', 'mended', 'wanted']) {
    const file = join(dir, `${name}.gguf`);
    writeFileSync(file, unloadable(readFileSync(file)));
  }
  presets = join(tempDir(), 'presets.ini');
  writeFileSync(presets, presetFor('nonsense'));
  supervisor = await startRealSupervisor({
    args: ['--models-dir', dir, '--models-preset', presets, '--models-max', '0', '--no-watch'],
  });
  ({ url } = supervisor);
});

const ask = (model: string): Promise<Answer> => post(url, '/v1/chat/completions', question(model));

function starts(model: string): number {
  return supervisor.log().filter(({ msg, ...told }) => msg === 'model.loading' && told['model'] === model)
    .length;
}

/** Asks until the model is left alone, which is from its second failure on; a pause that is missed brings a longer one. */
async function untilLeftAlone(model: string): Promise<{ readonly failed: number; readonly refusal: Answer }> {
  let failed = 0;
  const refusal = await eventually(`${model} is left alone`, async () => {
    const answer = await ask(model);
    expect(answer.status).toBe(503);
    if (errorIn(answer.text).reason === 'model_failing') return answer;
    expect(errorIn(answer.text).reason).toBe('load_failed');
    failed += 1;
    return undefined;
  });
  return { failed, refusal };
}

/** How often its failures count by now. */
async function failuresOf(model: string): Promise<number | undefined> {
  return (await modelEntry(url, model)).status.error?.failures;
}

describe('a model that cannot be loaded', () => {
  it('is left alone after its second failure: 503 with why, how often and when again, and no process', async () => {
    const bystander = streamChat(url, 'steady');
    await bystander.untilPieces(10);
    const { failed, refusal } = await untilLeftAlone('foreign');
    expect(failed).toBeGreaterThanOrEqual(2);

    const error = errorIn(refusal.text);
    expect(error).toMatchObject({ code: 503, type: 'unavailable_error', model: 'foreign' });
    expect(error.message).toContain(`failed ${failed} times in a row`);
    expect(error.message).toContain('unknown model architecture');
    expect(error.last_lines?.join('\n')).toContain('failed to load model');
    expect(Number(refusal.headers['retry-after'])).toBeGreaterThan(0);
    const { status } = await modelEntry(url, 'foreign');
    expect(status).toMatchObject({ failed: true, error: { reason: 'load_failed', failures: failed } });
    await eventually('the starts are told', () => starts('foreign') === failed);

    // Others load and answer meanwhile.
    expect(await chat(url, 'fine')).toBe(nameAnswer('fine'));
    await bystander.untilPieces(bystander.pieces().length + 50);
    expect(bystander.pieces()).toEqual(piecesOf(steady, bystander.pieces().length));
    bystander.abort();
  });

  it('says in the list when it may be started again, and is then', async () => {
    const error = await eventually('it is listed in a pause', async () => {
      await untilLeftAlone('foreign');
      const { status } = await modelEntry(url, 'foreign');
      // On a busy machine it may be over by now: the next one is longer.
      return status.error?.retry_at !== undefined && status.error;
    });
    expect(Date.parse(error.retry_at ?? '')).toBeGreaterThan(Date.parse(error.at ?? ''));
    await eventually('it is started again', async () => {
      await ask('foreign');
      return ((await failuresOf('foreign')) ?? 0) > (error.failures ?? NaN);
    });
  });

  it('is tried at once when its file is another one, and has failed once when that is bad, too', async () => {
    const file = join(dir, 'mended.gguf');
    const bad = readFileSync(file);
    await untilLeftAlone('mended');
    writeFileSync(file, Buffer.concat([bad, Buffer.alloc(32)]));
    expect((await get(url, '/models?reload=1')).status).toBe(200);
    expect((await modelEntry(url, 'mended')).status.failed).toBeUndefined();
    expect(errorIn((await ask('mended')).text).reason).toBe('load_failed');
    expect(await failuresOf('mended')).toBe(1);

    await untilLeftAlone('mended');
    await writeModels({ mended: sayingItsName('mended') }, dir);
    await get(url, '/models?reload=1');
    expect(await chat(url, 'mended')).toBe(nameAnswer('mended'));
  });

  it('is tried at once when its section is another one, and has failed once when that is bad, too', async () => {
    await untilLeftAlone('optioned');
    writeFileSync(presets, presetFor('rubbish'));
    await get(url, '/models?reload=1');
    expect(errorIn((await ask('optioned')).text).reason).toBe('load_failed');
    expect(await failuresOf('optioned')).toBe(1);

    await untilLeftAlone('optioned');
    writeFileSync(presets, presetFor('f32'));
    await get(url, '/models?reload=1');
    expect(await chat(url, 'optioned')).toBe(nameAnswer('optioned'));
  });

  it('is tried at once when somebody loads it by hand, and its failures are counted anew', async () => {
    const { failed } = await untilLeftAlone('wanted');
    expect((await post(url, '/models/load', { model: 'wanted' })).status).toBe(200);
    await eventually('it is started', () => starts('wanted') === failed + 1);
    await untilStatus(url, 'wanted', 'unloaded');
    expect(await failuresOf('wanted')).toBe(1);
  });
});

it('a model that crashes after each of its answers is started at once each time: a success closes the row', async () => {
  for (let crash = 1; crash <= 4; crash += 1) {
    expect(await chat(url, 'mortal')).toBe(nameAnswer('mortal'));
    sigkill((await modelEntry(url, 'mortal')).pid ?? NaN);
    const { status } = await untilStatus(url, 'mortal', 'unloaded');
    expect(status.error).toMatchObject({ reason: 'crashed', failures: 1 });
    expect(status.error?.retry_at).toBeUndefined();
  }
});
