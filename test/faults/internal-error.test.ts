/** A mistake of ours that nobody has foreseen: what may be wrong by then must not go on, and the next run must serve. */
import { expect, it } from 'vitest';
import { atEndOfTest } from '../helpers/cleanup.js';
import { eventually, withDeadline } from '../helpers/eventually.js';
import { freePort } from '../helpers/free-port.js';
import { jsonPost, rawExchange } from '../helpers/raw-http.js';
import { serveFakes } from '../http/serve-fakes.js';

const fixture = new URL('../fixtures/internal-error.js', import.meta.url).href;

it.each(['exception', 'rejection'])(
  'an error that nobody handles (%s) ends everything, says where it came from, and is not in the way of the next run',
  async (kind) => {
    const args = ['--port', String(await freePort())];
    const service = await serveFakes({
      models: { alpha: { tokenIntervalMs: 50, forkGrandchild: { ignoreSigterm: true } }, beta: {} },
      args,
      env: { NODE_OPTIONS: `--import ${fixture}`, INTERNAL_ERROR: kind },
      meetsInternalError: true,
    });
    const { supervisor } = service;
    await service.use('beta');
    const cut = rawExchange(
      `${service.url}/v1/completions`,
      jsonPost({ model: 'alpha', stream: true, max_tokens: -1 }),
    );
    atEndOfTest(() => cut.abort());
    await eventually('the answer has begun', () => cut.received().length > 0);

    process.kill(supervisor.pid, 'SIGUSR2');
    expect(await withDeadline('it ends', supervisor.exited, 10_000)).toEqual({ code: 1, signal: null });
    expect((await cut.ended).complete).toBe(false);
    const fatal = supervisor.log().filter(({ level }) => level === 60);
    expect(fatal).toMatchObject([{ msg: 'internal error; ending', err: { message: 'a mistake of ours' } }]);
    expect((fatal[0]?.['err'] as { stack: string }).stack).toContain('internal-error.js');

    const next = await serveFakes({ models: { alpha: {} }, args });
    expect((await next.use('alpha')).alias).toBe('alpha');
    await eventually('nothing of the first run is left', () => supervisor.family().length === 0);
  },
);
