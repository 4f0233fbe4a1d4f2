/** Models whose process lives, says that it is well, and breaks off what it is asked. */
import { describe, expect, it } from 'vitest';
import { eventually } from '../helpers/eventually.js';
import { alive } from '../helpers/processes.js';
import { jsonPost, rawRequest } from '../helpers/raw-http.js';
import { serveFakes, wireError } from '../http/serve-fakes.js';

describe('a model whose process lives', () => {
  it('and takes no connection any more is stopped as one that hangs, and the next one serves', async () => {
    const service = await serveFakes({ models: { alpha: { byStart: [{ stopsListening: true }] } } });
    const ask = () => rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' }));
    // Its first and last answer.
    await service.use('alpha');
    const { pid = 0 } = await service.entry('alpha');
    expect(alive(pid)).toBe(true);
    wireError(await ask(), 502, 'server_error');

    await eventually('another one serves', async () => (await ask()).status === 200, { deadlineMs: 30_000 });
    expect((await service.entry('alpha')).pid).not.toBe(pid);
    expect(alive(pid)).toBe(false);
    const verdict = service.supervisor.log().find(({ msg }) => msg === 'hangs; stopping it');
    expect(verdict).toMatchObject({ model: 'alpha' });
    expect(verdict?.['reason']).toMatch(/^broke off the last \d+ requests .*two one-token completions, too/);
    expect(verdict?.['reason']).toContain('ECONNREFUSED');
  });

  it('and cuts what one client sends is asked for a token, gives it, and is left alone', async () => {
    const service = await serveFakes({ models: { alpha: { breaksOff: ['/infill'] } } });
    const answer = await rawRequest(`${service.url}/v1/completions`, jsonPost({ model: 'alpha' }));
    expect(answer.status).toBe(200);
    const { pid } = await service.entry('alpha');
    for (let n = 0; n < 8; n += 1) {
      wireError(await rawRequest(`${service.url}/infill`, jsonPost({ model: 'alpha' })), 502, 'server_error');
    }
    await eventually('it has been asked', () =>
      service.journal.of('answered').some(({ url, status }) => url === '/completion' && status === 200),
    );
    expect((await service.entry('alpha')).pid).toBe(pid);
    expect(service.journal.of('start')).toHaveLength(1);
  });
});
