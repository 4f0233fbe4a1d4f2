import { describe, expect, it } from 'vitest';
import { jsonPost, rawRequest, type RawResponse } from '../helpers/raw-http.js';
import { serveFakes, type Echo } from './serve-fakes.js';

function aliasIn({ status, body }: RawResponse): string {
  if (status !== 200) return `${status}: ${body.toString()}`;
  return (JSON.parse(body.toString()) as Echo).alias;
}

const two = { alpha: {}, beta: {} };

describe('--default-model', () => {
  it('serves requests that name no model', async () => {
    const { url } = await serveFakes({ models: two, args: ['--default-model', 'beta'] });
    const bodies = ['[1,2]', '{"content":"x"}', '{"model":""}', '{"model":null}', '"text"', ''];
    for (const body of bodies) {
      expect(aliasIn(await rawRequest(`${url}/infill`, { method: 'POST', body })), body).toBe('beta');
    }
    const chunked = { method: 'POST', headers: { 'Transfer-Encoding': 'chunked' } };
    expect(aliasIn(await rawRequest(`${url}/infill`, chunked))).toBe('beta');
    expect((await rawRequest(`${url}/slots`)).status).toBe(200);
  });

  it('leaves a request to the model that it names, in its body or, without one, in its query', async () => {
    const { url } = await serveFakes({ models: two, args: ['--default-model', 'beta'] });
    expect(aliasIn(await rawRequest(`${url}/infill`, jsonPost({ model: 'alpha' })))).toBe('alpha');
    expect(aliasIn(await rawRequest(`${url}/infill?model=alpha`, { method: 'POST', body: '[]' }))).toBe(
      'alpha',
    );
    // The body has the first word, as without the option.
    expect(aliasIn(await rawRequest(`${url}/infill?model=alpha`, jsonPost({ model: 'beta' })))).toBe('beta');
    const unknown = await rawRequest(`${url}/infill?model=gamma`, { method: 'POST', body: '[]' });
    expect(aliasIn(unknown)).toContain("model 'gamma' not found");
  });

  it('auto is the only model there is, and refuses to choose among several', async () => {
    const one = await serveFakes({ models: { alpha: {} }, args: ['--default-model', 'auto'] });
    expect(aliasIn(await rawRequest(`${one.url}/infill`, { method: 'POST', body: '[]' }))).toBe('alpha');
    const several = await serveFakes({ models: two, args: ['--default-model', 'auto'] });
    const refused = await rawRequest(`${several.url}/infill`, { method: 'POST', body: '[]' });
    expect(aliasIn(refused)).toMatch(/^400: .*--default-model auto needs exactly one model: there are 2/);
  });

  it('that no model has is told to who needs it', async () => {
    const { url } = await serveFakes({ models: two, args: ['--default-model', 'gone'] });
    expect(aliasIn(await rawRequest(`${url}/infill`, { method: 'POST', body: '[]' }))).toContain(
      "there is no model 'gone' (--default-model)",
    );
  });

  it('does not make broken JSON a request', async () => {
    const { url } = await serveFakes({ models: two, args: ['--default-model', 'beta'] });
    expect((await rawRequest(`${url}/infill`, { method: 'POST', body: '{' })).status).toBe(400);
  });

  it('without it a request must name its model in its body', async () => {
    const { url } = await serveFakes({ models: { alpha: {} } });
    for (const body of ['[1]', '{}']) {
      const answer = await rawRequest(`${url}/infill?model=alpha`, { method: 'POST', body });
      expect(aliasIn(answer)).toContain('model name is missing from the request');
    }
    expect((await rawRequest(`${url}/slots`)).status).toBe(400);
  });

  it('has /props tell of the model once it is loaded, and loads it for that never', async () => {
    const service = await serveFakes({ models: { alpha: {} }, args: ['--default-model', 'auto'] });
    const { url } = service;
    const props = async (): Promise<Record<string, unknown>> => {
      const { body } = await rawRequest(`${url}/props`);
      return JSON.parse(body.toString()) as Record<string, unknown>;
    };
    const before = await props();
    expect(before).toMatchObject({ role: 'router', model_path: 'none' });
    expect((await service.list()).map(({ status }) => status.value)).toEqual(['unloaded']);
    await rawRequest(`${url}/infill`, { method: 'POST', body: '[]' });
    const after = await props();
    expect(after).toMatchObject({ role: 'router', max_instances: before['max_instances'] });
    expect(after['total_slots']).toBeTypeOf('number');
  });
});
